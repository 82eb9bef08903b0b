//! AF_PACKET sockets bound to one interface (packet(7), linux/if_packet.h).

use std::mem::{ManuallyDrop, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// An open packet socket.
///
/// Closing one waits for an RCU grace period (`packet_release`, net/packet/af_packet.c), 10-15 ms measured; so it is
/// closed by a thread of its own, and nobody waits inside the downtime.
#[derive(Debug)]
pub(crate) struct PacketSocket(ManuallyDrop<OwnedFd>);

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for PacketSocket {
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, so nobody takes or uses the descriptor again.
        let socket = unsafe { ManuallyDrop::take(&mut self.0) };
        // Without a thread the socket is closed here, when the failed spawn drops the closure.
        let _ = std::thread::Builder::new().name("close".into()).spawn(move || drop(socket));
    }
}

/// Opens a raw packet socket on interface `index` of the calling thread's network namespace.
///
/// `protocol` is the ethertype to receive (`libc::ETH_P_ALL` for every frame, 0 for none: a socket that only
/// sends). `vnet_header` puts a `struct virtio_net_hdr` (10 bytes) before each frame in both directions, which
/// carries unfinished checksums and segmentation across.
pub(crate) fn open(index: u32, protocol: u16, vnet_header: bool) -> Result<PacketSocket, Errno> {
    // SAFETY: plain system call without pointers; the result is checked before use.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let raw = Errno::result(raw)?;
    // SAFETY: `raw` is a descriptor just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    if vnet_header {
        let on: libc::c_int = 1;
        // SAFETY: the option value is a live c_int and its size is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(set)?;
    }
    // SAFETY: sockaddr_ll is plain integers and bytes; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is a live sockaddr_ll and its size is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(bound)?;
    Ok(PacketSocket(ManuallyDrop::new(socket)))
}
