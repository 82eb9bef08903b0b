//! The three hosts, driven by `scripts/testbed`.
//!
//! Two beds serve the whole test process, so that two tests run side by side: most of them wait most of the time. Each is taken
//! down by a small watcher that waits for the end of a pipe that only this process holds: however the process ends, the bed goes.

use crate::hosts::Hosts;
pub use crate::hosts::{CLIENT, DST, SRC};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a command in a host may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(170);

/// A bed that is up.
pub struct Bed {
    name: String,
    /// Its end takes the bed down.
    _watched: Option<std::process::ChildStdin>,
}

/// What a command in a host gave.
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// How many beds there are: as many as processors, of which a test alone uses about one.
const BEDS: usize = 2;

/// Each comes up when it is wanted first.
static ALL: [LazyLock<Result<Bed, String>>; BEDS] =
    [LazyLock::new(|| bring_up("", &[])), LazyLock::new(|| bring_up("2", &[]))];

/// One more, whose hosts have systemd for process 1. Who has it has a place of one of the others, too.
static WITH_SYSTEMD: LazyLock<Result<Bed, String>> =
    LazyLock::new(|| bring_up("systemd", &["--init", "systemd"]));
static ONE_WITH_SYSTEMD: Mutex<()> = Mutex::new(());

/// Which beds are lent, and how many tests want to be alone.
struct Lending {
    lent: [bool; BEDS],
    want_to_be_alone: usize,
}

static LENDING: Mutex<Lending> = Mutex::new(Lending { lent: [false; BEDS], want_to_be_alone: 0 });
static GIVEN_BACK: Condvar = Condvar::new();

fn lending() -> MutexGuard<'static, Lending> {
    LENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bed that one test has, or all of them where it is to be alone.
pub struct Lent {
    bed: &'static Bed,
    _places: Places,
    _only: Option<MutexGuard<'static, ()>>,
}

impl std::ops::Deref for Lent {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        self.bed
    }
}

impl Hosts for Bed {
    fn run_script(&self, host: &str, script: &str) -> (i32, String, String) {
        let Said { code, out, err } = self.try_sh(host, script);
        (code, out, err)
    }
}

impl Hosts for Lent {
    fn run_script(&self, host: &str, script: &str) -> (i32, String, String) {
        self.bed.run_script(host, script)
    }
}

/// The first of them is used.
struct Places(std::ops::Range<usize>);

impl Places {
    /// Waits for one that is free.
    fn one() -> Self {
        let free = |lending: &Lending| lending.lent.iter().position(|lent| !lent);
        let wait = |lending: &mut Lending| lending.want_to_be_alone > 0 || free(lending).is_none();
        let mut lending = GIVEN_BACK.wait_while(lending(), wait).unwrap_or_else(PoisonError::into_inner);
        let first = free(&lending).unwrap();
        lending.lent[first] = true;
        Self(first..first + 1)
    }

    /// Waits until all are free.
    fn all() -> Self {
        let mut lending = lending();
        lending.want_to_be_alone += 1;
        let wait = |lending: &mut Lending| lending.lent.contains(&true);
        let mut lending = GIVEN_BACK.wait_while(lending, wait).unwrap_or_else(PoisonError::into_inner);
        lending.want_to_be_alone -= 1;
        lending.lent = [true; BEDS];
        Self(0..BEDS)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        lending().lent[self.0.clone()].fill(false);
        GIVEN_BACK.notify_all();
    }
}

/// A bed for this test, without what an earlier test left; `None` when it cannot be had, after saying why.
pub fn bed() -> Option<Lent> {
    lend_one(Places::one())
}

/// One whose hosts have systemd.
pub fn systemd_bed() -> Option<Lent> {
    let only = ONE_WITH_SYSTEMD.lock().unwrap_or_else(PoisonError::into_inner);
    lend(&WITH_SYSTEMD, Places::one(), Some(only))
}

/// The same for a test that measures time, or that needs all processors: no other one runs beside it.
pub fn quiet_bed() -> Option<Lent> {
    lend_one(Places::all())
}

fn lend_one(places: Places) -> Option<Lent> {
    lend(&ALL[places.0.start], places, None)
}

fn lend(
    bed: &'static Result<Bed, String>,
    places: Places,
    only: Option<MutexGuard<'static, ()>>,
) -> Option<Lent> {
    match bed {
        Ok(bed) => {
            bed.wipe();
            Some(Lent { bed, _places: places, _only: only })
        }
        Err(why) => {
            skip(why);
            None
        }
    }
}

/// Says why a test is not run; where everything is required, that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: {why}");
    // not by a macro: those are silent in a test that passes
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// The program under test.
pub fn binary() -> PathBuf {
    std::env::var_os("GODWIT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_godwit").into(), PathBuf::from)
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `scripts/testbed` with some arguments, on the bed of that name.
fn testbed(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(repository().join("scripts/testbed"));
    command.args(args).env("GODWIT_TESTBED_KIND", "ns").env("GODWIT_TESTBED_NAME", name).stdin(Stdio::null());
    command
}

fn bring_up(number: &str, options: &[&str]) -> Result<Bed, String> {
    let name = std::env::var("GODWIT_TESTBED_NAME").unwrap_or_else(|_| "hosttests".into()) + number;
    if !nix::unistd::Uid::effective().is_root() {
        return Err("the test hosts need root".into());
    }
    // whoever holds this has the bed, to the end of taking it down
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.lock")))
        .map_err(|e| e.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let was_up = testbed(&name, &["path"]).output().is_ok_and(|output| output.status.success());
    let up = testbed(&name, &[&["up"], options].concat())
        .output()
        .map_err(|error| format!("scripts/testbed cannot be run: {error}"))?;
    if !up.status.success() {
        return Err(format!("scripts/testbed up failed: {}", String::from_utf8_lossy(&up.stderr).trim()));
    }
    let watched = if was_up { None } else { Some(watch(&name, lock)?) };
    let bed = Bed { name, _watched: watched };
    let binary = binary();
    let pushed = testbed(&bed.name, &["push", &binary.to_string_lossy(), "/usr/local/bin/godwit"]).output();
    match pushed {
        Ok(output) if output.status.success() => {
            for host in [SRC, DST] {
                // the first network namespace makes /run/netns a mount for good
                bed.sh(host, "ip netns add first && ip netns del first");
                bed.sh(host, "cd /proc && echo [0-9]* > /run/bed.processes");
            }
            Ok(bed)
        }
        other => Err(format!("`{}` could not be put into the hosts: {other:?}", binary.display())),
    }
}

/// Starts the process that takes the bed down after us. Its standard output is the lock, so that it is held until then.
fn watch(name: &str, lock: File) -> Result<std::process::ChildStdin, String> {
    let testbed = testbed(name, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", "cat > /dev/null; exec \"$0\" down"]).arg(testbed.get_program());
    command.envs(testbed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null());
    // Ctrl-C on the terminal must not end it before its work
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    child.stdin.take().ok_or_else(|| "the watcher has no standard input".into())
}

impl Bed {
    /// A command that runs `words` in `host`.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        testbed(&self.name, &[&["exec", host], words].concat())
    }

    /// Runs a command in a host, with a time limit.
    pub fn run(&self, host: &str, words: &[&str]) -> Said {
        let limit = COMMAND_LIMIT.as_secs().to_string();
        let words = [&["timeout", "--kill-after=5", &limit], words].concat();
        let output = self.command(host, &words).output().unwrap();
        said(&output)
    }

    /// Runs a shell script in a host; its output. It must succeed.
    #[track_caller]
    pub fn sh(&self, host: &str, script: &str) -> String {
        Hosts::sh(self, host, script)
    }

    /// Runs a shell script in a host, whatever it says.
    pub fn try_sh(&self, host: &str, script: &str) -> Said {
        self.run(host, &["sh", "-c", script])
    }

    /// Whether a shell script succeeds in a host.
    pub fn holds(&self, host: &str, script: &str) -> bool {
        self.try_sh(host, script).code == 0
    }

    /// The path on this machine of a file of a host.
    pub fn path(&self, host: &str, path: &str) -> PathBuf {
        let output = testbed(&self.name, &["path", host]).output().unwrap();
        let root = String::from_utf8(output.stdout).unwrap();
        Path::new(root.trim()).join(path.trim_start_matches('/'))
    }

    /// Writes a file into a host; executable.
    pub fn write(&self, host: &str, path: &str, text: &str) {
        let file = self.path(host, path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Removes every container and all that was made for one, by us or by godwit.
    pub fn wipe(&self) {
        std::thread::scope(|scope| {
            for host in [SRC, DST] {
                scope.spawn(move || self.sh(host, WIPE));
            }
        });
        self.sh(
            CLIENT,
            "ip neigh flush all; for p in $(pgrep -x godwit) $(cat /run/test.*.pid 2> /dev/null); do kill -9 $p; done; rm -f /run/test.*",
        );
    }

    /// Ends what the destination keeps for another attempt, before its time is over.
    pub fn end_what_is_kept(&self) {
        self.try_sh(DST, "pkill -TERM -f '[g]odwit park$'");
    }
}

/// Everything in a cgroup beside `init` and those of systemd belongs to a container; the rest is found by name.
const WIPE: &str = r#"
[ ! -e /run/libpod ] || podman pod rm --all --force --time 0 > /dev/null 2>&1
[ ! -e /run/libpod ] || podman rm --all --force --time 0 --volumes > /dev/null 2>&1
[ ! -e /run/libpod ] || podman volume rm --all --force > /dev/null 2>&1
if [ -e /run/docker.pid ]; then
    docker rm --force --volumes $(docker ps --all --quiet) > /dev/null 2>&1
    docker volume rm $(docker volume ls --quiet) > /dev/null 2>&1
    d=$(cat /run/docker.pid)
    kill $d
    for i in $(seq 100); do [ -e /proc/$d ] || break; sleep 0.1; done
    for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(run|var/lib)/docker/' | sort -r); do umount -l $m; done
    rm -rf /run/docker* /run/containerd
fi
for p in $(pgrep -x 'godwit|socat|criu') $(cat /run/test.*.pid 2> /dev/null); do kill -9 $p 2> /dev/null; done
cd /sys/fs/cgroup
for c in */ system.slice/*.scope/; do
    case $c in init/|init.scope/|system.slice/|*.mount/) continue;; esac
    [ ! -e $c/cgroup.freeze ] || echo 0 > $c/cgroup.freeze
    [ ! -e $c/cgroup.kill ] || echo 1 > $c/cgroup.kill
done
for c in $(runc list -q); do runc delete --force $c > /dev/null 2>&1; done
for c in $(crun list -q); do crun delete --force $c > /dev/null 2>&1; done
# whatever was not there in the beginning: what a killed one has left takes a while to go
stays=" $(cat /run/bed.processes) $$ $PPID "
for p in $(cd /proc; echo [0-9]*); do
    case $stays in *" $p "*) ;; *) kill -9 $p 2> /dev/null;; esac
done
for i in $(seq 50); do
    [ ! -e /run/systemd/system ] || break
    find . -mindepth 1 -depth -type d ! -path './init*' -exec rmdir {} + 2> /dev/null
    [ -n "$(find . -mindepth 1 -type d ! -path './init*')" ] || break
    sleep 0.1
done
[ ! -e /run/systemd/system ] || systemctl reset-failed
for n in /run/netns/*; do [ ! -e "$n" ] || ip netns del ${n##*/}; done
for l in $(ls /sys/class/net); do case $l in lo|eth1|br0|bonding_masters) ;; *) ip link del $l 2> /dev/null;; esac; done
for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(tmp|srv|proc|run/netns|var/lib/godwit)/' | sort -r); do umount -l $m; done
nft flush ruleset
ip neigh flush all
[ ! -e /sys/class/net/br0 ] || ip link set br0 type bridge fdb_flush
chattr -R -i -a /srv 2> /dev/null
rm -rf /srv/* /srv/.[!.]* /var/lib/godwit/* /tmp/* /run/test.* /run/runc/* /run/godwit*
true
"#;

/// What a command said.
pub fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
