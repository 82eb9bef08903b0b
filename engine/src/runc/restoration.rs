//! One `runc restore`. It can be begun before the images are complete: runc then makes itself and CRIU ready, and CRIU's
//! request is kept back until [`Restoration::finish`]. Nothing of the container exists before that.

use crate::container::RestoreRequest;
use crate::error::EngineError;
use crate::freezer::{cgroup_of_criu, move_criu_out};
use crate::tool::Running;
use godwit_criu::relay::{Relay, Step, Watcher};
use godwit_guardian::{Ending, Guard, Guardian};
use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long runc may take to become ready: as long as it would otherwise take in the restore. It takes some 10 ms.
const READY: Duration = Duration::from_secs(60);
/// How long runc may take to end when its CRIU is taken away.
const END: Duration = Duration::from_secs(30);

pub(super) struct Restoration {
    runc: Running,
    /// Without it runc has had its way from the beginning.
    relay: Option<Relay>,
    request: RestoreRequest,
    /// Gives the first process when all tasks are restored.
    restored: Receiver<i32>,
    guard: Arc<Mutex<Option<Guard>>>,
}

impl Restoration {
    /// Starts runc. CRIU's configuration file is `config`; `relay` is where the relay may have a directory.
    ///
    /// # Errors
    /// When runc cannot be run.
    pub(super) fn start(
        program: &Path,
        args: &[OsString],
        config: &Path,
        relay: &Path,
        request: &RestoreRequest,
        guardian: Arc<Guardian>,
    ) -> Result<Self, EngineError> {
        let (tell, restored) = channel();
        let guard = Arc::new(Mutex::new(None));
        let observer = Observer { guardian, guard: guard.clone(), restored: tell };
        let relay = match Relay::start(relay.to_owned(), observer) {
            Ok(relay) => Some(relay),
            Err(error) => {
                tracing::warn!(%error, "runc starts its criu alone");
                None
            }
        };
        let mut environment = vec![("CRIU_CONFIG_FILE", config.as_os_str().to_owned())];
        environment.extend(relay.iter().flat_map(Relay::environment));
        let runc = Running::start(program, args, &environment)?;
        Ok(Self { runc, relay, request: request.clone(), restored, guard })
    }

    /// Whether it is for this request.
    pub(super) fn is_for(&self, request: &RestoreRequest) -> bool {
        self.request == *request
    }

    /// Waits until runc has done all that it does before CRIU restores. Whether it came to that.
    pub(super) fn is_ready(&mut self) -> bool {
        let Some(relay) = &self.relay else { return false };
        let begun = Instant::now();
        while begun.elapsed() < READY && self.runc.is_alive() {
            if relay.wait_for_request(Duration::from_millis(50)) {
                return true;
            }
        }
        false
    }

    /// The images are complete: lets CRIU restore, and waits until runc has ended. Calls `restored` with the first process
    /// when all tasks are restored and CRIU tidies up.
    ///
    /// # Errors
    /// When it failed, or took longer than `limit`.
    pub(super) fn finish(
        mut self,
        limit: Duration,
        restored: &mut dyn FnMut(i32),
    ) -> Result<(), EngineError> {
        let begun = Instant::now();
        if let Some(relay) = &self.relay {
            relay.open()?;
            while begun.elapsed() < limit && self.runc.is_alive() {
                // whatever is told wakes at once; the pause is for a runc that ends without
                if let Ok(pid) = self.restored.recv_timeout(Duration::from_millis(5)) {
                    restored(pid);
                    break;
                }
            }
        }
        let ended = self.runc.wait(limit.saturating_sub(begun.elapsed())).map(drop);
        // whatever CRIU does, nobody freezes the tasks because of it after this
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Ending::Held { within }) = guard.map(|guard| guard.conclude(ended.is_ok())) {
            tracing::warn!(?within, "criu was killed; the tasks were frozen before they could run");
        }
        ended
    }

    /// Takes CRIU away from runc, which gives up then, removes what it has made, and ends.
    pub(super) fn abandon(self) {
        drop(self.relay);
        if let Err(error) = self.runc.wait(END) {
            tracing::debug!(%error, "runc gave up, as it should");
        }
    }
}

/// Looks after CRIU while it restores.
struct Observer {
    guardian: Arc<Guardian>,
    guard: Arc<Mutex<Option<Guard>>>,
    restored: Sender<i32>,
}

impl Watcher for Observer {
    /// runc has put CRIU into the container's cgroup by now; the tasks come to life there.
    fn asked(&mut self, criu: i32) {
        let mut guard = self.guardian.watch(criu);
        match cgroup_of_criu(criu).and_then(|freezer| freezer.brake()) {
            Ok(brake) => guard.arm(brake),
            Err(error) => tracing::warn!(%error, "criu restores without a guardian"),
        }
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }

    fn step(&mut self, step: &Step) {
        on_step(step, &self.restored);
    }

    fn ended(&mut self, well: bool) {
        // one that has failed by itself has killed its tasks
        if let Some(guard) = &*self.guard.lock().unwrap_or_else(PoisonError::into_inner)
            && !well
        {
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
