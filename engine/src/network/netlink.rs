//! Netlink requests made in-process, for the few that must not cost a process start (netlink(7), rtnetlink(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{NetworkError, Result};

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const CREATE: u16 = 0x400;

const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_GETNSID: u16 = 90;
const IFLA_OPERSTATE: u16 = 16;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `IF_OPER_UP` (RFC 2863, linux/if.h).
const OPER_UP: u8 = 6;

/// One netlink message under construction: `struct nlmsghdr`, a family header, attributes.
#[derive(Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    /// Appends an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self
    }

    /// Appends a string attribute with its terminating zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends a nested attribute holding other attributes.
    pub(super) fn nest(self, kind: u16, inner: &[u8]) -> Self {
        self.attribute(kind | NESTED, inner)
    }

    /// Appends a nested attribute holding big-endian 32-bit values, as nf_tables wants them.
    pub(super) fn nest_be32(self, kind: u16, values: &[(u16, u32)]) -> Self {
        let inner: Vec<u8> =
            values.iter().flat_map(|(kind, value)| attribute(*kind, &value.to_be_bytes())).collect();
        self.nest(kind, &inner)
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn wants_ack(&self) -> bool {
        u16::from_ne_bytes([self.0[6], self.0[7]]) & ACK != 0
    }
}

/// One attribute: length, kind, value, padding (netlink(7)).
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (value.len() + 4) as u16;
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that holds attributes.
pub(super) fn nested(kind: u16, inner: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, inner)
}

/// A netlink socket. It belongs to the namespace of the thread that opened it, for ever.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    /// Number of the next message; held during a request, so that replies do not mix.
    sequence: Mutex<u32>,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Netlink {
    /// Opens a route socket in the calling thread's namespace.
    pub(super) fn route() -> Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Opens a netfilter socket in the calling thread's namespace.
    pub(super) fn netfilter() -> Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self> {
        let open = || {
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
            Ok(fd)
        };
        let socket = open().map_err(|errno: Errno| NetworkError::Netlink {
            what: "open a netlink socket".into(),
            source: errno.into(),
        })?;
        Ok(Self { socket, sequence: Mutex::new(1) })
    }

    /// Sends `messages` in one write, waits for every acknowledgement asked for (or, when none is, for one reply)
    /// and returns the payloads of the replies. The first error ends it.
    pub(super) fn request(&self, messages: Vec<Message>) -> io::Result<Vec<Vec<u8>>> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *sequence;
        let mut wire = Vec::new();
        let mut acks = 0;
        for message in messages {
            acks += usize::from(message.wants_ack());
            let Message(mut bytes) = message;
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            *sequence += 1;
            wire.extend(bytes);
        }
        send(self.socket.as_raw_fd(), &wire, MsgFlags::empty())?;
        let mut replies = Vec::new();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let got = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, answered, payload) in split(&buffer[..got]) {
                if answered < first {
                    continue;
                }
                match kind {
                    NLMSG_ERROR => match payload.first_chunk::<4>().map_or(0, |c| i32::from_ne_bytes(*c)) {
                        0 => acks = acks.saturating_sub(1),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    NLMSG_DONE => acks = 0,
                    _ => replies.push(payload.to_vec()),
                }
            }
            if acks == 0 {
                return Ok(replies);
            }
        }
    }

    /// Sets interface `index` administratively up or down.
    pub(super) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        const IFF_UP: u32 = 1;
        let header = link_header(index, if up { IFF_UP } else { 0 }, IFF_UP);
        self.request(vec![Message::new(RTM_SETLINK, ACK, &header)]).map(drop)
    }

    /// Whether interface `index` can carry frames: RFC 2863 `up`, which is set together with its queue.
    pub(super) fn is_operational(&self, index: u32) -> io::Result<bool> {
        let replies = self.request(vec![Message::new(RTM_GETLINK, 0, &link_header(index, 0, 0))])?;
        let state = replies.first().and_then(|reply| find(reply.get(HEADER..)?, IFLA_OPERSTATE)?.first());
        Ok(state == Some(&OPER_UP))
    }

    /// The id by which this namespace knows `namespace` (`link_netnsid` of ip-link(8)); -1 when it has none.
    pub(super) fn namespace_id(&self, namespace: &File) -> io::Result<i32> {
        let message = Message::new(RTM_GETNSID, 0, &[0])
            .attribute(NETNSA_FD, &namespace.as_raw_fd().cast_unsigned().to_ne_bytes());
        let replies = self.request(vec![message])?;
        let id = replies.first().and_then(|reply| find(reply.get(4..)?, NETNSA_NSID)?.first_chunk::<4>());
        Ok(id.map_or(-1, |bytes| i32::from_ne_bytes(*bytes)))
    }
}

/// `struct ifinfomsg` (linux/rtnetlink.h).
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Cuts a datagram into (type, sequence, payload).
pub(super) fn split(mut rest: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut messages = Vec::new();
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(payload) = rest.get(HEADER..length) else { break };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        messages.push((kind, sequence, payload));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The value of the first attribute `kind`.
pub(super) fn find(mut rest: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some(&[l0, l1, k0, k1]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}
