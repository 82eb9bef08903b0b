//! Frames the lock dropped: kept at the source, replayed where the container runs on.
//!
//! A peer whose last segment fell into the lock says nothing until its retransmission timer ends: 200 ms, 400, 800.
//! Replayed frames make the container's kernel answer at once. A frame seen twice is no harm for TCP.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

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
/// Bytes of frames kept; what comes after is left to retransmission.
const MOST_BYTES: usize = 16 << 20;
/// Largest frame with segmentation offload, with room for its headers.
const LARGEST: usize = 72 << 10;
/// Bytes the kernel may queue for the capture.
const QUEUE: usize = 8 << 20;
/// Nothing was locked yet.
const NOT_LOCKED: u64 = u64::MAX;

/// A frame as a packet socket with `PACKET_VNET_HDR` gives and takes it: 10 bytes of checksum and segmentation
/// state, then the Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame(pub Vec<u8>);

/// What a capture kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFrames {
    /// In the order they came.
    pub frames: Vec<Frame>,
    /// Frames not kept because there were too many.
    pub lost: u64,
}

/// Keeps the frames sent to a container through the host side of its veth. Start it just before the lock, stop it
/// before the host side goes down.
#[derive(Debug)]
pub struct FrameCapture {
    interface: String,
    /// Nanoseconds since 1970 when the lock was in place.
    locked_at: Arc<AtomicU64>,
    /// One end of a pipe; closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Vec<(u64, Frame, bool)>>>,
    lost: Arc<AtomicU64>,
}

impl FrameCapture {
    /// Starts to keep the IPv4 and IPv6 frames that leave through host interface `interface`.
    pub fn start(interface: &str) -> Result<Self> {
        let failed =
            |errno: Errno| NetworkError::Packet { interface: interface.into(), source: errno.into() };
        let socket = packet::open(index_of(interface)?, libc::ETH_P_ALL as u16, true).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(failed)?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).map_err(failed)?;
        let (stopped, stop) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let (locked_at, lost) = (Arc::new(AtomicU64::new(NOT_LOCKED)), Arc::new(AtomicU64::new(0)));
        let keep = {
            let lost = Arc::clone(&lost);
            move || keep(&socket, &stopped, &lost)
        };
        let thread = thread::Builder::new().name("frames".into()).spawn(keep);
        let thread = thread.map_err(|source| NetworkError::Packet { interface: interface.into(), source })?;
        Ok(Self { interface: interface.into(), locked_at, stop: Some(stop), thread: Some(thread), lost })
    }

    /// The interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Says that the lock is in place now: frames other than TCP that came earlier reached the container, and are
    /// not replayed, since only TCP takes them twice.
    pub fn locked(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.locked_at.store(now.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Ends the capture and returns what it kept, everything queued until now included.
    pub fn stop(mut self) -> CapturedFrames {
        let all = self.end();
        let locked_at =
            Some(self.locked_at.load(Ordering::Relaxed)).filter(|at| *at != NOT_LOCKED).unwrap_or(0);
        let wanted = |(at, _, tcp): &(u64, Frame, bool)| *tcp || *at >= locked_at;
        let frames = all.into_iter().filter(wanted).map(|(_, frame, _)| frame).collect();
        CapturedFrames { frames, lost: self.lost.load(Ordering::Relaxed) }
    }

    fn end(&mut self) -> Vec<(u64, Frame, bool)> {
        drop(self.stop.take());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for FrameCapture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Receives until the other end of `stopped` is closed, then what is still queued.
fn keep(socket: &PacketSocket, stopped: &OwnedFd, lost: &AtomicU64) -> Vec<(u64, Frame, bool)> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut buffer = vec![0; LARGEST];
    loop {
        let mut ready =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut ready, PollTimeout::NONE), Err(errno) if errno != Errno::EINTR) {
            return kept;
        }
        let last = ready[1].any() == Some(true);
        loop {
            match receive(socket, &mut buffer) {
                Ok(Some((at, length))) => {
                    let frame = &buffer[..length];
                    let Some(tcp) = is_tcp(frame.get(VNET_HEADER..).unwrap_or_default()) else { continue };
                    if bytes + length > MOST_BYTES {
                        lost.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    bytes += length;
                    kept.push((at, Frame(frame.to_vec()), tcp));
                }
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // The interface went down or away: nothing more will come.
                Err(_) => return kept,
            }
        }
        if last {
            return kept;
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

/// Whether an Ethernet frame is TCP; none when it is neither IPv4 nor IPv6 (ARP passes the lock).
fn is_tcp(frame: &[u8]) -> Option<bool> {
    const TCP: u8 = 6;
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(frame.get(23) == Some(&TCP)),
        [0x86, 0xdd] => Some(frame.get(20) == Some(&TCP)),
        _ => None,
    }
}

/// Sends `frames` to the container through host interface `interface`, after unlock and before thaw. Returns how many
/// were taken; a frame the link refuses is skipped, since retransmission covers it.
pub fn inject(interface: &str, frames: &[Frame]) -> Result<usize> {
    let failed = |errno: Errno| NetworkError::Packet { interface: interface.into(), source: errno.into() };
    let socket = packet::open(index_of(interface)?, 0, true).map_err(failed)?;
    let sent =
        frames.iter().filter(|Frame(bytes)| match send(socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) => true,
            Err(errno) => {
                tracing::debug!(%interface, %errno, "a kept frame could not be replayed");
                false
            }
        });
    Ok(sent.count())
}
