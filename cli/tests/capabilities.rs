//! What the processes of godwit keep of root's capabilities, as /proc shows it, and what the programs get that they start.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test that cannot go on has failed; a skip says why

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Numbers of linux/capability.h.
const CHOWN: u8 = 0;
const DAC_OVERRIDE: u8 = 1;
const DAC_READ_SEARCH: u8 = 2;
const FOWNER: u8 = 3;
const FSETID: u8 = 4;
const KILL: u8 = 5;
const SETGID: u8 = 6;
const SETUID: u8 = 7;
const NET_BIND_SERVICE: u8 = 10;
const NET_ADMIN: u8 = 12;
const NET_RAW: u8 = 13;
const IPC_LOCK: u8 = 14;
const SYS_CHROOT: u8 = 18;
const SYS_PTRACE: u8 = 19;
const SYS_ADMIN: u8 = 21;
const SYS_NICE: u8 = 23;
const SYS_RESOURCE: u8 = 24;
const MKNOD: u8 = 27;
const SETFCAP: u8 = 31;
const MAC_ADMIN: u8 = 33;

/// Of both sides of a migration.
const MOVE: &[u8] = &[
    CHOWN,
    DAC_OVERRIDE,
    FOWNER,
    KILL,
    SETGID,
    SETUID,
    NET_ADMIN,
    NET_RAW,
    SYS_CHROOT,
    SYS_PTRACE,
    SYS_ADMIN,
    SYS_NICE,
    MKNOD,
    MAC_ADMIN,
];

fn mask(numbers: &[&[u8]]) -> u64 {
    numbers.concat().iter().fold(0, |mask, number| mask | 1 << number)
}

fn source() -> u64 {
    mask(&[MOVE, &[DAC_READ_SEARCH]])
}

fn destination() -> u64 {
    mask(&[MOVE, &[FSETID, NET_BIND_SERVICE, SETFCAP, SYS_RESOURCE]])
}

/// The sets of a process by their names in /proc/PID/status: `CapEff`, …
fn sets(status: &str) -> BTreeMap<String, u64> {
    let set = |line: &str| {
        let (name, value) = line.strip_prefix("Cap")?.split_once(':')?;
        Some((name.to_owned(), u64::from_str_radix(value.trim(), 16).ok()?))
    };
    status.lines().filter_map(set).collect()
}

fn of(path: impl AsRef<Path>) -> BTreeMap<String, u64> {
    sets(&std::fs::read_to_string(path).unwrap_or_default())
}

/// Whether this can be measured here: root's capabilities are what it is about.
fn is_root() -> bool {
    let own = of("/proc/self/status");
    let root =
        nix::unistd::geteuid().is_root() && own["Prm"] & source() == source() && own["Bnd"] == own["Prm"];
    if !root {
        assert!(std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"), "this test needs root");
        eprintln!("skipped: only root has capabilities to give up");
    }
    root
}

fn godwit(work: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.env("GODWIT_ROOT", work.join("root")).env("GODWIT_ETC", work.join("etc"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A child that is ended with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a running godwit keeps exactly what of `kept` there is, and looks that the other sets are untouched.
fn await_kept(what: &str, pid: u32, kept: u64) {
    let (own, begun) = (of("/proc/self/status"), Instant::now());
    loop {
        let sets = of(format!("/proc/{pid}/status"));
        if sets.get("Prm") == Some(&(own["Prm"] & kept)) {
            assert_eq!(sets["Eff"], sets["Prm"], "{what}");
            assert_eq!((sets["Bnd"], sets["Inh"]), (own["Bnd"], own["Inh"]), "{what}");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{what} has {sets:x?}, and should keep {kept:x}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_process_keeps_what_its_role_needs() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let listen = format!("unix://{}", work.path().join("socket").display());
    for (args, kept) in [
        (vec!["guard"], mask(&[&[SYS_PTRACE, SYS_NICE, SYS_RESOURCE, IPC_LOCK]])),
        (vec!["fill"], mask(&[&[DAC_OVERRIDE, SYS_NICE, SYS_RESOURCE]])),
        (vec!["receive", "--listen", &listen], destination()),
        (vec!["receive", "--stdio"], destination()),
        (vec!["explain", "-"], mask(&[&[DAC_OVERRIDE]])),
    ] {
        // they wait for a word from the other end
        let (_ours, theirs) = UnixDatagram::pair().unwrap();
        let child = Running(godwit(work.path()).args(&args).stdin(OwnedFd::from(theirs)).spawn().unwrap());
        await_kept(args[0], child.0.id(), kept);
    }
}

#[test]
fn what_it_starts_has_the_whole_bounding_set() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (parent, own) = (work.path().join("parent"), work.path().join("own"));
    // a CRIU that tells what it has, and what the godwit has that asks for its version
    let criu = work.path().join("criu");
    let script = format!(
        "#!/bin/sh\ncat /proc/self/status > {}\ncat /proc/$PPID/status > {}\nexit 1\n",
        own.display(),
        parent.display()
    );
    std::fs::write(&criu, script).unwrap();
    std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let bounding = of("/proc/self/status")["Bnd"];
    let sleeper = Running(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap());
    let (pid, to) = (format!("pid:{}", sleeper.0.id()), work.path().join("images").display().to_string());
    let (here, there) = (work.path().display().to_string(), "unix:///nowhere");
    for (args, kept) in [
        (vec!["check"], source()),
        (vec!["migrate", &pid, there], source()),
        (vec!["checkpoint", &pid, "--to", &to], source() | destination()),
        (vec!["restore", &here], destination()),
    ] {
        let _ = godwit(work.path()).args(&args).env("GODWIT_CRIU", &criu).status().unwrap();
        let (godwit, child) = (of(&parent), of(&own));
        assert_eq!(godwit.get("Prm"), Some(&(bounding & kept)), "{args:?}: {godwit:x?}");
        assert_eq!(godwit["Eff"], godwit["Prm"], "{args:?}");
        for set in ["Prm", "Eff", "Bnd"] {
            assert_eq!(child[set], bounding, "{args:?}: what it starts lacks capabilities in its {set}");
        }
        std::fs::remove_file(&parent).unwrap();
        std::fs::remove_file(&own).unwrap();
    }
}

#[test]
fn under_no_new_privs_nothing_is_given_up_that_criu_could_not_get_back() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let listen = format!("unix://{}", work.path().join("socket").display());
    let godwit = env!("CARGO_BIN_EXE_godwit");
    let start = |args: &[&str]| {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--no-new-privs", godwit]).args(args).stdin(OwnedFd::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        (Running(command.spawn().unwrap()), ours)
    };
    let (receive, _ours) = start(&["receive", "--listen", &listen]);
    let begun = Instant::now();
    while !work.path().join("socket").exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(of(format!("/proc/{}/status", receive.0.id()))["Prm"], of("/proc/self/status")["Prm"]);
    // it starts nothing
    let (guard, _ours) = start(&["guard"]);
    await_kept("guard", guard.0.id(), mask(&[&[SYS_PTRACE, SYS_NICE, SYS_RESOURCE, IPC_LOCK]]));
}
