//! On cgroups of their own in each hierarchy the machine has; need root.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::killpg;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// The mount points of the hierarchies here: every one must be tested.
fn hierarchies() -> Vec<PathBuf> {
    let mounts: Vec<PathBuf> = discover::hierarchies().unwrap().into_iter().map(|h| h.mount).collect();
    let probe = |mount: &PathBuf| {
        let dir =
            mount.join(format!("godwit-probe-{}-{:?}", std::process::id(), std::thread::current().id()));
        let usable = fs::create_dir(&dir).is_ok() && Freezer::at(&dir).is_ok();
        let _ = fs::remove_dir(&dir);
        usable
    };
    let usable: Vec<PathBuf> = mounts.into_iter().filter(probe).collect();
    if usable.is_empty() {
        assert_ne!(
            std::env::var("GODWIT_REQUIRE").as_deref(),
            Ok("all"),
            "root and a cgroup hierarchy are required"
        );
        eprintln!("skipped: needs root and a cgroup hierarchy that can be written");
    }
    usable
}

/// A tree of two processes, each appending to a file as fast as it can: its length shows whether they ran.
struct Counter {
    child: Child,
    dir: tempfile::TempDir,
}

impl Counter {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = "n() { while :; do echo x; done >> $1; }; n a & n b";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&dir).stdin(Stdio::null()).process_group(0);
        let counter = Self { child: command.spawn().unwrap(), dir };
        counter.wait_running();
        counter
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn counts(&self) -> [u64; 2] {
        ["a", "b"].map(|file| fs::metadata(self.dir.path().join(file)).map_or(0, |meta| meta.len()))
    }

    fn wait_running(&self) {
        let (first, begun) = (self.counts(), Instant::now());
        while self.counts().iter().zip(first).any(|(now, then)| *now == then) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the tree does not run");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn assert_still(&self, when: &str) {
        let first = self.counts();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(self.counts(), first, "user code ran {when}");
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A cgroup of the test's own, thawed, emptied and removed in the end.
struct Cgroup(OwnCgroup);

impl Cgroup {
    fn in_hierarchy(mount: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("godwit-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(OwnCgroup::create_at(mount.join(name)).unwrap())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.0.freezer().and_then(|freezer| freezer.thaw());
        let _ = self.0.release();
    }
}

#[test]
fn a_frozen_tree_does_not_run_and_dies_without_running() {
    for mount in hierarchies() {
        let mut cgroup = Cgroup::in_hierarchy(&mount);
        let mut counter = Counter::start();
        let tree = process_tree(counter.pid());
        assert_eq!(tree.len(), 2);
        cgroup.0.adopt(tree.iter().copied()).unwrap();
        let freezer = cgroup.0.freezer().unwrap();
        assert_eq!(freezer.pids().unwrap(), tree);
        assert!(freezer.is_exclusively(&tree).unwrap());
        assert!(!freezer.is_exclusively(&[counter.pid()].into()).unwrap());
        let mut took = Vec::new();
        for _ in 0..5 {
            took.push(freezer.freeze(LIMIT).unwrap());
            assert_eq!(freezer.state().unwrap(), FreezeState::Frozen);
            freezer.verify_held(&tree).unwrap();
            counter.assert_still("while frozen");
            freezer.thaw().unwrap();
            assert_eq!(freezer.state().unwrap(), FreezeState::Thawed);
            assert!(freezer.verify_held(&tree).is_err());
            counter.wait_running();
        }
        freezer.freeze(LIMIT).unwrap();
        assert!(freezer.verify_held(&[1].into()).is_err());
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let zombie = ended.id().cast_signed();
        while !tree::has_ended(zombie) {
            std::thread::sleep(Duration::from_millis(1));
        }
        freezer.verify_held(&tree.union(&[zombie].into()).copied().collect()).unwrap();
        ended.wait().unwrap();
        freezer.verify_held(&tree.union(&[zombie].into()).copied().collect()).unwrap();
        let before = counter.counts();
        let begun = Instant::now();
        freezer.kill_frozen().unwrap();
        eprintln!("{}: freeze {took:?}, kill {:?}", mount.display(), begun.elapsed());
        assert_eq!(counter.counts(), before, "user code ran while it was discarded");
        assert!(!counter.child.wait().unwrap().success());
        assert!(freezer.pids().unwrap().is_empty());
        freezer.kill_frozen().unwrap();
        cgroup.0.release().unwrap();
        freezer.kill_frozen().unwrap();
        assert!(!cgroup.0.dir.exists());
    }
}

#[test]
fn whoever_was_put_in_dies_and_the_container_stands_still() {
    for mount in hierarchies() {
        let mut cgroup = Cgroup::in_hierarchy(&mount);
        let counter = Counter::start();
        let tree = process_tree(counter.pid());
        cgroup.0.adopt(tree.iter().copied()).unwrap();
        let freezer = cgroup.0.freezer().unwrap();
        freezer.freeze(LIMIT).unwrap();
        freezer.kill_visitors(counter.pid()).unwrap();
        let mut visitor = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(cgroup.0.dir.join("cgroup.procs"), visitor.id().to_string()).unwrap();
        freezer.kill_visitors(std::process::id().cast_signed()).unwrap();
        assert!(
            visitor.try_wait().unwrap().is_none(),
            "of whose tree nothing is in it, that says nothing about others"
        );
        freezer.kill_visitors(counter.pid()).unwrap();
        assert!(!visitor.wait().unwrap().success());
        freezer.verify_held(&tree).unwrap();
        counter.assert_still("when the visitor had gone");
        freezer.kill_frozen().unwrap();
    }
}

#[test]
fn a_cgroup_may_be_taken_away_as_soon_as_nobody_is_in_it() {
    for mount in hierarchies() {
        for _ in 0..200 {
            let cgroup =
                OwnCgroup::create_at(mount.join(format!("godwit-test-gone-{}", std::process::id()))).unwrap();
            let freezer = cgroup.freezer().unwrap();
            let mut tree = Command::new("sleep").arg("1000").spawn().unwrap();
            fs::write(cgroup.dir.join("cgroup.procs"), tree.id().to_string()).unwrap();
            freezer.freeze(LIMIT).unwrap();
            std::thread::scope(|scope| {
                // as systemd does with a scope
                scope.spawn(|| while fs::remove_dir(&cgroup.dir).is_err() {});
                scope.spawn(|| tree.wait());
                freezer.kill_frozen().unwrap();
            });
        }
    }
}

#[test]
fn a_tree_goes_back_to_where_it_was() {
    for mount in hierarchies() {
        let mut counter_home = Cgroup::in_hierarchy(&mount);
        let mut cgroup = Cgroup::in_hierarchy(&mount);
        let counter = Counter::start();
        let tree = process_tree(counter.pid());
        counter_home.0.adopt(tree.iter().copied()).unwrap();
        assert_eq!(Freezer::of_pid(counter.pid()).unwrap().path(), counter_home.0.dir);
        cgroup.0.adopt(tree.iter().copied()).unwrap();
        assert_eq!(Freezer::of_pid(counter.pid()).unwrap().path(), cgroup.0.dir);
        cgroup.0.release().unwrap();
        cgroup.0.release().unwrap();
        assert_eq!(counter_home.0.freezer().unwrap().pids().unwrap(), tree);
        counter.wait_running();
    }
}

#[test]
fn a_cgroup_that_is_not_the_containers_own_is_refused() {
    for mount in hierarchies() {
        let counter = Counter::start();
        let error = Freezer::of_pid(counter.pid()).unwrap_err();
        assert!(matches!(error, FreezerError::NoOwnCgroup(_) | FreezerError::Shared { .. }), "{error}");
        let mut other = Counter::start();
        let mut cgroup = Cgroup::in_hierarchy(&mount);
        cgroup.0.adopt(process_tree(counter.pid())).unwrap();
        cgroup.0.adopt(process_tree(other.pid())).unwrap();
        let error = Freezer::of_pid(counter.pid()).unwrap_err();
        assert!(matches!(&error, FreezerError::Shared { dir, .. } if *dir == cgroup.0.dir), "{error}");
        killpg(Pid::from_raw(other.pid()), Signal::SIGKILL).unwrap();
        other.child.wait().unwrap();
        let gone = Instant::now();
        while Freezer::of_pid(counter.pid()).is_err() {
            assert!(gone.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(matches!(Freezer::at("/proc"), Err(FreezerError::NotAFreezer(_))));
}

#[test]
fn a_container_with_cgroups_of_its_own_inside_is_taken_whole() {
    for mount in hierarchies() {
        let cgroup = Cgroup::in_hierarchy(&mount);
        let counter = Counter::start();
        let inner: Vec<PathBuf> =
            ["init.scope", "service"].iter().map(|leaf| cgroup.0.dir.join(leaf)).collect();
        for (dir, pid) in inner.iter().zip(process_tree(counter.pid())) {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        let freezer = Freezer::of_pid(counter.pid());
        let freezer = freezer.as_ref().map(|f| f.path().to_path_buf());
        let held = Freezer::at(&cgroup.0.dir).unwrap();
        held.freeze(LIMIT).unwrap();
        counter.assert_still("in a cgroup below");
        held.kill_frozen().unwrap();
        inner.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
        assert_eq!(freezer.unwrap(), cgroup.0.dir);
    }
}

/// Not a test by itself: the hook that `a_hook_frees_criu_and_holds_the_tree` makes its "criu" run.
#[test]
fn hook_process() {
    if std::env::var_os("CRTOOLS_SCRIPT_ACTION").is_none() {
        return;
    }
    let held = hold_from_hook(&HookCall::from_env().unwrap(), None, LIMIT).unwrap();
    assert!(matches!(held, Hold::Held { .. }), "{held:?}");
}

#[test]
fn a_hook_frees_criu_and_holds_the_tree() {
    for mount in hierarchies() {
        let cgroup = Cgroup::in_hierarchy(&mount);
        let dir = tempfile::tempdir().unwrap();
        // As under runc: "criu", its helper, the shell of the hook and the hook start inside the container's cgroup.
        let script = "echo $$ > \"$CGROUP/cgroup.procs\"; sleep 60 & helper=$!\n\
            sh -c 'while :; do echo x; done >> count' & export CRTOOLS_INIT_PID=$!\n\
            echo $! > init; echo $$ $helper > criu; sleep 0.1\n\
            sh -c '\"$HOOK\" --exact freezer::tests::hook_process; echo $?' > hook 2>&1\n\
            kill $helper; echo done > done; sleep 60";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .current_dir(&dir)
            .env("CGROUP", &cgroup.0.dir)
            .env("HOOK", std::env::current_exe().unwrap())
            .env("CRTOOLS_SCRIPT_ACTION", "pre-resume")
            .process_group(0)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !dir.path().join("done").exists() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap_or_default();
        let init: i32 = read("init").trim().parse().unwrap();
        let freezer = cgroup.0.freezer().unwrap();
        let (held, inside) = (freezer.verify_held(&[init].into()), freezer.pids().unwrap());
        let (first, last) = (read("count").len(), {
            std::thread::sleep(Duration::from_millis(30));
            read("count").len()
        });
        freezer.kill_frozen().unwrap();
        killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(read("hook").trim().ends_with('0'), "{}", read("hook"));
        held.unwrap();
        assert_eq!(inside, [init].into(), "criu was left in the cgroup");
        assert_eq!(first, last, "the held tree ran");
        assert_eq!(read("done"), "done\n", "criu was frozen with its container");
    }
}

#[test]
fn other_actions_hold_nothing() {
    let call = HookCall { action: "post-restore".into(), init_pid: None };
    assert_eq!(hold_from_hook(&call, None, LIMIT).unwrap(), Hold::NotYet);
    let call = HookCall { action: "pre-resume".into(), init_pid: None };
    assert!(hold_from_hook(&call, None, LIMIT).is_err());
}
