//! CRIU, its guardian, or both are killed at moments at which CRIU alone holds the container: whatever is killed, nothing
//! of it runs twice, and it goes on as if nothing had been tried.

use crate::bed::{Bed, DST, SRC, Said, quiet_bed};
use crate::container::{Redis, runc_state};
use crate::godwit::{Background, godwit_with};
use crate::probe::Probe;
use crate::state::State;
use serde_json::Value;
use std::time::Duration;

const KILLER: &str = include_str!("killer.py");
/// Without pages that come later: a thread within the kernel that wants such a page tries again and again, and is not frozen
/// before the page is there; the killer stops godwit, which brings it.
const MOVE: &[&str] = &[
    "migrate",
    "runc:stay",
    "ssh://dst",
    "--tcp-established",
    "--max-downtime",
    "60s",
    "--restore",
    "eager",
];
/// No process of these is left when all is over, nor a rule in the container's network namespace.
const CLEAN: &str = "! pgrep -x 'criu|godwit-guard' && test -z \"$(ip netns exec stay nft list ruleset)\"";

/// A redis with a client, that stays where it is.
struct Patient<'a> {
    bed: &'a Bed,
    redis: Redis,
    there: State,
    probe: Probe<'a>,
}

impl<'a> Patient<'a> {
    fn new(bed: &'a Bed) -> Self {
        for host in [SRC, DST] {
            bed.write(host, "/root/killer.py", KILLER);
        }
        let redis = Redis::create(bed, "stay", 16);
        let there = State::of(bed, DST);
        let probe = Probe::start(bed, &redis);
        Self { bed, redis, there, probe }
    }

    /// Tries to move it while somebody is killed on a host. What the killer saw, and what godwit said.
    fn attempt(&self, host: &str, victims: &str, when: &str, delay_ms: u32) -> (Value, Said) {
        let delay = delay_ms.to_string();
        let words = ["python3", "/root/killer.py", victims, when, "stay", &delay];
        let mut killer = Background::start(self.bed, host, &words);
        killer.wait_for("the killer", |line| line == "waiting");
        let said = godwit_with(self.bed, SRC, &["GODWIT_LOG=info"], MOVE);
        let killed = killer.finish();
        let seen = killed.out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        (seen.unwrap_or_else(|| panic!("{}{}", killed.out, killed.err)), said)
    }

    /// Asserts that it is as if nothing had been tried. `None` when a process was lost, and that was said: a kill at one of a
    /// few instructions takes one along.
    fn healed(self, what: &str, said: &Said) -> Option<Self> {
        if said.err.contains("processes of it are lost") {
            eprintln!("{what}: {}", said.err);
            return None;
        }
        assert_eq!(said.code, 1, "{what}: {}{}", said.out, said.err);
        assert_eq!(said.last_line(), "runc:stay is running on this host", "{what}: {}", said.err);
        self.redis.assert_untouched(self.bed);
        assert!(runc_state(self.bed, DST, "stay").is_none(), "{what}: it is there, too");
        self.there.assert_unchanged(self.bed, DST);
        self.bed
            .sh(SRC, &format!("timeout 5 sh -c 'until {}; do sleep 0.1; done'", CLEAN.replace('\'', "\"")));
        Some(self)
    }
}

/// Makes attempts on one redis, and on another when it was lost; gives what the killers saw. The client's connection lives, unless
/// the guardian is killed as well: what runs then before godwit looks may use a socket that CRIU has in repair mode.
fn attempts(bed: &Bed, host: &str, victims: &str, moments: &[(&str, u32)]) -> Vec<(String, Value, Said)> {
    let mut patient = Patient::new(bed);
    let (mut seen, mut lost) = (Vec::new(), 0);
    for (when, delay) in moments {
        let (saw, said) = patient.attempt(host, victims, when, *delay);
        let what = format!("{victims} killed {delay} ms after {when}: {saw}");
        eprintln!("{what}");
        patient = match patient.healed(&what, &said) {
            Some(healed) => healed,
            None => {
                lost += 1;
                bed.wipe();
                Patient::new(bed)
            }
        };
        seen.push((what, saw, said));
    }
    // one that has just begun has written little
    std::thread::sleep(Duration::from_millis(500));
    if victims.contains("guardian") {
        assert_eq!(patient.probe.lost(), None);
    } else {
        patient.probe.assert_nothing_lost();
    }
    // with one attempt that is nobody's fault
    assert!(lost < moments.len().max(2), "every one of {lost} kills took a process along");
    seen
}

#[test]
fn criu_is_killed_in_the_dump() {
    let Some(bed) = quiet_bed() else { return };
    let moments = [0, 3, 6, 10, 14, 18].map(|delay| ("dump", delay));
    let seen = attempts(&bed, SRC, "criu", &moments);
    let mut between = 0;
    for (what, saw, said) in &seen {
        assert_eq!((&saw["ran_ns"], &saw["frozen"]), (&0.into(), &true.into()), "{what}");
        if saw["thawed"] == true && saw["held"] != 0 {
            between += 1;
            assert!(said.err.contains("frozen before they could run"), "{what}: {}", said.err);
        }
    }
    assert!(between >= 3, "only {between} kills hit what they were meant for");
}

#[test]
fn criu_is_killed_in_the_restore() {
    let Some(bed) = quiet_bed() else { return };
    let moments = [
        ("restore", 0),
        ("restore", 2),
        ("restore", 5),
        ("traced", 0),
        ("caught", 0),
        ("caught", 0),
        ("caught", 1),
    ];
    let seen = attempts(&bed, DST, "criu", &moments);
    for (what, saw, _) in &seen {
        // at times the first task is gone with its criu, and so is the cgroup
        let is_held = saw["frozen"] == true || saw["tasks"] == 0;
        assert!(saw["ran_ns"] == 0 && is_held, "{what}");
    }
    let held = seen.iter().filter(|(_, saw, _)| saw["held"] != 0 && saw["tasks"] != 0).count();
    assert!(held >= 1, "no kill came while criu held a task");
}

#[test]
fn criu_and_its_guardian_are_killed() {
    let Some(bed) = quiet_bed() else { return };
    for (what, _, said) in attempts(&bed, SRC, "guardian,criu", &[("dump", 2)]) {
        assert!(said.err.contains("nothing held its tasks"), "{what}: {}", said.err);
    }
}

#[test]
fn the_guardian_is_killed() {
    let Some(bed) = quiet_bed() else { return };
    let patient = Patient::new(&bed);
    let (saw, said) = patient.attempt(SRC, "guardian", "dump", 2);
    assert_eq!(said.code, 0, "{saw}: {}", said.err);
    assert!(said.err.contains("the guardian was lost while criu worked; criu did its work"), "{}", said.err);
    patient.probe.assert_nothing_lost();
    crate::container::assert_runs_only_on(&bed, DST, "stay");
}
