//! What cannot work is refused with a reason, before anything is touched on either host.

use crate::bed::{Bed, CLIENT, DST, SRC, Said, bed};
use crate::container::{IDLE, Redis, add_bind, make_bundle, run_bundle};
use crate::godwit::{Background, godwit_with};
use crate::state::State;
use godwit_transfer::wire::{NEWEST, OLDEST};

/// Both hosts before an attempt.
pub struct Hosts<'a> {
    bed: &'a Bed,
    src: State,
    dst: State,
}

impl<'a> Hosts<'a> {
    /// As they are.
    pub fn now(bed: &'a Bed) -> Self {
        Self { bed, src: State::of(bed, SRC), dst: State::of(bed, DST) }
    }

    /// Tries to migrate `args` with an environment. Asserts the exit code, that every one of `words` is said, that the
    /// last line says that nothing was touched, and that nothing was.
    #[track_caller]
    pub fn refuse(&self, environment: &[&str], args: &[&str], code: i32, words: &[&str]) -> Said {
        let said = godwit_with(self.bed, SRC, environment, &[&["migrate"], args].concat());
        self.assert_refused(&said, args[0], code, words);
        said
    }

    #[track_caller]
    fn assert_refused(&self, said: &Said, name: &str, code: i32, words: &[&str]) {
        assert_eq!(said.code, code, "{}{}", said.out, said.err);
        assert!(said.err.starts_with("error: ") || said.err.contains("\nerror: "), "{}", said.err);
        for word in words {
            assert!(said.err.contains(word), "`{word}` is not said:\n{}", said.err);
        }
        // where no container is meant, and in clap's own errors, there is no last line about one
        let about_none = code == 10
            || ["is ambiguous", "For more information, try"].iter().any(|text| said.err.contains(text));
        if !about_none {
            assert!(
                ["was not touched", "is running on this host"]
                    .iter()
                    .any(|end| said.last_line() == format!("{name} {end}")),
                "{}",
                said.err
            );
        }
        self.src.assert_unchanged(self.bed, SRC);
        self.dst.assert_unchanged(self.bed, DST);
    }
}

/// What ssh runs at the destination.
fn remote(command: &str) -> String {
    format!("GODWIT_REMOTE_COMMAND={command} receive --stdio")
}

#[test]
fn names_and_numbers_that_mean_nothing() {
    let Some(bed) = bed() else { return };
    // a container that is called as a process is numbered
    let sshd = bed.sh(SRC, "cat /run/sshd.pid");
    make_bundle(&bed, &sshd, IDLE, |_| {});
    run_bundle(&bed, &sshd);
    make_bundle(&bed, "stopped", &["true"], |_| {});
    run_bundle(&bed, "stopped");
    bed.sh(SRC, "while [ \"$(runc state stopped | grep -c stopped..)\" = 0 ]; do sleep 0.05; done");
    let hosts = Hosts::now(&bed);
    for name in
        ["runc:nobody", "nobody", "pid:999999", "pid:0", "pid:x", "lxc:web", "runc:", "runc:../etc", "--", ""]
    {
        let code = if name == "--" { 2 } else { 10 };
        hosts.refuse(&[], &[name, "ssh://dst"], code, &[name]);
    }
    hosts.refuse(
        &[],
        &["runc:stopped", "ssh://dst"],
        10,
        &["stopped", "only a running container can be moved"],
    );
    let (runc, pid) = (format!("`runc:{sshd}`"), format!("`pid:{sshd}`"));
    hosts.refuse(&[], &[&sshd, "ssh://dst"], 2, &["ambiguous", &runc, &pid]);
    let name = format!("runc:{sshd}");
    for wrong in [
        &["--max-downtime", "0"][..],
        &["--max-downtime", "0ms"],
        &["--max-downtime", "-5s"],
        &["--max-downtime", "soon"],
        &["--bandwidth", "500MiB"],
        &["--bandwidth", "0"],
        &["--bandwidth", "lots/s"],
        &["--timeout", "0s"],
        &["--max-rounds", "0"],
        &["--max-rounds", "1e3"],
        &["--compress", "zstd:0"],
        &["--network-plan", "vlan"],
        &["--strategy", "post-copy"],
        &["--on-timeout", "never"],
    ] {
        hosts.refuse(&[], &[&[&name, "ssh://dst"], wrong].concat(), 2, wrong);
    }
    for address in ["dst", "ssh://", "http://dst", "tcp://dst", "ssh://-oProxyCommand=x", "unix://here"] {
        hosts.refuse(&[], &[&name, address], 2, &[address]);
    }
}

#[test]
fn rights_that_are_missing() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "idle", IDLE, |_| {});
    run_bundle(&bed, "idle");
    let hosts = Hosts::now(&bed);
    let migrate = "godwit migrate runc:idle ssh://dst";
    let nobody = bed.try_sh(SRC, &format!("setpriv --reuid 65534 --regid 65534 --clear-groups {migrate}"));
    hosts.assert_refused(&nobody, "runc:idle", 13, &["not permitted", "sudo"]);
    for capability in ["cap_sys_admin", "cap_net_admin", "cap_sys_ptrace"] {
        let said = bed.try_sh(SRC, &format!("capsh --drop={capability} -- -c '{migrate}'"));
        hosts.assert_refused(&said, "runc:idle", 13, &[&capability.to_uppercase()]);
    }
}

#[test]
fn a_criu_that_cannot_do_it() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "idle", IDLE, |_| {});
    run_bundle(&bed, "idle");
    bed.write(SRC, "/root/old-criu", "#!/bin/sh\ncase $1 in check) echo 'Error (criu/x.c:1): kernel too new' >&2; exit 1;; esac\nexec criu \"$@\"\n");
    bed.write(
        SRC,
        "/root/new-criu",
        "#!/bin/sh\ncase $1 in --version) echo Version: 9.1;; *) exec criu \"$@\";; esac\n",
    );
    let hosts = Hosts::now(&bed);
    let idle = &["runc:idle", "ssh://dst"];
    hosts.refuse(
        &["GODWIT_CRIU=/nonexistent/criu"],
        idle,
        13,
        &["criu is not on this host", "/nonexistent/criu"],
    );
    hosts.refuse(&["GODWIT_CRIU=/usr/bin/busybox"], idle, 13, &["linked statically", "/usr/bin/busybox"]);
    hosts.refuse(&["GODWIT_CRIU=/bin/false"], idle, 13, &["does not work on this kernel"]);
    hosts.refuse(
        &["GODWIT_CRIU=/root/old-criu"],
        idle,
        13,
        &["does not work on this kernel", "kernel too new", "newer criu"],
    );
    // the hosts' own criu 4.1: its check is content, but it cannot dump an internet socket on kernels from 6.16 on
    if bed.holds(SRC, "test $(uname -r | awk -F. '{ print $1 * 1000 + $2 }') -ge 6016") {
        hosts.refuse(
            &["GODWIT_CRIU=/usr/sbin/criu"],
            idle,
            13,
            &["criu 4.1.1 does not work on this kernel", "SO_PASSCRED"],
        );
    }
    for (there, words) in [
        ("env GODWIT_CRIU=/nonexistent/criu godwit", "criu is not on this host"),
        ("env GODWIT_CRIU=/bin/false godwit", "does not work on this kernel"),
    ] {
        hosts.refuse(&[&remote(there)], idle, 12, &["cannot receive `runc:idle`", words]);
    }
    hosts.refuse(&["GODWIT_CRIU=/root/new-criu"], idle, 12, &["is older than the source's 9.1.0"]);
}

#[test]
fn a_destination_that_is_not_one() {
    let Some(bed) = bed() else { return };
    make_bundle(&bed, "idle", IDLE, |_| {});
    run_bundle(&bed, "idle");
    let hosts = Hosts::now(&bed);
    hosts.refuse(&[], &["runc:idle", "ssh://dst:9"], 12, &["ssh://dst:9", "cannot be reached", "refused"]);
    hosts.refuse(
        &[],
        &["runc:idle", "ssh://nowhere.invalid"],
        12,
        &["ssh://nowhere.invalid cannot be reached"],
    );
    hosts.refuse(
        &[],
        &["runc:idle", "tcp://10.77.0.2:9", "--insecure"],
        12,
        &["cannot be reached", "refused"],
    );
    hosts.refuse(&[], &["runc:idle", "unix:///run/nobody.sock"], 12, &["cannot be reached"]);
    hosts.refuse(
        &["GODWIT_REMOTE_COMMAND=no-such-program"],
        &["runc:idle", "ssh://dst"],
        12,
        &["cannot be reached", "127"],
    );
    hosts.refuse(
        &["GODWIT_REMOTE_COMMAND=echo Welcome to dst, whoever you are"],
        &["runc:idle", "ssh://dst"],
        12,
        &["not godwit"],
    );
    hosts.refuse(
        &["GODWIT_REMOTE_COMMAND=true"],
        &["runc:idle", "ssh://dst"],
        12,
        &["closed the connection"],
    );
    // a godwit of another age, from the third place
    for (hello, words) in [
        (
            "b'godwit\\r\\n' + bytes([9, 0, 9, 0]) + bytes(4)",
            &*format!("speaks versions 9 to 9 of the wire, this one {OLDEST} to {NEWEST}"),
        ),
        ("b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'", "not godwit"),
    ] {
        let script = format!(
            "import socket; l = socket.create_server(('', 7790)); print('listens', flush=True); c = l.accept()[0]; c.sendall({hello}); c.recv(1)"
        );
        let mut other = Background::start(&bed, CLIENT, &["python3", "-c", &script]);
        other.wait_for("the listener", |line| line == "listens");
        hosts.refuse(&[], &["runc:idle", "tcp://10.77.0.3:7790", "--insecure"], 12, &[words]);
    }
}

#[test]
fn a_destination_without_room_or_runtime() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "full", 24);
    // small file systems for godwit and for the container's files, and figures of a lesser machine
    bed.sh(
        DST,
        "mkdir /tmp/small && mount -t tmpfs -o size=8m tmpfs /tmp/small
         sed 's/^MemAvailable:.*/MemAvailable: 9000 kB/' /proc/meminfo > /tmp/meminfo
         sed -E '/^(flags|Features)/s/ (sse2|asimd)( |$)/ /' /proc/cpuinfo > /tmp/cpuinfo",
    );
    let full = &["runc:full", "ssh://dst"];
    let hosts = Hosts::now(&bed);
    hosts.refuse(
        &[&remote("env GODWIT_RUNC=/nonexistent/runc godwit")],
        full,
        12,
        &["runtime `runc` cannot be used there", "install runc"],
    );
    // its own locks and journals would be the only trace
    let said = hosts.refuse(
        &[&remote("godwit --root /tmp/small")],
        full,
        12,
        &["are needed on the file system of `/tmp/small`", "8.0 MiB are free"],
    );
    assert!(said.err.contains("make room"), "{}", said.err);
    for (file, words) in [("meminfo", "8.8 MiB are available"), ("cpuinfo", "the processor lacks ")] {
        bed.sh(DST, &format!("mount --bind /tmp/{file} /proc/{file}"));
        let here = Hosts::now(&bed);
        here.refuse(&[], full, 12, &[words]);
        bed.sh(DST, &format!("umount /proc/{file}"));
    }
    bed.sh(DST, "mkdir /srv/full && mount -t tmpfs -o size=8m tmpfs /srv/full");
    let here = Hosts::now(&bed);
    here.refuse(&[], full, 12, &["are needed on the file system of `/srv/full"]);
    redis.assert_untouched(&bed);
}

#[test]
fn a_name_that_is_taken() {
    let Some(bed) = bed() else { return };
    let redis = Redis::create(&bed, "twin", 0);
    Redis::create_on(&bed, DST, "twin", "10.77.0.101", 0);
    let hosts = Hosts::now(&bed);
    let said = hosts.refuse(
        &[],
        &["runc:twin", "ssh://dst"],
        12,
        &[
            "the name `twin` is taken: runc has a running container there",
            "a network namespace `twin` exists there",
        ],
    );
    assert!(said.err.contains("hint: "), "{}", said.err);
    redis.assert_untouched(&bed);
    assert_eq!(bed.sh(CLIENT, "redis-cli -h 10.77.0.101 ping"), "PONG");
}

#[test]
fn a_volume_whose_place_is_taken() {
    let Some(bed) = bed() else { return };
    bed.sh(SRC, "mkdir /srv/v && echo mine > /srv/v/file && head -c 3M /dev/urandom > /srv/v/more");
    bed.sh(DST, "mkdir /srv/v && echo theirs > /srv/v/file");
    make_bundle(&bed, "vol", IDLE, |config| add_bind(config, "/srv/v", "/data", "rw"));
    run_bundle(&bed, "vol");
    let hosts = Hosts::now(&bed);
    hosts.refuse(
        &[],
        &["runc:vol", "ssh://dst"],
        12,
        &["`/srv/v` exists there with other content", "--no-copy /srv/v"],
    );
    assert_eq!(bed.sh(DST, "cat /srv/v/*"), "theirs");
    // the same content is no obstacle
    bed.sh(SRC, "rsync -aHAX --delete /srv/v/ dst:/srv/v/");
    let said = godwit_with(&bed, SRC, &[], &["migrate", "runc:vol", "ssh://dst", "--max-downtime", "60s"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(bed.sh(SRC, "sha256sum /srv/v/*"), bed.sh(DST, "sha256sum /srv/v/*"));
}

#[test]
fn containers_that_criu_cannot_dump() {
    let Some(bed) = bed() else { return };
    // runc gives a container its terminal over a socket; whoever holds the other end is outside
    make_bundle(&bed, "tty", IDLE, |config| config["process"]["terminal"] = true.into());
    bed.write(SRC, "/srv/console.py", CONSOLE);
    let mut console = Background::start(&bed, SRC, &["python3", "/srv/console.py", "/run/test.console"]);
    console.wait_for("the console", |line| line == "listens");
    bed.sh(
        SRC,
        "runc run -d --console-socket /run/test.console --bundle /srv/tty tty < /dev/null > /dev/null 2>&1",
    );

    make_bundle(&bed, "log", IDLE, |_| {});
    bed.sh(SRC, "runc run -d --bundle /srv/log log < /dev/null > /srv/log.out 2>&1");

    // a file system in user space, mounted within the container behind runc's back
    make_bundle(&bed, "fuse", IDLE, |_| {});
    run_bundle(&bed, "fuse");
    bed.write(SRC, "/srv/mount.py", MOUNT_FUSE);
    let pid = crate::container::runc_state(&bed, SRC, "fuse").unwrap()["pid"].to_string();
    let mut mounted = Background::start(&bed, SRC, &["python3", "/srv/mount.py", &pid]);
    mounted.wait_for("the mount", |line| line == "mounted");

    let redis = Redis::create(&bed, "tcp", 0);
    let mut client = Background::start(
        &bed,
        CLIENT,
        &[
            "python3",
            "-c",
            "import socket, time; c = socket.create_connection(('10.77.0.100', 6379)); print('connected', flush=True); time.sleep(99)",
        ],
    );
    client.wait_for("a connection", |line| line == "connected");

    let hosts = Hosts::now(&bed);
    hosts.refuse(&[], &["runc:tty", "ssh://dst"], 13, &["terminal", "without"]);
    hosts.refuse(&[], &["runc:log", "ssh://dst"], 13, &["/srv/log.out", "a file of the host"]);
    hosts.refuse(&[], &["runc:fuse", "ssh://dst"], 13, &["mount of type `fuse", "`/mnt`"]);
    hosts.refuse(
        &[],
        &["runc:tcp", "ssh://dst"],
        2,
        &["established TCP connection", "10.77.0.100:6379", "--tcp-established"],
    );
    redis.assert_untouched(&bed);
}

/// Takes one terminal at a socket and holds it.
const CONSOLE: &str = "\
import array, socket, sys, time
listener = socket.socket(socket.AF_UNIX); listener.bind(sys.argv[1]); listener.listen(); print('listens', flush=True)
connection = listener.accept()[0]
held = connection.recvmsg(4096, socket.CMSG_SPACE(4))
time.sleep(999)
";

/// Mounts FUSE at /mnt in the mount namespace of a process, and holds it without ever answering.
const MOUNT_FUSE: &str = "\
import ctypes, os, sys, time
libc = ctypes.CDLL('libc.so.6', use_errno=True)
device = os.open('/dev/fuse', os.O_RDWR)
namespace = os.open('/proc/' + sys.argv[1] + '/ns/mnt', os.O_RDONLY)
if libc.setns(namespace, 0): sys.exit(os.strerror(ctypes.get_errno()))
os.makedirs('/mnt', exist_ok=True)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % device
if libc.mount(b'test', b'/mnt', b'fuse.test', 0, options): sys.exit(os.strerror(ctypes.get_errno()))
print('mounted', flush=True)
time.sleep(999)
";
