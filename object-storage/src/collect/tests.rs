//! Several hosts put images into one place, let go of some, and collect, in any order, with any pauses, and are killed anywhere. At no
//! moment does an image lack a pack, and what nobody needs is gone in the end.

use super::stage::{Stage, State};
use super::*;
use crate::records::SLACK;
use crate::{Index, Order, PlaceName, upload};
use godwit_store::Store;
use object_store::path::Path as ObjectPath;
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// The files of each image: some are in several.
const IMAGES: [&str; 5] = ["abc", "bcd", "cde", "af", "abc"];

/// A store with the images, and what they are called.
static STORE: LazyLock<(TempDir, Vec<Digest>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), None).unwrap();
    let manifests = IMAGES.iter().enumerate().map(|(number, files)| {
        let tree = dir.path().join(format!("tree{number}"));
        std::fs::create_dir(&tree).unwrap();
        files
            .chars()
            .for_each(|name| std::fs::write(tree.join(name.to_string()), [name as u8; 100]).unwrap());
        let mut lease = store.lease().unwrap();
        let tree = lease.add_tree(&tree, &mut |_| {}).unwrap().manifest;
        let manifest = lease.describe(tree, [("number".to_owned(), number.to_string())].into()).unwrap();
        lease.pin(&format!("image/{number}").parse().unwrap(), manifest).unwrap();
        manifest
    });
    let manifests = manifests.collect();
    (dir, manifests)
});

/// What is worth to be held up before it is done; the last is the end.
const WISHES: &[&str] = &[
    "PUT uploads",
    "LIST packs",
    "PUT checkpoints",
    "DELETE uploads",
    "PUT condemned",
    "DELETE packs",
    "LIST uploads",
    "",
];

#[derive(Clone, Debug)]
enum Event {
    /// A host begins to put an image there.
    Upload(usize, usize),
    /// A host lets go of an image, or of none, and collects.
    Collect(usize, Option<usize>),
    /// One of those who wait does one thing.
    Step(usize),
    /// One of those who wait does all that it has in mind, until it would do this.
    Until(usize, &'static str),
    /// One of them is killed.
    Kill(usize),
    /// So many hours pass.
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0..3usize, 0..IMAGES.len()).prop_map(|(host, image)| Event::Upload(host, image)),
        3 => (0..3usize, prop::option::of(0..IMAGES.len())).prop_map(|(host, image)| Event::Collect(host, image)),
        5 => any::<usize>().prop_map(Event::Step),
        8 => (any::<usize>(), prop::sample::select(WISHES)).prop_map(|(one, wish)| Event::Until(one, wish)),
        1 => any::<usize>().prop_map(Event::Kill),
        3 => prop::sample::select(vec![1, 12, 22, 23, 24, 25, 49]).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 10..90)
}

/// A case.
struct Scene {
    stage: Arc<Stage>,
    place: PlaceName,
    hosts: Vec<TempDir>,
    actors: Vec<JoinHandle<()>>,
    /// Images whose upload slept for a day between two requests, and has not looked again yet.
    excused: HashSet<ObjectPath>,
}

impl Scene {
    fn new() -> Self {
        let hosts = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let place = "s3://a-bucket".parse().unwrap();
        Self { stage: Stage::new(), place, hosts, actors: Vec::new(), excused: HashSet::new() }
    }

    fn begin(&mut self, host: usize, deed: impl FnOnce(&Place, &Path) + Send + 'static) -> usize {
        let (name, ledgers) = (self.place.clone(), self.hosts[host].path().to_owned());
        let actor = self.actors.len();
        self.actors.push(self.stage.enter(actor, move |store| deed(&Place::over(&name, store), &ledgers)));
        actor
    }

    fn upload(&mut self, host: usize, image: usize) -> usize {
        let (dir, manifests) = &*STORE;
        self.begin(host, move |place, ledgers| {
            let mut lease = Store::open(&dir.path().join("store"), None).unwrap().lease().unwrap();
            let order =
                Order { manifest: manifests[image], kind: Kind::Checkpoint, recipients: None, ledgers };
            // who was killed, or meets another upload of the same host, has not done it
            let _ = upload(place, &mut lease, &order, &mut |_, _| {});
        })
    }

    fn collect(&mut self, host: usize, image: Option<usize>) -> usize {
        self.begin(host, move |place, ledgers| {
            let forget: Vec<_> = image.iter().map(|image| (Kind::Checkpoint, STORE.1[*image])).collect();
            let order = Collection { forget: &forget, keys: Keys(None), ledgers, dry_run: false };
            let _ = collect(place, &order, &mut |_, _| {});
        })
    }

    /// The packs of a place with one that was condemned so many hours ago, on the list of the host that put it there.
    fn condemned_for(&mut self, hours: u64) {
        let first = self.upload(0, 0);
        self.finish(first);
        self.pass(25);
        let forgetting = self.collect(1, Some(0));
        self.finish(forgetting);
        self.pass(hours);
    }

    #[track_caller]
    fn assert_there(&self, image: usize) {
        let state = self.stage.state();
        let path = ObjectPath::from(format!("checkpoints/{}", STORE.1[image]));
        assert!(state.objects().contains(&path), "it was not put there");
        assert_whole(&state, &HashSet::new());
    }

    fn step(&mut self, actor: usize) {
        self.stage.grant(actor);
        let mut state = self.stage.state();
        if let Some((actor, path)) =
            state.last.take().filter(|(_, path)| path.as_ref().starts_with("checkpoints/"))
        {
            let held = state.put[&(actor, "uploads".to_owned())];
            match age(held, state.now) < GRACE - SLACK {
                true => self.excused.remove(&path),
                false => self.excused.insert(path),
            };
        }
        assert_whole(&state, &self.excused);
    }

    fn happen(&mut self, event: &Event) {
        let waiting = self.stage.waiting();
        let one = |number: usize| waiting.get(number % waiting.len().max(1)).copied();
        match *event {
            Event::Upload(host, image) => drop(self.upload(host, image)),
            Event::Collect(host, image) => drop(self.collect(host, image)),
            Event::Step(number) => one(number).into_iter().for_each(|actor| self.step(actor)),
            Event::Until(number, wish) => one(number).into_iter().for_each(|actor| self.until(actor, wish)),
            Event::Kill(number) => one(number).into_iter().for_each(|actor| self.stage.kill(actor)),
            Event::Pass(hours) => self.pass(hours),
        }
    }

    /// Has one go on until it would do this, or to its end.
    fn until(&mut self, actor: usize, wish: &str) {
        while self.stage.wish(actor).is_some_and(|next| wish.is_empty() || !next.starts_with(wish)) {
            self.step(actor);
        }
    }

    fn finish(&mut self, actor: usize) {
        self.until(actor, "");
    }

    /// Has one do so many things; whether it wants to do more.
    fn advance(&mut self, actor: usize, steps: usize) -> bool {
        (0..steps).for_each(|_| {
            if self.stage.wish(actor).is_some() {
                self.step(actor);
            }
        });
        self.stage.wish(actor).is_some()
    }

    fn collect_now(&mut self) {
        let collect = self.collect(1, None);
        self.finish(collect);
    }

    /// How many objects of a directory there are.
    fn count(&self, directory: &str) -> usize {
        self.stage.state().objects().iter().filter(|path| path.prefix_matches(&directory.into())).count()
    }

    fn pass(&self, hours: u64) {
        self.stage.state().now += Duration::from_secs(hours * 3600);
    }

    /// Everybody comes to an end, and collections run until they have nothing to do; what is left.
    fn end(mut self) -> Vec<ObjectPath> {
        while let Some(actor) = self.stage.waiting().first().copied() {
            self.finish(actor);
        }
        for _ in 0..4 {
            self.stage.state().now += GRACE;
            self.collect(0, None);
            self.finish(self.actors.len() - 1);
        }
        self.actors.into_iter().for_each(|actor| actor.join().unwrap());
        self.stage.state().objects()
    }
}

fn in_directory(path: &ObjectPath, directory: &str) -> Option<Digest> {
    path.as_ref().strip_prefix(directory)?.strip_prefix('/')?.parse().ok()
}

fn index(state: &State, path: &ObjectPath) -> Option<Index> {
    let manifest = in_directory(path, "checkpoints")?;
    Some(Index::decode(path.as_ref(), manifest, state.read(path), Keys(None)).unwrap())
}

/// Each image that is there has all of its packs.
#[track_caller]
fn assert_whole(state: &State, excused: &HashSet<ObjectPath>) {
    let objects = state.objects();
    let packs: HashSet<Digest> = objects.iter().filter_map(|path| in_directory(path, PACKS)).collect();
    for path in objects.iter().filter(|path| !excused.contains(*path)) {
        let Some(index) = index(state, path) else { continue };
        let missing = index.packs.iter().find(|pack| !packs.contains(&pack.name));
        assert!(missing.is_none(), "{path} lacks {}", missing.unwrap().name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_image_ever_lacks_a_pack_and_in_the_end_there_are_no_others(events in events()) {
        let mut scene = Scene::new();
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
