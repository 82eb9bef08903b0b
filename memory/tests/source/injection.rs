//! Getting into tasks, and out again without a trace.

use crate::child::{ANONYMOUS, Followed, READ, SHARED, WRITE, kill};
use crate::mirror::{Mirror, maps};
use godwit_memory::source::{Method, RoundStats, Rules, TreeMemory, Untracked};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn attach(pids: &BTreeSet<i32>) -> (TreeMemory, RoundStats) {
    attach_with(pids, Rules::default())
}

fn attach_with(pids: &BTreeSet<i32>, rules: Rules) -> (TreeMemory, RoundStats) {
    let mut memory = TreeMemory::with_rules(Method::Uffd, rules).unwrap();
    let mut mirror = Mirror::default();
    let mut stats = mirror.round(&mut memory, pids);
    // a thread that does not get the processor in time to stop is left alone until the next round
    for _ in 0..5 {
        if !stats.untracked.iter().any(|(_, why)| matches!(why, Untracked::Busy)) {
            break;
        }
        stats = mirror.round(&mut memory, pids);
    }
    (memory, stats)
}

fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
}

#[test]
fn no_signal_is_lost() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let signal = libc::SIGRTMIN() + 3;
    shell.tell(&format!("count-signal {signal}"));
    let pids = shell.find_kin();
    let pid = shell.pid();
    let enough = Arc::new(AtomicBool::new(false));
    let is_enough = Arc::clone(&enough);
    let sender = std::thread::spawn(move || {
        let (mut sent, mut tried) = (0, 0);
        // on a busy machine the other side needs longer
        while tried < 3000 || (tried < 300_000 && !is_enough.load(Ordering::Relaxed)) {
            tried += 1;
            // Signals of this kind queue up; each one counts.
            let sending = crate::sys::syscall(libc::SYS_kill, [pid as u64, signal as u64, 0, 0, 0, 0]);
            sent += i64::from(sending == 0);
            if sent % 50 == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        sent
    });
    let mut injections = 0;
    while !sender.is_finished() {
        injections += attach(&pids).1.attached;
        enough.store(injections > 3, Ordering::Relaxed);
    }
    let sent = sender.join().unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while shell.tell("signals") < sent && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(shell.tell("signals"), sent);
    assert!(injections > 3, "{injections} injections only");
}

#[test]
fn a_stopped_process_stays_stopped() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let pids = shell.freeze();
    let (memory, stats) = attach(&pids);
    assert_eq!(stats.tracked, 1, "{stats:?}");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(state(shell.pid()), 'T');
    shell.thaw();
    shell.tell("loops");
    drop(memory);

    // Stopped while the call runs.
    let pid = shell.pid();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        kill(pid, libc::SIGSTOP);
    });
    let (_memory, stats) =
        attach_with(&pids, Rules { linger: Duration::from_millis(30), ..Rules::default() });
    stopper.join().unwrap();
    assert_eq!(stats.tracked, 1, "{stats:?}");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(state(pid), 'T');
    shell.thaw();
    shell.tell("loops");
}

/// System calls that wait are repeated by the kernel, or end as they would have.
#[test]
fn waiting_system_calls_do_not_notice() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let result = shell.map(0, 4096, READ | WRITE, SHARED, -1);
    let data = shell.map(0, 4096, READ | WRITE, SHARED, -1);
    let epoll = shell.syscall(libc::SYS_epoll_create1, &[0]) as u64;
    shell.syscall(libc::SYS_pipe2, &[data + 64, 0]);
    let pipes = shell.tell(&format!("peek {}", data + 64)) as u64;
    let (reader, writer) = (pipes & 0xffff_ffff, pipes >> 32);
    // An event of interest: readable.
    shell.tell(&format!("poke {} 1", data + 128));
    shell.syscall(libc::SYS_epoll_ctl, &[epoll, libc::EPOLL_CTL_ADD as u64, reader, data + 128]);
    let sleeps: [(&str, i64, [u64; 6], i64); 6] = [
        ("nanosleep", libc::SYS_nanosleep, [data, 0, 0, 0, 0, 0], 0),
        ("poll", libc::SYS_poll, [0, 0, 1500, 0, 0, 0], 0),
        ("ppoll", libc::SYS_ppoll, [0, 0, data, 0, 8, 0], 0),
        ("futex", libc::SYS_futex, [data + 256, 0, 0, data, 0, 0], -i64::from(libc::ETIMEDOUT)),
        ("read", libc::SYS_read, [reader, data + 640, 1, 0, 0, 0], 1),
        ("epoll_wait", libc::SYS_epoll_wait, [epoll, data + 512, 1, u64::MAX, 0, 0], 1),
    ];
    for (name, number, arguments, expected) in sleeps {
        shell.tell(&format!("poke {result} 4242"));
        // 1.5 seconds.
        shell.tell(&format!("poke {data} 1"));
        shell.tell(&format!("poke {} 500000000", data + 8));
        let words: Vec<_> = arguments.iter().map(u64::to_string).collect();
        let start = Instant::now();
        let sleeper = shell.tell(&format!("fork-call {result} {number} {}", words.join(" "))) as i32;
        shell.kin.insert(sleeper);
        let mut injections = 0;
        while start.elapsed() < Duration::from_millis(1200) && injections < 10 {
            injections += attach(&[sleeper].into()).1.attached;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(injections > 1, "{name}: {injections} injections");
        let result_now = shell.tell(&format!("peek {result}"));
        // On a busy machine, its time may really be over.
        if start.elapsed() < Duration::from_millis(1450) {
            assert_eq!(result_now, 4242, "{name} ended early");
        }
        if expected == 1 {
            shell.syscall(libc::SYS_write, &[writer, data, 1]);
        }
        let until = Instant::now() + Duration::from_secs(4);
        while shell.tell(&format!("peek {result}")) == 4242 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(shell.tell(&format!("peek {result}")), expected, "{name}");
        kill(sleeper, libc::SIGKILL);
    }
}

/// A filter that kills for the very call does not see it.
#[test]
fn seccomp_filters_are_suspended_and_back_afterwards() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map(0, 4096, READ | WRITE, ANONYMOUS, -1);
    // Load the number; is it userfaultfd? Kill the process : allow.
    let program: [(u16, u8, u8, u32); 4] = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, libc::SYS_userfaultfd as u32),
        (6, 0, 0, 0x8000_0000),
        (6, 0, 0, 0x7fff_0000),
    ];
    for (index, (code, yes, no, value)) in program.into_iter().enumerate() {
        let word = u64::from(code) | u64::from(yes) << 16 | u64::from(no) << 24 | u64::from(value) << 32;
        shell.tell(&format!("poke {} {word}", place + 8 * index as u64));
    }
    shell.tell(&format!("poke {} 4", place + 64));
    shell.tell(&format!("poke {} {place}", place + 72));
    shell.syscall(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    // For all threads.
    assert_eq!(shell.syscall(libc::SYS_seccomp, &[1, 1, place + 64]), 0);
    let (_memory, stats) = attach(&shell.find_kin());
    assert_eq!(stats.tracked, 1, "{stats:?}");
    assert_eq!(shell.tell("loops"), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", shell.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    // And it kills again.
    let child = shell.tell(&format!("fork-call {place} {} 0 0 0 0 0 0", libc::SYS_userfaultfd)) as i32;
    shell.kin.insert(child);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(state(child), 'Z');
}

#[test]
fn a_task_of_another_user_is_tracked() {
    if !crate::tracks() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let mut shell = Followed::shell_as(|command| {
        command.uid(65534).gid(65534);
    });
    let (_memory, stats) = attach(&shell.find_kin());
    assert_eq!(stats.tracked, 1, "{stats:?}");
    assert_eq!(shell.tell("loops"), 0);
}

#[test]
fn a_task_that_somebody_traces_is_read_in_full() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let pid = nix::unistd::Pid::from_raw(shell.pid());
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).unwrap();
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    let stats = mirror.round(&mut memory, &shell.find_kin());
    let by = nix::unistd::gettid().as_raw();
    assert_eq!(stats.untracked, [(shell.pid(), Untracked::Traced { by })]);
    assert!(stats.pages > 20);
    let stats = mirror.round(&mut memory, &shell.find_kin());
    assert!(stats.pages > 20, "{stats:?}");
    nix::sys::ptrace::interrupt(pid).unwrap();
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)).unwrap();
    nix::sys::ptrace::detach(pid, None).unwrap();
    // Tried again after a while.
    mirror.round(&mut memory, &shell.find_kin());
    let stats = mirror.round(&mut memory, &shell.find_kin());
    assert_eq!(stats.tracked, 1, "{stats:?}");
}

/// A program of two instructions in 32-bit code.
#[test]
fn a_32_bit_task_is_read_in_full() {
    if !crate::tracks() {
        return;
    }
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Executable, i386, version, entry, program headers, flags, sizes and counts.
    elf.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    elf.extend(0x0804_8054_u32.to_le_bytes());
    elf.extend(52u32.to_le_bytes());
    elf.extend([0; 8]);
    elf.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // One segment: the file.
    for word in [1u32, 0, 0x0804_8000, 0x0804_8000, 0x60, 0x60, 5, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    // mov $29 (pause), %eax; int $0x80; jmp back
    elf.extend([0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7]);
    elf.resize(0x60, 0);
    let directory = tempfile::tempdir_in(crate::directory()).unwrap();
    let path = directory.path().join("pause32");
    std::fs::write(&path, elf).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let Ok(mut child) = std::process::Command::new(&path).spawn() else {
        crate::possible(false, "the kernel runs no 32-bit programs");
        return;
    };
    std::thread::sleep(Duration::from_millis(20));
    let (_memory, stats) = attach(&[child.id() as i32].into());
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(running, "the task did not survive");
    let why = stats.untracked[0].1.clone();
    assert!(matches!(why, Untracked::Not64Bit | Untracked::NoSyscallInstruction), "{why}");
    assert!(stats.pages > 0);
}

#[test]
fn the_descriptor_is_closed_and_no_memory_is_changed() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let before: Vec<_> = maps(shell.pid()).iter().map(|line| (line.start, line.end)).collect();
    let fds = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let open = fds(shell.pid());
    let (memory, stats) = attach(&shell.find_kin());
    assert_eq!(fds(shell.pid()), open);
    let during: Vec<_> = maps(shell.pid()).iter().map(|line| (line.start, line.end)).collect();
    assert_eq!(before, during, "{stats:?}");
    memory.release();
}

#[test]
fn an_exec_is_noticed() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let mut memory =
            TreeMemory::with_rules(Method::Uffd, Rules { notice_exec: on, ..Rules::default() }).unwrap();
        let mut mirror = Mirror::default();
        let pids = shell.find_kin();
        mirror.round(&mut memory, &pids);
        shell.exec();
        let place = shell.map_alone(1 << 20, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, 1 << 20, 3);
        if !on {
            // What is left is not even an error.
            let stats = memory.round(&pids, &mut mirror);
            assert!(stats.is_err() || stats.unwrap().attached == 0);
            continue;
        }
        let stats = mirror.round(&mut memory, &pids);
        assert_eq!(stats.attached, 1, "{stats:?}");
        shell.fill(place, 8192, 4);
        mirror.round(&mut memory, &pids);
        let pids = shell.freeze();
        memory.frozen(&pids, &mut mirror).unwrap();
        mirror.compare(&mut memory, &pids).assert_clean("exec");
    }
}

/// Two processes with one address space: both get all of it, and no report is taken by one from the other.
#[test]
fn tasks_that_share_their_memory_are_one() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(1 << 20, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, 1 << 20, 1);
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    mirror.round(&mut memory, &shell.find_kin());
    let twin = shell.tell("clone-vm") as i32;
    shell.kin.insert(twin);
    shell.fill(place, 8192, 2);
    let stats = mirror.round(&mut memory, &shell.find_kin());
    assert_eq!((stats.tasks, stats.tracked), (1, 1), "{stats:?}");
    shell.fill(place + 8192, 8192, 3);
    mirror.round(&mut memory, &shell.find_kin());
    let pids = shell.freeze();
    assert_eq!(pids.len(), 2);
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("shared memory");
}

#[test]
fn zombies_and_strangers_are_skipped() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let zombie = shell.tell("fork 0 0 0 0") as i32;
    std::thread::sleep(Duration::from_millis(30));
    let mut pids = shell.find_kin();
    assert_eq!(state(zombie), 'Z');
    pids.insert(zombie);
    // A number that nobody has.
    pids.insert(i32::MAX - 1);
    let (_memory, stats) = attach(&pids);
    assert_eq!((stats.tasks, stats.tracked), (1, 1), "{stats:?}");
}
