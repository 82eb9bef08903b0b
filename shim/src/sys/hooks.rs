//! The functions of libc that CRIU's binaries import, in front of libc's own.
//!
//! Variadic ones are declared with all the arguments they may have: on x86_64 and arm64 Linux these come in the same
//! registers, and one that was not given is passed on to a kernel that does not look at it.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};

use super::call::{self, AT_FDCWD, ENXIO, EPERM};
use super::state;
use crate::answer::{
    PAGEMAP_SCAN, PmScanArg, SEEK_DATA, digits, is_shared_memory, lists_pages, only_reads_limits,
    reads_pages, smaps_of,
};
use crate::config::{Answers, Life, SHARED_FILE, SMAPS_FILE};
use crate::limits::limit_of;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// The kernel's result as libc returns it.
fn libc_result(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        // SAFETY: the address of the thread's errno.
        unsafe { *__errno_location() = -result as c_int };
        return -1;
    }
    result
}

/// What descriptor `fd` is open on.
fn link_of(fd: c_int, buffer: &mut [u8; 512]) -> Option<&[u8]> {
    let fd = u32::try_from(fd).ok()?;
    let mut number = [0; 10];
    let path = state::Path::of(&[b"/proc/self/fd/", digits(fd, &mut number)])?;
    call::readlink(path.bytes(), buffer)
}

/// ioctl(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The number is an int where libc is musl.
    let request = u64::from(request as u32);
    if request == PAGEMAP_SCAN && fd >= 0 && !argument.is_null() && state::answers(Answers::PAGES) {
        // SAFETY: the structure that goes with this request, the caller's.
        let scan = unsafe { &mut *argument.cast::<PmScanArg>() };
        if lists_pages(scan) {
            scan.walk_end = scan.end;
            state::count(Life::Pages);
            return 0;
        }
    }
    // SAFETY: the caller's arguments as they are.
    libc_result(unsafe { call::ioctl(fd, request, argument.addr()) }) as c_int
}

/// pread(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn pread64(fd: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
    if length > 8 && state::answers(Answers::PAGES) {
        let mut link = [0; 512];
        if link_of(fd, &mut link).is_some_and(|link| reads_pages(link, length)) {
            // SAFETY: the caller has room for so many bytes there.
            unsafe { core::ptr::write_bytes(buffer.cast::<u8>(), 0, length) };
            state::count(Life::Pages);
            return length as isize;
        }
    }
    // SAFETY: the caller's arguments as they are.
    libc_result(unsafe { call::pread(fd, buffer.addr(), length, offset) })
}

/// pread(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn pread(fd: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's arguments as they are.
    unsafe { pread64(fd, buffer, length, offset) }
}

/// pread(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __pread64_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: usize,
    offset: i64,
    room: usize,
) -> isize {
    if length > room {
        call::abort();
    }
    // SAFETY: the caller's arguments as they are.
    unsafe { pread64(fd, buffer, length, offset) }
}

/// pread(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __pread_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: usize,
    offset: i64,
    room: usize,
) -> isize {
    // SAFETY: the caller's arguments as they are.
    unsafe { __pread64_chk(fd, buffer, length, offset, room) }
}

/// lseek(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == SEEK_DATA && state::answers(Answers::SHARED) && is_filled_by_godwit(fd) {
        state::count(Life::Shared);
        return libc_result(ENXIO) as i64;
    }
    libc_result(call::lseek(fd, offset, whence)) as i64
}

/// lseek(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64 {
    // SAFETY: the caller's arguments as they are.
    unsafe { lseek64(fd, offset, whence) }
}

/// Whether `fd` is one of the shared objects in the list.
fn is_filled_by_godwit(fd: c_int) -> bool {
    let mut link = [0; 512];
    if !link_of(fd, &mut link).is_some_and(is_shared_memory) {
        return false;
    }
    let Ok(number) = u32::try_from(fd) else { return false };
    let mut buffer = [0; 10];
    let Some(path) = state::Path::of(&[b"/proc/self/fd/", digits(number, &mut buffer)]) else { return false };
    let (Some(wanted), Some(list)) = (call::identity(path.bytes()), state::file(&[SHARED_FILE])) else {
        return false;
    };
    let Some(list) = call::open(list.bytes(), 0) else { return false };
    let mut pairs = [0u8; 16 * 64];
    let found = loop {
        // Files of this kind are read whole pairs at a time.
        let Some(got) = usize::try_from(call::read(list, &mut pairs)).ok().filter(|got| *got > 0) else {
            break false;
        };
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        if pairs[..got].chunks_exact(16).any(|pair| (word(&pair[..8]), word(&pair[8..])) == wanted) {
            break true;
        }
    };
    call::close(list);
    found
}

/// openat(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    if !path.is_null() && state::answers(Answers::SMAPS) {
        // SAFETY: a path ends with a zero byte.
        let name = unsafe { CStr::from_ptr(path) }.to_bytes();
        if let Some(copy) = smaps_copy(dir, name) {
            // SAFETY: it ends with a zero byte.
            let fd = unsafe { call::openat(AT_FDCWD, copy.bytes().as_ptr().addr(), flags, 0) };
            // Without a copy CRIU reads the original.
            if fd >= 0 {
                state::count(Life::Smaps);
                return fd as c_int;
            }
        }
    }
    // SAFETY: the caller's arguments as they are.
    libc_result(unsafe { call::openat(dir, path.addr(), flags, mode) }) as c_int
}

/// Where the copy of the smaps file `name` in `dir` is, if there is one.
fn smaps_copy(dir: c_int, name: &[u8]) -> Option<state::Path> {
    // Nearly all files are others.
    if !name.ends_with(b"smaps") {
        return None;
    }
    let mut link = [0; 512];
    let pid = smaps_of(name, link_of(dir, &mut link))?;
    state::file(&[SMAPS_FILE, digits(pid, &mut [0; 10])])
}

/// openat(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(dir, path, flags, mode) }
}

/// openat(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(dir, path, flags, 0) }
}

/// openat(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(dir, path, flags, 0) }
}

/// open(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(AT_FDCWD, path, flags, mode) }
}

/// open(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(AT_FDCWD, path, flags, mode) }
}

/// open(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(AT_FDCWD, path, flags, 0) }
}

/// open(2) as compiled with `_FORTIFY_SOURCE`
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { openat64(AT_FDCWD, path, flags, 0) }
}

/// The result of a prlimit64: its own, or the limits from /proc when it was refused.
fn limits(result: isize, pid: i32, resource: u32, new: usize, old: usize) -> isize {
    if result != EPERM || !only_reads_limits(pid, resource, new, old) || !state::answers(Answers::LIMITS) {
        return result;
    }
    let Some((soft, hard)) = limits_of(pid, resource) else { return result };
    let old: *mut u64 = core::ptr::with_exposed_provenance_mut(old);
    // SAFETY: the caller wants a `struct rlimit64` there, of two words; the kernel has not looked at the address.
    unsafe {
        old.write_unaligned(soft);
        old.add(1).write_unaligned(hard);
    }
    state::count(Life::Limits);
    0
}

fn limits_of(pid: i32, resource: u32) -> Option<(u64, u64)> {
    let mut number = [0; 10];
    let path = state::Path::of(&[b"/proc/", digits(u32::try_from(pid).ok()?, &mut number), b"/limits"])?;
    let fd = call::open(path.bytes(), 0)?;
    let mut text = [0; 4096];
    let length = call::read(fd, &mut text);
    call::close(fd);
    limit_of(text.get(..usize::try_from(length).ok()?)?, resource as usize)
}

/// prlimit(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn prlimit64(
    pid: c_int,
    resource: c_uint,
    new: *const c_void,
    old: *mut c_void,
) -> c_int {
    let (new, old) = (new.addr(), old.expose_provenance());
    libc_result(limits(call::prlimit64(pid, resource, new, old), pid, resource, new, old)) as c_int
}

/// prlimit(2)
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn prlimit(
    pid: c_int,
    resource: c_uint,
    new: *const c_void,
    old: *mut c_void,
) -> c_int {
    // SAFETY: the caller's arguments as they are.
    unsafe { prlimit64(pid, resource, new, old) }
}

/// syscall(2): CRIU reads limits by it.
///
/// # Safety
/// As libc's.
#[cfg_attr(godwit_shim, unsafe(no_mangle))]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the caller's arguments as they are.
    let result = unsafe { call::raw(number as usize, [a, b, c, d, e, f]) };
    let result =
        if number as usize == call::PRLIMIT64 { limits(result, a as i32, b as u32, c, d) } else { result };
    libc_result(result) as c_long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results() {
        assert_eq!(libc_result(0), 0);
        assert_eq!(libc_result(0x7fff_ffff_f000), 0x7fff_ffff_f000, "an address");
        assert_eq!(libc_result(EPERM), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(1));
        assert_eq!(libc_result(-4096), -4096, "no error number");
    }

    #[test]
    fn a_refusal_stays_one_without_a_configuration() {
        let mut limit = [0u64; 2];
        let old = (&raw mut limit).expose_provenance();
        assert_eq!(limits(EPERM, 1, 0, 0, old), EPERM);
        assert_eq!(limit, [0; 2]);
    }

    #[test]
    fn limits_of_a_process() {
        let own = std::process::id() as i32;
        let mut asked = [0u64; 2];
        assert_eq!(call::prlimit64(0, 7, 0, (&raw mut asked).addr()), 0);
        assert_eq!(limits_of(own, 7), Some((asked[0], asked[1])));
        assert_eq!(limits_of(i32::MAX, 7), None);
    }

    #[test]
    fn calls_pass_through() {
        use std::os::fd::AsRawFd;
        let file = tempfile();
        let mut buffer = [0u8; 32];
        // SAFETY: all addresses are of what is said to be there.
        unsafe {
            assert_eq!(pread64(file.as_raw_fd(), buffer.as_mut_ptr().cast(), 32, 1), 4);
            assert_eq!(&buffer[..4], b"ello");
            assert_eq!(lseek64(file.as_raw_fd(), 0, SEEK_DATA), 0);
            assert_eq!(lseek64(file.as_raw_fd(), 99, SEEK_DATA), -1);
            let fd = openat64(AT_FDCWD, c"/proc/self/smaps".as_ptr(), 0, 0);
            assert!(fd > 2);
            let mut link = [0; 512];
            assert!(link_of(fd, &mut link).unwrap().ends_with(b"/smaps"));
            call::close(fd);
            assert_eq!(syscall(call::PRLIMIT64 as c_long, 0, 7, 0, buffer.as_mut_ptr().addr(), 0, 0), 0);
            assert_eq!(ioctl(-1, PAGEMAP_SCAN as c_ulong, core::ptr::null_mut()), -1);
        }
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("godwit-shim-test-{}", std::process::id()));
        std::fs::write(&path, "hello").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }
}
