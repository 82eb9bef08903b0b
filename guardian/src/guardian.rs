//! The guardian as godwit has it. Nothing here is an error: without a guardian CRIU works as well, and godwit says that.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::Brake;
use crate::message::{Ended, Order, Report, receive};

/// How long the guardian may take for an answer. It takes some 50 µs, and 5 ms for the first one.
const PATIENCE: Duration = Duration::from_secs(2);

/// A guardian. It lives as long as this and as what it watches.
#[derive(Debug)]
pub struct Guardian {
    process: Mutex<Process>,
    since: SystemTime,
}

/// How a watched CRIU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself: it has let its tasks go, or killed them, as it should.
    ByItself,
    /// It was killed, and its tasks were frozen before they were released.
    Held {
        /// From the stop of the dying CRIU until the freeze was ordered.
        within: Duration,
    },
    /// It was killed, and its tasks may have run: the guardian was not there, or could not freeze.
    Loose,
    /// Nobody knows, the guardian is not there. When CRIU has given its answer before, all is well.
    Unwatched,
}

#[derive(Debug)]
struct Process {
    /// Gone when the guardian is.
    control: Option<OwnedFd>,
    child: Option<Child>,
    /// Why there is none.
    lost: String,
    ended: Vec<Ended>,
    /// A CRIU was killed.
    bereft: bool,
}

impl Guardian {
    /// Starts the guardian, and does not wait for it. `exe` is an absolute path; with `args` it must call
    /// [`run_guardian`](crate::run_guardian) with its standard input.
    pub fn start(exe: &Path, args: &[impl AsRef<OsStr>]) -> Arc<Self> {
        let mut process =
            Process { control: None, child: None, lost: String::new(), ended: Vec::new(), bereft: false };
        if let Err(error) = process.start(exe, args) {
            process.lost = format!("it cannot be started: {error}");
        }
        Arc::new(Self { process: Mutex::new(process), since: SystemTime::now() })
    }

    /// Watches a CRIU, the process `criu`, until its end. It must not have begun yet.
    pub fn watch(self: &Arc<Self>, criu: i32) -> Guard {
        let watching = self.process().ask(Order::Watch { criu }, &[]);
        if let Err(why) = &watching {
            tracing::warn!(criu, %why, "criu works without a guardian: if it is killed, the container may run");
        }
        Guard { guardian: self.clone(), criu, is_watched: watching.is_ok(), brake: None }
    }

    /// Whether a CRIU was killed while it was armed: then what it has left behind is to be cured.
    pub fn is_bereft(&self) -> bool {
        self.process().bereft
    }

    /// When it was started.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Its process id, while it is there.
    pub fn pid(&self) -> Option<u32> {
        let process = self.process();
        process.control.as_ref()?;
        process.child.as_ref().map(Child::id)
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    fn start(&mut self, exe: &Path, args: &[impl AsRef<OsStr>]) -> std::io::Result<()> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let child = Command::new(exe)
            .args(args)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        self.control = Some(ours);
        Ok(())
    }

    /// Gives an order and waits until it is carried out.
    fn ask(&mut self, order: Order, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), String> {
        let Some(control) = &self.control else { return Err(self.lost.clone()) };
        if let Err(errno) = order.send(control, descriptors) {
            self.lose(&format!("it has ended: {}", errno.desc()));
            return Err(self.lost.clone());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hear(until) {
                Some(Report::Done(0)) => return Ok(()),
                Some(Report::Done(errno)) => return Err(Errno::from_raw(errno).desc().into()),
                Some(Report::Ready | Report::Ended(_)) => {}
                None => return Err(self.lost.clone()),
            }
        }
    }

    /// The next thing that the guardian says; `None` when it is not there any more.
    fn hear(&mut self, until: Instant) -> Option<Report> {
        let control = self.control.as_ref()?;
        let heard = loop {
            let left = until.saturating_duration_since(Instant::now());
            let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            let mut polled = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => continue,
                Ok(0) if Instant::now() < until => continue,
                Ok(0) => break Err("it does not answer"),
                Err(_) => break Err("it cannot be heard"),
                Ok(_) => {}
            }
            break match receive(control) {
                Ok(Some((bytes, _))) => Report::decode(&bytes).ok_or("it speaks another language"),
                _ => Err("it has ended"),
            };
        };
        match heard {
            Ok(report) => {
                if let Report::Ended(ended) = report {
                    self.ended.push(ended);
                }
                Some(report)
            }
            Err(why) => {
                self.lose(why);
                None
            }
        }
    }

    /// It is of no use any more. CRIU goes on when it is gone: the kernel detaches.
    fn lose(&mut self, why: &str) {
        self.lost = why.to_owned();
        self.control = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    /// It ends by itself when it watches nothing. If it does, it must not be waited for.
    fn drop(&mut self) {
        self.control = None;
        let Some(mut child) = self.child.take() else { return };
        let reaper = std::thread::Builder::new().name("guardian-reaper".into()).spawn(move || child.wait());
        if let Err(error) = reaper {
            tracing::debug!(%error, "nobody waits for the guardian");
        }
    }
}

/// One CRIU under guard. Dropped, it is not guarded any more.
#[derive(Debug)]
pub struct Guard {
    guardian: Arc<Guardian>,
    criu: i32,
    is_watched: bool,
    brake: Option<Brake>,
}

impl Guard {
    /// From now on CRIU's death pulls this brake.
    pub fn arm(&mut self, brake: Brake) {
        if self.is_watched {
            let mut word = [0; 8];
            let length = brake.word().len().min(word.len());
            word[..length].copy_from_slice(&brake.word().as_bytes()[..length]);
            let order = Order::Arm { criu: self.criu, word, length: length as u8 };
            if let Err(why) = self.guardian.process().ask(order, &brake.descriptors()) {
                tracing::warn!(criu = self.criu, %why, "criu works without a guardian: if it is killed, the container may run");
                self.is_watched = false;
            }
        }
        self.brake = Some(brake);
    }

    /// Whether the brake is in its place, and somebody there to pull it.
    pub fn is_armed(&self) -> bool {
        self.is_watched && self.brake.is_some()
    }

    /// CRIU has gone without an answer: freezes, if the guardian has not done it. Too late by what it took to notice.
    pub fn pull(&self) {
        let Some(brake) = &self.brake else { return };
        if let Err(error) = brake.pull() {
            tracing::warn!(%error, cgroup = %brake.dir().display(), "a container without criu cannot be frozen");
        }
    }

    /// CRIU has ended, or is given up: from now on nobody freezes because of it. `answered`: it has given its answer before.
    pub fn conclude(mut self, answered: bool) -> Ending {
        let was_watched = std::mem::take(&mut self.is_watched);
        let armed = self.brake.is_some();
        let mut process = self.guardian.process();
        let ending = if was_watched { process.ending_of(self.criu) } else { Ending::Unwatched };
        if was_watched && ending == Ending::Unwatched {
            let why = &process.lost;
            match answered {
                true => {
                    tracing::warn!(criu = self.criu, %why, "the guardian was lost while criu worked; criu did its work")
                }
                false => tracing::warn!(criu = self.criu, %why, "the guardian was lost, and so was criu"),
            }
        }
        let ending = match ending {
            Ending::Unwatched if !answered && armed => Ending::Loose,
            ending => ending,
        };
        process.bereft |= armed && matches!(ending, Ending::Held { .. } | Ending::Loose);
        ending
    }
}

impl Process {
    /// How a process ended that was watched. One that still lives is not watched any more.
    fn ending_of(&mut self, criu: i32) -> Ending {
        // standing down comes first: what is answered then is what has happened until then
        let stood_down = self.ask(Order::StandDown { criu }, &[]);
        let ended =
            self.ended.iter().position(|ended| ended.criu == criu).map(|at| self.ended.swap_remove(at));
        let Some(Ended { status, brake, micros, stops, .. }) = ended else {
            return match stood_down {
                Ok(()) => Ending::ByItself,
                Err(_) => Ending::Unwatched,
            };
        };
        tracing::debug!(criu, status, brake, micros, stops, "criu ended under guard");
        match (libc::WIFSIGNALED(status), brake) {
            (false, _) => Ending::ByItself,
            (true, 0) => Ending::Held { within: Duration::from_micros(micros.into()) },
            (true, _) => Ending::Loose,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_watched {
            // after this nobody freezes what others thaw
            self.guardian.process().ending_of(self.criu);
        }
    }
}
