//! A process that does to its memory what it is told, line by line.

use crate::child::{ANONYMOUS, READ, WRITE};
use crate::sys;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Fills pages with words that differ from page to page and from seed to seed.
pub fn fill(address: u64, bytes: u64, seed: u64) {
    for page in (address..address + bytes).step_by(4096) {
        let mut word = (page ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
        for at in (0..4096).step_by(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            sys::poke(page + at, word);
        }
    }
}

/// Serves the test that started us until it closes the pipe.
pub fn serve() {
    let input = std::io::stdin();
    let _ = writeln!(std::io::stdout(), "@0");
    for line in input.lock().lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[1..].iter().filter_map(|word| word.parse().ok()).collect();
        let result = obey(words[0], &numbers, words.last().copied().unwrap_or_default());
        let mut output = std::io::stdout().lock();
        if writeln!(output, "@{result}").and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

static STOP: AtomicBool = AtomicBool::new(false);
static LOOPS: AtomicU64 = AtomicU64::new(0);
static FAILURES: AtomicU64 = AtomicU64::new(0);

fn replace(place: u64, third: u64, gap: bool) {
    const LOWER: u64 = 16 * 4096;
    const ALL: u64 = 24 * 4096;
    let map = |address: u64, bytes: u64, protection: u64, more: i32| {
        let flags = ANONYMOUS | more as u64;
        sys::raw_syscall(libc::SYS_mmap, [address, bytes, protection, flags, u64::MAX, 0])
    };
    let wait = |milliseconds| std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    // long enough to be known before the rest is there
    if gap {
        sys::raw_syscall(libc::SYS_munmap, [place, ALL, 0, 0, 0, 0]);
    } else {
        map(place, LOWER, 0, libc::MAP_FIXED);
        wait(30);
    }
    map(place + LOWER, ALL - LOWER, READ | WRITE, libc::MAP_FIXED);
    sys::poke(place + LOWER, 1);
    wait(6);
    if gap {
        sys::raw_syscall(libc::SYS_munmap, [place + LOWER, ALL - LOWER, 0, 0, 0, 0]);
    }
    if map(place, ALL, READ | WRITE, if gap { libc::MAP_FIXED_NOREPLACE } else { libc::MAP_FIXED }) < 0 {
        return;
    }
    fill(place, ALL, LOOPS.load(Ordering::SeqCst));
    wait(6);
    let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    if sys::raw_syscall(libc::SYS_mremap, [place, ALL, ALL, how, third, 0]) < 0 {
        FAILURES.fetch_add(1, Ordering::SeqCst);
    }
}

fn obey(command: &str, n: &[u64], last: &str) -> i64 {
    match command {
        "syscall" => {
            let mut arguments = [0; 6];
            for (slot, &value) in arguments.iter_mut().zip(&n[1..]) {
                *slot = value;
            }
            sys::syscall(n[0] as i64, arguments)
        }
        "open" => {
            let path = std::ffi::CString::new(last).unwrap();
            let at = libc::AT_FDCWD as u64;
            sys::syscall(libc::SYS_openat, [at, path.as_ptr() as u64, n[0], 0o600, 0, 0])
        }
        "fill" => {
            fill(n[0], n[1], n[2]);
            0
        }
        "poke" => {
            sys::poke(n[0], n[1]);
            0
        }
        "peek" => sys::peek(n[0]) as i64,
        // A child that writes, and ends or stays.
        "fork" => match sys::fork() {
            0 => {
                if n[1] > 0 {
                    fill(n[0], n[1], n[2]);
                }
                if n[3] == 0 {
                    sys::exit(0);
                }
                loop {
                    sys::syscall(libc::SYS_pause, [0; 6]);
                }
            }
            child => child.into(),
        },
        // A child that makes one system call and leaves the result.
        "fork-call" => match sys::fork() {
            0 => {
                let arguments = [n[2], n[3], n[4], n[5], n[6], n[7]];
                let result = sys::raw_syscall(n[1] as i64, arguments);
                sys::poke(n[0], result as u64);
                loop {
                    sys::syscall(libc::SYS_pause, [0; 6]);
                }
            }
            child => child.into(),
        },
        "clone-vm" => {
            extern "C" fn stay(_: *mut libc::c_void) -> i32 {
                loop {
                    sys::syscall(libc::SYS_pause, [0; 6]);
                }
            }
            sys::clone_sharing_memory(stay, 0).into()
        }
        // Forks over and over in a thread of its own; the children wait.
        "forks" => {
            let children = n[0];
            std::thread::spawn(move || {
                for _ in 0..children {
                    match sys::fork() {
                        0 => loop {
                            sys::syscall(libc::SYS_pause, [0; 6]);
                        },
                        _ => LOOPS.fetch_add(1, Ordering::SeqCst),
                    };
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            0
        }
        // Reads a file into memory over and over: descriptor, address, bytes of a read, bytes of the file.
        "reads" => {
            let n = n.to_vec();
            std::thread::spawn(move || {
                let mut at = 0;
                while !STOP.load(Ordering::SeqCst) {
                    let read = sys::syscall(libc::SYS_pread64, [n[0], n[1], n[2], at, 0, 0]);
                    assert_eq!(read, n[2] as i64);
                    at = (at + n[2] + 4096 * 17) % (n[3] - n[2]) / 4096 * 4096;
                    LOOPS.fetch_add(1, Ordering::SeqCst);
                }
            });
            0
        }
        // Replaces a mapping by a larger one that begins where nothing was, or another; moves that to a third place and back to
        // the start. Place of 24 pages, third place, whether nothing was.
        "replaces" => {
            let (place, third, gap) = (n[0], n[1], n[2] == 1);
            std::thread::spawn(move || {
                while !STOP.load(Ordering::SeqCst) {
                    replace(place, third, gap);
                    LOOPS.fetch_add(1, Ordering::SeqCst);
                }
            });
            0
        }
        "failures" => FAILURES.load(Ordering::SeqCst) as i64,
        "loops" => LOOPS.load(Ordering::SeqCst) as i64,
        "stop" => {
            STOP.store(true, Ordering::SeqCst);
            0
        }
        "count-signal" => {
            sys::count_signal(n[0] as i32);
            0
        }
        "signals" => sys::SIGNALS.load(Ordering::SeqCst) as i64,
        "exec" => {
            use std::os::unix::process::CommandExt;
            let error = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--ignored", "--nocapture"])
                .exec();
            -i64::from(error.raw_os_error().unwrap_or(0))
        }
        other => panic!("unknown command {other}"),
    }
}
