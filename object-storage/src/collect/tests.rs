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

#[derive(Clone, Debug)]
enum Event {
    /// A host begins to put an image there.
    Upload(usize, usize),
    /// A host lets go of an image, or of none, and collects.
    Collect(usize, Option<usize>),
    /// One of those who wait does one thing.
    Step(usize),
    /// One of those who wait does all that it has in mind, if nobody else does anything.
    Run(usize),
    /// One of them is killed.
    Kill(usize),
    /// So many hours pass.
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0..3usize, 0..IMAGES.len()).prop_map(|(host, image)| Event::Upload(host, image)),
        3 => (0..3usize, prop::option::of(0..IMAGES.len())).prop_map(|(host, image)| Event::Collect(host, image)),
        12 => any::<usize>().prop_map(Event::Step),
        4 => any::<usize>().prop_map(Event::Run),
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

    fn begin(&mut self, host: usize, deed: impl FnOnce(&Place, &Path) + Send + 'static) {
        let (name, ledgers) = (self.place.clone(), self.hosts[host].path().to_owned());
        let actor = self.actors.len();
        self.actors.push(self.stage.enter(actor, move |store| deed(&Place::over(&name, store), &ledgers)));
    }

    fn upload(&mut self, host: usize, image: usize) {
        let (dir, manifests) = &*STORE;
        self.begin(host, move |place, ledgers| {
            let mut lease = Store::open(&dir.path().join("store"), None).unwrap().lease().unwrap();
            let order =
                Order { manifest: manifests[image], kind: Kind::Checkpoint, recipients: None, ledgers };
            // who was killed, or meets another upload of the same host, has not done it
            let _ = upload(place, &mut lease, &order, &mut |_, _| {});
        });
    }

    fn collect(&mut self, host: usize, image: Option<usize>) {
        self.begin(host, move |place, ledgers| {
            let forget: Vec<_> = image.iter().map(|image| (Kind::Checkpoint, STORE.1[*image])).collect();
            let order = Collection { forget: &forget, keys: Keys(None), ledgers, dry_run: false };
            let _ = collect(place, &order, &mut |_, _| {});
        });
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
            Event::Upload(host, image) => self.upload(host, image),
            Event::Collect(host, image) => self.collect(host, image),
            Event::Step(number) => one(number).into_iter().for_each(|actor| self.step(actor)),
            Event::Run(number) => one(number).into_iter().for_each(|actor| self.finish(actor)),
            Event::Kill(number) => one(number).into_iter().for_each(|actor| self.stage.kill(actor)),
            Event::Pass(hours) => self.stage.state().now += Duration::from_secs(hours * 3600),
        }
    }

    fn finish(&mut self, actor: usize) {
        while self.stage.waiting().contains(&actor) {
            self.step(actor);
        }
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
