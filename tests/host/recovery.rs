//! Calling a migration back with `godwit cancel`, and beginning again by itself after the link was lost. What a person
//! decides where the two hosts cannot is in `faults::doubt`.

use crate::attempt::{ANY_DOWNTIME, Attempt, SLOWLY, begin_migrate, frozen, migrate};
use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::container::{assert_runs_only_on, runc_state};
use crate::godwit::{Background, godwit_with};
use std::time::{Duration, Instant};

/// Whoever keeps what had come before a link was lost.
const PARKED: &str = "pgrep -f '[g]odwit park$'";

/// The ids of the migrations that a host knows, oldest first.
fn migrations(bed: &Bed, host: &str) -> Vec<String> {
    bed.sh(host, "ls /var/lib/godwit/migrations").lines().map(str::to_owned).collect()
}

fn cancel(bed: &Bed, host: &str, id: &str) -> Said {
    godwit_with(bed, host, &[], &["cancel", id])
}

/// Cancelling what is over is refused, on both hosts, and changes nothing.
#[track_caller]
fn assert_over(bed: &Bed, id: &str) {
    for host in [SRC, DST] {
        let said = cancel(bed, host, id);
        assert_eq!(said.code, 10, "{host}: {}{}", said.out, said.err);
        assert!(said.err.contains("the migration of `runc:stay` is over"), "{host}: {}", said.err);
    }
}

/// It is killed. What it started may live on and hold its output open.
fn die(running: Background<'_>) {
    running.signal("KILL");
    drop(running);
}

/// In the midst of the rounds.
fn in_pre_copy<'a>(bed: &'a Bed, more: &[&str]) -> Background<'a> {
    let mut running = begin_migrate(bed, &[], &[SLOWLY, more].concat());
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_millis(500));
    running
}

#[test]
fn what_is_under_way_is_called_back_at_the_source() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let running = in_pre_copy(&bed, &[]);
    let ids = migrations(&bed, SRC);
    let begun = Instant::now();
    // the end of an id is enough
    let said = cancel(&bed, SRC, &ids[0][ids[0].len() - 6..]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert!(said.out.contains("the migration of runc:stay was rolled back"), "{}", said.out);
    attempt.assert_stayed(&running.finish(), 130);
    assert_over(&bed, &ids[0]);
}

#[test]
fn what_is_under_way_is_called_back_at_the_destination() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let running = in_pre_copy(&bed, &[]);
    let ids = migrations(&bed, DST);
    let said = cancel(&bed, DST, &ids[0]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    attempt.assert_stayed(&running.finish(), 1);
    assert_over(&bed, &ids[0]);
}

#[test]
fn what_a_dead_process_left_in_the_rounds_is_called_back() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let running = in_pre_copy(&bed, &[]);
    die(running);
    let ids = migrations(&bed, SRC);
    assert_called_back(&bed, &ids[0], attempt);
}

#[test]
fn what_has_come_outlives_a_resume_and_does_not_travel_again() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    die(in_pre_copy(&bed, &[]));
    let said = godwit_with(&bed, SRC, &[], &["resume"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is running on this host"), "{}{}", said.out, said.err);
    assert!(bed.holds(DST, PARKED), "nothing is kept");
    assert_runs_only_on(&bed, SRC, "stay");
    let said = migrate(&bed, &[], ANY_DOWNTIME);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.err.contains("of memory from an earlier attempt"), "{}", said.err);
    assert!(!bed.holds(DST, PARKED), "somebody keeps it");
    assert_runs_only_on(&bed, DST, "stay");
    attempt.probe.assert_nothing_lost();
    assert_eq!(attempt.before.left_over(&bed, SRC), None);
}

#[test]
fn what_a_dead_process_left_frozen_is_called_back() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    die(frozen(&bed, 2));
    assert_eq!(bed.sh(SRC, "cat /sys/fs/cgroup/stay/cgroup.freeze"), "1", "it is frozen, and nobody is left");
    let ids = migrations(&bed, SRC);
    assert_called_back(&bed, &ids[0], attempt);
}

/// Its process is dead: `cancel` puts everything back on both hosts.
#[track_caller]
fn assert_called_back(bed: &Bed, id: &str, attempt: Attempt<'_>) {
    let said = cancel(bed, SRC, id);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is running on this host"), "{}{}", said.out, said.err);
    attempt.redis.assert_untouched(bed);
    attempt.there.assert_unchanged(bed, DST);
    assert!(runc_state(bed, DST, "stay").is_none());
    attempt.end();
    assert_over(bed, id);
}

#[test]
fn what_is_over_cannot_be_called_back() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    assert_eq!(migrate(&bed, &[], ANY_DOWNTIME).code, 0);
    let ids = migrations(&bed, SRC);
    assert_over(&bed, &ids[0]);
    assert_runs_only_on(&bed, DST, "stay");
    attempt.probe.assert_nothing_lost();
    let unknown = cancel(&bed, SRC, "no-such-migration");
    assert_eq!(unknown.code, 10, "{}", unknown.err);
}

/// Cuts the connection of the one migration that is under way on the source.
type Cut = fn(&Bed, &Background<'_>);

/// The ssh that carries the wire dies.
fn kill_ssh(bed: &Bed, running: &Background<'_>) {
    bed.sh(SRC, &format!("pkill -KILL -P {} -x ssh", running.pid));
}

/// What a host sends over ssh is answered by a reset, until no ssh is left there.
fn answer_with_resets(bed: &Bed, host: &str, port: &str, program: &str) {
    bed.sh(
        host,
        &format!(
            "nft 'table inet broken {{ chain output {{ type filter hook output priority 0;
                tcp {port} 22 reject with tcp reset; }}; }}'
            timeout 20 sh -c 'while pgrep -x {program}; do sleep 0.02; done'; nft delete table inet broken"
        ),
    );
}

/// The network resets the connection at the source; the destination is not told.
fn half_open(bed: &Bed, _: &Background<'_>) {
    answer_with_resets(bed, SRC, "dport", "ssh");
}

/// The network resets the connection, both ends of it.
fn reset(bed: &Bed, running: &Background<'_>) {
    answer_with_resets(bed, DST, "sport", "sshd-session");
    half_open(bed, running);
}

#[test]
fn a_link_that_is_lost_in_the_rounds_is_taken_up_again() {
    let Some(bed) = bed() else { return };
    for cut in [kill_ssh as Cut, half_open] {
        bed.wipe();
        let attempt = Attempt::begin(&bed);
        let running = in_pre_copy(&bed, &["--retries", "1"]);
        cut(&bed, &running);
        let said = running.finish();
        said.summary();
        let again = said.out.contains("lost contact with ssh://dst") && said.out.contains("once more in 1 s");
        assert!(again, "{}", said.out);
        // what had come does not travel again, and is nowhere else afterwards
        assert!(said.out.contains("of memory from an earlier attempt"), "{}", said.out);
        assert!(!bed.holds(DST, "ls -d /var/lib/godwit/parked/*"), "something is kept");
        assert!(!bed.holds(DST, PARKED), "somebody keeps it");
        assert_runs_only_on(&bed, DST, "stay");
        attempt.probe.assert_nothing_lost();
        // one that was undone, and one that came to its end, on both hosts; nothing of either is left at the source
        for host in [SRC, DST] {
            let ends: Vec<String> = migrations(&bed, host)
                .iter()
                .map(|id| bed.sh(host, &format!("cat /var/lib/godwit/migrations/{id}/journal")))
                .map(|journal| {
                    if journal.contains(r#""event":"completed""#) { "moved" } else { "undone" }.into()
                })
                .collect();
            assert_eq!(ends, ["undone", "moved"], "{host}");
            let images = "ls -d /var/lib/godwit/migrations/*/images";
            assert!(!bed.holds(host, images), "{host}: images are left");
        }
        assert_eq!(attempt.before.left_over(&bed, SRC), None);
    }
}

#[test]
fn without_retries_a_lost_link_ends_the_migration_and_the_container_runs_on() {
    let Some(bed) = bed() else { return };
    for cut in [kill_ssh as Cut, reset] {
        bed.wipe();
        let attempt = Attempt::begin(&bed);
        let running = in_pre_copy(&bed, &[]);
        cut(&bed, &running);
        let said = running.finish();
        assert!(!said.out.contains("once more in"), "{}", said.out);
        assert_eq!(migrations(&bed, SRC).len(), 1);
        // another attempt would have it; told that there is none, it goes
        let keeps = bed.sh(DST, &format!("timeout 10 sh -c \"until {PARKED}; do sleep 0.05; done\""));
        assert!(bed.holds(DST, "ls -d /var/lib/godwit/parked/*"));
        bed.sh(DST, &format!("kill {keeps}; timeout 10 sh -c \"while {PARKED}; do sleep 0.05; done\""));
        attempt.assert_stayed(&said, 1);
    }
}

#[test]
fn memory_that_outgrows_the_room_for_it_gets_more_and_what_has_come_does_not_travel_again() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    // 16 MiB and a little in the first round, then ten times that: more than a quarter and 64 MiB
    let mut running = begin_migrate(
        &bed,
        &[],
        &["--max-downtime", "60s", "--compress", "none", "--bandwidth", "16MiB/s", "--retries", "0"],
    );
    running.wait_for_phase("pre-copy");
    assert_eq!(attempt.redis.ask(&bed, "debug populate 40000 grown 4000"), "OK");
    let said = running.finish();
    said.summary();
    let again = said.out.contains("the containers' memory needs more")
        && said.out.contains("once more with room for more");
    assert!(again, "{}", said.out);
    assert!(said.out.contains("of memory from an earlier attempt"), "{}", said.out);
    assert!(!bed.holds(DST, PARKED), "somebody keeps it");
    assert_runs_only_on(&bed, DST, "stay");
    assert_eq!(attempt.redis.ask(&bed, "exists grown:0 grown:39999"), "2");
    attempt.probe.assert_nothing_lost();
    assert_eq!(attempt.before.left_over(&bed, SRC), None);
}
