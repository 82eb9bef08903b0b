//! What the constructor finds in the environment, and keeps.

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::call;
use crate::config::{
    ANSWERS_VARIABLE, Answers, DIRECTORY_VARIABLE, LIFE_FILE, LIFE_MAGIC, LIFE_SIZE, Life, MAX_DIRECTORY,
    PRELOAD_VARIABLE, value_of,
};

/// A path being put together, with its final zero byte.
pub struct Path {
    bytes: [u8; MAX_DIRECTORY + 64],
    length: usize,
}

impl Path {
    /// These parts, one after the other; `None` when they are too long.
    pub fn of(parts: &[&[u8]]) -> Option<Path> {
        let mut path = Path { bytes: [0; MAX_DIRECTORY + 64], length: 0 };
        for part in parts {
            let end = path.length.checked_add(part.len())?;
            path.bytes.get_mut(path.length..end)?.copy_from_slice(part);
            path.length = end;
        }
        // One byte more, which is zero.
        path.length += 1;
        (path.length <= path.bytes.len()).then_some(path)
    }

    /// With the zero byte.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

struct Directory(UnsafeCell<[u8; MAX_DIRECTORY]>);

// SAFETY: written by the constructor only, before there is another thread; read afterwards.
unsafe impl Sync for Directory {}

static DIRECTORY: Directory = Directory(UnsafeCell::new([0; MAX_DIRECTORY]));
static DIRECTORY_LENGTH: AtomicUsize = AtomicUsize::new(0);
static ANSWERS: AtomicU32 = AtomicU32::new(0);
static LIFE: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// Whether this question is to be answered.
pub fn answers(question: Answers) -> bool {
    Answers::from_bits(ANSWERS.load(Ordering::Relaxed)).has(question)
}

/// A file in the library's directory.
pub fn file(parts: &[&[u8]]) -> Option<Path> {
    let length = DIRECTORY_LENGTH.load(Ordering::Relaxed);
    if length == 0 {
        return None;
    }
    // SAFETY: written once, by the constructor, which set the length afterwards.
    let directory = unsafe { &*DIRECTORY.0.get() };
    let name = Path::of(parts)?;
    let name = name.bytes();
    Path::of(&[&directory[..length], b"/", &name[..name.len() - 1]])
}

/// Counts an answer in the life file.
pub fn count(word: Life) {
    let life = LIFE.load(Ordering::Relaxed);
    if !life.is_null() {
        // SAFETY: not null, so it is the mapping of a page that stays.
        unsafe { &*life.add(word as usize) }.fetch_add(1, Ordering::Relaxed);
    }
}

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

#[cfg(godwit_shim)]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) = construct;

/// Takes the configuration out of the environment.
///
/// # Safety
/// To be called by the loader only, before other threads are: it changes the environment in place. glibc passes `envp`; musl
/// passes nothing, but has set `environ` by then.
pub unsafe extern "C" fn construct(_: c_int, _: *mut *mut c_char, envp: *mut *mut c_char) {
    // SAFETY: a variable of libc's that nobody else touches now.
    let environment = unsafe { if environ.is_null() { envp } else { environ } };
    let mut set = Answers::NONE;
    let mut length = 0;
    // SAFETY: a list of pointers to strings that ends with a null pointer; nobody else looks at it now. Entries are only moved
    // towards its beginning.
    unsafe {
        if environment.is_null() {
            return;
        }
        let (mut from, mut to) = (environment, environment);
        while !(*from).is_null() {
            let entry = core::ffi::CStr::from_ptr(*from).to_bytes();
            if let Some(value) = value_of(entry, ANSWERS_VARIABLE) {
                set = Answers::parse(value);
            } else if let Some(value) = value_of(entry, DIRECTORY_VARIABLE) {
                if value.len() <= MAX_DIRECTORY && value.first() == Some(&b'/') {
                    (&mut *DIRECTORY.0.get())[..value.len()].copy_from_slice(value);
                    length = value.len();
                }
            } else if value_of(entry, PRELOAD_VARIABLE).is_none() {
                *to = *from;
                to = to.add(1);
            }
            from = from.add(1);
        }
        while to < from {
            *to = null_mut();
            to = to.add(1);
        }
    }
    if length == 0 {
        return;
    }
    DIRECTORY_LENGTH.store(length, Ordering::Relaxed);
    ANSWERS.store(set.bits(), Ordering::Relaxed);
    come_to_life();
}

/// Maps the life file and says who we are.
fn come_to_life() {
    const O_RDWR: i32 = 2;
    let Some(fd) = file(&[LIFE_FILE]).and_then(|path| call::open(path.bytes(), O_RDWR)) else { return };
    let page = call::map_shared(fd, LIFE_SIZE);
    call::close(fd);
    let Some(page) = page else { return };
    let life: *mut AtomicU64 = core::ptr::with_exposed_provenance_mut(page);
    let (device, inode) = call::identity(b"/proc/self/exe\0").unwrap_or((0, 0));
    let words = [
        (Life::Pid, call::getpid() as u64),
        (Life::ExeDevice, device),
        (Life::ExeInode, inode),
        (Life::Magic, LIFE_MAGIC),
    ];
    for (word, value) in words {
        // SAFETY: within the page just mapped, which is never unmapped, and aligned.
        unsafe { &*life.add(word as usize) }.store(value, Ordering::Release);
    }
    LIFE.store(life, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(Path::of(&[b"/a", b"/", b"b"]).unwrap().bytes(), b"/a/b\0");
        assert_eq!(Path::of(&[]).unwrap().bytes(), b"\0");
        let long = [b'x'; MAX_DIRECTORY + 63];
        assert_eq!(Path::of(&[&long]).unwrap().bytes().len(), MAX_DIRECTORY + 64);
        assert!(Path::of(&[&long, b"y"]).is_none(), "no room for the zero byte");
        assert!(Path::of(&[&long, b"yz"]).is_none());
    }

    #[test]
    fn without_a_configuration() {
        assert!(!answers(Answers::PAGES) && !answers(Answers::LIMITS));
        assert!(file(&[b"life"]).is_none());
        count(Life::Pages);
    }
}
