//! What the supervisor and the handler tell each other: four words, and descriptors.

use crate::sys::fdpass;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Number of an address space: those CRIU hands over count from 0, those of forked children from [`FORKED_FROM`].
pub(super) type SpaceId = u64;
/// See [`SpaceId`].
pub(super) const FORKED_FROM: SpaceId = 1 << 32;

/// A message. Descriptors in the order in which they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To the handler, first of all. Descriptors: the page store, the journal.
    Hello {
        /// Length of the store, in bytes.
        store: u64,
        /// Length of the journal, in bytes.
        journal: u64,
    },
    /// To the handler: the lists. Descriptor: their memfd.
    Lists,
    /// To the handler: the address space of a restored task. Descriptor: its userfaultfd.
    Root {
        /// Its number.
        id: SpaceId,
        /// The task, in its own pid namespace.
        vpid: u32,
    },
    /// To the supervisor, and from it to a successor: the address space of a forked child. Descriptor: its userfaultfd.
    Forked {
        /// Its number.
        id: SpaceId,
        /// Whose child.
        parent: SpaceId,
    },
    /// To the handler: that was all a predecessor had. Before this it reads no events: they would change the list of a
    /// parent whose child is still to come.
    Resume,
    /// To the handler: the restore has ended, now fill.
    Start,
    /// To the supervisor: this address space has everything, let go of it.
    Leave {
        /// Its number.
        id: SpaceId,
    },
    /// To the handler: the supervisor has let go of it.
    Left {
        /// Its number.
        id: SpaceId,
    },
    /// To the supervisor: everything is done.
    Finished,
}

impl Message {
    fn words(self) -> [u64; 3] {
        match self {
            Self::Hello { store, journal } => [1, store, journal],
            Self::Lists => [2, 0, 0],
            Self::Root { id, vpid } => [3, id, u64::from(vpid)],
            Self::Forked { id, parent } => [4, id, parent],
            Self::Start => [5, 0, 0],
            Self::Leave { id } => [6, id, 0],
            Self::Left { id } => [7, id, 0],
            Self::Finished => [8, 0, 0],
            Self::Resume => [9, 0, 0],
        }
    }

    fn from_words([kind, a, b]: [u64; 3]) -> Option<Self> {
        Some(match kind {
            1 => Self::Hello { store: a, journal: b },
            2 => Self::Lists,
            3 => Self::Root { id: a, vpid: b as u32 },
            4 => Self::Forked { id: a, parent: b },
            5 => Self::Start,
            6 => Self::Leave { id: a },
            7 => Self::Left { id: a },
            8 => Self::Finished,
            9 => Self::Resume,
            _ => return None,
        })
    }

    /// Sends it over a `SOCK_SEQPACKET` socket.
    pub(super) fn send(
        self,
        socket: impl AsFd,
        descriptors: &[BorrowedFd<'_>],
        wait: bool,
    ) -> Result<(), Errno> {
        let mut bytes = [0; 24];
        for (at, word) in self.words().into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_ne_bytes());
        }
        fdpass::send(socket, &bytes, descriptors, wait)
    }

    /// The next message; none when the other side is gone, EAGAIN when there is none yet (only without `wait`).
    pub(super) fn receive(socket: impl AsFd, wait: bool) -> Result<Option<(Self, Vec<OwnedFd>)>, Errno> {
        let mut bytes = [0; 24];
        let (got, descriptors) = loop {
            match fdpass::receive(&socket, &mut bytes, wait) {
                Ok((0, _)) => return Ok(None),
                // The other side died and had not read everything. The kernel says so once, before it gives out what that
                // side had sent: perhaps the userfaultfd of a child.
                Err(Errno::ECONNRESET) => {}
                result => break result?,
            }
        };
        let mut words = [0; 3];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        }
        match Self::from_words(words) {
            Some(message) if got == bytes.len() => Ok(Some((message, descriptors))),
            _ => Err(Errno::EBADMSG),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        for message in [
            Message::Hello { store: 1, journal: 2 },
            Message::Lists,
            Message::Root { id: 3, vpid: 4 },
            Message::Forked { id: 5, parent: 6 },
            Message::Start,
            Message::Leave { id: 7 },
            Message::Left { id: 8 },
            Message::Finished,
            Message::Resume,
        ] {
            assert_eq!(Message::from_words(message.words()), Some(message));
        }
        assert_eq!(Message::from_words([0, 0, 0]), None);
    }

    #[test]
    fn what_was_sent_before_a_death_is_heard() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        Message::Start.send(&ours, &[], true).unwrap();
        Message::Forked { id: 1, parent: 0 }.send(&theirs, &[std::io::stdin().as_fd()], true).unwrap();
        // It has not read `Start`.
        drop(theirs);
        let (message, descriptors) = Message::receive(&ours, false).unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Forked { id: 1, parent: 0 }, 1));
        drop(descriptors);
        assert!(Message::receive(&ours, false).unwrap().is_none());
    }
}
