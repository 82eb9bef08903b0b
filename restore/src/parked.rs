//! What a lost link leaves behind for a while: the files and pages that have come. The next attempt takes them up, so that they
//! need not travel again.
//!
//! They do not lie where they belong but in a directory of their own below `parked` in godwit's directory: for everybody else
//! the attempt is undone. A process started for it holds the pages (a memfd) and a lock on that directory, and lets go of
//! both when its time is over. What the dead have left is removed by whoever looks next.

use crate::job::private_dir;
use crate::trees::Before;
use godwit_memory::destination::{give_files, take_files};
use godwit_migration::{Cancel, MigrationId};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often whoever waits looks whether it shall end.
const LOOK_UP: Duration = Duration::from_millis(200);
/// How long the next attempt may take from its offer to its preparations: it may have to read all files.
const TAKING: Duration = Duration::from_secs(600);
/// How long an answer over the socket may take.
const ANSWER: Duration = Duration::from_secs(5);
/// No message over it is longer.
const LONGEST: u64 = 1 << 20;

/// Starts whoever holds what is kept: it calls [`serve`] with the socket.
type Start = Box<dyn Fn(UnixStream) -> io::Result<()> + Send + Sync>;

/// Whether and how long what has come is kept when a link is lost. Not by the process that received it: that one ends with its
/// connection.
pub struct Parking {
    time: Duration,
    start: Start,
}

impl Parking {
    /// For so long.
    pub fn new(time: Duration, start: Start) -> Self {
        Self { time, start }
    }

    /// Takes what has come away from where it belongs, and has it held. Gives what has no place to be kept in, or could not be
    /// moved there: it stays where it was.
    pub(crate) fn park(
        &self,
        root: &Path,
        attempt: Attempt<'_>,
        trees: Vec<Before>,
        pages: Option<File>,
    ) -> Vec<Before> {
        let dir = place(root).join(attempt.migration.as_str());
        let begun = private_dir(&dir).and_then(|()| {
            let lock = lock(&dir)?.ok_or(io::ErrorKind::WouldBlock)?;
            Ok((lock, UnixListener::bind(socket_of(&dir))?))
        });
        let (lock, listener) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                tracing::debug!(%error, "nothing is kept for another attempt");
                return trees;
            }
        };
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        for (number, tree) in trees.into_iter().enumerate() {
            let parked = dir.join(format!("tree-{number}"));
            match tree.take_away(&parked) {
                true => kept.push(Kept { belongs: tree.path().to_owned(), parked }),
                false => left.push(tree),
            }
        }
        let about = About { container: attempt.container.into(), peer: attempt.peer.into() };
        let orders = Orders {
            about,
            dir: dir.clone(),
            trees: kept,
            has_pages: pages.is_some(),
            seconds: self.time.as_secs_f64(),
        };
        let mut files = vec![lock.as_fd(), listener.as_fd()];
        files.extend(pages.as_ref().map(File::as_fd));
        let handed_over = UnixStream::pair().and_then(|(near, far)| {
            (self.start)(far)?;
            say(&near, &orders)?;
            give_files(&files, &near)
        });
        if let Err(error) = handed_over {
            tracing::info!(%error, "nothing is kept for another attempt");
            remove(&dir);
        }
        left
    }
}

/// What whoever holds it is told.
#[derive(Serialize, Deserialize)]
struct Orders {
    about: About,
    dir: PathBuf,
    trees: Vec<Kept>,
    has_pages: bool,
    seconds: f64,
}

/// Holds what a lost link has left behind, as the process at the other end of `orders` says, until it was taken, its time is over or
/// `cancel` is raised.
///
/// # Errors
/// When nothing was handed over.
pub fn serve(orders: &UnixStream, cancel: &Cancel) -> io::Result<()> {
    orders.set_read_timeout(Some(ANSWER))?;
    let Orders { about, dir, trees, has_pages, seconds } = hear(orders)?;
    let mut files = take_files(2 + usize::from(has_pages), orders)?.into_iter();
    let (Some(lock), Some(listener)) = (files.next(), files.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let holder = Holder {
        about,
        dir,
        listener: listener.into(),
        trees,
        pages: files.next().map(File::from),
        _lock: lock.into(),
    };
    let time = Duration::try_from_secs_f64(seconds).map_err(io::Error::other)?;
    holder.hold(Instant::now() + time, cancel);
    Ok(())
}

/// Whose attempt it was.
pub(crate) struct Attempt<'a> {
    pub(crate) migration: &'a MigrationId,
    pub(crate) container: &'a str,
    pub(crate) peer: &'a str,
}

/// What it is: given to an attempt for the same container by the same peer.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct About {
    container: String,
    peer: String,
}

/// What is asked of whoever holds it.
#[derive(Debug, Serialize, Deserialize)]
enum Wish {
    Take(About),
    Forget,
}

/// A tree that was moved away.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    belongs: PathBuf,
    parked: PathBuf,
}

/// The answer.
#[derive(Serialize, Deserialize)]
struct Given {
    trees: Vec<Kept>,
    has_pages: bool,
}

/// Keeps what has come.
struct Holder {
    about: About,
    dir: PathBuf,
    listener: UnixListener,
    trees: Vec<Kept>,
    pages: Option<File>,
    _lock: File,
}

impl Holder {
    fn hold(self, until: Instant, cancel: &Cancel) {
        while Instant::now() < until && !cancel.is_raised() {
            match awaited(&self.listener) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::debug!(%error, "nobody can ask for what is kept");
                    break;
                }
            }
            let taken = self.listener.accept().and_then(|(asker, _)| self.give(&asker));
            match taken {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "what is kept was not taken"),
            }
        }
        remove(&self.dir);
    }

    /// Gives it all away. An error as long as nobody says that he has it, or that nobody wants it.
    fn give(&self, asker: &UnixStream) -> io::Result<()> {
        asker.set_read_timeout(Some(ANSWER))?;
        asker.set_write_timeout(Some(ANSWER))?;
        match hear(asker)? {
            Wish::Forget => return Ok(()),
            Wish::Take(about) if about == self.about => {}
            Wish::Take(_) => return Err(io::Error::other("somebody else asked")),
        }
        say(asker, &Given { trees: self.trees.clone(), has_pages: self.pages.is_some() })?;
        if let Some(pages) = &self.pages {
            give_files(&[pages.as_fd()], asker)?;
        }
        asker.set_read_timeout(Some(TAKING))?;
        let mut taken = [0];
        let mut asker = asker;
        asker.read_exact(&mut taken)
    }
}

/// What an earlier attempt has left. Until [`Claim::settle`] it stays with the process that holds it.
#[derive(Debug)]
pub(crate) struct Claim {
    trees: Vec<Kept>,
    pages: Option<File>,
    holder: UnixStream,
}

impl Claim {
    /// Asks for what is kept of this container, sent by this peer. Removes what the dead have left.
    pub(crate) fn make(root: &Path, container: &str, peer: &str) -> Option<Self> {
        let wanted = Wish::Take(About { container: container.into(), peer: peer.into() });
        let mut found = None;
        for dir in sweep(root) {
            let asked = UnixStream::connect(socket_of(&dir)).and_then(|holder| Self::ask(holder, &wanted));
            match asked {
                // of several the first will do: the time of the others will be over
                Ok(claim) => found = found.or(Some(claim)),
                Err(error) => tracing::debug!(%error, "`{}` is not for us", dir.display()),
            }
        }
        found
    }

    fn ask(holder: UnixStream, wanted: &Wish) -> io::Result<Self> {
        holder.set_read_timeout(Some(ANSWER))?;
        holder.set_write_timeout(Some(ANSWER))?;
        say(&holder, wanted)?;
        let given: Given = hear(&holder)?;
        let pages = given.has_pages.then(|| take_files(1, &holder)).transpose()?;
        let pages = pages.and_then(|mut files| files.pop()).map(File::from);
        Ok(Self { trees: given.trees, pages, holder })
    }

    /// Where the tree lies that belongs at this place.
    pub(crate) fn tree(&self, place: &Path) -> Option<&Path> {
        self.trees.iter().find(|kept| kept.belongs == place).map(|kept| kept.parked.as_path())
    }

    /// Bytes of pages that are kept.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.pages.as_ref().and_then(|pages| pages.metadata().ok()).map_or(0, |pages| pages.len())
    }

    /// The pages; once.
    pub(crate) fn take_pages(&mut self) -> Option<File> {
        self.pages.take()
    }

    /// Puts the tree for this place there, if one is kept.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub(crate) fn bring_back(&self, place: &Path) -> io::Result<()> {
        let Some(parked) = self.tree(place) else { return Ok(()) };
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::rename(parked, place)
    }

    /// All of it is in its place, or not wanted: nobody needs to keep it any more.
    pub(crate) fn settle(mut self) {
        if let Err(error) = self.holder.write_all(&[1]) {
            tracing::debug!(%error, "whoever kept it is gone");
        }
    }
}

/// Nobody wants what is kept of this migration: it is over. Waits until it is gone.
pub fn forget(root: &Path, migration: &MigrationId) {
    let dir = place(root).join(migration.as_str());
    let until = Instant::now() + ANSWER;
    while dir.exists() && Instant::now() < until {
        let told = UnixStream::connect(socket_of(&dir)).and_then(|holder| say(&holder, &Wish::Forget));
        if told.is_err() {
            sweep(root);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what the dead have left; gives the directories of the living.
pub fn sweep(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place(root)).into_iter().flatten().flatten();
    let held = |dir: &PathBuf| match lock(dir) {
        Ok(Some(_alone)) => {
            remove(dir);
            false
        }
        held => held.is_ok(),
    };
    entries.map(|entry| entry.path()).filter(held).collect()
}

fn place(root: &Path) -> PathBuf {
    root.join("parked")
}

fn socket_of(dir: &Path) -> PathBuf {
    dir.join("socket")
}

/// None when somebody else has it. It is the open file's, and goes with it from process to process.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = File::open(dir)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "`{}` is left over", dir.display());
    }
}

/// Whether somebody has come, after a moment.
fn awaited(listener: &UnixListener) -> io::Result<bool> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(LOOK_UP).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, limit) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A length and JSON: what follows on the socket is not to be read by accident.
fn say(mut socket: &UnixStream, words: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(words)?;
    socket.write_all(&(text.len() as u64).to_le_bytes())?;
    socket.write_all(&text)
}

fn hear<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<T> {
    let mut length = [0; 8];
    socket.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many words"));
    }
    let mut text = vec![0; length as usize];
    socket.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_transfer::TreeBase;

    const WEB: &str = "runc:web";
    const PEER: &str = "ssh:10.0.0.1";

    /// A directory with `srv` in it.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("srv")).unwrap();
        root
    }

    /// A volume that was made, with a file in it, and its way back.
    fn arrived(root: &Path) -> (PathBuf, Before) {
        let volume = root.join("srv/new/volume");
        let before = Before::of(&volume, &TreeBase::Empty);
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("file"), "received").unwrap();
        (volume, before)
    }

    /// Held by a thread instead of a process.
    fn parking(seconds: u64, cancel: &Cancel) -> Parking {
        let cancel = cancel.clone();
        let start = move |orders: UnixStream| {
            let cancel = cancel.clone();
            std::thread::spawn(move || serve(&orders, &cancel).unwrap());
            Ok(())
        };
        Parking::new(Duration::from_secs(seconds), Box::new(start))
    }

    fn park(parking: &Parking, root: &Path, before: Before) -> MigrationId {
        let migration = MigrationId::generate().unwrap();
        let attempt = Attempt { migration: &migration, container: WEB, peer: PEER };
        let left = parking.park(root, attempt, vec![before], Some(tempfile::tempfile().unwrap()));
        assert_eq!(left, []);
        migration
    }

    #[track_caller]
    fn assert_gone(root: &Path) {
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::read_dir(place(root)).unwrap().count() > 0 {
            assert!(Instant::now() < until, "it is kept for ever");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_next_attempt_gets_all_of_it_and_nobody_else_does() {
        let root = root();
        let (volume, before) = arrived(root.path());
        park(&parking(60, &Cancel::default()), root.path(), before);
        assert!(!root.path().join("srv/new").exists(), "for everybody else it is undone");
        assert!(Claim::make(root.path(), "runc:db", PEER).is_none());
        assert!(Claim::make(root.path(), WEB, "ssh:10.0.0.2").is_none());
        // an attempt that comes to nothing
        drop(Claim::make(root.path(), WEB, PEER).unwrap());
        let mut claim = Claim::make(root.path(), WEB, PEER).unwrap();
        assert!(claim.take_pages().is_some());
        assert!(claim.tree(&root.path().join("srv/other")).is_none());
        claim.bring_back(&volume).unwrap();
        claim.settle();
        assert_gone(root.path());
        assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "received");
    }

    #[test]
    fn nothing_is_kept_for_ever() {
        let root = root();
        let root = root.path();
        park(&parking(0, &Cancel::default()), root, arrived(root).1);
        assert_gone(root);
        let cancel = Cancel::default();
        park(&parking(3600, &cancel), root, arrived(root).1);
        cancel.raise();
        assert_gone(root);
        forget(root, &park(&parking(3600, &Cancel::default()), root, arrived(root).1));
        assert_gone(root);
        // what the dead have left
        std::fs::create_dir_all(place(root).join("dead/tree-0")).unwrap();
        assert!(sweep(root).is_empty());
        assert_gone(root);
        // nobody to hold it
        let nobody = Parking::new(Duration::from_secs(60), Box::new(|_| Ok(())));
        park(&nobody, root, arrived(root).1);
        sweep(root);
        assert_gone(root);
    }

    #[test]
    fn what_was_there_before_is_left_alone() {
        let root = root();
        let volume = root.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        let before = Before::of(&volume, &TreeBase::Empty);
        std::fs::write(volume.join("file"), "received").unwrap();
        let migration = MigrationId::generate().unwrap();
        let attempt = Attempt { migration: &migration, container: WEB, peer: PEER };
        let parking = parking(0, &Cancel::default());
        assert_eq!(parking.park(root.path(), attempt, vec![before.clone()], None), [before]);
        assert!(volume.join("file").exists());
        assert_gone(root.path());
    }
}
