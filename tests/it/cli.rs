//! The binary, without root: flags, errors, exit codes, journals shown.

use godwit_migration::journal::{Event, Journal, VERSION, read};
use godwit_migration::lock::lock_container;
use godwit_migration::{MigrationId, Role};
use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run of the binary left.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

fn godwit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    // whatever is set where the tests run
    for name in [
        "GODWIT_ROOT",
        "GODWIT_CRIU",
        "GODWIT_LOG",
        "GODWIT_REMOTE_COMMAND",
        "GODWIT_ETC",
        "GODWIT_STORE_QUOTA",
        "NO_COLOR",
    ] {
        command.env_remove(name);
    }
    command
}

pub fn finish(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(args: &[&str]) -> Ran {
    let mut command = godwit();
    command.args(args);
    finish(command)
}

pub fn run_in(root: &Path, args: &[&str]) -> Ran {
    let mut command = godwit();
    command.arg("--root").arg(root).args(args);
    finish(command)
}

/// With the configuration in `etc`, and environment variables.
pub fn run_with_etc(etc: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = godwit();
    command.args(args).env("GODWIT_ETC", etc).envs(variables.iter().copied());
    finish(command)
}

#[test]
fn help_version_and_completions() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for command in [
        "migrate",
        "receive",
        "checkpoint",
        "restore",
        "store",
        "status",
        "log",
        "explain",
        "check",
        "keys",
        "probe",
        "completions",
    ] {
        assert!(help.out.contains(&format!("  {command} ")), "no `{command}` in the help:\n{}", help.out);
        let own = run(&[command, "--help"]);
        assert!(own.code == 0 && own.out.contains("Usage: godwit"), "{command}: {}", own.err);
    }
    let version = run(&["--version"]);
    assert_eq!((version.code, version.out.trim()), (0, concat!("godwit ", env!("CARGO_PKG_VERSION"))));
    for (shell, sign) in [("bash", "complete -F"), ("zsh", "#compdef godwit"), ("fish", "complete -c godwit")]
    {
        let completions = run(&["completions", shell]);
        assert_eq!(completions.code, 0, "{shell}");
        assert!(completions.out.contains(sign) && completions.out.contains("max-downtime"), "{shell}");
    }
}

#[test]
fn nonsense_on_the_command_line_is_refused_by_name() {
    let migrate = |more: &[&'static str]| [&["migrate", "web", "ssh://there"], more].concat();
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec![], "Usage"),
        (vec!["teleport"], "unrecognized subcommand 'teleport'"),
        (vec!["migrate", "web"], "<DESTINATION>"),
        (vec!["--teleport"], "--teleport"),
        (migrate(&["--max-downtime", "0"]), "`0` is not a duration such as `300ms`, `2s` or `10m`"),
        (migrate(&["--max-downtime", "0ms"]), "`0ms` is not a duration above zero"),
        (migrate(&["--max-downtime", "soon"]), "`soon` is not a duration"),
        (migrate(&["--timeout", "300"]), "`300` is not a duration"),
        (
            migrate(&["--bandwidth", "500MiB"]),
            "`500MiB` is not a rate above zero such as `500MiB/s` or `1gbit`",
        ),
        (migrate(&["--bandwidth", "0gbit"]), "`0gbit` is not a rate above zero"),
        (migrate(&["--max-rounds", "0"]), "0 is not in 1..=1000"),
        (migrate(&["--compress", "lz4"]), "`lz4` is not `auto`, `none`, `zstd` or `zstd:LEVEL`"),
        (migrate(&["--strategy", "hope"]), "possible values: stop-and-copy, pre-copy"),
        (
            migrate(&["--tracker", "magic"]),
            "possible values: auto, uffd, soft-dirty, hash, pre-dump, checkpoint",
        ),
        (migrate(&["--on-timeout", "wait"]), "possible values: cancel, switchover"),
        (migrate(&["--network-plan", "bridge=a/b"]), "unknown network plan `bridge=a/b`"),
        (vec!["receive"], "--listen"),
        (vec!["receive", "--stdio", "--listen", "unix:///x"], "cannot be used with"),
        (vec!["receive", "--listen", "rack2"], "`rack2` is not an address"),
        (vec!["migrate", "web", "rack2"], "`rack2` is not an address: write `ssh://host`"),
        (
            vec!["migrate", "web", "gopher://x"],
            "`gopher://x` is not an address: known schemes are ssh, tls, tcp and unix",
        ),
        (vec!["migrate", "web", "tls://a b@x"], "write `tls://host`"),
        (vec!["receive", "--stdio", "--forever"], "cannot be used with"),
        (vec!["keys", "trust", "web", "sha256:12"], "`sha256:12` is not a fingerprint"),
        (vec!["migrate", "web", "ssh://-oProxyCommand=x"], "begins with a dash"),
        (
            vec!["migrate", "web", "tcp://10.0.0.2:7700"],
            "`tcp://10.0.0.2:7700` is neither encrypted nor authenticated",
        ),
        (
            vec!["receive", "--listen", "tcp://127.0.0.1:1"],
            "`tcp://127.0.0.1:1` is neither encrypted nor authenticated",
        ),
        (vec!["check", "tcp://10.0.0.2:7700"], "`tcp://10.0.0.2:7700` cannot be checked from here"),
        (vec!["check", "nowhere"], "`nowhere` is not an address"),
        (vec!["completions", "tcsh"], "possible values: bash"),
    ];
    for (args, said) in cases {
        let ran = run(&args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(said), "{args:?}:\n{}", ran.err);
        assert!(ran.out.is_empty(), "{args:?} wrote to standard output: {}", ran.out);
    }
}

#[test]
fn an_exposed_way_asks_for_insecure_and_says_so_in_full() {
    let ran = run(&["migrate", "web", "tcp://rack2:7700"]);
    assert_eq!(
        ran.err,
        "error: `tcp://rack2:7700` is neither encrypted nor authenticated: memory and files would be readable on the way\n\
         \n\
         hint: use `ssh://` or `tls://`, or add `--insecure` if the network between the hosts is yours alone\n\
         web was not touched\n"
    );
    let ran = run(&["--json", "migrate", "web", "tcp://rack2:7700"]);
    assert_eq!((ran.code, ran.err.as_str()), (2, ""));
    let line: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(line["message_type"], "exit_error");
    assert_eq!((&line["code"], &line["disposition"]), (&Value::from(2), &Value::from("untouched")));
    assert!(line["hints"][0].as_str().unwrap().contains("--insecure"));
}

/// The binary where anybody may run it: a build directory below /root is closed to others.
fn for_everybody() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.path().join("godwit");
    std::fs::copy(env!("CARGO_BIN_EXE_godwit"), &binary).unwrap();
    (dir, binary)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn without_privilege_nothing_is_begun() {
    let (_dir, binary) = for_everybody();
    let unprivileged = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(args).current_dir("/").env_remove("GODWIT_ROOT");
        if is_root() {
            command.uid(65534).gid(65534);
        }
        finish(command)
    };
    let ran = unprivileged(&["migrate", "web", "ssh://rack2"]);
    assert_eq!(ran.code, 13);
    assert_eq!(
        ran.err,
        "error: not permitted to move containers\n  \
           Caused by: this process lacks all of the capabilities it needs\n\
         \n\
         hint: run with sudo\n\
         web was not touched\n"
    );
    let ran = unprivileged(&["--json", "check"]);
    assert_eq!(ran.code, 13, "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["ok"], false);
    let privilege = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "privilege").unwrap();
    assert_eq!(privilege["hint"], "run with sudo");
}

/// A criu that answers what is asked of it before anything begins, and can do nothing.
fn pretended_criu(dir: &Path) -> PathBuf {
    let criu = dir.join("criu");
    let script = "#!/bin/sh\ncase $1 in --version) echo 'Version: 4.2' ;; check) echo 'Looks good.' ;; *) exit 1 ;; esac\n\
                  # longer than an ELF header, so that it is seen to be none\n";
    std::fs::write(&criu, script).unwrap();
    std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).unwrap();
    criu
}

#[test]
fn what_is_missing_here_is_said_before_anything_is_touched() {
    if !is_root() {
        assert!(std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"), "this test needs root");
        eprintln!("skipped: beyond the check of privilege only root comes");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let with_criu = |criu: &Path, args: &[&str]| {
        let mut command = godwit();
        command.env("GODWIT_CRIU", criu).arg("--root").arg(dir.path().join("root")).args(args);
        finish(command)
    };
    let absent = dir.path().join("no-criu");
    let ran = with_criu(&absent, &["migrate", "web", "ssh://rack2"]);
    assert_eq!(ran.code, 13);
    assert!(
        ran.err.starts_with("error: criu is not on this host\n  Caused by: criu not found in"),
        "{}",
        ran.err
    );
    assert!(ran.err.ends_with("\n\nhint: install criu, or name it with the environment variable `GODWIT_CRIU`\nweb was not touched\n"));
    let criu = pretended_criu(dir.path());
    for name in ["nobody", "pid:99999999", "lxc:web"] {
        let ran = with_criu(&criu, &["migrate", name, "ssh://rack2"]);
        assert_eq!(ran.code, 10, "{name}: {}", ran.err);
        assert!(
            ran.err.starts_with(&format!("error: no container `{name}` on this host\n\nhint: ")),
            "{}",
            ran.err
        );
    }
    assert!(!dir.path().join("root").exists(), "something was written before all was looked at");
    let ran = with_criu(&absent, &["check"]);
    assert_eq!(ran.code, 13);
    assert!(
        ran.out.lines().any(|line| line.starts_with("criu") && line.contains("not there")),
        "{}",
        ran.out
    );
    assert!(
        ran.err.starts_with("error: containers cannot be moved from or to this host\n  Caused by: criu: "),
        "{}",
        ran.err
    );
}

/// An ssh that does what it is told on this host.
fn pretended_ssh(dir: &Path) -> String {
    let ssh = dir.join("ssh");
    let script = "#!/bin/sh\nif [ \"$1\" = -V ]; then echo OpenSSH_9.2 >&2; exit; fi\n\
                  while [ \"$1\" != -- ]; do shift; done\nexec sh -c \"$3\"\n";
    std::fs::write(&ssh, script).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn two_hosts_are_compared_over_ssh() {
    let dir = tempfile::tempdir().unwrap();
    let path = pretended_ssh(dir.path());
    let check = |remote: &str, json: bool| {
        let mut command = godwit();
        command.env("PATH", &path).env("GODWIT_CRIU", "/nonexistent/criu").arg("--root").arg(dir.path());
        command.args(["check", "ssh://root@rack2:22", "--remote-command", remote]);
        finish(if json {
            command.arg("--json");
            command
        } else {
            command
        })
    };
    let remote = format!("GODWIT_CRIU=/nonexistent/criu {} check --json", env!("CARGO_BIN_EXE_godwit"));
    let ran = check(&remote, true);
    assert_eq!(ran.code, 13, "{}{}", ran.out, ran.err);
    let document: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(document["here"]["host"], document["there"]["host"]);
    let rows = document["rows"].as_array().unwrap();
    let row =
        |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row `{name}`"));
    assert_eq!(row("cpu features")["result"], "ok");
    assert!(row("criu")["result"].as_str().unwrap().starts_with("here: criu is not on this host"));
    for name in [
        "privilege",
        "dirty tracking",
        "runc",
        "cgroup freezer",
        "ip",
        "ssh",
        "kernel",
        "godwit",
        "free disk",
        "free memory",
    ] {
        row(name);
    }
    let ran = check(&remote, false);
    assert_eq!(ran.code, 13);
    assert!(
        ran.out.lines().next().unwrap().contains("this host") && ran.out.contains("ssh://root@rack2:22"),
        "{}",
        ran.out
    );
    let ran = check("echo 'godwit: command not found' >&2; exit 127", false);
    assert_eq!(ran.code, 12);
    assert!(
        ran.err.starts_with(
            "error: ssh://root@rack2:22 cannot be asked\n  Caused by: godwit: command not found\n"
        ),
        "{}",
        ran.err
    );
}

/// A journal below `root` with these events after the first.
fn journal(root: &Path, role: Role, container: &str, events: Vec<Event>) -> (String, PathBuf) {
    let id = MigrationId::generate().unwrap();
    let dir = root.join("migrations").join(id.as_str());
    let mut journal = Journal::create(&dir).unwrap();
    let planned = Event::Planned {
        version: VERSION,
        migration: id.clone(),
        role,
        container: container.into(),
        peer: if role == Role::Source { "ssh://rack2".into() } else { "ssh from rack1".into() },
        godwit: "0.1.0".into(),
    };
    for event in std::iter::once(planned).chain(events) {
        journal.append(event).unwrap();
    }
    // ids of one millisecond have no order
    std::thread::sleep(std::time::Duration::from_millis(2));
    (id.to_string(), dir.join("journal"))
}

fn moved() -> Vec<Event> {
    vec![
        Event::Accepted,
        Event::Prepared,
        Event::Round { round: 0, wire_bytes: 5 << 20 },
        Event::Freezing,
        Event::Frozen,
        Event::Dumped,
        Event::Restored,
        Event::Committed,
        Event::Running { pid: 3120 },
        Event::Discarded,
        Event::Completed { downtime_us: Some(167_000), leftovers: vec![] },
    ]
}

#[test]
fn status_tells_of_every_migration_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let empty = run_in(root, &["status"]);
    assert_eq!((empty.code, empty.out.as_str()), (0, ""));
    assert!(empty.err.starts_with("no migrations are known in"), "{}", empty.err);
    let empty = run_in(root, &["--json", "status"]);
    assert_eq!(empty.out.trim(), r#"{"migrations":[]}"#);
    assert!(!root.join("locks").exists(), "asking leaves something behind");

    journal(root, Role::Source, "runc:done", moved());
    journal(root, Role::Source, "runc:back", vec![Event::Failed { reason: "x".into() }, Event::RolledBack]);
    journal(root, Role::Source, "runc:web", vec![Event::Accepted, Event::Prepared]);
    let mut doubt = moved();
    doubt.truncate(8);
    doubt.push(Event::InDoubt { reason: "the link broke".into() });
    journal(root, Role::Destination, "runc:doubt", vec![Event::Accepted]);
    journal(root, Role::Source, "runc:unsure", doubt);
    let (damaged, path) = journal(root, Role::Source, "runc:bad", moved());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5] ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
    let (_, torn) = journal(root, Role::Source, "runc:torn", vec![Event::Accepted, Event::Prepared]);
    std::fs::OpenOptions::new().append(true).open(&torn).unwrap().write_all(b"{\"seq\":4,\"unix").unwrap();
    let (empty_id, empty_path) = journal(root, Role::Source, "runc:none", vec![]);
    std::fs::write(&empty_path, b"").unwrap();

    let held = lock_container(root, "runc", "web").unwrap().unwrap();
    let status = run_in(root, &["status"]);
    assert_eq!(status.code, 0, "{}", status.err);
    let line = |about: &str| {
        status
            .out
            .lines()
            .find(|line| line.contains(about))
            .unwrap_or_else(|| panic!("no {about}:\n{}", status.out))
            .to_owned()
    };
    assert!(line("MIGRATION").contains("CONTAINER"));
    assert!(line("runc:done").contains("running at ssh://rack2") && line("runc:done").ends_with("167 ms"));
    assert!(line("runc:back").contains("rolled back"));
    assert!(line("runc:web").contains("under way: pre-copy"));
    assert!(line("runc:doubt").contains("ended without a word in negotiation"));
    assert!(line("runc:unsure").contains("in doubt: frozen, the word was given"));
    assert!(line("runc:torn").contains("ended without a word in pre-copy"), "a cut last line is no damage");
    assert!(line(&damaged).contains("damaged: journal") && line(&damaged).contains("line 1"));
    assert!(line(&empty_id).contains("ended before its first line"));
    assert!(status.out.lines().nth(1).unwrap().starts_with(&empty_id), "the latest first");
    drop(held);
    assert!(
        run_in(root, &["status"]).out.contains("ended without a word in pre-copy"),
        "its process is gone"
    );

    let json = run_in(root, &["--json", "status"]);
    let document: Value = serde_json::from_str(&json.out).unwrap();
    let all = document["migrations"].as_array().unwrap();
    assert_eq!(all.len(), 8);
    let done = all.iter().find(|one| one["container"] == "runc:done").unwrap();
    assert_eq!((&done["state"], &done["downtime_us"]), (&Value::from("completed"), &Value::from(167_000)));
    assert!(all.iter().any(|one| one["migration"] == damaged.as_str() && one["damaged"] == true));
    let one = run_in(root, &["--json", "status", &damaged]);
    assert_eq!(serde_json::from_str::<Value>(&one.out).unwrap()["migrations"].as_array().unwrap().len(), 1);
}

#[test]
fn log_shows_a_journal_and_finds_it_by_any_part_that_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let (id, path) = journal(root, Role::Source, "runc:web", moved());
    let (other, _) = journal(root, Role::Destination, "runc:db", vec![Event::Accepted]);
    for part in [id.as_str(), &id[18..], &id[..24]] {
        let log = run_in(root, &["log", part]);
        assert_eq!(log.code, 0, "{}", log.err);
        let lines: Vec<&str> = log.out.lines().collect();
        assert_eq!(lines.len(), 12, "{}", log.out);
        assert!(lines[0].starts_with(" 1  20"), "{}", lines[0]);
        assert!(
            lines[0].contains("source")
                && lines[0].ends_with("planned    runc:web to ssh://rack2, godwit 0.1.0"),
            "{}",
            lines[0]
        );
        assert!(
            lines[8].starts_with(" 9  ") && lines[8].ends_with("committed  switchover granted"),
            "{}",
            lines[8]
        );
        assert!(
            lines[11].starts_with("12  ") && lines[11].ends_with("completed  downtime 167 ms"),
            "{}",
            lines[11]
        );
        assert_eq!(log.err, format!("running at ssh://rack2 ({id})\n"));
    }
    assert!(run_in(root, &["log", &other]).out.contains("destination  accepted"));

    let json = run_in(root, &["--json", "log", &id]);
    let stored = read(&path).unwrap().0;
    let shown: Vec<_> = json.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    assert_eq!(shown, stored.iter().map(|line| serde_json::to_value(line).unwrap()).collect::<Vec<_>>());
    let stored = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    let stored: Vec<_> = stored.lines().map(|line| line.splitn(4, ' ').last().unwrap()).collect();
    assert_eq!(json.out.lines().collect::<Vec<_>>(), stored, "as they are stored");

    let ran = run_in(root, &["log", "zzzz"]);
    assert_eq!(ran.code, 10);
    assert_eq!(
        ran.err,
        "error: no migration `zzzz` on this host\n\nhint: `godwit status` lists those that this host knows\n"
    );
    for odd in ["", "../../etc", "/"] {
        assert_eq!(run_in(root, &["log", odd]).code, 10, "`{odd}`");
    }
    let ran = run_in(root, &["log", &id[..4]]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err.starts_with(&format!(
            "error: `{}` is ambiguous\n  Caused by: it may mean `{id}`, `{other}`",
            &id[..4]
        )),
        "{}",
        ran.err
    );
    assert_eq!(run_in(root, &["status", "zzzz"]).code, 10);
}

#[test]
fn a_damaged_journal_is_an_error_of_log_and_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (id, path) = journal(dir.path(), Role::Source, "runc:web", moved());
    let mut lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    lines.remove(4);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let ran = run_in(dir.path(), &["log", &id]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("is damaged at line 5: it has number 6"), "{}", ran.err);
    assert!(ran.err.contains(&format!("hint: look into `{}`", path.display())), "{}", ran.err);
}
