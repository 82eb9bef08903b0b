//! A process whose threads do everything to their memory that a program can do, at random.

use crate::child::{ANONYMOUS, FIXED, READ, SHARED, WRITE};
use crate::sys;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Anonymous,
    Huge,
    Shared,
    Memfd,
    File,
}

#[derive(Clone, Copy)]
struct Area {
    kind: Kind,
    at: u64,
    bytes: u64,
    fd: u64,
}

fn call(number: i64, arguments: &[u64]) -> i64 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    sys::raw_syscall(number, all)
}

/// Maps the area, at an address if it is not 0.
fn map(area: &Area, at: u64) -> u64 {
    let fixed = if at == 0 { 0 } else { FIXED };
    let (flags, fd) = match area.kind {
        Kind::Anonymous | Kind::Huge => (ANONYMOUS, u64::MAX),
        Kind::Shared => (SHARED, u64::MAX),
        Kind::Memfd => (libc::MAP_SHARED as u64, area.fd),
        Kind::File => (libc::MAP_PRIVATE as u64, area.fd),
    };
    let mut want = at;
    if at == 0 && area.kind == Kind::Huge {
        let around = call(libc::SYS_mmap, &[0, area.bytes + 2 * MIB, 0, ANONYMOUS, u64::MAX, 0]) as u64;
        want = around.next_multiple_of(2 * MIB);
    }
    let fixed = if want == 0 { fixed } else { FIXED };
    let mapped = call(libc::SYS_mmap, &[want, area.bytes, READ | WRITE, flags | fixed, fd, 0]);
    assert!(mapped > 0, "mmap {mapped}");
    if area.kind == Kind::Huge {
        call(libc::SYS_madvise, &[mapped as u64, area.bytes, libc::MADV_HUGEPAGE as u64]);
    }
    mapped as u64
}

/// A file of the directory that has no name any more.
fn file(directory: &str, name: &str, random: &mut Random, pages: u64) -> u64 {
    use std::io::Write;
    use std::os::fd::IntoRawFd;
    let path = format!("{directory}/{name}");
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let words: Vec<u8> = (0..pages * PAGE / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
    file.write_all(&words).unwrap();
    file.sync_all().unwrap();
    let direct = call(
        libc::SYS_openat,
        &[libc::AT_FDCWD as u64, std::ffi::CString::new(path.as_str()).unwrap().as_ptr() as u64, {
            (libc::O_RDONLY | libc::O_DIRECT) as u64
        }],
    );
    std::fs::remove_file(&path).unwrap();
    match name.starts_with("direct") {
        true => direct as u64,
        false => {
            call(libc::SYS_close, &[direct as u64]);
            file.into_raw_fd() as u64
        }
    }
}

/// `seed threads children directory`: says `@1` when it is in full swing, and goes on for ever.
pub fn rage(arguments: &str) {
    let words: Vec<&str> = arguments.split(' ').collect();
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    let (seed, threads, children, directory) = (number(0), number(1), number(2), words[3].to_string());
    sys::ignore_children();
    // Grandchildren whose parent ended stay ours.
    call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as u64, 1]);
    let started: Vec<_> = (0..threads)
        .map(|thread| {
            let directory = directory.clone();
            std::thread::spawn(move || one_thread(seed, thread, children, &directory))
        })
        .collect();
    while READY.load(Ordering::SeqCst) < threads {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    println!("@1");
    for thread in started {
        let _ = thread.join();
    }
}

static READY: AtomicU64 = AtomicU64::new(0);

fn one_thread(seed: u64, thread: u64, children: u64, directory: &str) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed * 64 + thread + 1) | 1);
    for _ in 0..10 {
        random.next();
    }
    let mut areas = Vec::new();
    for kind in [Kind::Anonymous, Kind::Huge, Kind::Shared, Kind::Memfd, Kind::File] {
        for index in 0..2 {
            let bytes = if kind == Kind::Huge { 4 * MIB } else { 2 * MIB };
            let fd = match kind {
                Kind::Memfd => {
                    let fd = call(libc::SYS_memfd_create, &[c"storm".as_ptr() as u64, 0]) as u64;
                    call(libc::SYS_ftruncate, &[fd, bytes]);
                    fd
                }
                Kind::File => file(directory, &format!("file-{thread}-{index}"), &mut random, bytes / PAGE),
                _ => u64::MAX,
            };
            let mut area = Area { kind, at: 0, bytes, fd };
            area.at = map(&area, 0);
            areas.push(area);
        }
    }
    let direct = file(directory, &format!("direct-{thread}"), &mut random, 512);
    let urandom = {
        use std::os::fd::IntoRawFd;
        std::fs::File::open("/dev/urandom").unwrap().into_raw_fd() as u64
    };
    let mut heap: Vec<Vec<u64>> = vec![Vec::new(); 8];
    READY.fetch_add(1, Ordering::SeqCst);
    loop {
        let index = random.below(areas.len() as u64) as usize;
        step(&mut areas[index], &mut random, direct, urandom);
        match random.below(2000) {
            0..30 => {
                let slot = random.below(8) as usize;
                let words = random.below(100_000) as usize;
                heap[slot] = vec![random.next(); words];
            }
            30..60 => deep(random.below(40), &mut random),
            60..63 if thread == 0 => {
                let end = call(libc::SYS_brk, &[0]) as u64;
                let new = call(libc::SYS_brk, &[end + random.below(16) * PAGE]) as u64;
                if new > end {
                    sys::poke(new - 8, random.next());
                }
            }
            63..67 if children > 0 => fork(&areas, &mut random, children),
            67..90 => std::thread::sleep(std::time::Duration::from_micros(200)),
            _ => {}
        }
    }
}

/// A child, of which a few live at a time: writes to what it shares and to what it does not, may fork in turn, and ends.
fn fork(areas: &[Area], random: &mut Random, children: u64) {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let turn = TURN.fetch_add(1, Ordering::SeqCst);
    if turn % 8 >= children {
        return;
    }
    let mut own = Random(random.next() | 1);
    if sys::fork() != 0 {
        return;
    }
    let mut writes = own.below(60_000);
    let mut grandchild = own.below(3) == 0;
    while writes > 0 {
        let area = &areas[own.below(areas.len() as u64) as usize];
        sys::poke(area.at + own.below(area.bytes / PAGE) * PAGE + 8 * own.below(500), own.next());
        writes -= 1;
        if grandchild && writes == 100 {
            grandchild = false;
            if sys::fork() == 0 {
                own.0 ^= 0x5555;
                writes = own.below(20_000);
            }
        }
        if writes.is_multiple_of(64) {
            let wait = [0u64, 300_000];
            call(libc::SYS_nanosleep, &[wait.as_ptr() as u64, 0]);
        }
    }
    sys::exit(0)
}

#[inline(never)]
fn deep(depth: u64, random: &mut Random) {
    let mut frame = [0u64; 1024];
    frame[random.below(1024) as usize] = random.next();
    std::hint::black_box(&mut frame);
    if depth > 0 {
        deep(depth - 1, random);
    }
    std::hint::black_box(&mut frame);
}

/// One thing that can happen to an area.
fn step(area: &mut Area, random: &mut Random, direct: u64, urandom: u64) {
    let pages = area.bytes / PAGE;
    let some = |random: &mut Random, most: u64| {
        let first = random.below(pages);
        (area.at + first * PAGE, (1 + random.below(most)).min(pages - first) * PAGE)
    };
    match random.below(1000) {
        0..880 => {
            for _ in 0..random.below(8) {
                sys::poke(area.at + random.below(pages) * PAGE + 8 * random.below(500), random.next());
            }
        }
        880..900 => {
            let (at, bytes) = some(random, 64);
            (at..at + bytes).step_by(4096).for_each(|page| sys::poke(page + 16, random.next()));
        }
        900..912 => {
            let at = area.at + random.below(area.bytes - 20_000);
            call(libc::SYS_read, &[urandom, at, 1 + random.below(16_000)]);
        }
        912..922 => {
            let at = area.at + random.below(pages - 16) * PAGE;
            call(libc::SYS_pread64, &[direct, at, PAGE * (1 + random.below(16)), random.below(480) * PAGE]);
        }
        922..932 => {
            for _ in 0..32 {
                std::hint::black_box(sys::peek(area.at + random.below(pages) * PAGE));
            }
        }
        932..940 => {
            let (at, bytes) = some(random, 128);
            call(libc::SYS_madvise, &[at, bytes, libc::MADV_DONTNEED as u64]);
        }
        940..944 if matches!(area.kind, Kind::Anonymous | Kind::Huge) => {
            let (at, bytes) = some(random, 128);
            call(libc::SYS_madvise, &[at, bytes, libc::MADV_FREE as u64]);
        }
        944..948 => {
            call(libc::SYS_munmap, &[area.at, area.bytes]);
            area.at = map(area, 0);
        }
        948..952 => {
            map(area, area.at);
            for _ in 0..4 {
                sys::poke(area.at + random.below(pages) * PAGE, random.next());
            }
        }
        952..956 if area.kind != Kind::Huge => {
            let to = call(libc::SYS_mmap, &[0, area.bytes, 0, ANONYMOUS, u64::MAX, 0]) as u64;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            moved(area, call(libc::SYS_mremap, &[area.at, area.bytes, area.bytes, flags, to]), area.bytes);
        }
        956..960 if area.kind == Kind::Anonymous => {
            let bytes = if random.below(2) == 0 { 2 * MIB } else { area.bytes + 65536 };
            let result = call(libc::SYS_mremap, &[area.at, area.bytes, bytes, libc::MREMAP_MAYMOVE as u64]);
            moved(area, result, bytes);
        }
        960..965 => {
            let (at, bytes) = some(random, 128);
            call(libc::SYS_mprotect, &[at, bytes, READ]);
            std::hint::black_box(sys::peek(at));
            call(libc::SYS_mprotect, &[at, bytes, READ | WRITE]);
        }
        965..968 if area.kind == Kind::Huge => {
            call(libc::SYS_madvise, &[area.at, area.bytes, libc::MADV_COLLAPSE as u64]);
        }
        968..975 if area.kind == Kind::Memfd => {
            let word = [random.next(); 64];
            let at = random.below(area.bytes - 1024);
            call(libc::SYS_pwrite64, &[area.fd, word.as_ptr() as u64, 512, at]);
        }
        975..978 if area.kind == Kind::Memfd => {
            let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, bytes) = some(random, 32);
            call(libc::SYS_fallocate, &[area.fd, flags as u64, at - area.at, bytes]);
        }
        _ => {}
    }
}

/// An area that was moved, or, where the kernel did not want to, is made anew: it may have moved a part.
fn moved(area: &mut Area, result: i64, bytes: u64) {
    if result > 0 {
        area.at = result as u64;
        area.bytes = bytes;
    } else {
        area.at = map(area, 0);
    }
}
