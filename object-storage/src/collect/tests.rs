//! Several hosts put images into one place, let go of some, and collect, in any order, with any pauses, and are killed anywhere. At no
//! moment does an image lack a pack, and what nobody needs is gone in the end.

use super::scene::{STORE, Scene, events, in_directory, index};
use super::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_image_ever_lacks_a_pack_and_in_the_end_there_are_no_others(
        hours in prop::option::of(prop::sample::select(vec![1, 22, 25])),
        events in events(),
    ) {
        let mut scene = Scene::new();
        // otherwise few cases come as far as a pack that goes
        hours.into_iter().for_each(|hours| scene.condemned_for(hours));
        events.iter().for_each(|event| scene.happen(event));
        let stage = scene.stage.clone();
        let left = scene.end();
        let state = stage.state();
        let needed: HashSet<Digest> =
            left.iter().filter_map(|path| index(&state, path)).flat_map(|index| index.packs).map(|pack| pack.name).collect();
        let packs: HashSet<Digest> = left.iter().filter_map(|path| in_directory(path, PACKS)).collect();
        prop_assert_eq!(packs, needed);
        prop_assert!(!left.iter().any(|path| path.as_ref().starts_with("uploads/")), "{:?}", left);
    }
}

#[test]
fn a_pack_that_is_about_to_go_is_not_relied_on_and_goes_once_more() {
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let upload = scene.upload(0, 0);
    scene.until(upload, "PUT uploads");
    scene.pass(3);
    let collect = scene.collect(1, None);
    scene.until(collect, "DELETE packs");
    scene.until(upload, "PUT packs");
    assert!(scene.stage.wish(upload).is_some(), "it relied on a pack that is about to go");
    scene.finish(upload);
    scene.finish(collect);
    scene.assert_there(0);
}

#[test]
fn a_pack_that_an_upload_under_way_has_named_stays() {
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let upload = scene.upload(0, 4);
    scene.until(upload, "PUT checkpoints");
    scene.pass(3);
    // the first one leaves the list there, too
    scene.collect_now();
    scene.collect_now();
    scene.until(upload, "DELETE uploads");
    scene.assert_there(4);
}

#[test]
fn an_upload_that_ends_while_a_collection_looks_is_seen_in_one_of_two_ways() {
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let upload = scene.upload(0, 4);
    scene.until(upload, "PUT checkpoints");
    scene.pass(3);
    let collect = scene.collect(1, None);
    scene.until(collect, "LIST checkpoints");
    scene.finish(upload);
    scene.finish(collect);
    scene.assert_there(4);
}

#[test]
fn a_pack_with_the_content_of_one_that_goes_late_is_another_one() {
    let mut scene = Scene::new();
    scene.condemned_for(25);
    let collect = scene.collect(1, None);
    scene.until(collect, "DELETE packs");
    // a host that has no ledger
    let upload = scene.upload(2, 0);
    scene.finish(upload);
    scene.finish(collect);
    scene.assert_there(0);
}

#[test]
fn what_an_upload_put_that_was_killed_is_used_by_the_next_one_or_goes() {
    let mut scene = Scene::new();
    let dead = scene.upload(0, 0);
    scene.until(dead, "PUT uploads");
    scene.stage.kill(dead);
    scene.pass(12);
    scene.collect_now();
    // a pack that was condemned when it was young would be lost by now
    scene.pass(24);
    let next = scene.upload(0, 0);
    scene.finish(next);
    scene.assert_there(0);
    assert_eq!(scene.count(PACKS), 1, "it was put once more");
    let forget = scene.collect(1, Some(0));
    scene.finish(forget);
    let left = scene.end();
    assert!(left.iter().all(|path| path.as_ref() == "godwit"), "{left:?}");
}

/// An upload and a collection, each held up once, before any of its requests, with hours in between: first one goes so far, then the other,
/// then the first one to its end, and the other. The pack is condemned for so many hours at the beginning.
fn race(condemned_for: u64, hours: [u64; 2], is_upload_first: bool) {
    for steps in 0.. {
        let mut is_last = true;
        for other_steps in 0.. {
            let mut scene = Scene::new();
            scene.condemned_for(condemned_for);
            let (first, second) = match is_upload_first {
                true => (scene.upload(0, 4), scene.collect(1, None)),
                false => (scene.collect(1, None), scene.upload(0, 4)),
            };
            is_last = !scene.advance(first, steps);
            scene.pass(hours[0]);
            let goes_on = scene.advance(second, other_steps);
            scene.pass(hours[1]);
            scene.finish(first);
            scene.finish(second);
            scene.assert_there(4);
            if !goes_on {
                break;
            }
        }
        if is_last {
            break;
        }
    }
}

#[test]
fn an_upload_that_is_held_up_anywhere_while_a_collection_is_lacks_no_pack() {
    race(22, [3, 0], true);
}

#[test]
fn a_collection_that_is_held_up_anywhere_while_an_upload_is_takes_no_pack_of_it() {
    race(22, [0, 3], false);
}

#[test]
fn a_pack_that_was_condemned_lately_stays_for_who_relies_on_it() {
    race(22, [0, 0], false);
}

#[test]
fn an_upload_that_was_held_up_for_a_day_before_its_index_looks_again() {
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let upload = scene.upload(0, 4);
    scene.until(upload, "PUT checkpoints");
    scene.pass(25);
    scene.collect_now();
    assert_eq!(scene.count(PACKS), 0, "its list is a day old, and protects nothing");
    scene.finish(upload);
    scene.assert_there(4);
}

#[test]
fn a_pack_that_is_gone_with_its_list_is_missed() {
    // an upload of long ago, a collection that is late, and one that takes away the list when the pack is gone
    for pause in ["LIST condemned", "LIST packs"] {
        let mut scene = Scene::new();
        scene.condemned_for(22);
        let upload = scene.upload(0, 4);
        scene.until(upload, "PUT uploads");
        scene.pass(3);
        let late = scene.collect(1, None);
        scene.until(late, "DELETE packs");
        scene.pass(24);
        scene.until(upload, pause);
        scene.finish(late);
        scene.collect_now();
        assert_eq!((scene.count(PACKS), scene.count("condemned")), (0, 0));
        scene.finish(upload);
        scene.assert_there(4);
    }
}

#[test]
fn of_two_who_condemn_a_pack_the_first_one_counts() {
    let mut scene = Scene::new();
    let first = scene.upload(0, 0);
    scene.finish(first);
    scene.pass(25);
    let slow = scene.collect(1, Some(0));
    scene.until(slow, "PUT condemned");
    scene.collect_now();
    scene.pass(25);
    let collect = scene.collect(1, None);
    scene.until(collect, "DELETE packs");
    scene.finish(slow);
    let upload = scene.upload(0, 4);
    scene.finish(upload);
    scene.finish(collect);
    scene.assert_there(4);
}

#[test]
fn a_pack_that_goes_in_an_hour_is_put_once_more_before_anything_relies_on_it() {
    let mut scene = Scene::new();
    scene.condemned_for(23);
    let upload = scene.upload(0, 4);
    scene.until(upload, "PUT uploads");
    assert_eq!(scene.count(PACKS), 2);
    scene.finish(upload);
    scene.assert_there(4);
}

#[test]
fn a_pack_that_is_cut_off_when_the_upload_looks_goes_once_more() {
    let mut scene = Scene::new();
    let upload = scene.upload(0, 0);
    scene.until(upload, "PUT uploads");
    scene.stage.state().cut_off(PACKS);
    scene.finish(upload);
    scene.assert_there(0);
    assert_eq!(scene.count(PACKS), 2);
}

#[test]
fn a_list_of_the_condemned_stays_for_two_days_and_as_long_as_a_pack_of_it_is_there() {
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let upload = scene.upload(0, 4);
    scene.finish(upload);
    scene.pass(49);
    scene.collect_now();
    assert_eq!((scene.count(PACKS), scene.count("condemned")), (1, 1), "it is needed, and never pardoned");
    let mut scene = Scene::new();
    scene.condemned_for(25);
    scene.collect_now();
    scene.collect_now();
    assert_eq!((scene.count(PACKS), scene.count("condemned")), (0, 1), "who lists packs late may see it yet");
    scene.pass(23);
    scene.collect_now();
    assert_eq!(scene.count("condemned"), 0);
}

#[test]
fn what_a_snapshot_needs_stays_and_goes_with_it_once_it_was_condemned() {
    let mut scene = Scene::new();
    let snapshot = scene.upload_as(Kind::Snapshot, 0, 0);
    scene.finish(snapshot);
    scene.pass(25);
    scene.collect_now();
    assert_eq!((scene.count(PACKS), scene.count("condemned")), (1, 0));
    // the second time that an image is forgotten which needs a pack there is no new day
    let mut scene = Scene::new();
    scene.condemned_for(22);
    let again = scene.upload(0, 4);
    scene.finish(again);
    scene.pass(3);
    scene.collect_now();
    assert_eq!(scene.count(PACKS), 1);
    let forget = scene.collect(1, Some(4));
    scene.finish(forget);
    assert_eq!(scene.count(PACKS), 0);
}

#[test]
fn nothing_is_touched_where_an_index_is_damaged_that_stays_or_when_it_is_only_to_be_said() {
    let mut scene = Scene::new();
    scene.condemned_for(0);
    // hosts that have no ledger of that pack
    for (host, image) in [(1, 0), (2, 3)] {
        let upload = scene.upload(host, image);
        scene.finish(upload);
    }
    scene.pass(25);
    scene.stage.state().cut_off(&format!("checkpoints/{}", STORE.1[0]));
    let before = scene.stage.state().objects();
    for (image, dry_run) in [(3, false), (0, true)] {
        let collect = scene.collect_or_say(1, Some(image), dry_run);
        scene.finish_unseen(collect);
        assert_eq!(scene.stage.state().objects(), before);
    }
    let collect = scene.collect(1, Some(0));
    scene.finish_unseen(collect);
    assert_eq!((scene.count("checkpoints"), scene.count(PACKS)), (1, 2), "one pack was condemned before");
}
