//! What godwit and the guardian say to each other: one packet each, on a SOCK_SEQPACKET socket. Both ends are one program, so
//! numbers are in its own byte order.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys;

/// Longest packet, bytes.
const LONGEST: usize = 32;

/// What godwit wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Trace this process.
    Watch { criu: i32 },
    /// When it dies, write the word of this length into the descriptor that comes along; and its number into the second.
    Arm { criu: i32, word: [u8; 8], length: u8 },
    /// Whatever happens to it, do nothing any more.
    StandDown { criu: i32 },
}

/// What the guardian says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It is there, and ready.
    Ready,
    /// The last order was carried out: 0, or why not (errno).
    Done(i32),
    /// A watched process has ended.
    Ended(Ended),
}

/// The end of a watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) criu: i32,
    /// As wait(2) gives it.
    pub(crate) status: i32,
    /// The brake: not pulled (-1), pulled (0), or why not (errno).
    pub(crate) brake: i32,
    /// From the stop of the dying process until the freeze was ordered, µs.
    pub(crate) micros: u32,
    /// How often it stopped for its signals.
    pub(crate) stops: u32,
}

impl Order {
    fn encode(self) -> [u8; LONGEST] {
        let (kind, criu, word, length) = match self {
            Order::Watch { criu } => (1, criu, [0; 8], 0),
            Order::Arm { criu, word, length } => (2, criu, word, length),
            Order::StandDown { criu } => (3, criu, [0; 8], 0),
        };
        let mut bytes = [0; LONGEST];
        bytes[0] = kind;
        bytes[1] = length;
        bytes[4..8].copy_from_slice(&criu.to_ne_bytes());
        bytes[8..16].copy_from_slice(&word);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LONGEST] = bytes.try_into().ok()?;
        let criu = number(bytes, 4);
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8..16]);
        match bytes[0] {
            1 => Some(Order::Watch { criu }),
            2 if usize::from(bytes[1]) <= word.len() => Some(Order::Arm { criu, word, length: bytes[1] }),
            3 => Some(Order::StandDown { criu }),
            _ => None,
        }
    }

    pub(crate) fn send(self, to: &OwnedFd, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        send(to, &self.encode(), descriptors)
    }
}

impl Report {
    fn encode(self) -> [u8; LONGEST] {
        let (kind, numbers) = match self {
            Report::Ready => (1, [0; 5]),
            Report::Done(errno) => (2, [errno, 0, 0, 0, 0]),
            Report::Ended(end) => {
                (3, [end.criu, end.status, end.brake, end.micros.cast_signed(), end.stops.cast_signed()])
            }
        };
        let mut bytes = [0; LONGEST];
        bytes[0] = kind;
        for (place, number) in bytes[4..24].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LONGEST] = bytes.try_into().ok()?;
        match bytes[0] {
            1 => Some(Report::Ready),
            2 => Some(Report::Done(number(bytes, 4))),
            3 => Some(Report::Ended(Ended {
                criu: number(bytes, 4),
                status: number(bytes, 8),
                brake: number(bytes, 12),
                micros: number(bytes, 16).cast_unsigned(),
                stops: number(bytes, 20).cast_unsigned(),
            })),
            _ => None,
        }
    }

    pub(crate) fn send(self, to: &OwnedFd) -> Result<(), Errno> {
        send(to, &self.encode(), &[])
    }
}

fn number(bytes: &[u8; LONGEST], at: usize) -> i32 {
    i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn send(to: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// A packet's bytes, and the descriptors that came along.
pub(crate) type Packet = ([u8; LONGEST], Vec<OwnedFd>);

/// The next packet; `None` when there will be none.
pub(crate) fn receive(from: &impl AsFd) -> Result<Option<Packet>, Errno> {
    let mut bytes = [0; LONGEST];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = loop {
        let from = from.as_fd().as_raw_fd();
        match recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            result => break result?,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(sys::adopt));
        }
    }
    let length = message.bytes;
    Ok((length > 0).then_some((bytes, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let word = *b"FROZEN\0\0";
        for order in [
            Order::Watch { criu: 7 },
            Order::Arm { criu: i32::MAX, word, length: 6 },
            Order::StandDown { criu: 1 },
        ] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        let ended = Ended { criu: 7, status: 9, brake: -1, micros: u32::MAX, stops: 3 };
        for report in [Report::Ready, Report::Done(3), Report::Ended(ended)] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(Order::decode(&[0; LONGEST]), None);
        assert_eq!(Report::decode(&[1; 4]), None);
        let mut too_long = Order::Arm { criu: 1, word, length: 6 }.encode();
        too_long[1] = 9;
        assert_eq!(Order::decode(&too_long), None);
    }
}
