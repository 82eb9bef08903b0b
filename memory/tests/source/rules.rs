//! The rules of the engine: each on, where nothing is lost, and off, where memory is.

use crate::child::{ANONYMOUS, FIXED, Followed, READ, SHARED, WRITE};
use crate::mirror::{Mirror, Verdict, maps};
use godwit_memory::source::{Method, RoundStats, Rules, TreeMemory};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const PRIVATE: u64 = libc::MAP_PRIVATE as u64;

/// A shell that is followed.
struct Pursuit {
    shell: Followed,
    memory: TreeMemory,
    mirror: Mirror,
}

impl Pursuit {
    fn of(mut shell: Followed, rules: Rules) -> Self {
        let mut memory = TreeMemory::with_rules(Method::Uffd, rules).unwrap();
        let mut mirror = Mirror::default();
        let pids = shell.find_kin();
        let stats = mirror.round(&mut memory, &pids);
        assert_eq!((stats.tracked, stats.attached), (1, 1), "{stats:?}");
        let mut pursuit = Self { shell, memory, mirror };
        pursuit.round();
        pursuit
    }

    fn round(&mut self) -> RoundStats {
        let pids = self.shell.find_kin();
        self.mirror.round(&mut self.memory, &pids)
    }

    fn freeze(&mut self) -> Verdict {
        let pids = self.shell.freeze();
        let stats = self.memory.frozen(&pids, &mut self.mirror).unwrap();
        assert_eq!(stats.unreadable, []);
        self.mirror.compare(&mut self.memory, &pids)
    }
}

/// A file of random content next to the build, which is on a real file system.
fn file(shell: &mut Followed, bytes: u64) -> i64 {
    let directory = tempfile::tempdir_in(crate::directory()).unwrap();
    let path = directory.path().join("file");
    let fd = shell.tell(&format!("open {} {}", libc::O_RDWR | libc::O_CREAT, path.display()));
    let buffer = shell.map_alone(bytes, READ | WRITE, ANONYMOUS, -1);
    shell.fill(buffer, bytes, 99);
    assert_eq!(shell.syscall(libc::SYS_pwrite64, &[fd as u64, buffer, bytes, 0]), bytes as i64);
    shell.syscall(libc::SYS_munmap, &[buffer, bytes]);
    shell.syscall(libc::SYS_fsync, &[fd as u64]);
    // The same file without the page cache.
    let direct = shell.tell(&format!("open {} /proc/self/fd/{fd}", libc::O_RDONLY | libc::O_DIRECT));
    assert!(direct > 0, "{direct}");
    direct
}

#[test]
fn a_write_is_seen() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, MIB, 1);
    let mut pursuit = Pursuit::of(shell, Rules::default());
    let idle = pursuit.round();
    pursuit.shell.fill(place + 4096, 4096, 2);
    let busy = pursuit.round();
    assert!(idle.pages < 64 && busy.pages < 64, "more than what was written: {idle:?} {busy:?}");
    pursuit.freeze().assert_clean("one page written");
}

/// Rule 1.
#[test]
fn what_a_device_writes_behind_our_back_is_read_again() {
    if !crate::tracks() {
        return;
    }
    let mut lost = 0;
    for on in [true, false] {
        let mut shell = Followed::shell();
        let fd = file(&mut shell, 64 * MIB);
        let place = shell.map_alone(64 * MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, 64 * MIB, 1);
        for reader in 0..4 {
            shell.tell(&format!("reads {fd} {} {} {}", place + reader * 16 * MIB, 16 * MIB, 64 * MIB));
        }
        let rules = Rules { reread_direct: on, direct_age: Duration::from_millis(300), ..Rules::default() };
        let mut pursuit = Pursuit::of(shell, rules);
        let until = Instant::now() + Duration::from_secs(15);
        for freeze in 0..60 {
            pursuit.round();
            let verdict = pursuit.freeze();
            match on {
                true => verdict.assert_clean("O_DIRECT"),
                false => lost += verdict.wrong_in(place, 64 * MIB),
            }
            if lost > 0 || on && freeze == 20 || Instant::now() > until {
                break;
            }
            pursuit.shell.thaw();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    eprintln!("O_DIRECT: {lost} pages lost without the rule");
    assert!(lost > 0, "the rule makes no difference");
}

/// Rule 2.
#[test]
fn a_marker_that_looks_swapped_out_is_read_again() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let fd = file(&mut shell, MIB);
        let place = shell.map_alone(MIB, READ | WRITE, PRIVATE, fd);
        shell.fill(place, MIB, 1);
        let mut pursuit =
            Pursuit::of(shell, Rules { reread_markers: on, reread_direct: false, ..Rules::default() });
        assert_eq!(pursuit.shell.advise(place, MIB / 2, libc::MADV_DONTNEED), 0);
        let verdict = pursuit.freeze();
        match on {
            true => verdict.assert_clean("markers"),
            false => assert_ne!(verdict.wrong_in(place, MIB), 0, "the rule makes no difference"),
        }
    }
}

/// Rule 3: a mapping that is new makes the scan fail behind those whose reports it has taken.
#[test]
fn a_new_mapping_takes_no_report_away() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let place = shell.map_alone(2 * MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, 2 * MIB, 1);
        let mut pursuit = Pursuit::of(shell, Rules { read_new: on, ..Rules::default() });
        pursuit.shell.fill(place, 64 << 10, 2);
        let new = pursuit.shell.map(place + MIB, MIB, READ | WRITE, ANONYMOUS | FIXED, -1);
        pursuit.shell.fill(new, 64 << 10, 3);
        pursuit.round();
        let verdict = pursuit.freeze();
        match on {
            true => verdict.assert_clean("replaced mapping"),
            false => assert_ne!(verdict.wrong_in(place, 2 * MIB), 0, "the rule makes no difference"),
        }
    }
}

/// Rule 4.
#[test]
fn pages_that_were_given_up_do_not_exist() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(4 * MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, 4 * MIB, 1);
    let mut pursuit = Pursuit::of(shell, Rules::default());
    let shell = &mut pursuit.shell;
    assert_eq!(shell.advise(place, MIB, libc::MADV_DONTNEED), 0);
    assert_eq!(shell.syscall(libc::SYS_munmap, &[place + MIB, MIB]), 0);
    // Reading gives the page of zeroes, which is no page of its own.
    shell.tell(&format!("peek {place}"));
    pursuit.round();
    let verdict = pursuit.freeze();
    verdict.assert_clean("pages given up");
    // Nothing was reported of them: who goes by what was handed over restores them.
    assert!(verdict.gone >= 2 * MIB / 4096, "{} pages gone", verdict.gone);
}

/// Rule 5: write(2), and writes through a mapping that is gone.
#[test]
fn what_is_written_to_a_shared_object_unseen_is_found_under_the_freeze() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let fd = shell.memfd();
        shell.syscall(libc::SYS_ftruncate, &[fd as u64, 4 * MIB]);
        let place = shell.map_alone(4 * MIB, READ | WRITE, libc::MAP_SHARED as u64, fd);
        shell.fill(place, 2 * MIB, 1);
        let mut pursuit = Pursuit::of(shell, Rules { compare_objects: on, ..Rules::default() });
        let shell = &mut pursuit.shell;
        let buffer = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(buffer, MIB, 5);
        assert_eq!(shell.syscall(libc::SYS_pwrite64, &[fd as u64, buffer, 8192, MIB]), 8192);
        let second = shell.map_alone(4 * MIB, READ | WRITE, libc::MAP_SHARED as u64, fd);
        shell.fill(second + 3 * MIB, 8192, 6);
        shell.syscall(libc::SYS_munmap, &[second, 4 * MIB]);
        pursuit.round();
        let verdict = pursuit.freeze();
        match on {
            true => verdict.assert_clean("unseen writes"),
            false => assert_eq!(verdict.bad.len(), 2 * 4, "the rule makes no difference: {verdict:?}"),
        }
    }
}

/// Rule 5: what was written through a mapping before it was registered.
#[test]
fn an_object_is_read_when_a_mapping_is_new() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(2 * MIB, READ | WRITE, SHARED, -1);
    shell.fill(place, MIB, 1);
    let mut pursuit = Pursuit::of(shell, Rules { compare_objects: false, ..Rules::default() });
    pursuit.shell.fork(place, 4096 * 5, 2, true);
    let stats = pursuit.round();
    assert_eq!(stats.attached, 1, "{stats:?}");
    // Seen through the mapping from now on, by whoever writes.
    pursuit.shell.fill(place + MIB, 4096 * 3, 3);
    pursuit.freeze().assert_clean("new mapper");
}

/// Rules 6 and 7: an area that grew is two mappings until the next round, and one again after the release.
#[test]
fn an_area_that_grew_can_be_moved_after_the_next_round() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, MIB, 1);
        let heap = shell.syscall(libc::SYS_brk, &[0]) as u64;
        let mut pursuit = Pursuit::of(shell, Rules { register_new: on, ..Rules::default() });
        let shell = &mut pursuit.shell;
        shell.map(place + MIB, MIB, READ | WRITE, ANONYMOUS | FIXED, -1);
        shell.syscall(libc::SYS_brk, &[heap + 65536]);
        let heaps = |pid| maps(pid).iter().filter(|line| line.name == "[heap]").count();
        assert_eq!(heaps(shell.pid()), 2);
        pursuit.round();
        let shell = &mut pursuit.shell;
        let grow = libc::MREMAP_MAYMOVE as u64;
        let moved = shell.syscall(libc::SYS_mremap, &[place, 2 * MIB, 8 * MIB, grow]);
        match on {
            true => assert!(moved > 0, "mremap: {moved}"),
            false => assert_eq!(moved, -i64::from(libc::EFAULT), "the rule makes no difference"),
        }
        let at = if on { moved as u64 } else { place };
        shell.fill(at + MIB, MIB, 2);
        pursuit.round();
        pursuit.freeze().assert_clean("growth");
        pursuit.memory.release();
        assert_eq!(heaps(pursuit.shell.pid()), 1, "the heap stays in pieces");
    }
}

/// Rule 6: what was new when its place was read, and is a part of something larger when it is registered.
#[test]
fn an_area_that_replaces_a_new_one_is_not_registered_in_part() {
    if !crate::tracks() {
        return;
    }
    // kernels before 6.13 do not allow to register anew what is known
    let cases = if moved_pages_look_written() { &[true, false][..] } else { &[true][..] };
    for (&gap, on) in cases.iter().flat_map(|gap| [(gap, true), (gap, false)]) {
        let mut shell = Followed::shell();
        let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
        let third = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
        shell.tell(&format!("replaces {place} {third} {}", u64::from(gap)));
        let hesitate = Duration::from_millis(8);
        let mut pursuit = Pursuit::of(shell, Rules { register_between: on, hesitate, ..Rules::default() });
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut failures = 0;
        while pursuit.shell.tell("loops") < 60 && Instant::now() < deadline && (on || failures == 0) {
            pursuit.round();
            failures = pursuit.shell.tell("failures");
        }
        assert!(pursuit.shell.tell("loops") > 0);
        match on {
            true => assert_eq!(failures, 0, "an application could not move what it had mapped, gap: {gap}"),
            false => assert_ne!(failures, 0, "the rule makes no difference, gap: {gap}"),
        }
        pursuit.freeze().assert_clean("replaced");
    }
}

/// As the engine has it: since Linux 6.13.
fn moved_pages_look_written() -> bool {
    let uname = nix::sys::utsname::uname().unwrap();
    let numbers: Vec<u32> = uname
        .release()
        .to_str()
        .unwrap()
        .split(['.', '-'])
        .filter_map(|number| number.parse().ok())
        .collect();
    (numbers[0], numbers[1]) >= (6, 13)
}

/// Rule 8: what an application follows itself cannot be followed by us.
#[test]
fn a_mapping_of_an_applications_userfaultfd_is_read_in_full() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
        shell.fill(place, MIB, 1);
        // UFFDIO_API, then UFFDIO_REGISTER for missing pages.
        let uffd = shell.syscall(libc::SYS_userfaultfd, &[libc::O_CLOEXEC as u64]) as u64;
        let argument = shell.map(0, 4096, READ | WRITE, ANONYMOUS, -1);
        shell.tell(&format!("poke {argument} {}", 0xAA));
        assert_eq!(shell.syscall(libc::SYS_ioctl, &[uffd, 0xc018aa3f, argument]), 0);
        for (at, value) in [(0, place), (8, MIB), (16, 1)] {
            shell.tell(&format!("poke {} {value}", argument + at));
        }
        assert_eq!(shell.syscall(libc::SYS_ioctl, &[uffd, 0xc020aa00, argument]), 0);
        let mut pursuit = Pursuit::of(shell, Rules { read_unregistered: on, ..Rules::default() });
        pursuit.shell.fill(place, 65536, 2);
        let stats = pursuit.round();
        assert_eq!(stats.unregistered, 1, "{stats:?}");
        pursuit.shell.fill(place + 65536, 65536, 2);
        let stats = pursuit.round();
        let handed = stats.pages;
        assert_eq!(handed >= 256, on, "{stats:?}");
        // Under the freeze there is no way around reading it.
        pursuit.freeze().assert_clean("application's userfaultfd");
    }
}

/// Rule 9.
#[test]
fn the_kernel_is_asked_for_its_best_method() {
    let choice = Method::best();
    assert!(choice.method.probe().is_ok());
    TreeMemory::new(choice.method).unwrap();
    for (method, why) in choice.missing {
        assert!(TreeMemory::new(method).is_err(), "{why}");
    }
}

/// Rule 10: a child that was forked between the two calls has our descriptor.
#[test]
fn forked_children_are_relieved_of_our_descriptor() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let mut shell = Followed::shell();
        let rules = Rules { linger: Duration::from_millis(30), close_leaked: on, ..Rules::default() };
        let mut memory = TreeMemory::with_rules(Method::Uffd, rules).unwrap();
        let mut mirror = Mirror::default();
        let pids = shell.find_kin();
        shell.tell("forks 200");
        mirror.round(&mut memory, &pids);
        while shell.tell("loops") < 200 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let holders = |pids: &std::collections::BTreeSet<i32>| {
            let has = |pid: &&i32| {
                let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
                fds.into_iter().any(|fd| {
                    std::fs::read_link(fd.path())
                        .is_ok_and(|link| link.to_string_lossy().contains("userfaultfd"))
                })
            };
            pids.iter().filter(has).count()
        };
        // The children are followed without lingering: the rule is about those that are there.
        let pids = shell.find_kin();
        let leaked = holders(&pids);
        assert!(leaked > 0, "no child was forked in between");
        let mut some: std::collections::BTreeSet<i32> = pids.iter().copied().take(5).collect();
        some.insert(shell.pid());
        some.extend(pids.iter().filter(|pid| holders(&[**pid].into()) > 0).take(5));
        let stats = mirror.round(&mut memory, &some);
        assert_eq!(holders(&some) == 0, on, "the rule makes no difference");
        assert_eq!(stats.leaked.is_empty(), on, "{stats:?}");
    }
}
