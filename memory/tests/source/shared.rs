//! Shared objects and the ways to them.

use crate::child::{ANONYMOUS, Followed, READ, SHARED, WRITE};
use crate::mirror::Mirror;
use godwit_memory::page::SharedDoor;
use godwit_memory::source::{Method, TreeMemory};

const MIB: u64 = 1 << 20;

/// An anonymous segment that two processes map, a memfd that is mapped twice and open, one that nobody maps, a System V
/// segment.
#[test]
fn all_doors_of_all_objects_are_found() {
    if !crate::tracks() {
        return;
    }
    for method in [Method::Uffd, Method::Hash] {
        let mut shell = Followed::shell();
        let anonymous = shell.map(0, 2 * MIB, READ | WRITE, SHARED, -1);
        shell.fill(anonymous, MIB, 1);
        let fd = shell.memfd();
        // No whole number of pages.
        shell.syscall(libc::SYS_ftruncate, &[fd as u64, MIB + 100]);
        let first = shell.map(0, MIB, READ | WRITE, libc::MAP_SHARED as u64, fd);
        shell.fill(first, 65536, 2);
        let lonely = shell.memfd();
        let buffer = shell.map(0, 65536, READ | WRITE, ANONYMOUS, -1);
        shell.fill(buffer, 65536, 3);
        shell.syscall(libc::SYS_pwrite64, &[lonely as u64, buffer, 5000, 8192]);
        let segment = shell.syscall(libc::SYS_shmget, &[0, MIB, 0o1600]);
        let attached = shell.syscall(libc::SYS_shmat, &[segment as u64, 0, 0]) as u64;
        shell.syscall(libc::SYS_shmctl, &[segment as u64, 0, 0]);
        shell.fill(attached, 8192, 4);
        let child = shell.fork(anonymous + 65536, 8192, 9, true);

        let mut memory = TreeMemory::new(method).unwrap();
        let mut mirror = Mirror::default();
        let pids = shell.find_kin();
        mirror.round(&mut memory, &pids);
        let numbers: Vec<u32> = memory.shared_objects().iter().map(|object| object.number).collect();
        shell.fill(anonymous + MIB, 8192, 5);
        shell.fill(attached + 65536, 4096, 5);
        mirror.round(&mut memory, &pids);
        // A page that is given up is zeroes from then on.
        shell.advise(anonymous + 4096, 8192, libc::MADV_REMOVE);
        shell.syscall(libc::SYS_pwrite64, &[lonely as u64, buffer, 5000, 300_000]);
        let pids = shell.freeze();
        memory.frozen(&pids, &mut mirror).unwrap();
        mirror.compare(&mut memory, &pids).assert_clean("shared objects");

        let objects = memory.shared_objects();
        assert_eq!(objects.iter().map(|object| object.number).collect::<Vec<_>>(), numbers);
        let doors = |name: &str, bytes: u64| {
            let found: Vec<_> = objects
                .iter()
                .filter(|object| object.name.starts_with(name) && object.bytes == bytes)
                .collect();
            assert_eq!(found.len(), 1, "{name} {bytes}: {objects:?}");
            found[0].doors.clone()
        };
        let (parent, child) = (shell.pid() as u32, child as u32);
        let zero = doors("/dev/zero (deleted)", 2 * MIB);
        assert_eq!(zero.len(), 2, "{zero:?}");
        for vpid in [parent, child] {
            let (start, end) = (anonymous, anonymous + 2 * MIB);
            assert!(zero.contains(&SharedDoor::Mapping { vpid, start, end, offset: 0 }));
        }
        let memfd = doors("/memfd:", MIB + 100);
        assert_eq!(memfd.len(), 4, "{memfd:?}");
        let unmapped = doors("/memfd:", 305_000);
        assert_eq!(unmapped.len(), 2, "{unmapped:?}");
        assert!(unmapped.contains(&SharedDoor::Descriptor { vpid: parent, fd: lonely as i32 }));
        assert_eq!(doors("/SYSV", MIB).len(), 2);
    }
}

/// A write through one of several mappings is told by that one.
#[test]
fn a_write_by_any_mapper_is_seen() {
    if !crate::tracks() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(16 * MIB, READ | WRITE, SHARED, -1);
    shell.fill(place, 8 * MIB, 1);
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    mirror.round(&mut memory, &pids);
    let idle = mirror.round(&mut memory, &pids);
    shell.fill(place, 8192, 2);
    let busy = mirror.round(&mut memory, &pids);
    assert!(idle.pages < 64 && busy.pages < 64, "{idle:?} {busy:?}");
    let object = memory.shared_objects()[0].number;
    let count = mirror.pages.keys().filter(|(id, _)| *id == godwit_memory::ImageId::Shared(object)).count();
    assert_eq!(count, 2048, "zeroes were handed over");
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("mappers");
}
