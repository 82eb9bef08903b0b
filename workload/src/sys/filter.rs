//! Taking system calls away, as a kernel does that does not have them.

use super::{Failure, checked};
use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JUMP, BPF_K, BPF_LD, BPF_RET, BPF_STMT, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, sock_filter, sock_fprog,
};

/// `PAGEMAP_SCAN` (linux/fs.h): `_IOWR('f', 16, struct pm_scan_arg)`, which has 96 bytes.
const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// `USERFAULTFD_IOC_NEW` (linux/userfaultfd.h): what `/dev/userfaultfd` is there for.
const USERFAULTFD_NEW: u32 = 0xaa00;

/// What a kernel can lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// PAGEMAP_SCAN, which came with 6.7.
    PagemapScan,
    /// userfaultfd(2), which can be left out of the build.
    Userfaultfd,
}

/// Where the number and the second argument are in `struct seccomp_data`; of the argument, the lower half.
const NUMBER: u32 = 0;
const SECOND: u32 = 24;

/// Takes it away from this process and all that come from it, for good. Needs CAP_SYS_ADMIN.
pub fn take_away(lack: Lack) -> Result<(), Failure> {
    let (ioctl, errno) = match lack {
        Lack::PagemapScan => (PAGEMAP_SCAN, libc::ENOTTY),
        Lack::Userfaultfd => (USERFAULTFD_NEW, libc::ENOTTY),
    };
    let fails = |errno: i32| SECCOMP_RET_ERRNO | errno as u32;
    // PAGEMAP_SCAN has no system call of its own: a number that there is not
    let call = if lack == Lack::Userfaultfd { libc::SYS_userfaultfd as u32 } else { u32::MAX };
    let load = |offset| statement(BPF_LD | BPF_W | BPF_ABS, offset);
    let jump = |value, yes, no| unless(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let mut program = [
        load(NUMBER),
        jump(call, 4, 0),
        jump(libc::SYS_ioctl as u32, 0, 2),
        load(SECOND),
        jump(ioctl, 2, 0),
        statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        statement(BPF_RET | BPF_K, fails(libc::ENOSYS)),
        statement(BPF_RET | BPF_K, fails(errno)),
    ];
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter and its program live until the call is over.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    checked("prctl seccomp", done).map(drop)
}

fn statement(code: u32, k: u32) -> sock_filter {
    // SAFETY: it makes a value.
    unsafe { BPF_STMT(code as u16, k) }
}

fn unless(code: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    // SAFETY: it makes a value.
    unsafe { BPF_JUMP(code as u16, k, yes, no) }
}
