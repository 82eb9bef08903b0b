//! Containers that are registered by the hooks of their runtime.

use super::{Bed, SRC, bed};
use crate::bed::DST;
use crate::container::{IDLE, assert_runs_only_on, make_bundle, run_bundle};
use crate::godwit::{godwit, godwit_with};
use serde_json::Value;

const HOOKS_D: &str = "/usr/share/containers/oci/hooks.d";

/// The containers that are registered on a host.
fn registered(bed: &Bed, host: &str) -> Vec<Value> {
    let said = godwit_with(bed, host, &[], &["--json", "hook", "list"]);
    assert_eq!(said.code, 0, "{}", said.err);
    said.lines("registered")
}

#[test]
fn a_prepared_bundle_is_registered_while_there_is_a_container_of_it() {
    let Some(bed) = bed() else { return };
    for runtime in ["runc", "crun"] {
        bed.wipe();
        make_bundle(&bed, "idle", IDLE, |config| config["process"]["terminal"] = true.into());
        let config = "sha256sum < /srv/idle/config.json";
        let first = bed.sh(SRC, config);
        for (more, changed) in
            [("hook `createRuntime`, hook `poststop`, no terminal", true), ("nothing was to be done", false)]
        {
            let before = bed.sh(SRC, config);
            let said = godwit(&bed, &["hook", "prepare", "/srv/idle"]);
            assert_eq!((said.code, said.out.trim()), (0, more), "{}", said.err);
            assert_eq!(bed.sh(SRC, config) != before, changed);
        }
        assert_eq!(bed.sh(SRC, "sha256sum < /srv/idle/config.json.before-godwit"), first);
        bed.sh(SRC, &format!("{runtime} run -d --bundle /srv/idle idle < /dev/null > /dev/null 2>&1"));
        let found = registered(&bed, SRC);
        assert_eq!(found.len(), 1, "{found:?}");
        let pid = bed.sh(SRC, &format!("{runtime} state idle | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'"));
        assert_eq!(found[0]["container"], format!("{runtime}:idle"), "{found:?}");
        assert_eq!((found[0]["pid"].to_string(), &found[0]["alive"]), (pid, &true.into()), "{found:?}");
        let findings = found[0]["findings"].as_array().unwrap();
        assert!(findings.len() == 1 && findings[0].as_str().unwrap().contains("has no path"), "{findings:?}");
        bed.sh(SRC, &format!("{runtime} delete --force idle"));
        assert_eq!(registered(&bed, SRC), [] as [Value; 0], "{runtime}");
    }
}

#[test]
fn what_could_not_be_dumped_is_found_when_it_is_made() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "idle", IDLE, |_| {});
    bed.sh(SRC, "ip netns add idle; godwit hook prepare --netns /run/netns/idle /srv/idle");
    bed.sh(SRC, "runc run -d --bundle /srv/idle idle < /dev/null > /srv/out 2> /dev/null");
    let found = registered(&bed, SRC);
    let expected = "its standard output is `/srv/out` of the host: use /dev/null, a pipe, or a file inside";
    assert_eq!(found[0]["findings"], serde_json::json!([expected]), "{found:?}");
    // its end without the runtime's knowledge is seen
    bed.sh(SRC, "kill -9 $(runc state idle | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'); sleep 0.3");
    assert_eq!(registered(&bed, SRC)[0]["alive"], false);
    // what cannot be understood does not keep a container from being made or deleted
    bed.sh(
        SRC,
        "echo nonsense | godwit hook run createRuntime; echo '{\"id\": \"../x\"}' | godwit hook run poststop",
    );
    bed.sh(SRC, "runc delete --force idle");
    assert_eq!(registered(&bed, SRC), [] as [Value; 0]);
}

#[test]
fn a_container_that_moves_is_registered_where_it_runs() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "idle", IDLE, |_| {});
    bed.sh(SRC, "godwit hook prepare /srv/idle");
    run_bundle(&bed, "idle");
    assert_eq!(registered(&bed, SRC).len(), 1);
    let words = ["--json", "migrate", "runc:idle", "ssh://dst", "--max-downtime", "60s", "--retries", "0"];
    godwit(&bed, &words).summary();
    assert_runs_only_on(&bed, DST, "idle");
    assert_eq!(registered(&bed, SRC), [] as [Value; 0]);
    let there = registered(&bed, DST);
    assert!(there.len() == 1 && there[0]["container"] == "runc:idle", "{there:?}");
    assert_eq!(there[0]["alive"], true, "{there:?}");
}

#[test]
fn podman_registers_what_is_meant_to_be_moved() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "testbed-container image");
    let install = || godwit(&bed, &["hook", "install"]);
    assert_eq!(install().code, 0, "{}", install().err);
    assert_eq!(install().code, 0, "once more");
    let run = "podman run -d --network none --name";
    bed.sh(
        SRC,
        &format!(
            "{run} plain localhost/redis:test tail -f /dev/null
             {run} other --annotation godwit.migratable=no localhost/redis:test tail -f /dev/null
             {run} chosen --annotation godwit.migratable=true localhost/redis:test tail -f /dev/null"
        ),
    );
    let found = registered(&bed, SRC);
    let id = bed.sh(SRC, "podman inspect -f '{{.Id}}' chosen");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["container"], format!("podman:{id}"));
    bed.sh(SRC, "podman rm -a -f -t 0");
    assert_eq!(registered(&bed, SRC), [] as [Value; 0]);
    let said = godwit(&bed, &["hook", "uninstall"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(bed.sh(SRC, &format!("ls {HOOKS_D}")), "");
    // what is somebody else's stays
    bed.write(SRC, &format!("{HOOKS_D}/godwit-poststop.json"), "{}");
    let said = install();
    assert_eq!(said.code, 2, "{}", said.err);
    assert_eq!(bed.sh(SRC, &format!("cat {HOOKS_D}/*")), "{}");
    bed.sh(SRC, &format!("rm {HOOKS_D}/*"));
}
