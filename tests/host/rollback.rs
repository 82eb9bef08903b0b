//! Every way to fail before the commit: the container runs on where it was, and nothing of it is at the destination.

use crate::attempt::{ANY_DOWNTIME, Attempt, SLOWLY, begin_migrate, frozen, migrate, runc_there};
use crate::bed::{Bed, DST, SRC, bed};
use crate::container::runc_state;
use std::time::Duration;

#[test]
fn a_restore_that_fails() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let there = runc_there(&bed, "echo no luck today >&2; exit 1");
    let said = migrate(&bed, &[&there], ANY_DOWNTIME);
    assert!(
        said.err.contains("could not restore `runc:stay`") && said.err.contains("no luck today"),
        "{}",
        said.err
    );
    attempt.assert_stayed(&said, 1);
}

#[test]
fn a_restore_that_fails_when_all_is_restored() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let there = runc_there(&bed, "runc \"$@\"; exit 1");
    let said = migrate(&bed, &[&there], ANY_DOWNTIME);
    attempt.assert_stayed(&said, 1);
}

#[test]
fn images_that_criu_cannot_read() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let there =
        runc_there(&bed, "for f in /var/lib/godwit/migrations/*/images/*/core-1.img; do echo x > $f; done");
    let said = migrate(&bed, &[&there], ANY_DOWNTIME);
    assert!(said.err.contains("criu: "), "CRIU's own words are missing: {}", said.err);
    attempt.assert_stayed(&said, 1);
}

/// A criu that fails when it serves its `number`th dump: godwit starts it anew for each request.
fn criu_that_fails(bed: &Bed, number: u32) {
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *swrk*) n=$(cat /run/test.dumps 2> /dev/null || echo 0); n=$((n + 1)); echo $n > /run/test.dumps\n\
         [ $n -lt {number} ] || exit 1;; esac\nexec criu \"$@\"\n"
    );
    bed.write(SRC, "/root/test-criu", &script);
}

#[test]
fn dumps_that_fail() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    // requests before the dumps: find out how many, then fail at the first dump, and at the last one
    criu_that_fails(&bed, 1000);
    let tracker = ["--tracker", "checkpoint"];
    let flags = [&["--max-downtime", "1ms"], &tracker[..]].concat();
    let counted = migrate(&bed, &["GODWIT_CRIU=/root/test-criu"], &flags);
    assert_eq!(counted.code, 14, "{}", counted.err);
    let at_give_up: u32 = bed.sh(SRC, "cat /run/test.dumps").parse().unwrap();
    for number in [at_give_up, at_give_up + 1] {
        criu_that_fails(&bed, number);
        bed.sh(SRC, "rm /run/test.dumps");
        let said = migrate(&bed, &["GODWIT_CRIU=/root/test-criu"], &[ANY_DOWNTIME, &tracker].concat());
        assert_eq!(bed.sh(SRC, "cat /run/test.dumps"), number.to_string(), "{}", said.err);
        assert!(said.err.contains("CRIU could not dump `runc:stay`"), "{}", said.err);
        attempt.assert_runs_here(&said, 1);
        attempt.there.assert_unchanged(&bed, DST);
    }
    attempt.end();
}

#[test]
fn ctrl_c_in_pre_copy() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let mut running = begin_migrate(&bed, &[], SLOWLY);
    running.wait_for("bytes of files", |line| line.contains(r#""status""#) && line.contains("pre-copy"));
    running.signal("INT");
    let begun = std::time::Instant::now();
    let said = running.finish();
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?} to stop", begun.elapsed());
    attempt.assert_stayed(&said, 130);
}

#[test]
fn ctrl_c_under_the_freeze() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let running = frozen(&bed, 4);
    running.signal("INT");
    let begun = std::time::Instant::now();
    // the container first, the rest can wait
    while bed.sh(SRC, "cat /sys/fs/cgroup/stay/cgroup.freeze") == "1" {
        assert!(begun.elapsed() < Duration::from_secs(1), "it is not thawed at once");
    }
    let said = running.finish();
    attempt.assert_stayed(&said, 130);
}

#[test]
fn ctrl_c_at_the_destination() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let mut running = begin_migrate(&bed, &[], SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_millis(500));
    bed.sh(DST, "pkill -TERM -x godwit");
    let said = running.finish();
    attempt.assert_stayed(&said, 1);
}

#[test]
fn the_destination_dies_in_pre_copy() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let mut running = begin_migrate(&bed, &[], SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_millis(500));
    bed.sh(DST, "pkill -KILL -x godwit");
    let said = running.finish();
    assert!(said.out.contains("lost contact with ssh://dst"), "{}", said.out);
    attempt.assert_runs_here(&said, 1);
    // nobody is left there to clean up; but nothing runs
    assert!(runc_state(&bed, DST, "stay").is_none());
    attempt.end();
}

#[test]
fn the_destination_dies_under_the_freeze() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let running = frozen(&bed, 2);
    bed.sh(DST, "pkill -KILL -x godwit");
    let said = running.finish();
    attempt.assert_runs_here(&said, 1);
    // its runc goes on without it: what it restores stays held, and cannot be reached
    std::thread::sleep(Duration::from_secs(4));
    let none_or_held = "cd /sys/fs/cgroup/stay 2> /dev/null || exit 0
        [ -z \"$(cat cgroup.procs)\" ] || grep -q 1 cgroup.freeze";
    assert!(bed.holds(DST, none_or_held), "it runs there, too");
    attempt.end();
}

#[test]
fn the_destination_dies_before_its_images_are_there() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    // the dump takes so long that runc waits for its images
    bed.write(
        SRC,
        "/root/test-criu",
        "#!/bin/sh\ncase \" $* \" in *swrk*) sleep 2;; esac\nexec criu \"$@\"\n",
    );
    let running = begin_migrate(&bed, &["GODWIT_CRIU=/root/test-criu"], ANY_DOWNTIME);
    let waits = "[ -n \"$(cat /sys/fs/cgroup/stay/cgroup.procs 2> /dev/null)\" ]";
    bed.sh(DST, &format!("timeout 60 sh -c 'until {waits}; do sleep 0.05; done'; pgrep -x runc"));
    assert!(
        !bed.holds(DST, "ls /var/lib/godwit/migrations/*/images/*/core-1.img"),
        "the images came already"
    );
    bed.sh(DST, "pkill -KILL -x godwit");
    let said = running.finish();
    attempt.assert_runs_here(&said, 1);
    bed.sh(DST, "timeout 10 sh -c 'while pgrep -x \"runc|criu\"; do sleep 0.1; done'");
    assert_eq!(bed.sh(DST, "runc list -q"), "", "runc has given up");
    attempt.end();
}

#[test]
fn a_downtime_that_cannot_be_met() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let said = migrate(&bed, &[], &["--max-downtime", "1ms", "--tracker", "checkpoint"]);
    assert!(said.err.contains("did not converge") && said.err.contains("limit 1.0 ms"), "{}", said.err);
    attempt.assert_stayed(&said, 14);
}

#[test]
fn a_second_migration_of_the_same_container() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    let mut running = begin_migrate(&bed, &[], SLOWLY);
    running.wait_for_phase("pre-copy");
    let second = migrate(&bed, &[], ANY_DOWNTIME);
    assert_eq!(second.code, 11, "{}", second.err);
    assert_eq!(second.last_line(), "runc:stay was not touched");
    assert!(second.err.contains("another migration of `runc:stay` is under way"), "{}", second.err);
    running.signal("TERM");
    let said = running.finish();
    attempt.assert_stayed(&said, 130);
    // the lock is gone with its holder
    assert_eq!(migrate(&bed, &[], ANY_DOWNTIME).code, 0);
}
