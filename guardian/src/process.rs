//! What the guardian's process does: it waits, for godwit's orders and for what the traced processes do. Nothing here may
//! take long or need much.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::GuardianError;
use crate::message::{Ended, Order, Report, receive};
use crate::sys::{self, Stop};

/// Its name in process lists. Not godwit's: who looks for a godwit to end must not find this.
const NAME: &std::ffi::CStr = c"godwit-guard";

/// Does the guardian's work for the godwit at the other end of `control`. It ends when that godwit has gone and no process is
/// traced any more: a CRIU that outlives its godwit stays guarded.
///
/// To be called in a process that has no other thread: the signals by which tracees are heard of could go there.
///
/// # Errors
/// When it cannot even wait.
pub fn run_guardian(control: OwnedFd) -> Result<(), GuardianError> {
    // nobody's signals reach a session of one's own by accident; those that are meant are not taken either
    let _ = nix::unistd::setsid();
    sys::prepare(NAME);
    SigSet::all().thread_block().map_err(GuardianError::when("block signals"))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals =
        SignalFd::with_flags(&children, flags).map_err(GuardianError::when("listen for signals"))?;
    let mut process = Process { control: Some(control), watched: Vec::new() };
    process.say(Report::Ready);
    while process.control.is_some() || !process.watched.is_empty() {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled = vec![wanted(signals.as_fd())];
        polled.extend(process.control.as_ref().map(|control| wanted(control.as_fd())));
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.map_err(GuardianError::when("wait"))?,
        };
        let is_ready = |at: usize| polled.get(at).is_some_and(|polled| polled.any().unwrap_or(true));
        let (stopped, ordered) = (is_ready(0), is_ready(1));
        if stopped {
            // one signal may stand for many stops
            while let Ok(Some(_)) = signals.read_signal() {}
            while let Some((pid, stop)) = sys::heard() {
                process.handle(pid, stop);
            }
        }
        if ordered {
            process.hear();
        }
    }
    Ok(())
}

struct Process {
    control: Option<OwnedFd>,
    watched: Vec<Watched>,
}

/// A CRIU that is traced.
struct Watched {
    criu: i32,
    brake: Option<Brake>,
    end: Ended,
}

/// The file that freezes, the word for it, and where to move CRIU.
struct Brake {
    file: File,
    word: [u8; 8],
    length: usize,
    outside: Option<File>,
}

impl Process {
    fn say(&self, report: Report) {
        if let Some(control) = &self.control {
            // a godwit that does not hear has gone: its end of the socket will tell
            let _ = report.send(control);
        }
    }

    fn hear(&mut self) {
        let Some(control) = &self.control else { return };
        let Ok(Some((bytes, descriptors))) = receive(control) else {
            self.control = None;
            return;
        };
        let done = match Order::decode(&bytes) {
            Some(Order::Watch { criu }) => self.watch(criu),
            Some(Order::Arm { criu, word, length }) => {
                // what CRIU restores it gives the priority that it had before
                sys::prefer(criu);
                let mut files = descriptors.into_iter().map(File::from);
                let brake = files.next().map(|file| Brake {
                    file,
                    word,
                    length: usize::from(length),
                    outside: files.next(),
                });
                self.arm(criu, brake)
            }
            Some(Order::StandDown { criu }) => self.arm(criu, None),
            None => Err(Errno::EBADMSG),
        };
        self.say(Report::Done(done.err().map_or(0, |errno| errno as i32)));
    }

    fn watch(&mut self, criu: i32) -> Result<(), Errno> {
        sys::seize(criu)?;
        let end = Ended { criu, status: 0, brake: -1, micros: 0, stops: 0 };
        self.watched.push(Watched { criu, brake: None, end });
        Ok(())
    }

    fn arm(&mut self, criu: i32, brake: Option<Brake>) -> Result<(), Errno> {
        let watched = self.watched.iter_mut().find(|watched| watched.criu == criu);
        watched.ok_or(Errno::ESRCH)?.brake = brake;
        Ok(())
    }

    fn handle(&mut self, pid: i32, stop: Stop) {
        let watched = self.watched.iter_mut().find(|watched| watched.criu == pid);
        // what fails here fails because the process was killed meanwhile: it will be heard of
        match (stop, watched) {
            (Stop::Exit, Some(watched)) => {
                watched.is_dying();
                let _ = sys::resume(pid, 0);
            }
            (Stop::Gone(status), Some(watched)) => {
                let end = Ended { status, ..watched.end };
                self.watched.retain(|watched| watched.criu != pid);
                self.say(Report::Ended(end));
            }
            (Stop::Group, _) => drop(sys::leave_stopped(pid)),
            (Stop::Signal(signal), watched) => {
                if let Some(watched) = watched {
                    watched.end.stops = watched.end.stops.wrapping_add(1);
                }
                let _ = sys::resume(pid, signal);
            }
            (Stop::Exit, None) => drop(sys::resume(pid, 0)),
            (Stop::Gone(_), None) => {}
        }
    }
}

impl Watched {
    /// It keeps hold of its tasks until it is resumed. A CRIU that ends well holds none any more.
    fn is_dying(&mut self) {
        let begun = Instant::now();
        let Some(brake) = &self.brake else { return };
        if matches!(sys::coming_status(self.criu), Ok(0)) {
            return;
        }
        let pulled = (&brake.file).write_all(brake.word.get(..brake.length).unwrap_or_default());
        self.end.brake = pulled.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        self.end.micros = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        if let Some(mut outside) = brake.outside.as_ref() {
            let _ = outside.write_all(self.criu.to_string().as_bytes());
        }
    }
}
