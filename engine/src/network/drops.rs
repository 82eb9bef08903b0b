//! What the network lock dropped, from the kernel's own mouth (nfnetlink_log).
//!
//! A frame that comes just when a lock is made or removed is dropped or delivered, and its time does not tell which.
//! TCP takes a frame twice; to others a second copy is a second message.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use super::lock::LOG_GROUP;
use super::netlink::{ACK, Message, Netlink, find, split};
use super::{Namespace, NetworkError, Result};

// linux/netfilter/nfnetlink_log.h
const SUBSYSTEM: u16 = 4;
const PACKET: u16 = SUBSYSTEM << 8;
const CONFIGURE: u16 = SUBSYSTEM << 8 | 1;
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const THRESHOLD: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;
/// `struct nfgenmsg` before the attributes.
const HEADER: usize = 4;
/// Bytes the kernel may queue.
const QUEUE: usize = 8 << 20;
/// Bytes of each packet that are told, and compared.
const COMPARED: usize = 0xff00;

/// Hears of the packets other than TCP that the input lock of a namespace drops.
#[derive(Debug)]
pub(super) struct DropLog {
    socket: Netlink,
    /// How often a packet was dropped and not yet asked for.
    dropped: HashMap<Vec<u8>, u32>,
}

impl DropLog {
    /// Begins to listen.
    ///
    /// # Errors
    /// Also when this kernel has no nfnetlink_log, or somebody else has the group.
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        let failed = |source: io::Error| NetworkError::Netlink {
            what: "listen to what the network lock drops".into(),
            source,
        };
        let socket = namespace.run(Netlink::netfilter)??;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).map_err(|errno| failed(errno.into()))?;
        let [high, low] = LOG_GROUP.to_be_bytes();
        let ask = |kind, value: &[u8]| {
            vec![Message::new(CONFIGURE, ACK, &[0, 0, high, low]).attribute(kind, value)]
        };
        let copied = (COMPARED as u32).to_be_bytes();
        let mode = [copied[0], copied[1], copied[2], copied[3], COPY_PACKET, 0];
        for request in [ask(COMMAND, &[BIND]), ask(MODE, &mode), ask(THRESHOLD, &1u32.to_be_bytes())] {
            socket.request(request).map_err(failed)?;
        }
        Ok(Self { socket, dropped: HashMap::new() })
    }

    /// Takes note of everything that was dropped until now.
    pub(super) fn listen(&mut self) {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) => {
                    for (kind, _, payload) in split(&buffer[..got]) {
                        let packet = (kind == PACKET).then(|| find(payload.get(HEADER..)?, PAYLOAD));
                        if let Some(packet) = packet.flatten() {
                            *self.dropped.entry(packet.to_vec()).or_default() += 1;
                        }
                    }
                }
                // some were not told: what is known is still true
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Whether a packet was dropped; each drop is told once.
    pub(super) fn was_dropped(&mut self, packet: &[u8]) -> bool {
        let known = &packet[..packet.len().min(COMPARED)];
        match self.dropped.get_mut(known) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Forgets what was told before a new lock.
    pub(super) fn forget(&mut self) {
        self.listen();
        self.dropped.clear();
    }
}
