//! The rules of the engine: each on, where nothing is lost, and off, where memory is.

use crate::child::{ANONYMOUS, FIXED, Followed, READ, WRITE};
use crate::mirror::{Mirror, Verdict};
use godwit_memory::source::{Method, Rules, TreeMemory};

/// Follows a shell: rounds while `work` changes its memory, then what is found wrong under the freeze.
fn follow(rules: Rules, before: impl FnOnce(&mut Followed) -> u64, work: impl FnOnce(&mut Followed, u64)) -> (Verdict, u64) {
    let mut shell = Followed::shell();
    let place = before(&mut shell);
    let mut memory = TreeMemory::with_rules(Method::Uffd, rules).unwrap();
    let mut mirror = Mirror::default();
    let pids = shell.find_kin();
    let stats = mirror.round(&mut memory, &pids);
    assert_eq!((stats.tracked, stats.attached), (1, 1), "{stats:?}");
    mirror.round(&mut memory, &pids);
    work(&mut shell, place);
    mirror.round(&mut memory, &pids);
    mirror.round(&mut memory, &pids);
    let pids = shell.freeze();
    memory.frozen(&pids, &mut mirror).unwrap();
    let verdict = mirror.compare(&mut memory, &pids);
    memory.release();
    (verdict, place)
}

#[test]
fn a_write_is_seen() {
    if !crate::tracks() {
        return;
    }
    let (verdict, _) = follow(
        Rules::default(),
        |shell| {
            let place = shell.map_alone(1 << 20, READ | WRITE, ANONYMOUS, -1);
            shell.fill(place, 1 << 20, 1);
            place
        },
        |shell, place| shell.fill(place + 4096, 4096, 2),
    );
    verdict.assert_clean("one page written");
}

/// Rule 3: a mapping that is new makes the scan fail behind those whose reports it has taken.
#[test]
fn a_new_mapping_takes_no_report_away() {
    if !crate::tracks() {
        return;
    }
    for on in [true, false] {
        let (verdict, place) = follow(
            Rules { read_new: on, ..Rules::default() },
            |shell| {
                let place = shell.map_alone(2 << 20, READ | WRITE, ANONYMOUS, -1);
                shell.fill(place, 2 << 20, 1);
                place
            },
            |shell, place| {
                shell.fill(place, 64 << 10, 2);
                let new = shell.map(place + (1 << 20), 1 << 20, READ | WRITE, ANONYMOUS | FIXED, -1);
                shell.fill(new, 64 << 10, 3);
            },
        );
        match on {
            true => verdict.assert_clean("replaced mapping"),
            false => assert_ne!(verdict.wrong_in(place, 2 << 20), 0, "the rule makes no difference: {verdict:?}"),
        }
    }
}
