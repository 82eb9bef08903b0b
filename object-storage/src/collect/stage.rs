//! A store in memory on which several actors are busy, each in a thread of its own: none of them does anything to the store before it is
//! let, what it does is done at once, and the clock is the test's. So a test decides in which order things happen, and who is killed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How long anybody may think.
const LIMIT: Duration = Duration::from_secs(30);

type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// All that happens.
pub struct Stage {
    state: Mutex<State>,
    bell: Condvar,
}

/// What is so at the moment.
pub struct State {
    pub store: InMemory,
    /// The place's clock.
    pub now: SystemTime,
    written: HashMap<Path, SystemTime>,
    /// What each wants to do next: `PUT`, `GET`, `DELETE` or `LIST`, and the object.
    pub waiting: BTreeMap<usize, String>,
    living: BTreeSet<usize>,
    dead: HashSet<usize>,
    granted: Option<usize>,
    /// The last that each has put, by its directory.
    pub put: BTreeMap<(usize, String), SystemTime>,
    /// What was put last, and by whom.
    pub last: Option<(usize, Path)>,
}

impl Stage {
    pub fn new() -> Arc<Stage> {
        let state = State {
            store: InMemory::new(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            written: HashMap::new(),
            waiting: BTreeMap::new(),
            living: BTreeSet::new(),
            dead: HashSet::new(),
            granted: None,
            put: BTreeMap::new(),
            last: None,
        };
        Arc::new(Stage { state: Mutex::new(state), bell: Condvar::new() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Somebody appears, who acts on a store that is the stage's.
    pub fn enter(
        self: &Arc<Self>,
        actor: usize,
        act: impl FnOnce(Arc<dyn ObjectStore>) + Send + 'static,
    ) -> JoinHandle<()> {
        self.state().living.insert(actor);
        let stage = self.clone();
        thread::spawn(move || {
            let leaving = Leaving(stage.clone(), actor);
            act(Arc::new(Gated { stage, actor }));
            drop(leaving);
        })
    }

    /// Those who wait to do something; all others who live think no more.
    pub fn waiting(&self) -> Vec<usize> {
        let is_busy = |state: &mut State| state.granted.is_some() || state.living.len() > state.waiting.len();
        let (state, late) = self.bell.wait_timeout_while(self.state(), LIMIT, is_busy).unwrap();
        assert!(!late.timed_out(), "somebody never does anything");
        state.waiting.keys().copied().collect()
    }

    /// Lets one do what it waits for.
    pub fn grant(&self, actor: usize) {
        self.state().granted = Some(actor);
        self.bell.notify_all();
        self.waiting();
    }

    /// What one wants to do next.
    pub fn wish(&self, actor: usize) -> Option<String> {
        self.waiting();
        self.state().waiting.get(&actor).cloned()
    }

    /// Kills one: nothing that it still wants is done.
    pub fn kill(&self, actor: usize) {
        self.state().dead.insert(actor);
        self.bell.notify_all();
        let (_state, late) =
            self.bell.wait_timeout_while(self.state(), LIMIT, |state| state.living.contains(&actor)).unwrap();
        assert!(!late.timed_out(), "it does not die");
    }
}

impl State {
    /// All objects.
    pub fn objects(&self) -> Vec<Path> {
        let listed = self.store.list(None).try_collect::<Vec<_>>().now_or_never();
        listed.unwrap().unwrap().into_iter().map(|meta| meta.location).collect()
    }

    pub fn read(&self, path: &Path) -> Vec<u8> {
        let got = self.store.get(path).now_or_never().unwrap().unwrap();
        got.bytes().now_or_never().unwrap().unwrap().to_vec()
    }

    /// Leaves a byte of each object of a directory.
    pub fn cut_off(&mut self, directory: &str) {
        for path in self.objects().iter().filter(|path| path.prefix_matches(&directory.into())) {
            let put = self.store.put(path, PutPayload::from_static(b"x")).now_or_never();
            put.unwrap().unwrap();
        }
    }

    fn dated(&self, meta: ObjectMeta) -> ObjectMeta {
        ObjectMeta { last_modified: self.written[&meta.location].into(), ..meta }
    }
}

/// Says that an actor is done, also when it has panicked.
struct Leaving(Arc<Stage>, usize);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.state().living.remove(&self.1);
        self.0.bell.notify_all();
    }
}

/// The store as one actor sees it.
struct Gated {
    stage: Arc<Stage>,
    actor: usize,
}

impl Gated {
    /// Does something when it is this one's turn.
    fn act<T>(&self, wish: String, deed: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.stage.state();
        state.waiting.insert(self.actor, wish);
        self.stage.bell.notify_all();
        let may_not =
            |state: &mut State| state.granted != Some(self.actor) && !state.dead.contains(&self.actor);
        let mut state = self.stage.bell.wait_while(state, may_not).unwrap();
        state.waiting.remove(&self.actor);
        let done = match state.dead.contains(&self.actor) {
            true => Err(Error::Generic { store: "stage", source: "killed".into() }),
            false => deed(&mut state),
        };
        if state.granted == Some(self.actor) {
            state.granted = None;
        }
        self.stage.bell.notify_all();
        done
    }
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {}", self.actor)
    }
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl ObjectStore for Gated {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Later<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(ready(self.act(format!("PUT {location}"), |state| {
            let (now, directory) = (state.now, location.parts().next());
            let directory = directory.map(|part| part.as_ref().to_owned()).unwrap_or_default();
            state.written.insert(location.clone(), now);
            state.put.insert((self.actor, directory), now);
            state.last = Some((self.actor, location.clone()));
            state.store.put_opts(location, payload, options).now_or_never().unwrap()
        })))
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        _: &'b Path,
        _: PutMultipartOptions,
    ) -> Later<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        unimplemented!("nobody does")
    }

    fn get_opts<'a, 'b, 'c>(&'a self, location: &'b Path, options: GetOptions) -> Later<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(ready(self.act(format!("GET {location}"), |state| {
            let got = state.store.get_opts(location, options).now_or_never().unwrap()?;
            Ok(GetResult { meta: state.dated(got.meta), ..got })
        })))
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let gated = Gated { stage: self.stage.clone(), actor: self.actor };
        let delete = move |path: Result<Path>| {
            let path = path?;
            gated.act(format!("DELETE {path}"), |state| state.store.delete(&path).now_or_never().unwrap())?;
            Ok(path)
        };
        paths.map(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.act(format!("LIST {}", prefix.map(Path::as_ref).unwrap_or_default()), |state| {
            let listed = state.store.list(prefix).try_collect::<Vec<_>>().now_or_never().unwrap()?;
            Ok(listed.into_iter().map(|meta| state.dated(meta)).collect::<Vec<_>>())
        });
        match listed {
            Ok(listed) => stream::iter(listed.into_iter().map(Ok)).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, _: Option<&'b Path>) -> Later<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        unimplemented!("nobody does")
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, _: &'b Path, _: &'d Path, _: CopyOptions) -> Later<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        unimplemented!("nobody does")
    }
}
