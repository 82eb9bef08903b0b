//! Following writes by soft-dirty bits, on kernels that have them.

use crate::child::{ANONYMOUS, Followed, READ, SHARED, WRITE};
use crate::mirror::Mirror;
use godwit_memory::source::{Method, TreeMemory};

const MIB: u64 = 1 << 20;

fn has_soft_dirty() -> bool {
    let probe = Method::SoftDirty.probe();
    let why = probe.as_ref().err().map_or("", String::as_str);
    crate::possible(nix::unistd::geteuid().is_root(), "needs root") && crate::possible(probe.is_ok(), why)
}

#[test]
fn what_was_written_since_the_last_round_is_found() {
    if !has_soft_dirty() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(16 * MIB, READ | WRITE, ANONYMOUS, -1);
    let shared = shell.map_alone(MIB, READ | WRITE, SHARED, -1);
    shell.fill(place, 16 * MIB, 1);
    shell.fill(shared, MIB, 1);
    let mut memory = TreeMemory::new(Method::SoftDirty).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    let first = mirror.round(&mut memory, &pids);
    assert!(first.pages >= 4096 && first.tracked == 1, "{first:?}");
    shell.fill(place, 8192, 2);
    let second = mirror.round(&mut memory, &pids);
    // a huge page counts as a whole
    assert!(second.pages < 1600, "{second:?}");
    // Written once, and again in each round until everything is read anew.
    shell.fill(place + MIB, 8192, 3);
    shell.fill(shared, 8192, 3);
    let third = mirror.round(&mut memory, &pids);
    assert!(third.pages < 2400, "{third:?}");
    shell.fill(place, 8 * MIB, 4);
    mirror.round(&mut memory, &pids);
    let quiet = mirror.round(&mut memory, &pids);
    assert!(quiet.pages < 2400, "the bits were not cleared: {quiet:?}");
    shell.map(place, MIB, READ | WRITE, ANONYMOUS | crate::child::FIXED, -1);
    shell.fill(place, 8192, 5);
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("soft-dirty");
}

/// mremap(2) moves whole page tables, whose entries stay as they are: without the bit.
#[test]
fn pages_that_were_moved_over_others_are_found() {
    if !has_soft_dirty() {
        return;
    }
    let mut shell = Followed::shell();
    let place = shell.map_alone(8 * MIB, READ | WRITE, ANONYMOUS, -1);
    let (from, to) = (place.next_multiple_of(2 * MIB), place.next_multiple_of(2 * MIB) + 4 * MIB);
    for (at, value) in [(from, 1), (to, 2)] {
        assert_eq!(shell.advise(at, 2 * MIB, libc::MADV_NOHUGEPAGE), 0);
        shell.fill(at, 2 * MIB, value);
    }
    let mut memory = TreeMemory::new(Method::SoftDirty).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    mirror.round(&mut memory, &pids);
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(shell.syscall(libc::SYS_mremap, &[from, 2 * MIB, 2 * MIB, how as u64, to]), to as i64);
    let round = mirror.round(&mut memory, &pids);
    assert!(round.pages >= 512, "{round:?}");
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    mirror.compare(&mut memory, &pids).assert_clean("moved");
}

#[test]
fn a_storm_is_followed_exactly() {
    if has_soft_dirty() {
        crate::chaos::storms(Method::SoftDirty, 2, 4, crate::chaos::budget(), 1);
    }
}

/// Where they are missing, it is said before anything is tried.
#[test]
fn a_kernel_without_the_bits_says_so() {
    if let Err(why) = Method::SoftDirty.probe() {
        assert!(why.contains("soft-dirty") || why.contains("pagemap"), "{why}");
        assert!(TreeMemory::new(Method::SoftDirty).is_err());
    }
}
