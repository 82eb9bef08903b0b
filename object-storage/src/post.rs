//! The post: a stream of bytes in both directions between two hosts that reach a place, but not each other.
//!
//! - What is said goes in [`letter`]s: objects, numbered in each direction, that the other side takes away when it has read them.
//! - A [`session`] is one such exchange. Who calls makes one in the directory of whom it calls, which looks there for new ones.
//! - A [`pump`] carries between a socket and the letters.
//!
//! The place learns who calls whom, when, and how much is said. What is said is for whoever is at the sockets to protect: with TLS.

mod letter;
mod pump;
mod session;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_migration::Cancel;
use godwit_transfer::Elsewhere;
use godwit_transfer::tls::{Carrier, Fingerprint};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bucket::{Environment, environment};
use crate::name::At;
use crate::{Place, PlaceError, PlaceName};
use letter::Letter;
use pump::{Fate, carry, pause_after, poll};
pub use session::LEFTOVER;
use session::{Directory, Session, Way};

/// How long somebody who is called may take to answer.
pub const ANSWER: Duration = Duration::from_secs(20);
/// How often somebody who waits to be called looks.
pub const LOOK: Duration = Duration::from_secs(1);
/// After so many calls those are forgotten of which nothing lies there.
const MOST_KNOWN: usize = 10_000;
/// How long exchanges that were closed may take to come to their ends.
const CLOSING: Duration = Duration::from_secs(35);

/// A place as a way to other hosts. When it is dropped it waits for the ends of its exchanges, which leave nothing there.
pub struct Post {
    place: Place,
    pumps: Mutex<JoinSet<()>>,
}

impl Post {
    /// Opens the place; nothing is asked of it yet. Once `cancel` is raised nobody is called any more; what has begun goes on.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn open(name: &PlaceName, cancel: Cancel) -> Result<Self, PlaceError> {
        Self::open_in(&environment(), name, cancel)
    }

    /// The same in another environment than that of this process.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn open_in(environment: &Environment, name: &PlaceName, cancel: Cancel) -> Result<Self, PlaceError> {
        let place = Place::open_in(environment, name, cancel, false)?;
        Ok(Self { place, pumps: Mutex::default() })
    }

    /// What the place is called.
    pub fn name(&self) -> &PlaceName {
        self.place.name()
    }

    /// Calls the host with this key, and waits until it has answered. Who answers has not proved who it is.
    ///
    /// # Errors
    /// [`PlaceError::Silent`] when nobody answers, and when the place says no. Then nothing is left there.
    pub fn call(&self, whom: Fingerprint) -> Result<Exchange, PlaceError> {
        let directory = self.directory(whom)?;
        let session = Session::new(directory.clone())?;
        let (ours, theirs) = (session.lane(Way::To), session.lane(Way::Fro));
        let answered = self.place.wait(async {
            directory.sweep(&directory.list().await?).await?;
            ours.put(0, &Letter::default()).await?;
            let begun = Instant::now();
            let answer = timeout(ANSWER, poll(&theirs, 0, || pause_after(begun.elapsed()))).await;
            answer.map_err(|_| PlaceError::Silent(ANSWER))??;
            theirs.delete(0).await
        });
        match answered.and_then(|()| self.begin(session.clone(), Way::To, 1)) {
            Ok(exchange) => Ok(exchange),
            Err(error) => {
                // also when somebody wants to stop
                let cleared = self.place.runtime.block_on(async { timeout(ANSWER, session.clear()).await });
                if !matches!(cleared, Ok(Ok(()))) {
                    tracing::warn!(session = session.id, "a call may be left over in the place");
                }
                Err(error)
            }
        }
    }

    /// Waits for calls to the host with this key, which is this one. That letters can be put there and taken away is tried at once.
    ///
    /// # Errors
    /// When the place says no.
    pub fn listen(self, whom: Fingerprint) -> Result<Letterbox, PlaceError> {
        let directory = self.directory(whom)?;
        let trial = Session::new(directory.clone())?.lane(Way::Fro);
        self.place.wait(async {
            directory.sweep(&directory.list().await?).await?;
            trial.put(0, &Letter::default()).await?;
            trial.delete(0).await
        })?;
        let seen =
            RefCell::new(Seen { known: HashSet::new(), waiting: VecDeque::new(), next: Instant::now() });
        Ok(Letterbox { post: self, directory, seen })
    }

    /// Where letters for a host go.
    fn directory(&self, whom: Fingerprint) -> Result<Directory, PlaceError> {
        let whom = whom.to_string();
        // a colon is not for every server, and always the same hash stands before it
        let name = format!("calls/{}", whom.rsplit(':').next().unwrap_or(&whom));
        if let At::Directory(path) = &self.place.name().at {
            let path = path.join(&name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(PlaceError::io("make", &path))?;
        }
        Ok(Directory { objects: self.place.objects(), name })
    }

    /// Begins to carry.
    fn begin(&self, session: Session, out: Way, begins: u64) -> Result<Exchange, PlaceError> {
        let unusable = |error: io::Error| PlaceError::Unusable(error.to_string());
        let (near, far) = UnixStream::pair().map_err(unusable)?;
        far.set_nonblocking(true).map_err(unusable)?;
        let fate = Fate::default();
        let _inside = self.place.runtime.enter();
        let far = tokio::net::UnixStream::from_std(far).map_err(unusable)?;
        let mut pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner);
        while pumps.try_join_next().is_some() {}
        pumps.spawn(carry(far, session, out, begins, fate.clone()));
        Ok(Exchange { socket: near, place: self.place.name().clone(), fate })
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        let pumps = self.pumps.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ended = async { while pumps.join_next().await.is_some() {} };
        if self.place.runtime.block_on(async { timeout(CLOSING, ended).await }).is_err() {
            tracing::warn!(place = %self.place.name(), "letters may be left over in the place");
        }
    }
}

/// One end of an exchange of letters: a socket to whoever called, or answered. Closing it ends the exchange.
#[derive(Debug)]
pub struct Exchange {
    socket: UnixStream,
    place: PlaceName,
    fate: Fate,
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Carrier for Exchange {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    fn post_mortem(&self) -> Option<String> {
        self.fate.get().map(|why| format!("by way of `{}`: {why}", self.place))
    }
}

impl From<Exchange> for Box<dyn Carrier> {
    fn from(exchange: Exchange) -> Self {
        Box::new(exchange)
    }
}

/// Where calls to one host arrive.
pub struct Letterbox {
    post: Post,
    directory: Directory,
    seen: RefCell<Seen>,
}

struct Seen {
    /// Sessions that were answered: a call that was put there twice is one.
    known: HashSet<String>,
    /// Those that were not answered yet.
    waiting: VecDeque<String>,
    /// When it is looked again.
    next: Instant,
}

impl Letterbox {
    /// The next call; none when there is none now.
    fn next(&self) -> Result<Option<Exchange>, PlaceError> {
        let mut seen = self.seen.borrow_mut();
        if seen.waiting.is_empty() && Instant::now() >= seen.next {
            // not sooner when it fails, either
            seen.next = Instant::now() + LOOK;
            let found = self.post.place.wait(self.directory.list())?;
            if seen.known.len() > MOST_KNOWN {
                let there: HashSet<&String> = found.iter().map(|letter| &letter.session).collect();
                seen.known.retain(|session| there.contains(session));
            }
            for letter in found.iter().filter(|letter| letter.way == Way::To && letter.number == 0) {
                if seen.known.insert(letter.session.clone()) {
                    seen.waiting.push_back(letter.session.clone());
                }
            }
        }
        let Some(id) = seen.waiting.pop_front() else { return Ok(None) };
        let session = Session { directory: self.directory.clone(), id };
        self.post.begin(session, Way::Fro, 0).map(Some)
    }
}

impl Elsewhere for Letterbox {
    fn accept(&self, limit: Duration) -> io::Result<(Box<dyn Carrier>, String)> {
        let until = Instant::now() + limit;
        loop {
            match self.next() {
                Ok(Some(exchange)) => return Ok((exchange.into(), self.post.name().to_string())),
                Ok(None) => {}
                Err(PlaceError::Interrupted) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(io::Error::other(error)),
            }
            let now = Instant::now();
            if now >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let next = self.seen.borrow().next;
            std::thread::sleep(until.min(next).saturating_duration_since(now));
        }
    }
}

#[cfg(test)]
mod tests;
