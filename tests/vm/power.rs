//! A loss of power at each edge about the commit: what is not on the disk is lost, and with it the machine's tasks, cgroups
//! and namespaces. After it is up again `godwit resume` finds the one place where the container may go on, or says that
//! there is none.
//!
//! Needs a godwit built with the feature `faults`; `scripts/test faults` runs it.

use crate::machines::{DST, Machines, SRC, machines_with};
use crate::{ADDRESS, digest};
use std::io::Write;
use std::time::Instant;

const HOLD: &str = "/run/test.hold";

/// One loss of power.
struct Cell {
    /// Whose, and at which line of its journal.
    host: &'static str,
    event: &'static str,
    edge: &'static str,
    /// Who runs it in the end; nobody when it was whole nowhere.
    runner: Option<&'static str>,
    /// A person must decide first.
    doubt: bool,
}

const fn cell(
    host: &'static str,
    event: &'static str,
    edge: &'static str,
    runner: Option<&'static str>,
) -> Cell {
    Cell { host, event, edge, runner, doubt: false }
}

const CELLS: &[Cell] = &[
    cell(SRC, "dumped", "after", None),
    cell(SRC, "restored", "after", Some(DST)),
    cell(SRC, "committed", "before", Some(DST)),
    cell(SRC, "committed", "after", Some(DST)),
    cell(SRC, "running", "before", Some(DST)),
    cell(DST, "restored", "after", Some(SRC)),
    cell(DST, "going", "before", Some(SRC)),
    Cell { doubt: true, ..cell(DST, "going", "after", Some(SRC)) },
];

fn runs(machines: &Machines, host: &str) -> bool {
    let script =
        "runc state vmt | grep -q '\"status\": \"running\"' && ! grep -q 1 /sys/fs/cgroup/vmt/cgroup.freeze";
    machines.run(host, script).0 == 0
}

fn play(machines: &Machines, cell: &Cell) {
    let role = if cell.host == SRC { "source" } else { "destination" };
    let context = format!("{role} {} {}", cell.event, cell.edge);
    let begun = Instant::now();
    for host in [SRC, DST] {
        machines.run(host, "testbed-container remove vmt; ip netns del vmt");
        // a file system that lost its power may keep a directory that cannot be removed
        let (code, left, why) =
            machines.run(host, "rm -rf /var/lib/godwit/* /srv/vmt*; sync; ls -lR /var/lib/godwit");
        if code != 0 || left.contains("journal") {
            eprintln!("{context}: {host} keeps {left}{why}");
        }
    }
    machines.sh(SRC, &format!("testbed-container create vmt {ADDRESS} --ram 16"));
    let before = digest(machines);
    machines.sh(cell.host, &format!("mkdir -p {HOLD}; rm -f {HOLD}/*"));
    machines
        .sh(cell.host, &format!("echo {role} {} {} hold {HOLD} > /run/godwit-fault", cell.event, cell.edge));
    let moving = machines
        .start(SRC, "godwit migrate runc:vmt ssh://dst --tcp-established --retries 0 --max-downtime 60s");
    let reached = format!("timeout 300 sh -c 'until [ -e {HOLD}/reached ]; do sleep 0.2; done'");
    machines.sh(cell.host, &reached);
    machines.power("cut", cell.host);
    drop(moving.finish());
    machines.power("boot", cell.host);
    if cell.host == SRC {
        // a fresh host has its bridge; the container's address is the destination's business
        machines.wait_until("client", "ping -c 1 -W 1 10.77.0.2");
    }
    // they sort by time
    let id = machines.sh(SRC, "ls /var/lib/godwit/migrations | tail -n 1");
    let (code, out, err) = machines.run(SRC, &format!("godwit resume {id}"));
    let said = format!("{context}: exit {code} {out}{err}");
    if cell.doubt {
        assert_eq!(code, 20, "{said}");
        assert!(!runs(machines, SRC) && !runs(machines, DST), "{said}");
        machines.sh(SRC, &format!("godwit resume {id} --keep source"));
    } else {
        assert_eq!(code, if cell.runner.is_some() { 0 } else { 1 }, "{said}");
    }
    let runners = [SRC, DST].into_iter().filter(|host| runs(machines, host)).collect::<Vec<_>>();
    assert_eq!(runners, cell.runner.into_iter().collect::<Vec<_>>(), "{said}");
    if cell.runner.is_some() {
        assert_eq!(digest(machines), before, "{said}");
    }
    let (_, there, _) = machines.run(DST, "godwit resume; ls -d /var/lib/godwit/migrations/*/images");
    assert!(!there.contains("images"), "{said}: {there}");
    eprintln!("{context}: {:?} after {:.0?}", cell.runner.unwrap_or("nobody"), begun.elapsed());
    report(cell, role);
}

/// A line for `scripts/faults-table`.
fn report(cell: &Cell, role: &str) {
    let Some(path) = std::env::var_os("GODWIT_FAULT_REPORT") else { return };
    let line = serde_json::json!({ "power": role, "event": cell.event, "edge": cell.edge,
        "runner": cell.runner, "decided": cell.doubt });
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.unwrap(), "{line}").unwrap();
}

#[test]
#[ignore = "minutes: `scripts/test faults` runs it"]
fn the_power_goes() {
    let Some(machines) = machines_with(&["--disks", "keep"]) else { return };
    let built = machines.run(SRC, "GODWIT_FAULTS=1 godwit --version").0 == 0;
    assert!(built, "this godwit is built without the feature `faults`");
    for host in [SRC, DST] {
        machines.sh(host, "sync");
    }
    let wanted = std::env::var("GODWIT_FAULT_CELLS").unwrap_or_default();
    for cell in
        CELLS.iter().filter(|cell| format!("{} {} {}", cell.host, cell.event, cell.edge).contains(&wanted))
    {
        play(&machines, cell);
    }
}
