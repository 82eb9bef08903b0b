use super::*;
use crate::question::Question;
use crate::{Keeper, attend};
use godwit_migration::Cancel;
use godwit_store::Store;
use godwit_store::manifest::Described;
use godwit_transfer::{Descriptors, Message, Wire};
use std::path::Path;
use std::time::Duration;

/// Keeps everything under the number in its facts, unless it has another answer.
struct House {
    store: Store,
    verdict: Verdict,
}

impl Keeper for House {
    fn store(&mut self) -> Result<Store, String> {
        Ok(self.store.clone())
    }

    fn judge(&mut self, manifest: Digest, _: &Described, _: bool) -> Verdict {
        let pins = self.store.pins().unwrap();
        if pins.iter().any(|pin| pin.manifest == manifest) { Verdict::There } else { self.verdict.clone() }
    }

    fn keep(&mut self, lease: &mut Lease, manifest: Digest, described: &Described) -> Result<String, String> {
        let name = format!("snapshot/{}", described.facts["number"]);
        lease.pin(&name.parse().unwrap(), manifest).map_err(|error| error.to_string())?;
        Ok(name)
    }
}

fn visit<T>(house: &mut House, act: impl FnOnce(&mut Visit) -> T) -> T {
    let (ours, theirs) = Descriptors::pair().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut wire = Wire::open(Box::new(theirs), Cancel::default(), Duration::from_secs(5)).unwrap();
            wire.hear().unwrap();
            // nothing is given: who brings something may not ask
            attend(&mut wire, None, "there", None, Ok(house))
        });
        let mut visit = Visit::begin("there", Box::new(ours), "here", Cancel::default()).unwrap();
        let done = act(&mut visit);
        drop(visit);
        server.join().unwrap().unwrap();
        done
    })
}

fn keep(store: &Store, volume: &Path, number: u32) -> Digest {
    let mut lease = store.lease().unwrap();
    let added = lease.add_tree(volume, &mut |_| {}).unwrap();
    let facts = [("number".to_owned(), number.to_string())].into();
    let manifest = lease.describe(added.manifest, facts).unwrap();
    lease.pin(&format!("snapshot/{number}").parse().unwrap(), manifest).unwrap();
    manifest
}

/// A volume with one file, this host's store and the other one.
fn scene(bytes: usize) -> (tempfile::TempDir, std::path::PathBuf, Store, House) {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let words = (1..=bytes as u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let content: Vec<u8> = words.take(bytes).collect();
    std::fs::write(volume.join("one"), content).unwrap();
    let here = Store::open(&dir.path().join("here"), None).unwrap();
    let store = Store::open(&dir.path().join("there"), None).unwrap();
    let house = House { store, verdict: Verdict::Wanted };
    (dir, volume, here, house)
}

#[test]
fn snapshots_of_many_sizes_are_brought_once_and_of_the_next_what_is_new() {
    for bytes in [0, 1, 4095, 70_000, 3_000_000, 9_000_000] {
        let (dir, volume, here, mut house) = scene(bytes);
        let first = keep(&here, &volume, 1);
        std::fs::write(volume.join("other"), "a little more").unwrap();
        let second = keep(&here, &volume, 2);
        let mut lease = here.lease().unwrap();
        let mut brought = |house: &mut House, manifest| {
            visit(house, |visit| bring(visit, &mut lease, manifest, false, &mut |_, _| {})).unwrap()
        };
        let all = Brought::Kept { needed_bytes: bytes as u64, sent_bytes: bytes as u64 };
        assert_eq!(brought(&mut house, first), all);
        assert_eq!(brought(&mut house, first), Brought::WasThere);
        let more = Brought::Kept { needed_bytes: bytes as u64 + 13, sent_bytes: 13 };
        assert_eq!(brought(&mut house, second), more);
        let copy = dir.path().join("copy");
        house.store.lease().unwrap().materialise(second, &copy, &mut |_, _| {}).unwrap();
        assert_eq!(std::fs::read(copy.join("one")).unwrap(), std::fs::read(volume.join("one")).unwrap());
        assert_eq!(std::fs::read(copy.join("other")).unwrap(), b"a little more");
    }
}

#[test]
fn whoever_does_not_want_it_says_why_and_gets_nothing() {
    let (_dir, volume, here, mut house) = scene(70_000);
    let manifest = keep(&here, &volume, 1);
    let mut lease = here.lease().unwrap();
    for (verdict, expected) in [
        (Verdict::Diverged("since then".into()), "the histories have diverged: since then"),
        (Verdict::Refused("no room".into()), "no room"),
    ] {
        house.verdict = verdict;
        let said = visit(&mut house, |visit| bring(visit, &mut lease, manifest, false, &mut |_, _| {}));
        assert_eq!(said.unwrap_err().to_string(), expected);
    }
    assert_eq!(house.store.pins().unwrap().len(), 0);
    assert!(house.store.manifest_bytes(manifest).is_err());
}

#[test]
fn what_a_collection_takes_away_meanwhile_comes_again() {
    let (_dir, volume, here, mut house) = scene(500_000);
    let first = keep(&here, &volume, 1);
    std::fs::write(volume.join("other"), "a little more").unwrap();
    let second = keep(&here, &volume, 2);
    let mut lease = here.lease().unwrap();
    visit(&mut house, |visit| bring(visit, &mut lease, first, false, &mut |_, _| {})).unwrap();
    let store = house.store.clone();
    store.unpin(&"snapshot/1".parse().unwrap()).unwrap();
    let mut is_over = false;
    let mut collect = |_, _| {
        if !std::mem::replace(&mut is_over, true) {
            store.collect(godwit_store::Goal::All, false).unwrap();
        }
    };
    let brought = visit(&mut house, |visit| bring(visit, &mut lease, second, false, &mut collect)).unwrap();
    let Brought::Kept { needed_bytes: 500_013, sent_bytes } = brought else { panic!("{brought:?}") };
    assert!(sent_bytes >= 500_013, "{sent_bytes}");
    house.store.lease().unwrap().hold(second).unwrap();
}

#[test]
fn content_that_is_another_or_was_not_offered_is_not_kept() {
    let (_dir, volume, here, mut house) = scene(70_000);
    let manifest = keep(&here, &volume, 1);
    let described = here.manifest_bytes(manifest).unwrap();
    let chunk =
        here.lease().unwrap().tree(here.described(manifest).unwrap().unwrap().tree).unwrap().needs()[0].0;
    let stored = here.chunk_as_stored(chunk).unwrap();
    visit(&mut house, |visit| {
        assert_eq!(visit.offer(&described, false), Ok(Verdict::Wanted));
        let why = visit.bring(vec![(Digest::of(b"another"), stored)]).unwrap_err();
        assert!(why.contains("is something else"), "{why}");
        let unkept = visit.have_kept(b"no tree").unwrap();
        assert_eq!(unkept, Err(Unkept::Refused("what came is not its tree".into())));
        let tree = here.manifest_bytes(here.described(manifest).unwrap().unwrap().tree).unwrap();
        assert_eq!(visit.have_kept(&tree).unwrap(), Err(Unkept::Lost), "its chunks have not come");
        assert!(matches!(visit.offer(&tree, false), Ok(Verdict::Refused(_))));
    });
    assert_eq!(house.store.pins().unwrap().len(), 0);
    // by one who has not offered anything, the visit ends
    let (ours, theirs) = Descriptors::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut wire = Wire::open(Box::new(ours), Cancel::default(), Duration::from_secs(5)).unwrap();
            wire.say(&Message::Visit { host: "here".into() }).unwrap();
            wire.hear().unwrap();
            wire.send_bytes(&Question::Keep.to_bytes()).unwrap();
            assert!(wire.hear().is_err());
        });
        let mut wire = Wire::open(Box::new(theirs), Cancel::default(), Duration::from_secs(5)).unwrap();
        wire.hear().unwrap();
        let ended = attend(&mut wire, None, "there", None, Ok(&mut house));
        assert!(ended.unwrap_err().to_string().contains("was not offered"));
    });
}
