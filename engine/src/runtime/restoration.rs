//! One `restore` of a runtime. It can be begun before the images are complete: the runtime then makes itself and CRIU ready, and CRIU's
//! request is kept back until [`Restoration::finish`]. Nothing of the container exists before that.

use super::{DESCRIPTORS, Flavor, write_private};
use crate::container::RestoreRequest;
use crate::error::EngineError;
use crate::freezer::{cgroup_of_criu, hold_beside, move_criu_out};
use crate::tool::Running;
use godwit_criu::relay::{Adaptation, Relay, Step, Watcher};
use godwit_guardian::{Ending, Guard, Guardian};
use godwit_migration::plan::Carry;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the runtime may take to become ready: as long as it would otherwise take in the restore. It takes some 10 ms.
const READY: Duration = Duration::from_secs(60);
/// How long the runtime may take to end when its CRIU is taken away.
const END: Duration = Duration::from_secs(30);

/// A runtime that restores.
pub(crate) trait Process: Send {
    /// Whether it has not ended yet.
    fn is_alive(&mut self) -> bool;

    /// Waits for its good end.
    ///
    /// # Errors
    /// When it fails, or does not end in time.
    fn wait(self: Box<Self>, limit: Duration) -> Result<(), EngineError>;
}

impl Process for Running {
    fn is_alive(&mut self) -> bool {
        Running::is_alive(self)
    }

    fn wait(self: Box<Self>, limit: Duration) -> Result<(), EngineError> {
        Running::wait(*self, limit).map(drop)
    }
}

/// The restore of one container.
pub(crate) struct Restoration {
    runtime: Box<dyn Process>,
    /// Without it the runtime has had its way from the beginning.
    relay: Option<Relay>,
    request: RestoreRequest,
    /// Gives the first process when all tasks are restored.
    restored: Receiver<i32>,
    guard: Arc<Mutex<Option<Guard>>>,
}

impl Restoration {
    /// Has it started by `run`, with these variables besides ours. `relay` is where the relay may have a directory.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn start(
        config: &Path,
        relay: &Path,
        adaptation: Adaptation,
        request: &RestoreRequest,
        guardian: Arc<Guardian>,
        run: impl FnOnce(&[(&str, OsString)]) -> Result<Box<dyn Process>, EngineError>,
    ) -> Result<Self, EngineError> {
        let (tell, restored) = channel();
        let guard = Arc::new(Mutex::new(None));
        let holds = adaptation.joins_pids;
        let observer = Observer { guardian, guard: guard.clone(), restored: tell, holds };
        let needed = adaptation != Adaptation::default();
        let relay = match Relay::start(relay.to_owned(), adaptation, observer) {
            Ok(relay) => Some(relay),
            Err(error) if needed => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the runtime starts its criu alone");
                None
            }
        };
        let mut environment = vec![("CRIU_CONFIG_FILE", config.as_os_str().to_owned())];
        environment.extend(relay.iter().flat_map(Relay::environment));
        let runtime = run(&environment)?;
        Ok(Self { runtime, relay, request: request.clone(), restored, guard })
    }

    /// Starts a runtime without the images, with nothing but the one file that it reads itself. None when it did not come as
    /// far as its CRIU.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_early(
        request: &RestoreRequest,
        descriptors: &[String],
        start: impl FnOnce() -> Result<Self, EngineError>,
    ) -> Result<Option<Self>, EngineError> {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&request.images).map_err(EngineError::io("make", &request.images))?;
        super::source::write_descriptors(&request.images, descriptors)?;
        let ready = start().map(|mut started| (started.is_ready(), started));
        // the images bring their own
        let path = request.images.join(DESCRIPTORS);
        let removed = std::fs::remove_file(&path).map_err(EngineError::io("remove", &path));
        let (ready, started) = ready?;
        if ready && removed.is_ok() {
            return Ok(Some(started));
        }
        started.abandon();
        removed.map(|()| None)
    }

    /// What was begun early, if it is what is wanted now; else it is given up.
    pub(crate) fn if_it_fits(self, request: &RestoreRequest, descriptors: Option<&[String]>) -> Option<Self> {
        let came: Option<Vec<String>> = std::fs::read(request.images.join(DESCRIPTORS))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if self.request == *request && came.is_some() && came.as_deref() == descriptors {
            return Some(self);
        }
        tracing::info!("the runtime is started again: the images are not those that it was started for");
        self.abandon();
        None
    }

    /// Waits until the runtime has done all that it does before CRIU restores. Whether it came to that.
    pub(crate) fn is_ready(&mut self) -> bool {
        let Some(relay) = &self.relay else { return false };
        let begun = Instant::now();
        while begun.elapsed() < READY && self.runtime.is_alive() {
            if relay.wait_for_request(Duration::from_millis(50)) {
                return true;
            }
        }
        false
    }

    /// The images are complete: lets CRIU restore, and waits until the runtime has ended. Calls `restored` with the first process
    /// when all tasks are restored and CRIU tidies up.
    ///
    /// # Errors
    /// When it failed, or took longer than `limit`.
    pub(crate) fn finish(
        mut self,
        limit: Duration,
        restored: &mut dyn FnMut(i32),
    ) -> Result<(), EngineError> {
        let begun = Instant::now();
        if let Some(relay) = &self.relay {
            relay.open()?;
            while begun.elapsed() < limit && self.runtime.is_alive() {
                // whatever is told wakes at once; the pause is for a runtime that ends without
                if let Ok(pid) = self.restored.recv_timeout(Duration::from_millis(5)) {
                    restored(pid);
                    break;
                }
            }
        }
        let ended = self.runtime.wait(limit.saturating_sub(begun.elapsed()));
        // whatever CRIU does, nobody freezes the tasks because of it after this
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Ending::Held { within }) = guard.map(|guard| guard.conclude(ended.is_ok())) {
            tracing::warn!(?within, "criu was killed; the tasks were frozen before they could run");
        }
        ended
    }

    /// Takes CRIU away from the runtime, which gives up then, removes what it has made, and ends.
    pub(crate) fn abandon(self) {
        drop(self.relay);
        if let Err(error) = self.runtime.wait(END) {
            tracing::debug!(%error, "the runtime gave up, as it should");
        }
    }
}

/// Looks after CRIU while it restores.
struct Observer {
    guardian: Arc<Guardian>,
    guard: Arc<Mutex<Option<Guard>>>,
    restored: Sender<i32>,
    /// The hook cannot hold the tree: numbers mean something else where CRIU starts it.
    holds: bool,
}

impl Watcher for Observer {
    /// CRIU is in the container's cgroup by now; the tasks come to life there.
    fn asked(&mut self, criu: i32) {
        let mut guard = self.guardian.watch(criu);
        match cgroup_of_criu(criu).and_then(|freezer| freezer.brake()) {
            Ok(brake) => guard.arm(brake),
            Err(error) => tracing::warn!(%error, "criu restores without a guardian"),
        }
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    fn before(&mut self, step: &Step) {
        let (true, "pre-resume") = (self.holds, step.script.as_str()) else { return };
        let held = match step.root {
            Some(root) => hold_beside(step.criu, root, crate::hold::LIMIT).map_err(|error| error.to_string()),
            None => Err("CRIU has not named its root".into()),
        };
        if let Err(error) = held {
            tracing::error!(error, "the restored tree cannot be held");
            self.pull();
        }
    }

    fn step(&mut self, step: &Step) {
        on_step(step, &self.restored);
    }

    fn ended(&mut self, well: bool) {
        // one that has failed by itself has killed its tasks
        if !well {
            self.pull();
        }
    }
}

impl Observer {
    /// Nothing that is restored may run.
    fn pull(&self) {
        if let Some(guard) = &*self.guard.lock().unwrap_or_else(PoisonError::into_inner) {
            guard.pull();
        }
    }
}

/// CRIU moves out of the container's cgroup as soon as the first process is in it. The hook would do it, too; but it costs
/// some milliseconds, and here they pass beside the restore.
fn on_step(step: &Step, restored: &Sender<i32>) {
    let (Some(root), criu) = (step.root, step.criu) else { return };
    match step.script.as_str() {
        "setup-namespaces" => {}
        "post-restore" => {
            // nobody listens when it has given up
            let _ = restored.send(root);
            return;
        }
        _ => return,
    }
    let moving = std::thread::Builder::new().name("criu-out".into()).spawn(move || {
        if let Err(error) = move_criu_out(criu, root) {
            tracing::debug!(%error, "criu stays in the container's cgroup until the hold");
        }
    });
    if let Err(error) = moving {
        tracing::debug!(%error, "no thread to move criu");
    }
}

/// The options of a runtime's `restore` that runc and crun have alike.
pub(crate) fn options(flavor: Flavor, request: &RestoreRequest, carry: &Carry) -> Vec<OsString> {
    let mut options: Vec<OsString> = Vec::new();
    for (flag, path) in [("--image-path", &request.images), ("--work-path", &request.work)] {
        options.extend([flag.into(), path.into()]);
    }
    let flags = [
        (carry.tcp_established, "--tcp-established"),
        (carry.ext_unix_sk, "--ext-unix-sk"),
        (carry.file_locks, "--file-locks"),
        (carry.shell_job, "--shell-job"),
        (request.lazy && flavor.takes_lazy_pages(), "--lazy-pages"),
    ];
    options.extend(flags.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag.into()));
    options
}

/// The options that a runtime's command line cannot pass on. CRIU reads the file that the environment names.
pub(crate) fn write_criu_config(job: &Path) -> Result<PathBuf, EngineError> {
    let (hook, path) = (job.join(crate::hold::HOOK_NAME), job.join("criu.conf"));
    let text = format!("action-script {}\nmanage-cgroups ignore\n", hook.display());
    write_private(&path, text.as_bytes()).map(|()| path)
}

/// A runtime says only that CRIU failed: the reason is in CRIU's log.
pub(crate) fn explain(error: EngineError, work: &Path) -> EngineError {
    let EngineError::Tool { program, what } = error else { return error };
    let log = work.join("restore.log");
    let explanation = godwit_criu::log::explain_file(Some(&log), &what);
    let hint = explanation.hint.map_or(String::new(), |hint| format!(" ({hint})"));
    EngineError::Tool { program, what: format!("{what}; criu: {}{hint}", explanation.cause) }
}
