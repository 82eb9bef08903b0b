//! Frames the lock dropped: kept at the source, replayed where the container runs on.
//!
//! A peer whose last segment fell into the lock says nothing until its retransmission timer ends: 200 ms, 400, 800.
//! Replayed frames make the container's kernel answer at once. A frame seen twice is no harm for TCP.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, send, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::rebuild::index_of;
use super::{NetworkError, Result};
use crate::sys::packet::{self, PacketSocket};

/// `struct virtio_net_hdr` before each frame (linux/virtio_net.h).
const VNET_HEADER: usize = 10;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of frames kept; what comes after is left to retransmission.
const MOST_BYTES: usize = 16 << 20;
/// Largest frame with segmentation offload, with room for its headers.
const LARGEST: usize = 72 << 10;
/// Bytes the kernel may queue for the capture.
const QUEUE: usize = 8 << 20;

/// A frame as a packet socket with `PACKET_VNET_HDR` gives and takes it: 10 bytes of checksum and segmentation
/// state, then the Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame(pub Vec<u8>);

/// A frame of a capture, and what decides whether it is to be replayed.
#[derive(Debug)]
pub(super) struct Captured {
    /// Nanoseconds since 1970 when it was on its way to the container.
    pub(super) at: u64,
    pub(super) tcp: bool,
    pub(super) frame: Frame,
}

/// Keeps the frames sent to a container through the host side of its veth. Start it just before the lock.
#[derive(Debug)]
pub(super) struct FrameCapture {
    interface: String,
    own: [u8; 6],
    socket: Arc<PacketSocket>,
    kept: Arc<Mutex<Kept>>,
    /// One end of a pipe; closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What came since somebody last asked.
#[derive(Debug, Default)]
struct Kept {
    frames: Vec<Captured>,
    bytes: usize,
    lost: u64,
}

impl FrameCapture {
    /// Starts to keep the IPv4 and IPv6 frames that leave through host interface `interface`, but for neighbour
    /// discovery, which like ARP passes the lock, and those whose source is `own`: they are replayed ones.
    pub(super) fn start(interface: &str, own: [u8; 6]) -> Result<Self> {
        let failed =
            |errno: Errno| NetworkError::Packet { interface: interface.into(), source: errno.into() };
        let socket = packet::open(index_of(interface)?, libc::ETH_P_ALL as u16, true).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(failed)?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).map_err(failed)?;
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let (socket, kept) = (Arc::new(socket), Arc::new(Mutex::new(Kept::default())));
        let watch = {
            let (socket, kept) = (Arc::clone(&socket), Arc::clone(&kept));
            move || watch(&socket, own, &stopped, &kept)
        };
        let thread = thread::Builder::new().name("frames".into()).spawn(watch);
        let thread = thread.map_err(|source| NetworkError::Packet { interface: interface.into(), source })?;
        Ok(Self { interface: interface.into(), own, socket, kept, stop: Some(stop), thread: Some(thread) })
    }

    /// The interface.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// What was kept since the last time, everything queued until now included; the capture goes on.
    pub(super) fn take(&self) -> Vec<Captured> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // an interface that is gone has no more
        let _ = receive_all(&self.socket, self.own, &mut kept);
        let Kept { frames, lost, .. } = std::mem::take(&mut *kept);
        if lost > 0 {
            tracing::warn!(interface = %self.interface, lost, "frames beyond the limit were not kept");
        }
        frames
    }
}

impl Drop for FrameCapture {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Receives until the other end of `stopped` is closed.
fn watch(socket: &PacketSocket, own: [u8; 6], stopped: &OwnedFd, kept: &Mutex<Kept>) {
    loop {
        let mut ready =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut ready, PollTimeout::NONE), Err(errno) if errno != Errno::EINTR) {
            return;
        }
        if ready[1].any() == Some(true) {
            return;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if receive_all(socket, own, &mut kept).is_err() {
            return;
        }
    }
}

/// Receives what is queued.
fn receive_all(socket: &PacketSocket, own: [u8; 6], kept: &mut Kept) -> Result<(), Errno> {
    let mut buffer = vec![0; LARGEST];
    loop {
        match receive(socket, &mut buffer) {
            Ok(Some((at, length))) => {
                let frame = &buffer[..length];
                let ethernet = frame.get(VNET_HEADER..).unwrap_or_default();
                let Some(tcp) = is_tcp(ethernet).filter(|_| ethernet[6..12] != own) else { continue };
                if kept.bytes + length > MOST_BYTES {
                    kept.lost += 1;
                    continue;
                }
                kept.bytes += length;
                kept.frames.push(Captured { at, tcp, frame: Frame(frame.to_vec()) });
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            // it went down or away: nothing more will come
            Err(errno) => return Err(errno),
        }
    }
}

/// One frame that was sent out of the interface: its time and length; none for one that came in or was cut.
fn receive(socket: &PacketSocket, buffer: &mut [u8]) -> Result<Option<(u64, usize)>, Errno> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let outgoing = message.address.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
    if !outgoing || message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let stamp = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(at) => {
            Some(at.tv_sec() as u64 * 1_000_000_000 + at.tv_nsec() as u64)
        }
        _ => None,
    });
    Ok(Some((stamp.unwrap_or(u64::MAX), message.bytes)))
}

/// Whether an Ethernet frame is TCP; none when it passes the lock: neither IPv4 nor IPv6, or neighbour discovery.
fn is_tcp(frame: &[u8]) -> Option<bool> {
    const TCP: u8 = 6;
    const ICMPV6: u8 = 58;
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(frame.get(23) == Some(&TCP)),
        [0x86, 0xdd] => match (frame.get(20)?, frame.get(54)) {
            (&ICMPV6, Some(135 | 136)) => None,
            (next, _) => Some(*next == TCP),
        },
        _ => None,
    }
}

impl Frame {
    /// Whether it is TCP.
    pub(super) fn is_tcp(&self) -> bool {
        is_tcp(self.0.get(VNET_HEADER..).unwrap_or_default()) == Some(true)
    }

    /// Whether it was sent to more than one.
    pub(super) fn is_to_group(&self) -> bool {
        self.0.get(VNET_HEADER).is_some_and(|first| first & 1 == 1)
    }

    /// The IP packet in it, without what Ethernet added to reach its shortest length.
    pub(super) fn packet(&self) -> &[u8] {
        let packet = self.0.get(VNET_HEADER + ETHERNET..).unwrap_or_default();
        let number =
            |at: usize| packet.get(at..at + 2).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]));
        let length = match packet.first().map(|first| first >> 4) {
            Some(4) => number(2),
            _ => number(4) + 40,
        };
        &packet[..length.min(packet.len())]
    }

    /// The same frame as if `from` had sent it.
    pub(super) fn with_source(&self, from: [u8; 6]) -> Vec<u8> {
        let mut bytes = self.0.clone();
        if let Some(source) = bytes.get_mut(VNET_HEADER + 6..VNET_HEADER + 12) {
            source.copy_from_slice(&from);
        }
        bytes
    }
}

/// Sends frames out of one host interface.
#[derive(Debug)]
pub(super) struct FrameSender {
    interface: String,
    socket: PacketSocket,
}

impl FrameSender {
    /// Opens it; the interface may still be down.
    pub(super) fn open(interface: &str) -> Result<Self> {
        let failed =
            |errno: Errno| NetworkError::Packet { interface: interface.into(), source: errno.into() };
        let socket = packet::open(index_of(interface)?, 0, true).map_err(failed)?;
        Ok(Self { interface: interface.into(), socket })
    }

    /// The interface.
    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// Sends `frames` with another Ethernet source; neither IP nor what is above it looks at that. A frame the link
    /// refuses is skipped, since retransmission covers it.
    pub(super) fn send(&self, frames: &[Frame], from: [u8; 6]) {
        for frame in frames {
            if let Err(errno) = send(self.socket.as_raw_fd(), &frame.with_source(from), MsgFlags::empty()) {
                tracing::debug!(interface = %self.interface, %errno, "a kept frame could not be sent");
            }
        }
    }
}
