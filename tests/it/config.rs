//! `godwit config`, and who listens to it.

use crate::cli::{Ran, run_with_etc};
use serde_json::Value;
use std::path::Path;

fn assert_done(ran: &Ran) -> &str {
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    ran.out.trim_end()
}

fn in_force(etc: &Path, key: &str) -> Value {
    let ran = run_with_etc(etc, &["--json", "config", "get", key], &[]);
    serde_json::from_str(assert_done(&ran)).unwrap()
}

#[test]
fn a_value_is_in_force_until_it_is_unset() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let run = |args: &[&str]| run_with_etc(&etc, args, &[]);
    assert_eq!(in_force(&etc, "migrate.max-downtime")["origin"], "built in");
    assert!(!etc.exists(), "looking makes nothing");
    assert_done(&run(&["config", "set", "migrate.max-downtime", "1s"]));
    assert_done(&run(&["config", "set", "hosts.rack2", "ssh://root@rack2"]));
    assert_eq!(assert_done(&run(&["config", "get", "migrate.max-downtime"])), "1s");
    let origin = in_force(&etc, "hosts.rack2")["origin"].to_string();
    assert!(origin.contains("config.toml line "), "{origin}");
    let shown = run(&["config", "show", "--origin"]);
    let shown = assert_done(&shown);
    for words in ["migrate.max-downtime", "built in", "hosts.rack2", "ssh://root@rack2", "config.toml line"] {
        assert!(shown.contains(words), "{shown}");
    }
    let variable = [("GODWIT_STORE_QUOTA", "1GiB")];
    let ran = run_with_etc(&etc, &["config", "set", "store.quota", "2GiB"], &variable);
    assert_done(&ran);
    assert!(ran.err.contains("`1GiB` all the same: environment variable GODWIT_STORE_QUOTA"), "{}", ran.err);
    assert_done(&run(&["config", "unset", "migrate.max-downtime"]));
    assert_eq!(in_force(&etc, "migrate.max-downtime")["value"], "300ms");
    assert_done(&run(&["config", "validate"]));
}

#[test]
fn what_cannot_be_is_refused_and_nothing_written() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    for (args, words) in [
        (["migrate.max-downtme", "1s"], "is it `migrate.max-downtime`?"),
        (["migrate.max-downtime", "fast"], "invalid value"),
        (["migrate.max-downtime", "-1s"], "invalid value"),
        (["migrate.pace", "slow"], "possible values"),
        (["migrate.insecure", "true"], "there is no key"),
        (["hosts.rack2", "rack2"], "is not an address"),
        (["hosts./", "ssh://a"], "cannot be a host's name"),
    ] {
        let ran = run_with_etc(&etc, &["config", "set", args[0], args[1]], &[]);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{args:?}: {}", ran.err);
    }
    assert!(!etc.exists());
    assert_eq!(run_with_etc(&etc, &["config", "get", "hosts.rack2"], &[]).code, 10);
}

#[test]
fn a_broken_file_stops_what_listens_to_it_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (etc, root) = (dir.path().join("etc"), dir.path().join("root"));
    let root = root.to_str().unwrap();
    assert_done(&run_with_etc(&etc, &["config", "set", "migrate.pace", "full"], &[]));
    let file = etc.join("config.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("full", "fast")).unwrap();
    for args in [
        &["config", "validate"][..],
        &["migrate", "runc:web", "ssh://nowhere.invalid"],
        &["config", "set", "migrate.pace", "gentle"],
        &["--root", root, "store", "add", root],
    ] {
        let ran = run_with_etc(&etc, args, &[]);
        assert_eq!(ran.code, 2, "{args:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("config.toml` line 7: invalid value 'fast'"), "{args:?}: {}", ran.err);
        assert!(ran.err.contains("config.last-good.toml"), "{args:?}: {}", ran.err);
    }
    let ran = run_with_etc(&etc, &["--json", "config", "validate"], &[]);
    let told: Value = serde_json::from_str(ran.out.trim_end()).unwrap();
    assert_eq!((&told["message_type"], &told["code"]), (&"exit_error".into(), &2.into()), "{told}");
    // what brings a container back must not depend on it
    for args in [["--root", root, "status"], ["--root", root, "resume"]] {
        assert_done(&run_with_etc(&etc, &args, &[]));
    }
    std::fs::copy(etc.join("config.last-good.toml"), &file).unwrap();
    assert_done(&run_with_etc(&etc, &["config", "validate"], &[]));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), good);
}

#[test]
fn a_name_is_a_destination() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let check = |destination| run_with_etc(&etc, &["check", destination], &[]);
    let said = check("rack2");
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("`rack2` is not an address"), "{}", said.err);
    assert_done(&run_with_etc(&etc, &["config", "set", "hosts.rack2", "tcp://127.0.0.1:9"], &[]));
    // another answer, about what the name stands for
    let said = check("rack2");
    assert!(!said.err.contains("is not an address"), "{}", said.err);
}
