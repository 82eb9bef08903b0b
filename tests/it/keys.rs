//! `godwit keys`, `peers.toml` and `policy.toml`, as the binary deals with them.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn godwit(etc: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(args).env("GODWIT_ETC", etc).env_remove("GODWIT_LOG").env_remove("GODWIT_ROOT");
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap_or(-1), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn key_of(etc: &Path) -> String {
    let (code, out, err) = godwit(etc, &["--json", "keys", "show"]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str::<Value>(&out).unwrap()["fingerprint"].as_str().unwrap().to_owned()
}

#[test]
fn a_key_is_made_once_and_kept_secret() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let (code, _, err) = godwit(&etc, &["keys", "show"]);
    assert_eq!(code, 13, "{err}");
    assert!(err.contains("hint: make one: `godwit keys new`"), "{err}");
    let (code, out, err) = godwit(&etc, &["keys", "new"]);
    assert_eq!(code, 0, "{err}");
    let key = key_of(&etc);
    assert!(out.trim().ends_with(&key) && key.starts_with("sha256:"), "{out}");
    let mode = |name: &str| etc.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("host.key"), mode("host.pem")), (0o600, 0o644));
    let (code, _, err) = godwit(&etc, &["keys", "new"]);
    assert!(code == 2 && err.contains("host.key` exists already"), "{code} {err}");
    assert_eq!(key_of(&etc), key, "the key was replaced");
    std::fs::set_permissions(etc.join("host.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = godwit(&etc, &["keys", "show"]);
    assert!(code == 13 && err.contains("can be read by others (mode 644)"), "{err}");
}

#[test]
fn hosts_are_trusted_listed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path();
    let key = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let run = |args: &[&str]| godwit(etc, args);
    assert_eq!(run(&["keys", "trust", "rack2", &key("2")]).0, 0);
    assert_eq!(run(&["keys", "trust", "rack2", &key("2")]).0, 0, "the same again");
    let (code, _, err) = run(&["keys", "trust", "rack2", &key("3")]);
    assert!(
        code == 2 && err.contains("`rack2` has another key") && err.contains("keys forget rack2"),
        "{err}"
    );
    let (code, _, err) = run(&["keys", "trust", "rack3", &key("2")]);
    assert!(code == 2 && err.contains("the key of `rack2` already"), "{err}");
    let (code, _, err) = run(&["keys", "trust", "ssh:rack3", &key("3")]);
    assert!(code == 2 && err.contains("no name for a host"), "{err}");
    let (_, out, _) = run(&["keys", "list"]);
    assert_eq!(out, format!("rack2  {}\n", key("2")));
    let (_, out, _) = run(&["--json", "keys", "list"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["peers"][0]["name"], "rack2");
    assert_eq!(run(&["keys", "forget", "rack2"]).0, 0);
    assert_eq!(run(&["keys", "forget", "rack2"]).0, 10);
    std::fs::write(etc.join("peers.toml"), "[peer.x]\nfingerprint = 3\n").unwrap();
    let (code, _, err) = run(&["keys", "list"]);
    assert!(code == 2 && err.contains("peers.toml` cannot be understood"), "{err}");
}

#[test]
fn nothing_is_received_under_a_policy_that_cannot_be_read_or_without_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let listen = ["receive", "--listen", "tls://127.0.0.1:0"];
    let (code, _, err) = godwit(dir.path(), &listen);
    assert!(code == 13 && err.contains("this host has no key"), "{code} {err}");
    std::fs::write(dir.path().join("policy.toml"), "[[allow]]\npeers = \"all\"\n").unwrap();
    for args in [&listen[..], &["receive", "--stdio"]] {
        let (code, _, err) = godwit(dir.path(), args);
        assert!(code == 2 && err.contains("policy.toml` cannot be understood"), "{code} {err}");
    }
}
