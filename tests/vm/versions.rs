//! Hosts whose CRIU is not the same: 4.1.1, Debian's, and the newer one.

use crate::machines::{DST, SRC, machines};
use crate::workload::{Sides, Workload};
use crate::{ADDRESS, digest};

/// Debian's CRIU first; runc, too, looks there.
const OLD: &str = "PATH=/usr/sbin:/usr/local/bin:/usr/bin:/bin";

const OLD_TO_NEW: Sides = Sides { here: OLD, there: "" };
const NEW_TO_OLD: Sides = Sides { here: "", there: OLD };
const OLD_TO_OLD: Sides = Sides { here: OLD, there: OLD };

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn containers_move_to_the_same_criu_or_a_newer_one_and_to_no_older_one() {
    let Some(machines) = machines() else { return };
    for (path, version) in [(OLD, "4.1.1"), ("PATH=$PATH", "4.2")] {
        let said = machines.sh(SRC, &format!("env {path} criu --version"));
        assert!(said.contains(&format!("Version: {version}")), "{said}");
    }

    // sockets, of which the old one asks what newer kernels do not answer
    machines.sh(SRC, &format!("testbed-container create vmt {ADDRESS} --ram 16"));
    let before = digest(&machines);
    let script = format!(
        "env {OLD} godwit --json migrate runc:vmt ssh://dst --tcp-established --pace full --on-timeout switchover"
    );
    let (code, out, err) = machines.run(SRC, &script);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(digest(&machines), before);
    machines.sh(DST, "testbed-container remove vmt; ip netns del godwit-vmt; true");
    machines.sh(SRC, "testbed-container remove vmt");

    let chaos = "chaos --seed 11 --processes 2 --threads 2 --size 2 --rate 500";
    let mut workload = Workload::start(&machines, chaos);
    let (summary, _) = workload.move_on(OLD_TO_NEW, "--tracker uffd");
    assert_eq!(summary["memory"]["restoration"], "local-lazy", "{summary}");
    assert_eq!(summary["memory"]["rung"], "shim with smaps snapshot", "{summary}");
    workload.assert_clean(&summary.to_string());

    let (code, out, err) = workload.try_to_move(NEW_TO_OLD, "");
    assert_eq!(code, 12, "{out}{err}");
    assert!(out.contains("criu 4.1.1 is older than the source's 4.2."), "{out}");
    assert!(!out.contains("freeze"), "{out}");
    workload.assert_clean("it was refused");

    for flags in [
        "--tracker soft-dirty --max-rounds 3 --restore eager",
        "--tracker auto --max-rounds 3",
        "--tracker auto --max-rounds 3 --highest-rung page-server",
    ] {
        let (summary, _) = workload.move_on(OLD_TO_OLD, flags);
        workload.assert_clean(&format!("{flags}: {summary}"));
    }
}
