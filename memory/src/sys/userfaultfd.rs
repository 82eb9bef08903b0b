//! userfaultfd(2): structures and calls of include/uapi/linux/userfaultfd.h, for tracking writes and for filling.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `UFFD_API`.
const API: u64 = 0xAA;
/// Features, by bit.
pub(crate) mod feature {
    /// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`.
    pub(crate) const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    /// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`.
    pub(crate) const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// `UFFD_FEATURE_WP_UNPOPULATED`.
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    /// `UFFD_FEATURE_WP_ASYNC`.
    pub(crate) const WP_ASYNC: u64 = 1 << 15;
}
/// `UFFDIO_REGISTER_MODE_WP`.
pub(crate) const MODE_WP: u64 = 2;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdioRange {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// `struct uffd_msg`: 32 bytes, packed; `arg` starts at byte 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct UffdMsg {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    arg: [u64; 3],
}

/// Words of an event.
pub(crate) const EVENT_WORDS: usize = size_of::<UffdMsg>() / size_of::<u64>();

/// What happened to a registered range.
#[derive(Debug)]
pub(crate) enum Event {
    /// A task waits for this address (`UFFD_EVENT_PAGEFAULT`).
    Fault {
        /// The address, not rounded.
        address: u64,
    },
    /// A child was forked, with the same ranges registered; this is its userfaultfd (`UFFD_EVENT_FORK`).
    Fork(OwnedFd),
    /// A task changed its mappings.
    Change(Change),
}

/// What a task did to its mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A range moved (`UFFD_EVENT_REMAP`).
    Remap {
        /// From.
        from: u64,
        /// To.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// The content of a range was given up with madvise; it is still mapped (`UFFD_EVENT_REMOVE`).
    Remove {
        /// First address.
        start: u64,
        /// Behind the last.
        end: u64,
    },
    /// A range was unmapped (`UFFD_EVENT_UNMAP`).
    Unmap {
        /// First address.
        start: u64,
        /// Behind the last.
        end: u64,
    },
}

/// An event as the kernel wrote it; the descriptor of a fork is only valid in the process that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawEvent {
    /// None.
    None,
    /// `UFFD_EVENT_PAGEFAULT`.
    Fault {
        /// The address.
        address: u64,
    },
    /// `UFFD_EVENT_FORK`.
    Fork {
        /// Number of the descriptor.
        fd: RawFd,
    },
    /// Another one.
    Change(Change),
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, UffdioApi);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, UffdioRegister);
nix::ioctl_read!(uffdio_unregister, 0xAA, 0x01, UffdioRange);
nix::ioctl_read!(uffdio_wake, 0xAA, 0x02, UffdioRange);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, UffdioCopy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, UffdioZeropage);

/// A userfaultfd. Dropping it (the last copy of it) unregisters everything.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    fd: std::fs::File,
}

impl Userfaultfd {
    /// Takes over a descriptor that some task opened or a restorer sent.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd: fd.into() }
    }

    /// One of our own address space; only for faults of user mode where the kernel allows no more.
    pub(crate) fn open() -> Result<Self, Errno> {
        /// `UFFD_USER_MODE_ONLY`.
        const USER_MODE_ONLY: libc::c_int = 1;
        let open = |flags: libc::c_int| {
            // SAFETY: takes a number only.
            let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
            // SAFETY: a new descriptor that nobody else has.
            Ok(Self::from_fd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
        };
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        open(flags).or_else(|_: Errno| open(flags | USER_MODE_ONLY))
    }

    /// Handshake: once, before anything is registered. Gives all features of the kernel.
    pub(crate) fn enable(&self, features: u64) -> Result<u64, Errno> {
        let mut api = UffdioApi { api: API, features, ioctls: 0 };
        // SAFETY: the structure has the kernel's layout (checked by a test) and outlives the call.
        unsafe { uffdio_api(self.fd.as_raw_fd(), &mut api) }?;
        Ok(api.features)
    }

    /// Registers every mapping in the range; gaps are allowed, addresses are those of the task that opened it.
    pub(crate) fn register(&self, start: u64, len: u64, mode: u64) -> Result<(), Errno> {
        let mut register = UffdioRegister { range: UffdioRange { start, len }, mode, ioctls: 0 };
        // SAFETY: as in `enable`; the call does not touch our memory otherwise.
        unsafe { uffdio_register(self.fd.as_raw_fd(), &mut register) }.map(drop)
    }

    /// Takes the registration of every mapping in the range back.
    pub(crate) fn unregister(&self, start: u64, len: u64) -> Result<(), Errno> {
        let mut range = UffdioRange { start, len };
        // SAFETY: as in `register`.
        unsafe { uffdio_unregister(self.fd.as_raw_fd(), &mut range) }.map(drop)
    }

    /// Wakes whoever waits in the range; it faults again if its page is still missing.
    pub(crate) fn wake(&self, start: u64, len: u64) -> Result<(), Errno> {
        let mut range = UffdioRange { start, len };
        // SAFETY: as in `register`.
        unsafe { uffdio_wake(self.fd.as_raw_fd(), &mut range) }.map(drop)
    }

    /// Puts `bytes` at `dst` and wakes who waits there. Gives the number of bytes that were put, and why not all of them:
    /// EEXIST something is there already, EAGAIN the mappings are just being changed (read events first), ENOENT nothing
    /// is registered there, ESRCH the address space is gone.
    pub(crate) fn copy(&self, dst: u64, bytes: &[u8]) -> (u64, Option<Errno>) {
        let len = bytes.len() as u64;
        let mut copy = UffdioCopy { dst, src: bytes.as_ptr() as u64, len, mode: 0, copy: 0 };
        // SAFETY: the kernel only reads `len` bytes at `src`, which `bytes` keeps alive.
        match unsafe { uffdio_copy(self.fd.as_raw_fd(), &mut copy) } {
            Ok(_) => (copy.copy.max(0) as u64, None),
            Err(errno) => (copy.copy.max(0) as u64, Some(errno)),
        }
    }

    /// Maps zeroes at the range and wakes who waits there; the same results as [`Userfaultfd::copy`].
    pub(crate) fn zero(&self, start: u64, len: u64) -> (u64, Option<Errno>) {
        let mut zero = UffdioZeropage { range: UffdioRange { start, len }, mode: 0, zeropage: 0 };
        // SAFETY: as in `register`.
        match unsafe { uffdio_zeropage(self.fd.as_raw_fd(), &mut zero) } {
            Ok(_) => (zero.zeropage.max(0) as u64, None),
            Err(errno) => (zero.zeropage.max(0) as u64, Some(errno)),
        }
    }

    /// The next event, if there is one; the descriptor must be non-blocking. A task that changes its mappings waits until
    /// its event is read. The kernel writes the event to `place` (which should not fault): if that is memory that outlives
    /// the process, the event is not lost even if the process is killed within this call.
    pub(crate) fn next_event(&self, place: &[AtomicU64; EVENT_WORDS]) -> std::io::Result<Option<Event>> {
        let len = size_of::<UffdMsg>();
        // SAFETY: atomics are memory that may be written from outside at any time, and `place` has room for the message.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), place.as_ptr().cast_mut().cast(), len) };
        match Errno::result(read) {
            Ok(read) if read as usize == len => {}
            Ok(_) | Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        Ok(match raw_event(place) {
            RawEvent::Fault { address } => Some(Event::Fault { address }),
            // SAFETY: the kernel installed this descriptor in our table for this very message.
            RawEvent::Fork { fd } => Some(Event::Fork(unsafe { OwnedFd::from_raw_fd(fd) })),
            RawEvent::Change(change) => Some(Event::Change(change)),
            RawEvent::None => None,
        })
    }
}

/// What [`Userfaultfd::next_event`] left at this place.
pub(crate) fn raw_event(place: &[AtomicU64; EVENT_WORDS]) -> RawEvent {
    let [head, a, b, c] = place.each_ref().map(|word| word.load(Ordering::Acquire));
    match head as u8 {
        // A fault has its flags first.
        0x12 => RawEvent::Fault { address: b },
        0x13 => RawEvent::Fork { fd: a as u32 as RawFd },
        0x14 => RawEvent::Change(Change::Remap { from: a, to: b, len: c }),
        0x15 => RawEvent::Change(Change::Remove { start: a, end: b }),
        0x16 => RawEvent::Change(Change::Unmap { start: a, end: b }),
        _ => RawEvent::None,
    }
}

impl From<Userfaultfd> for OwnedFd {
    fn from(uffd: Userfaultfd) -> Self {
        uffd.fd.into()
    }
}

impl std::os::fd::AsFd for Userfaultfd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<UffdioApi>(), 24);
        assert_eq!(size_of::<UffdioRegister>(), 32);
        assert_eq!(size_of::<UffdioCopy>(), 40);
        assert_eq!(std::mem::offset_of!(UffdioCopy, copy), 32);
        assert_eq!(size_of::<UffdioZeropage>(), 32);
        assert_eq!(size_of::<UffdMsg>(), 32);
        assert_eq!(std::mem::offset_of!(UffdMsg, arg), 8);
    }
}
