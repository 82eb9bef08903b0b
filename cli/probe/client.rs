//! Sends on pace and listens, in one thread that waits for the next deadline with ppoll(2).
//!
//! The deadlines lie on a fixed grid: a late wake-up sends the missed requests at once and never moves the grid.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::ProbeError;
use super::connection::Connection;
use super::control::Command;
use super::output::Output;
use super::report;
use super::tally::Tally;

/// How often progress is reported.
const PROGRESS: Duration = Duration::from_secs(1);

/// The pace and the end of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Time between two requests.
    pub interval: Duration,
    /// Sending ends after this time.
    pub duration: Option<Duration>,
    /// Sending ends after so many requests, skipped ones included: the end comes even when the server is gone.
    pub count: Option<u64>,
    /// The run ends when no connection was ever established in this time.
    pub first_connection: Duration,
    /// How long replies are waited for after the last request.
    pub drain: Duration,
    /// Created when the first answer has arrived.
    pub ready_file: Option<PathBuf>,
    /// Progress is shown.
    pub progress: bool,
}

/// Why sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// The duration was over.
    Duration,
    /// All requests were sent.
    Count,
    /// SIGINT or SIGTERM.
    Signal,
    /// `stop` on the control socket.
    Control,
    /// No connection could be established.
    NeverConnected,
    /// Only an earlier run was verified.
    VerifyOnly,
}

/// A run with its connections.
pub struct Client<'a> {
    plan: Plan,
    connections: Vec<Connection>,
    /// What was counted.
    pub tally: Tally,
    commands: &'a Receiver<Command>,
    wake: &'a UnixStream,
    output: &'a Output,
    announced: bool,
}

impl<'a> Client<'a> {
    /// A client that obeys `commands`; a byte on `wake` says that there is one.
    pub fn new(
        plan: Plan,
        connections: Vec<Connection>,
        tally: Tally,
        commands: &'a Receiver<Command>,
        wake: &'a UnixStream,
        output: &'a Output,
    ) -> Self {
        Self { plan, connections, tally, commands, wake, output, announced: false }
    }

    /// Sends until the end, waits for outstanding replies, and says why it ended and how long it sent.
    ///
    /// # Errors
    /// When polling fails or the ready file cannot be written.
    pub fn run(&mut self) -> Result<(StoppedBy, Duration), ProbeError> {
        // the timers of a thread may be 50 µs late for the sake of power; here they must not
        let _ = nix::sys::prctl::set_timerslack(1);
        let began = Instant::now();
        self.tally.asked_at = began;
        let mut first_due = None;
        let mut slots: u64 = 0;
        let mut due = began;
        let mut progress_at = began + PROGRESS;
        let stopped_by = loop {
            let now = Instant::now();
            if let Some(stopped_by) = self.obey(now) {
                break stopped_by;
            }
            let until = first_due.unwrap_or(began);
            if self.plan.duration.is_some_and(|duration| now >= until + duration) {
                break StoppedBy::Duration;
            }
            if self.plan.count.is_some_and(|count| slots >= count) {
                break StoppedBy::Count;
            }
            self.tick(now, true);
            if first_due.is_none() {
                if self.connections.iter().all(Connection::is_up) {
                    // the grid begins when there is something to send on
                    due = Instant::now();
                    first_due = Some(due);
                } else if now >= began + self.plan.first_connection {
                    if !self.connections.iter().any(Connection::was_up) {
                        break StoppedBy::NeverConnected;
                    }
                    due = now;
                    first_due = Some(now);
                }
            }
            while first_due.is_some() && due <= now && self.plan.count.is_none_or(|count| slots < count) {
                self.tally.sender_was_late(now.saturating_duration_since(due));
                let chosen = (slots % self.connections.len() as u64) as usize;
                self.connections[chosen].send(due, now, &mut self.tally);
                slots += 1;
                due += self.plan.interval;
            }
            for connection in &mut self.connections {
                connection.flush(&mut self.tally);
            }
            if self.plan.progress && now >= progress_at {
                self.output.progress(report::progress_line(&self.tally, now - began, self.open_gap(now)));
                progress_at = now + PROGRESS;
            }
            let next = match first_due {
                Some(first_due) => {
                    let end = self.plan.duration.map_or(due, |duration| first_due + duration);
                    due.min(end)
                }
                None => {
                    let end = began + self.plan.duration.unwrap_or(self.plan.first_connection);
                    end.min(began + self.plan.first_connection)
                }
            };
            // a time that is never served would keep the loop from sleeping
            let wake_at = if self.plan.progress { next.min(progress_at) } else { next };
            self.wait(wake_at, true)?;
            self.announce()?;
        };
        let sent_for = first_due.map_or(Duration::ZERO, |first| first.elapsed());
        self.drain()?;
        self.announce()?;
        Ok((stopped_by, sent_for))
    }

    /// Waits for outstanding replies; what does not come stays unanswered and leaves an open gap.
    fn drain(&mut self) -> Result<(), ProbeError> {
        let limit = Instant::now() + self.plan.drain;
        loop {
            let now = Instant::now();
            let waiting = self.connections.iter().any(|c| c.is_up() && c.outstanding() > 0);
            if !waiting || now >= limit || self.obey(now).is_some() {
                break;
            }
            self.tick(now, false);
            for connection in &mut self.connections {
                connection.flush(&mut self.tally);
            }
            self.wait(limit, false)?;
        }
        let now = Instant::now();
        for connection in &mut self.connections {
            let unfinished = connection.outstanding() > 0 || !connection.is_up();
            if let Some((from, lateness)) = connection.open_gap().filter(|_| unfinished) {
                self.tally.gaps.record(from, now, lateness, true);
            }
            connection.abandon(&mut self.tally);
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant, reconnect: bool) {
        for connection in &mut self.connections {
            connection.tick(now, reconnect, &mut self.tally);
        }
    }

    /// Waits for a descriptor, a deadline of a connection, or `wake_at`, and serves what is ready.
    fn wait(&mut self, wake_at: Instant, reconnect: bool) -> Result<(), ProbeError> {
        let deadlines = self.connections.iter().filter_map(|connection| connection.deadline(reconnect));
        let wake_at = deadlines.fold(wake_at, Instant::min);
        let mut polled = Vec::with_capacity(self.connections.len() + 1);
        let mut who = Vec::with_capacity(self.connections.len());
        polled.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
        for (index, connection) in self.connections.iter().enumerate() {
            if let Some((fd, flags)) = connection.interest() {
                polled.push(PollFd::new(fd, flags));
                who.push(index);
            }
        }
        let left = wake_at.saturating_duration_since(Instant::now());
        match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(error) => return Err(ProbeError::Poll(error)),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let woken = polled.first().is_some_and(is_ready);
        let ready: Vec<usize> =
            polled.iter().skip(1).zip(&who).filter(|(fd, _)| is_ready(fd)).map(|(_, &index)| index).collect();
        drop(polled);
        if woken {
            let mut waker = self.wake;
            let _ = waker.read(&mut [0; 64]);
        }
        for index in ready {
            self.connections[index].ready(&mut self.tally);
        }
        Ok(())
    }

    /// The longest gap that no answer has ended yet.
    fn open_gap(&self, now: Instant) -> Option<(Instant, Duration)> {
        self.connections
            .iter()
            .filter_map(Connection::open_gap)
            .max_by_key(|(from, _)| now.saturating_duration_since(*from))
    }

    /// Executes waiting commands; a wish to stop is returned.
    fn obey(&mut self, now: Instant) -> Option<StoppedBy> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop(by) => return Some(by),
                Command::Gap { reset, reply } => {
                    let open = self.open_gap(now);
                    let line = report::gap_line(&mut self.tally, now, open, reset);
                    reply.send(line, self.output);
                }
            }
        }
        None
    }

    /// Creates the ready file after the first answer.
    fn announce(&mut self) -> Result<(), ProbeError> {
        if self.announced || self.tally.answered == 0 {
            return Ok(());
        }
        self.announced = true;
        let Some(path) = &self.plan.ready_file else { return Ok(()) };
        let pid = format!("{}\n", std::process::id());
        let unfinished = PathBuf::from(format!("{}.new", path.display()));
        std::fs::write(&unfinished, pid)
            .and_then(|()| std::fs::rename(&unfinished, path))
            .map_err(|source| ProbeError::ReadyFile { path: path.clone(), source })
    }
}
