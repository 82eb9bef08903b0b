//! The way into a locked container: what the lock drops is kept, and comes in first when the lock goes.
//!
//! Opened in this order: what the container's kernel answers may leave; kept frames come in, by a key that only they
//! have; what arrived meanwhile follows; then everybody may come in. So nothing is lost or comes twice, and who waited is not
//! overtaken but by what comes within some 0.1 ms of the end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::drops::DropLog;
use super::frames::{Captured, Frame, FrameCapture, FrameSender};
use super::{Namespace, NetworkLock, Result};

/// Datagrams given to a container that does not run yet: more could exceed what its sockets hold.
const BEFORE_THAW: usize = 64;
/// As many datagrams then follow at a time, so that it can read them,
const BATCH: usize = 64;
/// with this pause between.
const PAUSE: Duration = Duration::from_millis(1);
/// How often what arrived meanwhile is given before the gate opens.
const FOLLOWING: usize = 8;
/// Time a frame may take from the host's side to the lock on a busy machine, nanoseconds.
const ON_THE_WAY: u64 = 100_000_000;

/// Frames for a container, by the host's side of its link.
pub type FramesByLink = Vec<(String, Vec<Frame>)>;

/// The lock of a container with a capture on each of its links. Dropping it leaves the lock as it is.
#[derive(Debug)]
pub struct Gate {
    lock: NetworkLock,
    drops: Option<DropLog>,
    senders: Vec<FrameSender>,
    /// With the last frames of each, of which it is not known yet whether they were dropped.
    captures: Vec<(FrameCapture, Vec<Captured>)>,
    /// The output is locked, too.
    closed: bool,
    /// When the input was locked, in nanoseconds since 1970: the lock was made some time between.
    locked: (u64, u64),
    /// The same of the unlock.
    unlocked: Option<(u64, u64)>,
    pending: FramesByLink,
}

impl Gate {
    /// Prepares the gate of `namespace`, whose links have these host sides; changes nothing yet.
    ///
    /// # Errors
    /// As [`NetworkLock::of`], and when a host side does not exist.
    pub fn of(namespace: &Namespace, host_links: &[String]) -> Result<Self> {
        let drops = DropLog::open(namespace);
        Ok(Self {
            lock: NetworkLock::of(namespace)?,
            drops: drops.inspect_err(|error| tracing::debug!(%error, "no exact account of drops")).ok(),
            senders: host_links.iter().map(|link| FrameSender::open(link)).collect::<Result<_>>()?,
            captures: Vec::new(),
            closed: false,
            locked: (0, 0),
            unlocked: None,
            pending: Vec::new(),
        })
    }

    /// Keeps what comes in, rather than letting it in. What the container says still leaves: it may still run.
    ///
    /// # Errors
    /// When the kernel says no; then nothing is locked.
    pub fn close_input(&mut self) -> Result<()> {
        self.capture()?;
        if let Some(drops) = &mut self.drops {
            drops.forget();
        }
        let before = now();
        if let Err(error) = self.lock.lock_input() {
            self.captures.clear();
            return Err(error);
        }
        self.locked = (before, now());
        Ok(())
    }

    /// Locks both ways; for a container that does not run.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn close(&mut self) -> Result<()> {
        self.lock.lock()?;
        self.closed = true;
        Ok(())
    }

    /// Begins to keep what comes in; the host sides must be up.
    ///
    /// # Errors
    /// When there are no packet sockets.
    pub fn capture(&mut self) -> Result<()> {
        self.unlocked = None;
        if self.captures.is_empty() {
            let start = |sender: &FrameSender| {
                Ok((FrameCapture::start(sender.interface(), self.lock.key())?, Vec::new()))
            };
            self.captures = self.senders.iter().map(start).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Whether frames are being kept.
    pub fn is_capturing(&self) -> bool {
        !self.captures.is_empty()
    }

    /// What was dropped since the last time; the gate stays closed.
    pub fn take(&mut self) -> FramesByLink {
        let mut captures = std::mem::take(&mut self.captures);
        for (capture, undecided) in &mut captures {
            undecided.extend(capture.take());
        }
        // after the captures: a packet is dropped when it has been seen there
        if let Some(drops) = &mut self.drops {
            drops.listen();
        }
        let mut all = FramesByLink::new();
        for (capture, undecided) in &mut captures {
            let (dropped, left) = self.split(std::mem::take(undecided));
            *undecided = left;
            if !dropped.is_empty() {
                all.push((capture.interface().to_owned(), dropped));
            }
        }
        self.captures = captures;
        all
    }

    /// Nothing at all leaves any more, not even answers to ARP; what comes in is still kept.
    ///
    /// # Errors
    /// As [`NetworkLock::silence`].
    pub fn silence(&self) -> Result<()> {
        self.lock.silence()
    }

    /// Lets the container's kernel answer, and gives it `kept`; as many datagrams as a container that does not run can
    /// hold. The rest follows in [`Gate::open`].
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn begin_to_open(&mut self, kept: FramesByLink) -> Result<()> {
        if std::mem::take(&mut self.closed) {
            self.lock.unlock_output()?;
        }
        for (link, mut frames) in kept {
            let datagrams = frames.iter().enumerate().filter(|(_, frame)| !frame.is_tcp());
            let most = datagrams.map(|(at, _)| at).nth(BEFORE_THAW).unwrap_or(frames.len());
            let rest = frames.split_off(most);
            self.give(&link, &frames);
            if !rest.is_empty() {
                self.pending.push((link, rest));
            }
        }
        Ok(())
    }

    /// Opens the gate: what is still to be given, what arrived meanwhile, then everything else.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn open(&mut self) -> Result<()> {
        for (link, frames) in std::mem::take(&mut self.pending) {
            for batch in frames.chunks(BATCH) {
                self.give(&link, batch);
                std::thread::sleep(PAUSE);
            }
        }
        for _ in 0..FOLLOWING {
            let followed = self.take();
            if followed.is_empty() {
                break;
            }
            self.give_all(&followed);
        }
        let before = now();
        self.lock.unlock()?;
        self.unlocked = Some((before, now()));
        let last = self.take();
        self.captures.clear();
        self.give_all(&last);
        Ok(())
    }

    /// What came in since the last time, for whoever has the container now; ends the captures.
    pub fn stop(&mut self) -> FramesByLink {
        let mut last = self.take();
        for (capture, undecided) in self.captures.drain(..) {
            let since = undecided.into_iter().filter(|one| one.at > self.locked.1).map(|one| one.frame);
            match last.iter_mut().find(|(link, _)| link == capture.interface()) {
                Some((_, frames)) => frames.extend(since),
                None => last.push((capture.interface().to_owned(), since.collect())),
            }
        }
        last
    }

    fn give_all(&self, frames: &FramesByLink) {
        frames.iter().for_each(|(link, frames)| self.give(link, frames));
    }

    fn give(&self, link: &str, frames: &[Frame]) {
        // for tests that must be able to fail
        if cfg!(debug_assertions) && std::env::var_os("GODWIT_TEST_NO_REPLAY").is_some() {
            return;
        }
        match self.senders.iter().find(|sender| sender.interface() == link) {
            Some(sender) => sender.send(frames, self.lock.key()),
            None => tracing::warn!(interface = %link, "kept frames of an interface that is not here"),
        }
    }

    /// Splits what was captured: frames that the lock dropped, and the last ones, of which that is not known yet. TCP that
    /// came shortly before the lock counts as dropped: a second copy of a segment makes the container's kernel
    /// acknowledge what a peer may still wait for.
    fn split(&mut self, captured: Vec<Captured>) -> (Vec<Frame>, Vec<Captured>) {
        let now = now();
        let (mut dropped, mut undecided) = (Vec::new(), Vec::new());
        for one in captured {
            let is_old = one.at.saturating_add(ON_THE_WAY) < now;
            let told = match &mut self.drops {
                Some(drops) if undecided.is_empty() && !one.tcp => {
                    Some(drops.was_dropped(one.frame.packet()))
                }
                _ => None,
            };
            let verdict = match (told, self.unlocked) {
                (_, open) if one.tcp => Some(open.is_none_or(|(_, open)| one.at <= open)),
                // who came later does not overtake
                _ if !undecided.is_empty() && self.unlocked.is_none() => None,
                // a second copy rather than none
                (None, open) => Some(one.at >= self.locked.0 && open.is_none_or(|(_, open)| one.at <= open)),
                (Some(true), _) => Some(true),
                (Some(false), Some(_)) => Some(false),
                // most of these are for groups that the container is not in, of which nobody tells
                (Some(false), None) if one.frame.is_to_group() => Some(false),
                // it had more to tell than it could
                (Some(false), None) => is_old.then_some(one.at > self.locked.1),
            };
            match verdict {
                Some(true) => dropped.push(one.frame),
                Some(false) => {}
                None => undecided.push(one),
            }
        }
        (dropped, undecided)
    }
}

/// Sends `frames` for a container that is elsewhere now into `bridge`, as this host's own: the segment must not learn
/// that their senders are here.
///
/// # Errors
/// When there is no such bridge, or no packet socket.
pub fn forward(bridge: &str, frames: &[Frame]) -> Result<()> {
    let sender = FrameSender::open(bridge)?;
    let address = std::fs::read_to_string(format!("/sys/class/net/{bridge}/address")).unwrap_or_default();
    if let Some(own) = super::announce::parse_mac(address.trim()) {
        sender.send(frames, own);
    }
    Ok(())
}

/// Nanoseconds since 1970, as frames are stamped.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
