//! Mappings that are not plain memory.

use crate::child::{ANONYMOUS, Followed, READ, SHARED, WRITE};
use crate::mirror::{Mirror, Verdict};
use godwit_memory::ImageId;
use godwit_memory::source::{Method, RoundStats, TreeMemory};

const MIB: u64 = 1 << 20;
const MADV_GUARD_INSTALL: i32 = 102;

/// Rounds around `change`, then the freeze.
fn follow(shell: &mut Followed, change: impl FnOnce(&mut Followed)) -> (Verdict, RoundStats, TreeMemory) {
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    mirror.round(&mut memory, &pids);
    mirror.round(&mut memory, &pids);
    change(shell);
    mirror.round(&mut memory, &pids);
    let pids = shell.freeze();
    let stats = memory.frozen(&pids, &mut mirror).unwrap();
    let verdict = mirror.compare(&mut memory, &pids);
    (verdict, stats, memory)
}

/// What nobody may read in the task is carried all the same.
#[test]
fn pages_without_read_permission_are_read() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(4 * MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, 4 * MIB, 1);
    shell.syscall(libc::SYS_mprotect, &[place, MIB, 0]);
    shell.syscall(libc::SYS_mprotect, &[place + MIB, MIB, WRITE]);
    shell.syscall(libc::SYS_mprotect, &[place + 2 * MIB, MIB, libc::PROT_EXEC as u64]);
    let (verdict, stats, _memory) = follow(&mut shell, |shell| {
        shell.syscall(libc::SYS_mprotect, &[place + 3 * MIB, MIB, WRITE]);
        shell.fill(place + 3 * MIB, 8192, 2);
        shell.syscall(libc::SYS_mprotect, &[place, MIB, READ | WRITE]);
        shell.fill(place, 8192, 2);
        shell.syscall(libc::SYS_mprotect, &[place, MIB, 0]);
    });
    verdict.assert_clean("permissions");
    assert_eq!(stats.unreadable, []);
    assert!(verdict.good >= 1024);
}

#[test]
fn locked_memory_is_memory() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
    if !crate::possible(shell.syscall(libc::SYS_mlock, &[place, MIB]) == 0, "memory cannot be locked") {
        return;
    }
    shell.fill(place, MIB / 2, 1);
    let (verdict, ..) = follow(&mut shell, |shell| shell.fill(place, 8192, 2));
    verdict.assert_clean("mlock");
}

/// Guard pages look like swapped ones to kernels before 6.15, and nobody can read them.
#[test]
fn guard_regions_do_not_fail() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(MIB, READ | WRITE, ANONYMOUS, -1);
    shell.fill(place, MIB, 1);
    if !crate::possible(
        shell.advise(place + 65536, 65536, MADV_GUARD_INSTALL) == 0,
        "no guard regions (6.13)",
    ) {
        return;
    }
    let (verdict, stats, mut memory) = follow(&mut shell, |shell| {
        assert_eq!(shell.advise(place + 4 * 65536, 65536, MADV_GUARD_INSTALL), 0);
        shell.fill(place + 2 * 65536, 8192, 2);
    });
    verdict.assert_clean("guard regions");
    assert_eq!(stats.unreadable, []);
    let pid = shell.pid();
    for (image, runs) in memory.existing(&[pid].into()).unwrap() {
        assert_eq!(image, ImageId::Task(pid as u32));
        let guards = [place + 65536, place + 4 * 65536];
        assert!(
            runs.iter()
                .all(|run| guards.iter().all(|&guard| run.end() <= guard || run.start >= guard + 65536))
        );
    }
}

/// Pages of a huge size, in private memory.
#[test]
fn private_huge_pages_are_carried() {
    if !crate::tracks() {
        return;
    }
    let knob = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(knob).unwrap_or_default();
    let _ = std::fs::write(knob, "8");
    let got: u64 = std::fs::read_to_string(knob).unwrap_or_default().trim().parse().unwrap_or(0);
    let result = (got >= 4).then(|| {
        let mut shell = Followed::shell();
        let place = shell.map(0, 8 * MIB, READ | WRITE, ANONYMOUS | libc::MAP_HUGETLB as u64, -1);
        shell.fill(place, 4 * MIB, 1);
        follow(&mut shell, |shell| {
            shell.fill(place + 4096, 4096, 2);
            shell.fill(place + 4 * MIB, 4096, 2);
        })
    });
    let _ = std::fs::write(knob, before.trim());
    if !crate::possible(result.is_some(), "the kernel gives no huge pages") {
        return;
    }
    if let Some((verdict, stats, _)) = result {
        verdict.assert_clean("huge pages");
        assert!(verdict.good >= 1536, "{stats:?}");
    }
}

/// Memory of a device is not memory of the task.
#[test]
fn mappings_of_devices_are_skipped() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let zero = shell.tell(&format!("open {} /dev/zero", libc::O_RDWR));
    let place = shell.map(0, MIB, READ | WRITE, libc::MAP_PRIVATE as u64, zero);
    shell.fill(place, 65536, 1);
    // A page of the BIOS.
    let mem = shell.tell(&format!("open {} /dev/mem", libc::O_RDONLY));
    if mem > 0 {
        shell.syscall(libc::SYS_mmap, &[0, 4096, READ, libc::MAP_PRIVATE as u64, mem as u64, 0xf0000]);
        shell.syscall(libc::SYS_mmap, &[0, 4096, READ, libc::MAP_SHARED as u64, mem as u64, 0xf0000]);
    }
    let (verdict, stats, _memory) = follow(&mut shell, |shell| shell.fill(place, 8192, 2));
    verdict.assert_clean("devices");
    assert_eq!(stats.unreadable, []);
}

/// A thread's stack that grows, huge pages that are split, pages given back and merged.
#[test]
fn huge_pages_are_followed_page_by_page() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(16 * MIB, READ | WRITE, ANONYMOUS, -1);
    shell.advise(place, 16 * MIB, libc::MADV_HUGEPAGE);
    shell.fill(place, 16 * MIB, 1);
    let (verdict, ..) = follow(&mut shell, |shell| {
        shell.fill(place + 5 * 4096, 4096, 2);
        shell.advise(place + 2 * MIB, MIB, libc::MADV_DONTNEED);
        shell.advise(place + 2 * MIB, 2 * MIB, libc::MADV_COLLAPSE);
        shell.advise(place + 4 * MIB, MIB, libc::MADV_FREE);
        shell.fill(place + 4 * MIB, 8192, 4);
    });
    verdict.assert_clean("huge pages");
}

/// A file that both map: private pages travel, the file does not.
#[test]
fn shared_mappings_of_files_are_not_ours() {
    if !crate::tracks() {
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut shell = Followed::shell();
    let path = directory.path().join("file");
    let fd = shell.tell(&format!("open {} {}", libc::O_RDWR | libc::O_CREAT, path.display()));
    shell.syscall(libc::SYS_ftruncate, &[fd as u64, MIB]);
    let shared = shell.map(0, MIB, READ | WRITE, libc::MAP_SHARED as u64, fd);
    let private = shell.map(0, MIB, READ | WRITE, libc::MAP_PRIVATE as u64, fd);
    let anonymous = shell.map(0, MIB, READ | WRITE, SHARED, -1);
    shell.fill(shared, MIB, 1);
    shell.fill(private, 65536, 2);
    shell.fill(anonymous, 65536, 3);
    let (verdict, _, memory) = follow(&mut shell, |shell| shell.fill(shared, 8192, 4));
    verdict.assert_clean("files");
    assert_eq!(memory.shared_objects().len(), 1, "{:?}", memory.shared_objects());
}
