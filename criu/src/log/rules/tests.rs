//! Each family of failures by lines as CRIU prints them; the file of CRIU's where the message is made stands in them.

use super::super::explain;
use super::*;

/// A log's line (without the time), a word of the cause, a word of the mend, and where it must be found.
type Sample = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const SAMPLES: &[Sample] = &[
    // the destination's processor lacks features
    (
        "Error (criu/arch/x86/cpu.c:210): x86: FPU xsave area present, but host cpu doesn't support it",
        "xsave",
        "processor",
        &[],
    ),
    (
        "Error (criu/arch/x86/cpu.c:218): cpu: FPU feature required by image is not supported on host (fpu:0 fxsr:0 osxsave:0 xsaves:1)",
        "processor",
        "same or a newer",
        &[("features", "fpu:0 fxsr:0 osxsave:0 xsaves:1")],
    ),
    (
        "Error (criu/arch/x86/cpu.c:236): cpu: CPU xfeatures has unsupported bits (0x200)",
        "register state",
        "CPU model",
        &[("bits", "0x200")],
    ),
    (
        "Error (criu/arch/x86/cpu.c:248): cpu: CPU xsave size mismatch (2696/832)",
        "register state",
        "CPU model",
        &[],
    ),
    (
        "Error (criu/arch/x86/cpu.c:190): cpu: CPU instruction capabilities do not match run time",
        "lacks features",
        "newer",
        &[],
    ),
    (
        "Error (criu/cr-restore.c:1262): 31 killed by signal 4: Illegal instruction",
        "instruction",
        "GLIBC_TUNABLES",
        &[("pid", "31")],
    ),
    // files are not those of the dump
    (
        "    31: Error (criu/files-reg.c:2175): File root/app.log has bad size 297 (expect 279)",
        "differs",
        "copy",
        &[("file", "root/app.log"), ("pid", "31")],
    ),
    (
        "     9: Error (criu/files-reg.c:2294): File etc/x has bad mode 0100600 (expect 0100644)",
        "permissions",
        "copy",
        &[("file", "etc/x")],
    ),
    (
        "     9: Error (criu/files-reg.c:2153): File usr/lib/libc.so.6 has bad build-ID",
        "library",
        "copy",
        &[("file", "usr/lib/libc.so.6")],
    ),
    (
        "     9: Error (criu/files-reg.c:2353): Can't open file srv/x on restore: No such file or directory",
        "not on this host",
        "copy",
        &[("file", "srv/x")],
    ),
    // docker and runtimes
    (
        "Error response from daemon: custom checkpointdir is not supported",
        "directory",
        "checkpoints/NAME",
        &[],
    ),
    (
        "Error response from daemon: docker checkpoint is only supported on a Docker daemon with experimental features enabled",
        "turned off",
        "daemon.json",
        &[],
    ),
    (
        "time=\"2026-01-01T00:00:00Z\" level=error msg=\"criu failed: type NOTIFY errno 0\\nlog file: /run/x/dump.log\"",
        "not why",
        "godwit explain",
        &[],
    ),
    (
        "criu failed: type NOTIFY errno 0 log file: /run/x/dump.log",
        "not why",
        "godwit explain",
        &[("log", "/run/x/dump.log")],
    ),
    // addresses
    (
        "     1: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 5): Cannot assign requested address",
        "does not exist",
        "--network-plan",
        &[("socket", "5")],
    ),
    (
        "     1: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 5): Address already in use",
        "in use",
        "ss -ltnp",
        &[("socket", "5"), ("pid", "1")],
    ),
    (
        "     1: Error (soccr/soccr.c:499): Can't bind inet socket back: Cannot assign requested address",
        "does not exist",
        "--network-plan",
        &[],
    ),
    (
        "     1: Error (soccr/soccr.c:529): Can't connect inet socket back: Network is unreachable",
        "addresses",
        "--network-plan",
        &[],
    ),
    // established connections
    (
        "Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.",
        "TCP connections",
        "--tcp-established",
        &[],
    ),
    ("Error (criu/sk-inet.c:912): inet: Connected TCP socket in image", "images", "--tcp-established", &[]),
    (
        "Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 1c",
        "accepted",
        "again",
        &[("socket", "1c")],
    ),
    (
        "Error (criu/sk-tcp.c:81): tcp: Failed to lock TCP connection 1c",
        "packet filter",
        "nftables",
        &[("socket", "1c")],
    ),
    (
        "Error (criu/net.c:3332): net: Locking network failed: iptables-restore returned 1. This may be connected to disabled CONFIG_NETFILTER_XT_MARK kernel build config option.",
        "packet filter",
        "nftables",
        &[],
    ),
    (
        "Error (criu/net.c:3311): net: CRIU was built without libnftables support",
        "without nftables",
        "iptables",
        &[],
    ),
    // mounts
    (
        "Error (criu/mount.c:1053): mnt: No mapping for 352:(null) mountpoint",
        "bind mount",
        "mnt[",
        &[("mount", "352:(null)")],
    ),
    ("Error (criu/mount.c:753): mnt: 12:./data doesn't have a proper root mount", "outside", "bundle", &[]),
    (
        "     1: Error (criu/mount-v2.c:897): mnt-v2: Failed to copy sharing from 218 to 219",
        "propagate",
        "rslave",
        &[],
    ),
    (
        "Error (criu/mount.c:724): mnt: FS mnt ./mnt/sshfs dev 0x2f root / unsupported id 811",
        "kind CRIU cannot move",
        "unmount",
        &[("mount", "./mnt/sshfs")],
    ),
    (
        "Error (criu/mount.c:1092): mnt: Mount 412 ./shared (master_id: 7 shared_id: 0) has unreachable sharing. Try --enable-external-masters.",
        "shares its events",
        "make-rprivate",
        &[("mount", "412 ./shared")],
    ),
    // pids
    (
        "Error (criu/cr-restore.c:1230): Can't fork for 31: File exists",
        "pid",
        "namespace of its own",
        &[("pid", "31")],
    ),
    (
        "    31: Error (criu/cr-restore.c:1539): Pid 42 do not match expected 31",
        "pid",
        "namespace of its own",
        &[("pid", "31")],
    ),
    (
        "Error (criu/cr-restore.c:1074): Failed to write 30 to /proc/sys/kernel/ns_last_pid: Operation not permitted",
        "chosen",
        "CAP_CHECKPOINT_RESTORE",
        &[],
    ),
    // no soft-dirty
    (
        "Error (criu/config.c:1130): Tracking memory is not available. Consider omitting --track-mem option.",
        "soft-dirty",
        "--tracker",
        &[],
    ),
    // descriptors and protocols
    ("Error (criu/pie/parasite.c:698): send_fds failed (-22)", "io_uring", "UV_USE_IO_URING=0", &[]),
    (
        "Error (criu/files-ext.c:98): Can't dump file 9 of that type [0] (anon [io_uring])",
        "io_uring",
        "UV_USE_IO_URING=0",
        &[("fd", "9")],
    ),
    (
        "Error (criu/files-ext.c:98): Can't dump file 7 of that type [600] (anon [userfaultfd])",
        "userfaultfd",
        "-XX:-UseZGC",
        &[("fd", "7")],
    ),
    (
        "Error (criu/files-ext.c:98): Can't dump file 7 of that type [600] (anon anon_inode:[perf_event])",
        "performance",
        "profiler",
        &[("fd", "7")],
    ),
    (
        "Error (criu/files-ext.c:98): Can't dump file 7 of that type [600] (anon anon_inode:bpf-prog)",
        "BPF",
        "before the move",
        &[("fd", "7")],
    ),
    (
        "Error (criu/files-ext.c:98): Can't dump file 5 of that type [20666] (chr 195:0)",
        "device",
        "plugin",
        &[("fd", "5"), ("device", "195:0")],
    ),
    (
        "Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 1c",
        "multipath",
        "GODEBUG=multipathtcp=0",
        &[("socket", "1c")],
    ),
    (
        "Error (criu/sk-inet.c:137): inet: Unsupported proto 132 for socket 2b",
        "SCTP",
        "close",
        &[("socket", "2b")],
    ),
    (
        "Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)",
        "vsock",
        "close",
        &[("family", "40")],
    ),
    (
        "Error (criu/sockets.c:640): sockets: Can't get 1:16 opt: Operation not supported",
        "too old",
        "4.2",
        &[],
    ),
    // terminals
    (
        "Error (criu/tty.c:410): tty: Found slave peer index 3 without correspond master peer",
        "terminal",
        "without a terminal",
        &[("terminal", "3")],
    ),
    (
        "Error (criu/tty.c:2399): tty: Unable to find a master for /0",
        "terminal",
        "without a terminal",
        &[("terminal", "/0")],
    ),
    (
        "Error (criu/tty.c:1830): tty: Found dangling tty with sid 9 pgid 9 (pts) on peer fd 0.",
        "terminal",
        "setsid",
        &[("terminal", "pts"), ("fd", "0")],
    ),
    (
        "Error (criu/pstree.c:304): The root process 77 is not a session leader. Consider using --shell-job option",
        "session",
        "--shell-job",
        &[("pid", "77")],
    ),
    // cgroups
    (
        "Error (criu/seize.c:635): Unable to freeze cgroup /sys/fs/cgroup/web (101 x 100ms attempts, timeout: 10s)",
        "frozen in time",
        "/proc/PID/stack",
        &[("cgroup", "/sys/fs/cgroup/web")],
    ),
    (
        "Error (criu/cgroup.c:1196): cg: couldn't set cgns prefix /docker/x: No such file or directory",
        "container id",
        "same id",
        &[("cgroup", "/docker/x")],
    ),
    (
        "Error (criu/cgroup.c:686): cg: controller cpuset not found",
        "controller",
        "both hosts",
        &[("controller", "cpuset")],
    ),
    (
        "Error (criu/cgroup.c:617): cg: Unable to mount the cgroup (memory) file system: Device or resource busy",
        "cgroup",
        "both hosts",
        &[],
    ),
    // security
    (
        "Error (criu/lsm.c:406): apparmor LSM specified but apparmor not supported by kernel",
        "AppArmor",
        "apparmor=1",
        &[],
    ),
    (
        "Error (criu/lsm.c:413): selinux LSM specified but selinux not supported by kernel",
        "SELinux",
        "SELinux",
        &[],
    ),
    (
        "    31: Error (criu/pie/restorer.c:196): can't write lsm profile -2",
        "profile",
        "apparmor_parser",
        &[("pid", "31")],
    ),
    (
        "Error (compel/src/lib/infect.c:711): Unable to connect a transport socket: Permission denied",
        "security module",
        "denied",
        &[],
    ),
    (
        "Error (criu/cr-restore.c:1764): failed to suspend seccomp, restore will probably fail...",
        "seccomp",
        "CAP_SYS_ADMIN",
        &[],
    ),
    // freezing
    (
        "Error (criu/cr-dump.c:1808): Timeout reached. Try to interrupt: 0",
        "stopped in time",
        "/proc/PID/stack",
        &[],
    ),
    (
        "Error (compel/src/lib/infect.c:261): Unseizable non-zombie 4711 found, state D, err -1/3",
        "stopped",
        "TracerPid",
        &[("pid", "4711"), ("state", "D")],
    ),
    (
        "Error (criu/seize.c:335): zombie 4711 (comm sh) found while seizing",
        "ended",
        "again",
        &[("pid", "4711"), ("program", "sh")],
    ),
    ("Error (criu/seize.c:939): Zombie thread not supported", "dead thread", "restart", &[]),
    (
        "Error (compel/src/lib/infect.c:181): SEIZE 12: task is already traced",
        "debugger",
        "detach",
        &[("pid", "12")],
    ),
    // rounds that do not hold together
    (
        "Error (criu/pagemap.c:203): pagemap: Missing 7f0000001000 in parent pagemap",
        "earlier round",
        "start the move again",
        &[("address", "7f0000001000")],
    ),
    (
        "Error (criu/page-xfer.c:344): page-xfer: Hole 0x7f12 - 0x7f13 not found in parent",
        "earlier round",
        "--tracker auto",
        &[("address", "0x7f12 - 0x7f13")],
    ),
    (
        "Error (criu/mem.c:386): Pid-reuse detection failed: no parent inventory, check warnings in get_parent_inventory",
        "inventory",
        "start the move again",
        &[],
    ),
    (
        "Error (criu/page-xfer.c:410): page-xfer: No parent image found, though parent directory is set: No such file or directory",
        "does not have this image",
        "harmless",
        &[],
    ),
    (
        "Error (criu/uffd.c:349): uffd: connect to lazy-pages.socket failed: No such file or directory",
        "on demand",
        "listen",
        &[],
    ),
    // restartable sequences
    (
        "Error (criu/cr-dump.c:227): 4711 has rseq but kernel lacks get_rseq_conf feature",
        "restartable",
        "glibc.pthread.rseq=0",
        &[("thread", "4711")],
    ),
    (
        "    31: Error (criu/cr-restore.c:2636): rseq: can't restore as kernel doesn't support it",
        "restartable",
        "5.13",
        &[("pid", "31")],
    ),
    (
        "Error (criu/cr-restore.c:1262): 31 killed by signal 11: Segmentation fault",
        "crashed",
        "glibc.pthread.rseq=0",
        &[("pid", "31")],
    ),
    // watches, unix sockets, ghosts
    (
        "Error (criu/fsnotify.c:263): fsnotify: Can't find suitable path for handle (dev 0x1e ino 0x2f3): -2",
        "watched file",
        "newest criu",
        &[("device", "0x1e"), ("inode", "0x2f3")],
    ),
    (
        "Error (criu/sk-unix.c:874): sk unix: External socket is used. Consider using --ext-unix-sk option.",
        "unix socket",
        "--ext-unix-sk",
        &[],
    ),
    (
        "Error (criu/sk-unix.c:881): sk unix: Can't dump half of stream unix connection. name: /run/a; peer name: /run/b",
        "unix stream",
        "close it",
        &[("socket", "/run/a"), ("peer", "/run/b")],
    ),
    (
        "Error (criu/sk-unix.c:418): sk unix: Unix socket 771 without peer 772",
        "unix socket",
        "close it",
        &[("socket", "771"), ("peer", "772")],
    ),
    (
        "Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/x of 9000000 size, increase limit",
        "deleted file",
        "64 MiB",
        &[("file", "/tmp/x"), ("bytes", "9000000")],
    ),
    (
        "Error (criu/files-reg.c:1122): Can't create link remap for /tmp/y. Use link-remap option.",
        "other names",
        "--link-remap",
        &[("file", "/tmp/y")],
    ),
    // namespaces, clocks, old kernels, no root
    (
        "Error (criu/timens.c:101): Unable to set a monotonic clock offset: Permission denied",
        "clock",
        "5.6",
        &[],
    ),
    (
        "Error (criu/namespaces.c:460): Can't dump nested mnt namespace for 4711",
        "namespace inside",
        "sandbox",
        &[("kind", "mnt"), ("pid", "4711")],
    ),
    (
        "Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=1 path=/root/c1.out",
        "standard output",
        "/dev/null",
        &[("fd", "1"), ("mount", "24"), ("file", "/root/c1.out")],
    ),
    (
        "Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=12 path=/root/c1.out",
        "outside the container",
        "inherited",
        &[("fd", "12")],
    ),
    (
        "Error (criu/cr-dump.c:1681): A session leader of 4711(5) is outside of its pid namespace",
        "session of outside",
        "setsid",
        &[("pid", "4711")],
    ),
    (
        "Error (criu/cr-dump.c:1419): A session leader of zombie process 4711(5) is outside of its pid namespace",
        "session of outside",
        "setsid",
        &[("pid", "4711")],
    ),
    ("Error (criu/crtools.c:490): You need to be root to run this command", "root", "capabilities", &[]),
    (
        "Error (criu/config.c:128): Unsupported configuration file format. Please consult man page criu(8)",
        "configuration",
        "default.conf",
        &[],
    ),
    // the rest
    ("Error (criu/vdso.c:401): vdso: Unexpected rt vDSO area bounds", "too old", "4.1", &[]),
    (
        "Error (criu/page-pipe.c:1): page-pipe: tee: 65536: Operation not permitted",
        "pipes",
        "pipe-max-size",
        &[],
    ),
    (
        "Error (criu/file-lock.c:362): Some file locks are hold by dumping tasks! You can try --file-locks to dump them.",
        "locks",
        "--file-locks",
        &[],
    ),
    (
        "Error (criu/net.c:2838): net: Unable to find an external netns: extRootNetNS",
        "network namespace",
        "before the restore",
        &[("key", "extRootNetNS")],
    ),
    ("Error (criu/util.c:1): Can't write pidfile: File exists", "pid file", "remove", &[]),
    ("Error (criu/image.c:1): Unexpected EOF on (empty-image)", "missing", "copied", &[]),
    (
        "Error (criu/page-xfer.c:1): page-xfer: Can't write: No space left on device",
        "do not fit",
        "room",
        &[],
    ),
];

#[test]
fn each_sample_finds_its_rule_with_place_and_mend() {
    for (line, word, mend, places) in SAMPLES {
        let explanation = explain(&format!("(00.012345)something before\n{line}\n"));
        assert!(explanation.cause.contains(word), "{line}: {explanation}");
        let hint = explanation.hint.as_deref().unwrap();
        assert!(hint.contains(mend), "{line}: {hint}");
        assert!(explanation.about.is_some());
        for (name, value) in *places {
            let found = explanation.place.iter().find(|(have, _)| have == name);
            assert_eq!(found.map(|(_, found)| found.as_str()), Some(*value), "{name} of {line}");
        }
    }
}

#[test]
fn every_rule_can_be_reached() {
    for rule in ALL.iter().copied().flatten() {
        let message = rule.words.join(" ");
        let found = find(&message).unwrap();
        assert_eq!(found.words, rule.words, "shadowed by an earlier rule");
    }
}

#[test]
fn the_lines_before_say_which_process_descriptor_and_address() {
    let log = "(00.010) Collected: ino     0x1c family PF_INET    type SOCK_STREAM    port     6379 state TCP_LISTEN       src_addr 10.0.0.1\n\
        (00.011) Dumping task (pid: 4711 comm: redis-server)\n\
        (00.012) 4711 fdinfo 6: pos:                0 flags:             4002/0x1\n\
        (00.013) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 1c\n\
        (00.014) Error (criu/cr-dump.c:2128): Dumping FAILED.\n";
    let explanation = explain(log);
    let expected = [
        ("socket", "1c"),
        ("address", "10.0.0.1 port 6379 (TCP_LISTEN)"),
        ("pid", "4711"),
        ("program", "redis-server"),
        ("fd", "6"),
    ];
    let expected: Vec<(&str, String)> =
        expected.into_iter().map(|(name, value)| (name, value.into())).collect();
    assert_eq!(explanation.place, expected);
}
