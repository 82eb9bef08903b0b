//! The guardian, with a stand-in for CRIU that seizes a tree and is killed. Whether anything of the tree ran is told by the
//! tree itself: as long as it runs it writes the time into a file. Needs root and a cgroup hierarchy with a freezer.
//!
//! Without the usual harness, which would start everything in a thread: guardian and CRIU are processes of one thread.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod criu;
mod tree;

use criu::StandIn;
use godwit_guardian::{Brake, Ending, Guard, Guardian, is_guarded, run_guardian};
use std::fs::OpenOptions;
use std::io::BufRead;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::Tree;

/// What this program is, when a test starts it.
const ROLE: &str = "GODWIT_GUARDIAN_TEST_ROLE";

/// How long a tree is watched that must not run. It writes some thousand times a second.
const WHILE: Duration = Duration::from_millis(100);

/// The tests, by name.
const TESTS: &[(&str, fn())] = &[
    ("a_killed_criu_lets_nothing_run", a_killed_criu_lets_nothing_run),
    ("without_a_guardian_it_runs", without_a_guardian_it_runs),
    ("a_criu_inside_of_the_cgroup_comes_to_its_end", a_criu_inside_of_the_cgroup_comes_to_its_end),
    ("a_criu_that_ends_by_itself", a_criu_that_ends_by_itself),
    ("a_killed_guardian_harms_nobody", a_killed_guardian_harms_nobody),
    ("when_both_are_killed_it_is_frozen_again", when_both_are_killed_it_is_frozen_again),
    ("a_criu_that_is_given_up_is_not_guarded_any_more", a_criu_that_is_given_up_is_not_guarded_any_more),
    ("a_killed_godwit_leaves_it_guarded", a_killed_godwit_leaves_it_guarded),
    ("what_is_no_guardian_is_no_guardian", what_is_no_guardian_is_no_guardian),
];

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    // as the usual harness takes them: parts of names, `--skip PART`, and flags that mean nothing here
    let (mut wanted, mut skipped) = (Vec::new(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--skip" => skipped.extend(args.next()),
            flag if flag.starts_with('-') => {}
            _ => wanted.push(arg),
        }
    }
    let is_wanted = |name: &str| {
        let has = |part: &String| name.contains(part.as_str());
        (wanted.is_empty() || wanted.iter().any(has)) && !skipped.iter().any(has)
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *(if ok { &mut passed } else { &mut failed }) += 1;
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    std::process::exit((failed > 0).into());
}

/// What this program is when it is started by a test.
fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        ["guardian"] => run_guardian(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap(),
        ["witness", file, children] => tree::run(Path::new(file), children.parse().unwrap()),
        ["criu", dir, ref pids @ ..] => criu::run(Path::new(dir), pids),
        ["godwit", dir, criu] => {
            let mut guard = start().watch(criu.parse().unwrap());
            guard.arm(Brake::of(Path::new(dir)).unwrap());
            println!("armed");
            std::thread::sleep(Duration::from_secs(60));
        }
        _ => panic!("no such role: {role}"),
    }
}

fn as_role(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// A guardian: by way of env(1), since the role goes in the environment.
fn start() -> Arc<Guardian> {
    let role = format!("{ROLE}=guardian").into();
    Guardian::start(Path::new("/usr/bin/env"), &[role, std::env::current_exe().unwrap().into_os_string()])
}

/// Directories for a cgroup in every hierarchy of this machine that can freeze.
fn places(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let can_freeze = |line: &&str| {
        let (_, kind) = line.split_once(" - ").unwrap();
        kind.starts_with("cgroup2 ") || kind.starts_with("cgroup ") && kind.contains("freezer")
    };
    let at = |line: &str| Path::new(line.split(' ').nth(4).unwrap()).join(name);
    let usable = |dir: &PathBuf| {
        let usable = std::fs::create_dir(dir).is_ok() && Brake::of(dir).is_ok();
        let _ = std::fs::remove_dir(dir);
        usable
    };
    let places: Vec<PathBuf> = mounts.lines().filter(can_freeze).map(at).filter(usable).collect();
    if places.is_empty() {
        assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "needs root and a cgroup freezer");
        println!("skipped: needs root and a cgroup hierarchy with a freezer");
    }
    places
}

/// A tree that a CRIU holds, in every hierarchy: its cgroup is thawed, only ptrace keeps it still.
fn with_held(name: &str, test: impl Fn(&Tree, StandIn, Guard, &Arc<Guardian>)) {
    for dir in places(&format!("godwit-test-{name}-{}", std::process::id())) {
        let guardian = start();
        let tree = Tree::start(&dir);
        let criu = StandIn::start(&tree.dir, &tree.pids);
        let guard = guardian.watch(criu.pid());
        tree.freeze();
        criu.hold();
        test(&tree, criu, guard, &guardian);
        let pid = guardian.pid();
        drop(guardian);
        wait_for("the guardian's end", || pid.is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    }
}

fn armed(tree: &Tree, mut guard: Guard) -> Guard {
    guard.arm(Brake::of(&tree.dir).unwrap());
    assert!(guard.is_armed());
    guard
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what} did not come");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn a_killed_criu_lets_nothing_run() {
    for _ in 0..5 {
        with_held("killed", |tree, criu, guard, guardian| {
            let guard = armed(tree, guard);
            let before = tree.writes();
            criu.kill();
            assert_eq!(tree.writes_within(WHILE), before, "it ran");
            let Ending::Held { within } = guard.conclude(false) else { panic!("it was not held") };
            println!("{}: frozen within {within:?}, 0 writes", tree.dir.display());
            assert!(guardian.is_bereft());
            tree.thaw();
            wait_for("the tree", || tree.writes() > before);
        });
    }
}

/// What the others would not notice if the tree could not run anyway.
fn without_a_guardian_it_runs() {
    with_held("alone", |tree, criu, guard, _| {
        let before = tree.writes();
        drop(guard);
        criu.kill();
        let ran = tree.writes_within(WHILE) - before;
        println!("{}: {ran} writes in {WHILE:?}", tree.dir.display());
        assert!(ran > 100, "only {ran} writes");
    });
}

/// As runc starts CRIU for a restore.
fn a_criu_inside_of_the_cgroup_comes_to_its_end() {
    with_held("inside", |tree, criu, mut guard, _| {
        let procs = tree.dir.parent().unwrap().join("cgroup.procs");
        let outside = OpenOptions::new().write(true).open(procs).unwrap();
        guard.arm(Brake::of(&tree.dir).unwrap().with_outside(outside));
        tree.adopt(criu.pid());
        let before = tree.writes();
        criu.kill();
        assert_eq!(tree.writes_within(WHILE), before, "it ran");
        assert!(matches!(guard.conclude(false), Ending::Held { .. }));
    });
}

fn a_criu_that_ends_by_itself() {
    for code in [0, 1] {
        with_held("itself", |tree, criu, guard, guardian| {
            let guard = armed(tree, guard);
            let before = tree.writes();
            criu.end(code);
            // only one that says that all is well is believed to have let its tasks go on purpose
            match code {
                0 => wait_for("the tree", || tree.writes() > before),
                _ => assert_eq!(tree.writes_within(WHILE), before, "it ran"),
            }
            assert_eq!(guard.conclude(code == 0), Ending::ByItself);
            assert!(!guardian.is_bereft());
        });
    }
}

fn a_killed_guardian_harms_nobody() {
    with_held("orphan", |tree, criu, guard, guardian| {
        let guard = armed(tree, guard);
        let before = tree.writes();
        kill(guardian.pid().unwrap().cast_signed());
        assert_eq!(tree.writes_within(WHILE), before, "criu did not go on");
        criu.end(0);
        wait_for("the tree", || tree.writes() > before);
        assert_eq!(guard.conclude(true), Ending::Unwatched);
        assert!(!guardian.is_bereft());
    });
}

fn when_both_are_killed_it_is_frozen_again() {
    with_held("both", |tree, criu, guard, guardian| {
        let guard = armed(tree, guard);
        let before = tree.writes();
        kill(guardian.pid().unwrap().cast_signed());
        criu.kill();
        guard.pull();
        wait_for("the freeze", || tree.is_frozen());
        let frozen = tree.writes();
        println!("{}: {} writes until it was frozen again", tree.dir.display(), frozen - before);
        assert_eq!(tree.writes_within(WHILE), frozen, "it runs");
        assert_eq!(guard.conclude(false), Ending::Loose);
        assert!(guardian.is_bereft());
    });
}

fn a_criu_that_is_given_up_is_not_guarded_any_more() {
    with_held("given-up", |tree, criu, guard, guardian| {
        let guard = armed(tree, guard);
        let before = tree.writes();
        assert!(is_guarded(&tree.dir));
        assert_eq!(guard.conclude(true), Ending::ByItself);
        assert!(!is_guarded(&tree.dir));
        criu.kill();
        wait_for("the tree", || tree.writes() > before);
        assert!(!guardian.is_bereft());
    });
}

fn a_killed_godwit_leaves_it_guarded() {
    for dir in places(&format!("godwit-test-godwit-{}", std::process::id())) {
        let tree = Tree::start(&dir);
        let criu = StandIn::start(&dir, &tree.pids);
        let mut godwit = as_role(&format!("godwit {} {}", dir.display(), criu.pid())).spawn().unwrap();
        let mut lines = std::io::BufReader::new(godwit.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("armed")));
        tree.freeze();
        criu.hold();
        let before = tree.writes();
        godwit.kill().unwrap();
        godwit.wait().unwrap();
        assert!(is_guarded(&dir));
        criu.kill();
        assert_eq!(tree.writes_within(WHILE), before, "it ran");
        wait_for("the guardian's end", || !is_guarded(&dir));
    }
}

fn what_is_no_guardian_is_no_guardian() {
    for program in ["/bin/true", "/bin/cat", "/nonexistent"] {
        let guardian = Guardian::start(Path::new(program), &["-"]);
        let guard = guardian.watch(std::process::id().cast_signed());
        assert!(!guard.is_armed());
        assert_eq!(guard.conclude(true), Ending::Unwatched);
        assert_eq!(guardian.pid(), None);
    }
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}
