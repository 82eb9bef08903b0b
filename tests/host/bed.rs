//! The three hosts, driven by `scripts/testbed`.
//!
//! One bed serves the whole test process. It is taken down by a small watcher that waits for the end of a pipe that only
//! this process holds: however the process ends, the bed goes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the containers of a test come from.
pub const SRC: &str = "src";
/// Where they go.
pub const DST: &str = "dst";
/// The third place.
pub const CLIENT: &str = "client";

/// How long a command in a host may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(170);

/// A bed that is up.
pub struct Bed {
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

static BED: LazyLock<Result<Mutex<Bed>, String>> = LazyLock::new(|| bring_up().map(Mutex::new));

/// The bed, for this test alone and without what an earlier test left; `None` when it cannot be had, after saying why.
pub fn bed() -> Option<MutexGuard<'static, Bed>> {
    match &*BED {
        Ok(bed) => {
            let bed = bed.lock().unwrap_or_else(PoisonError::into_inner);
            bed.wipe();
            Some(bed)
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

/// `scripts/testbed` with some arguments, on the bed of these tests.
fn testbed(args: &[&str]) -> Command {
    let mut command = Command::new(repository().join("scripts/testbed"));
    command.args(args).env("GODWIT_TESTBED_KIND", "ns").stdin(Stdio::null());
    if std::env::var_os("GODWIT_TESTBED_NAME").is_none() {
        command.env("GODWIT_TESTBED_NAME", "hosttests");
    }
    command
}

fn bring_up() -> Result<Bed, String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("the test hosts need root".into());
    }
    // whoever holds this has the bed, to the end of taking it down
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("host-tests.lock"))
        .map_err(|e| e.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let was_up = testbed(&["path"]).output().is_ok_and(|output| output.status.success());
    let up = testbed(&["up"]).output().map_err(|error| format!("scripts/testbed cannot be run: {error}"))?;
    if !up.status.success() {
        return Err(format!("scripts/testbed up failed: {}", String::from_utf8_lossy(&up.stderr).trim()));
    }
    let watched = if was_up { None } else { Some(watch(lock)?) };
    let bed = Bed { _watched: watched };
    let binary = binary();
    let pushed = testbed(&["push", &binary.to_string_lossy(), "/usr/local/bin/godwit"]).output();
    match pushed {
        Ok(output) if output.status.success() => {
            for host in [SRC, DST] {
                // the first network namespace makes /run/netns a mount for good
                bed.sh(host, "ip netns add first && ip netns del first");
            }
            Ok(bed)
        }
        other => Err(format!("`{}` could not be put into the hosts: {other:?}", binary.display())),
    }
}

/// Starts the process that takes the bed down after us. Its standard output is the lock, so that it is held until then.
fn watch(lock: File) -> Result<std::process::ChildStdin, String> {
    let testbed = testbed(&[]);
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
        testbed(&[&["exec", host], words].concat())
    }

    /// Runs a command in a host, with a time limit.
    pub fn run(&self, host: &str, words: &[&str]) -> Said {
        let limit = COMMAND_LIMIT.as_secs().to_string();
        let words = [&["timeout", "--kill-after=5", &limit], words].concat();
        let output = self.command(host, &words).output().unwrap();
        said(&output)
    }

    /// Runs a shell script in a host; its output. It must succeed.
    pub fn sh(&self, host: &str, script: &str) -> String {
        let said = self.try_sh(host, script);
        assert_eq!(said.code, 0, "on {host}: {script}\n{}{}", said.out, said.err);
        said.out.trim_end().to_owned()
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
        let output = testbed(&["path", host]).output().unwrap();
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
        for host in [SRC, DST] {
            self.sh(host, WIPE);
        }
        self.sh(
            CLIENT,
            "ip neigh flush dev eth1; for p in $(pgrep -x godwit); do kill -9 $p; done; rm -f /run/test.*",
        );
    }

    /// Ends what the destination keeps for another attempt, before its time is over.
    pub fn end_what_is_kept(&self) {
        self.try_sh(DST, "pkill -TERM -f '[g]odwit park$'");
    }
}

/// Everything in a cgroup beside `init` belongs to a container; the rest is found by name.
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
for c in */; do
    [ "$c" != init/ ] || continue
    [ ! -e $c/cgroup.freeze ] || echo 0 > $c/cgroup.freeze
    [ ! -e $c/cgroup.kill ] || echo 1 > $c/cgroup.kill
done
for c in $(runc list -q); do runc delete --force $c > /dev/null 2>&1; done
for c in $(crun list -q); do crun delete --force $c > /dev/null 2>&1; done
find . -mindepth 1 -depth -type d ! -path './init*' -exec rmdir {} + 2> /dev/null
for n in /run/netns/*; do [ ! -e "$n" ] || ip netns del ${n##*/}; done
for l in $(ls /sys/class/net); do case $l in lo|eth1|br0|bonding_masters) ;; *) ip link del $l 2> /dev/null;; esac; done
for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(tmp|srv|proc|run/netns|var/lib/godwit)/' | sort -r); do umount -l $m; done
nft flush ruleset
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
