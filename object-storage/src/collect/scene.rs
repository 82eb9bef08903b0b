//! Hosts that put images into one place, let go of some, and collect, on a stage: after each thing that one of them does every image has all
//! of its packs.

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
pub const IMAGES: [&str; 5] = ["abc", "bcd", "cde", "af", "abc"];

/// A store with the images, and what they are called.
pub static STORE: LazyLock<(TempDir, Vec<Digest>)> = LazyLock::new(|| {
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
pub const WISHES: &[&str] = &[
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
pub enum Event {
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

pub fn events() -> impl Strategy<Value = Vec<Event>> {
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
pub struct Scene {
    pub stage: Arc<Stage>,
    place: PlaceName,
    hosts: Vec<TempDir>,
    actors: Vec<JoinHandle<()>>,
    /// Images whose upload slept for a day between two requests, and has not looked again yet.
    excused: HashSet<ObjectPath>,
}

impl Scene {
    pub fn new() -> Self {
        let hosts = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let place = "s3://a-bucket".parse().unwrap();
        Self { stage: Stage::new(), place, hosts, actors: Vec::new(), excused: HashSet::new() }
    }

    pub fn begin(&mut self, host: usize, deed: impl FnOnce(&Place, &Path) + Send + 'static) -> usize {
        let (name, ledgers) = (self.place.clone(), self.hosts[host].path().to_owned());
        let actor = self.actors.len();
        self.actors.push(self.stage.enter(actor, move |store| deed(&Place::over(&name, store), &ledgers)));
        actor
    }

    pub fn upload(&mut self, host: usize, image: usize) -> usize {
        self.upload_as(Kind::Checkpoint, host, image)
    }

    pub fn upload_as(&mut self, kind: Kind, host: usize, image: usize) -> usize {
        let (dir, manifests) = &*STORE;
        self.begin(host, move |place, ledgers| {
            let mut lease = Store::open(&dir.path().join("store"), None).unwrap().lease().unwrap();
            let order = Order { manifest: manifests[image], kind, recipients: None, ledgers };
            // who was killed, or meets another upload of the same host, has not done it
            let _ = upload(place, &mut lease, &order, &mut |_, _| {});
        })
    }

    pub fn collect(&mut self, host: usize, image: Option<usize>) -> usize {
        self.collect_or_say(host, image, false)
    }

    pub fn collect_or_say(&mut self, host: usize, image: Option<usize>, dry_run: bool) -> usize {
        self.begin(host, move |place, ledgers| {
            let forget: Vec<_> = image.iter().map(|image| (Kind::Checkpoint, STORE.1[*image])).collect();
            let order = Collection { forget: &forget, keys: Keys(None), ledgers, dry_run };
            let _ = collect(place, &order, &mut |_, _| {});
        })
    }

    /// The packs of a place with one that was condemned so many hours ago, on the list of the host that put it there.
    pub fn condemned_for(&mut self, hours: u64) {
        let first = self.upload(0, 0);
        self.finish(first);
        self.pass(25);
        let forgetting = self.collect(1, Some(0));
        self.finish(forgetting);
        self.pass(hours);
    }

    #[track_caller]
    pub fn assert_there(&self, image: usize) {
        let state = self.stage.state();
        let path = ObjectPath::from(format!("checkpoints/{}", STORE.1[image]));
        assert!(state.objects().contains(&path), "it was not put there");
        assert_whole(&state, &HashSet::new());
    }

    pub fn step(&mut self, actor: usize) {
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

    pub fn happen(&mut self, event: &Event) {
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
    pub fn until(&mut self, actor: usize, wish: &str) {
        while self.stage.wish(actor).is_some_and(|next| wish.is_empty() || !next.starts_with(wish)) {
            self.step(actor);
        }
    }

    pub fn finish(&mut self, actor: usize) {
        self.until(actor, "");
    }

    /// The same where images are damaged.
    pub fn finish_unseen(&self, actor: usize) {
        while self.stage.wish(actor).is_some() {
            self.stage.grant(actor);
        }
    }

    /// Has one do so many things; whether it wants to do more.
    pub fn advance(&mut self, actor: usize, steps: usize) -> bool {
        (0..steps).for_each(|_| {
            if self.stage.wish(actor).is_some() {
                self.step(actor);
            }
        });
        self.stage.wish(actor).is_some()
    }

    pub fn collect_now(&mut self) {
        let collect = self.collect(1, None);
        self.finish(collect);
    }

    /// How many objects of a directory there are.
    pub fn count(&self, directory: &str) -> usize {
        self.stage.state().objects().iter().filter(|path| path.prefix_matches(&directory.into())).count()
    }

    pub fn pass(&self, hours: u64) {
        self.stage.state().now += Duration::from_secs(hours * 3600);
    }

    /// Everybody comes to an end, and collections run until they have nothing to do; what is left.
    pub fn end(mut self) -> Vec<ObjectPath> {
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

pub fn in_directory(path: &ObjectPath, directory: &str) -> Option<Digest> {
    path.as_ref().strip_prefix(directory)?.strip_prefix('/')?.parse().ok()
}

pub fn index(state: &State, path: &ObjectPath) -> Option<Index> {
    let manifest = in_directory(path, "checkpoints")?;
    Some(Index::decode(path.as_ref(), manifest, state.read(path), Keys(None)).unwrap())
}

/// Each image that is there has all of its packs.
#[track_caller]
pub fn assert_whole(state: &State, excused: &HashSet<ObjectPath>) {
    let objects = state.objects();
    let packs: HashSet<Digest> = objects.iter().filter_map(|path| in_directory(path, PACKS)).collect();
    for path in objects.iter().filter(|path| !excused.contains(*path)) {
        let Some(index) = index(state, path) else { continue };
        let missing = index.packs.iter().find(|pack| !packs.contains(&pack.name));
        assert!(missing.is_none(), "{path} lacks {}", missing.unwrap().name);
    }
}
