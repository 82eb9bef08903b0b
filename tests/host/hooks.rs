//! Programs of the host that hear of a migration: which, when, and what becomes of it when one of them fails.

mod application;
mod registry;

use crate::attempt::{ANY_DOWNTIME, Attempt, SLOWLY, begin_migrate, migrate};
use crate::bed::{Bed, DST, SRC, bed};
use crate::container::assert_runs_only_on;
use crate::godwit::godwit_with;
use std::time::{Duration, Instant};

/// Where hooks write down that they were called.
const SEEN: &str = "/run/test.hooks";
const HOOK: &str = "/root/test-hook";
const ALL: [&str; 5] = ["pre-copy", "pre-freeze", "post-freeze", "post-commit", "rollback"];

/// A hook that notes its environment and whether the container is frozen, and then does what a moment is told to do.
fn write_hook(bed: &Bed, then: &[(&str, &str)]) {
    let cases: String = then.iter().map(|(moment, act)| format!("{moment}) {act};; ")).collect();
    let script = format!(
        "#!/bin/sh\nfrozen=$(cat /sys/fs/cgroup/stay/cgroup.freeze 2> /dev/null || echo gone)
        echo $GODWIT_HOOK frozen=$frozen container=$GODWIT_CONTAINER to=$GODWIT_DESTINATION pid=$GODWIT_PID id=$GODWIT_MIGRATION >> {SEEN}
        case $GODWIT_HOOK in {cases} esac\nexit 0\n"
    );
    bed.write(SRC, HOOK, &script);
}

/// The flags that call the hook at these moments.
fn flags(moments: &[&str]) -> Vec<String> {
    moments.iter().flat_map(|moment| ["--hook".into(), format!("{moment}={HOOK}")]).collect()
}

fn seen(bed: &Bed) -> Vec<String> {
    bed.sh(SRC, &format!("cat {SEEN} 2> /dev/null || true")).lines().map(str::to_owned).collect()
}

/// The moments that were seen.
fn moments(bed: &Bed) -> Vec<String> {
    seen(bed).iter().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn hooks_are_called_once_each_in_their_order() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    write_hook(&bed, &[]);
    let pid = attempt.redis.pid;
    let said = migrate(&bed, &[], &[&["--json"], ANY_DOWNTIME, &strs(&flags(&ALL))].concat());
    let summary = said.summary();
    let id = summary["migration"].as_str().unwrap();
    let expected: Vec<String> = [
        ("pre-copy", "0", pid.to_string()),
        ("pre-freeze", "0", pid.to_string()),
        ("post-freeze", "1", pid.to_string()),
        ("post-commit", "gone", String::new()),
    ]
    .iter()
    .map(|(moment, frozen, pid)| {
        format!("{moment} frozen={frozen} container=runc:stay to=ssh://dst pid={pid} id={id}")
    })
    .collect();
    assert_eq!(seen(&bed), expected);
    // its part of the downtime is its own, and the parts still add up
    let downtime = &summary["downtime"];
    assert!(downtime["hook_us"].as_u64().unwrap() > 0, "{downtime}");
    let sum: u64 = downtime.as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(Some(sum), summary["downtime_us"].as_u64(), "{summary}");
    assert_runs_only_on(&bed, DST, "stay");
    attempt.probe.assert_nothing_lost();
}

#[test]
fn what_fails_before_the_commit_rolls_the_move_back() {
    let Some(bed) = bed() else { return };
    for moment in ["pre-copy", "pre-freeze", "post-freeze"] {
        bed.wipe();
        let attempt = Attempt::begin(&bed);
        write_hook(&bed, &[(moment, "echo not now >&2; exit 3")]);
        let said = migrate(&bed, &[], &[ANY_DOWNTIME, &strs(&flags(&ALL))].concat());
        assert!(said.err.contains(&format!("the hook `{moment}` failed")), "{}", said.err);
        assert!(said.err.contains("(exit status: 3): not now"), "{}", said.err);
        let called = moments(&bed);
        assert_eq!(called[called.len() - 2..], [moment, "rollback"], "{called:?}");
        assert!(seen(&bed).last().unwrap().contains("frozen=0"), "it runs when the rollback is told");
        attempt.assert_stayed(&said, 1);
    }
}

#[test]
fn what_takes_too_long_is_killed_with_all_that_it_started() {
    let Some(bed) = bed() else { return };
    for (moment, limit) in [("pre-copy", "--hook-timeout"), ("post-freeze", "--post-freeze-timeout")] {
        bed.wipe();
        let attempt = Attempt::begin(&bed);
        write_hook(&bed, &[(moment, "echo waiting >&2; sleep 4321 & sleep 4321")]);
        let begun = Instant::now();
        let said = migrate(&bed, &[], &[ANY_DOWNTIME, &[limit, "300ms"], &strs(&flags(&ALL))].concat());
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        assert!(said.err.contains("did not end within 300 ms, and was killed: waiting"), "{}", said.err);
        assert!(!bed.holds(SRC, "pgrep -f '[s]leep 4321'"), "something of it is left");
        assert_eq!(moments(&bed).last().unwrap(), "rollback");
        attempt.assert_stayed(&said, 1);
    }
}

#[test]
fn what_fails_after_the_commit_is_told_and_changes_nothing() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    write_hook(&bed, &[("post-commit", "echo the balancer is away >&2; exit 1")]);
    let said = migrate(&bed, &[], &[ANY_DOWNTIME, &strs(&flags(&ALL))].concat());
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(said.err.contains("the balancer is away"), "{}", said.err);
    assert_eq!(moments(&bed), ["pre-copy", "pre-freeze", "post-freeze", "post-commit"]);
    assert_runs_only_on(&bed, DST, "stay");
    attempt.probe.assert_nothing_lost();
}

#[test]
fn hooks_that_others_could_change_are_refused_before_anything_is_touched() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    write_hook(&bed, &[]);
    let good = format!("pre-copy={HOOK}");
    for (mend, hook, why) in [
        ("true", "rollback=/root/no-such-hook", "cannot be looked at"),
        ("true", "rollback=/root", "no file"),
        ("chmod 644 /root/test-hook", "rollback=/root/test-hook", "may not execute it"),
        ("chmod 757 /root/test-hook", "rollback=/root/test-hook", "others than root may write"),
        ("chmod 775 /root/test-hook", "rollback=/root/test-hook", "others than root may write"),
        (
            "chmod 755 /root/test-hook; chown 1000 /root/test-hook",
            "rollback=/root/test-hook",
            "owned by user 1000",
        ),
    ] {
        bed.sh(SRC, mend);
        let said = migrate(&bed, &[], &[ANY_DOWNTIME, &["--hook", &good, "--hook", hook]].concat());
        assert_eq!(said.code, 2, "{hook}: {}", said.err);
        assert!(said.err.contains(why), "{hook}: {}", said.err);
        assert_eq!(said.last_line(), "runc:stay was not touched", "{}", said.err);
    }
    bed.sh(SRC, "chown 0 /root/test-hook");
    for odd in ["rollback=root/test-hook", "sometimes=/root/test-hook"] {
        let said = migrate(&bed, &[], &["--hook", odd]);
        assert_eq!(said.code, 2, "{}", said.err);
    }
    assert_eq!(moments(&bed), [""; 0]);
    assert!(!bed.holds(SRC, "ls -d /var/lib/godwit/migrations/*"), "a migration was begun");
    attempt.redis.assert_untouched(&bed);
    attempt.probe.assert_nothing_lost();
}

/// A migration whose process is killed in the rounds, after its first hook.
fn die_in_pre_copy(bed: &Bed) {
    write_hook(bed, &[]);
    let more = flags(&["pre-copy", "rollback"]);
    let mut running = begin_migrate(bed, &[], &[SLOWLY, &strs(&more)].concat());
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_millis(500));
    running.signal("KILL");
    drop(running);
    assert_eq!(moments(bed), ["pre-copy"]);
}

#[test]
fn whoever_resumes_after_a_crash_tells_the_rollback_once() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    die_in_pre_copy(&bed);
    for _ in 0..2 {
        let said = godwit_with(&bed, SRC, &[], &["resume"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert_eq!(moments(&bed), ["pre-copy", "rollback"]);
    }
    let lines = seen(&bed);
    let id = |line: &str| line.rsplit_once("id=").unwrap().1.to_owned();
    assert_eq!(id(&lines[0]), id(&lines[1]));
    assert!(lines[1].contains(&format!("pid={} ", attempt.redis.pid)), "{lines:?}");
    bed.end_what_is_kept();
    attempt.redis.assert_untouched(&bed);
    attempt.end();
}

#[test]
fn the_next_migration_tells_the_rollback_of_one_that_was_killed() {
    let Some(bed) = bed() else { return };
    let attempt = Attempt::begin(&bed);
    die_in_pre_copy(&bed);
    let said = migrate(&bed, &[], ANY_DOWNTIME);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(moments(&bed), ["pre-copy", "rollback"]);
    assert_runs_only_on(&bed, DST, "stay");
    attempt.probe.assert_nothing_lost();
}
