//! The known failures.

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Processor,
    Kernel,
    Memory,
    Files,
    Mounts,
    Terminal,
    Sockets,
    Processes,
    Cgroup,
    Security,
    Space,
}

/// A failure known by the words of its message.
pub(super) struct Rule {
    /// All of these are in the message.
    words: &'static [&'static str],
    pub(super) subject: Subject,
    pub(super) cause: &'static str,
    pub(super) hint: &'static str,
}

/// Errors that are in logs of successful dumps and restores too, or are only the echo of another.
pub(super) const HARMLESS: &[&str] = &[
    "Can't setup RLIMIT_NOFILE",
    "Address already assigned",
    "exited, status=1",
    "cgroupd: recv req error",
    "tun: Unable to create tun",
    "CRIU logging may be incomplete",
];

/// The first rule for this message.
pub(super) fn find(message: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.words.iter().all(|words| message.contains(words)))
}

const fn rule(
    words: &'static [&'static str],
    subject: Subject,
    cause: &'static str,
    hint: &'static str,
) -> Rule {
    Rule { words, subject, cause, hint }
}

/// More special rules first. The messages are those of CRIU 3.17 to 4.2.
const RULES: &[Rule] = &[
    // Processor
    rule(
        &["FPU xsave area present"],
        Subject::Processor,
        "the destination's processor lacks register state (xsave) that the container uses",
        "move it to a host with the same or a newer processor, or give the virtual machine the source's CPU model",
    ),
    rule(
        &["CPU xsave"],
        Subject::Processor,
        "the two processors save different register state",
        "use hosts with the same processor features, or a common CPU model in the virtual machines",
    ),
    rule(
        &["CPU xfeatures"],
        Subject::Processor,
        "this processor lacks register state of the source's",
        "use hosts with the same processor features, or a common CPU model in the virtual machines",
    ),
    rule(
        &["CPU Feature", "not supported on host"],
        Subject::Processor,
        "this processor lacks a feature of the source's",
        "use a host with the feature, or a common CPU model in the virtual machines",
    ),
    rule(
        &["required by image is not supported"],
        Subject::Processor,
        "this processor lacks a feature of the source's",
        "use a host with the feature, or a common CPU model in the virtual machines",
    ),
    rule(
        &["x86:", "not supported"],
        Subject::Processor,
        "this processor lacks a feature of the source's",
        "use a host with the feature, or a common CPU model in the virtual machines",
    ),
    rule(
        &["capabilities do not match run time"],
        Subject::Processor,
        "this processor lacks features of the source's",
        "use a host with the same or a newer processor",
    ),
    // Kernel
    rule(
        &["racking memory is not available"],
        Subject::Kernel,
        "the kernel cannot tell which pages were written (no soft-dirty)",
        "pre-dumps need CONFIG_MEM_SOFT_DIRTY; move it with one stop instead, or let godwit track the memory itself",
    ),
    rule(
        &["rack mem", "not supported"],
        Subject::Kernel,
        "the kernel cannot tell which pages were written (no soft-dirty)",
        "pre-dumps need CONFIG_MEM_SOFT_DIRTY; move it with one stop instead, or let godwit track the memory itself",
    ),
    rule(
        &["Unexpected rt vDSO area bounds"],
        Subject::Kernel,
        "this criu is too old for the kernel",
        "install criu 4.1 or newer",
    ),
    rule(
        &["Can't get 1:16 opt"],
        Subject::Kernel,
        "this criu is too old for the kernel (socket option SO_PASSCRED on an inet socket)",
        "install criu 4.2 or newer on kernels 6.16 and newer",
    ),
    rule(
        &["UFFD is not supported"],
        Subject::Kernel,
        "the kernel cannot fill memory on demand (userfaultfd)",
        "restore without lazy pages, or allow it with the sysctl `vm.unprivileged_userfaultfd` or as root",
    ),
    rule(
        &["rseq:", "support"],
        Subject::Kernel,
        "the kernel cannot restore restartable sequences",
        "use kernel 5.13 or newer",
    ),
    rule(
        &["Time namespaces are not supported"],
        Subject::Kernel,
        "the container has a time namespace and this kernel has none",
        "use kernel 5.6 or newer",
    ),
    rule(
        &["Diag module missing"],
        Subject::Kernel,
        "a kernel module for socket information is missing",
        "load `unix_diag`, `tcp_diag`, `udp_diag`, `inet_diag`, `netlink_diag` and `af_packet_diag`",
    ),
    rule(
        &["tee:", "Operation not permitted"],
        Subject::Kernel,
        "pipes may not be made large enough",
        "raise the sysctl `fs.pipe-max-size` to 16777216, or give criu CAP_SYS_RESOURCE",
    ),
    // Memory
    rule(
        &["in parent pagemap"],
        Subject::Memory,
        "a page that should be in an earlier round is not there",
        "an earlier round's images are missing or of another chain: start the move again",
    ),
    rule(
        &["not found in parent"],
        Subject::Memory,
        "a page that should be in an earlier round is not there",
        "an earlier round's images are missing or of another chain: start the move again",
    ),
    rule(
        &["Pid-reuse detection failed"],
        Subject::Memory,
        "the parent directory has no inventory",
        "an earlier round's images are missing: start the move again",
    ),
    rule(
        &["lazy-pages.socket"],
        Subject::Memory,
        "nobody serves the memory on demand",
        "the lazy pages server must listen in the restore's work directory before the restore",
    ),
    rule(
        &["No parent image found"],
        Subject::Memory,
        "the parent directory does not have this image",
        "harmless when the process is new; else an earlier round's images are missing",
    ),
    // Files
    rule(
        &["has bad size"],
        Subject::Files,
        "a file differs from the one that was open at the dump",
        "copy the container's file system and volumes again after the freeze",
    ),
    rule(
        &["has bad mode"],
        Subject::Files,
        "a file's permissions differ from those at the dump",
        "copy the container's file system and volumes with their permissions",
    ),
    rule(
        &["Can't open file", "on restore"],
        Subject::Files,
        "a file that was open at the dump is not on this host",
        "copy the container's file system and volumes, or use the same image",
    ),
    rule(
        &["ghost file", "increase limit"],
        Subject::Files,
        "a deleted file that is still open is too large for the images",
        "raise the ghost limit",
    ),
    rule(
        &["link-remap"],
        Subject::Files,
        "an open file was deleted but has other names",
        "allow link remapping (`link_remap`)",
    ),
    rule(
        &["Some file locks are hold"],
        Subject::Files,
        "the container holds file locks",
        "allow them (`file_locks`)",
    ),
    rule(
        &["inotify"],
        Subject::Files,
        "a watched file cannot be found again",
        "overlay file systems hide it from older CRIUs: use the newest criu, or stop the watcher before the move",
    ),
    rule(
        &["io_uring"],
        Subject::Files,
        "CRIU cannot move io_uring",
        "turn it off in the application (for example `UV_USE_IO_URING=0` in Node.js)",
    ),
    rule(
        &["Can't lookup mount", "fd=0 "],
        Subject::Files,
        "standard input is a file of the host",
        "start the container with standard streams on `/dev/null` or a pipe",
    ),
    rule(
        &["Can't lookup mount", "fd=1 "],
        Subject::Files,
        "standard output is a file of the host",
        "start the container with standard streams on `/dev/null` or a pipe",
    ),
    rule(
        &["Can't lookup mount", "fd=2 "],
        Subject::Files,
        "standard error is a file of the host",
        "start the container with standard streams on `/dev/null` or a pipe",
    ),
    rule(
        &["Can't lookup mount"],
        Subject::Files,
        "a process has a file open that is outside the container",
        "close it, or start the container without inherited descriptors",
    ),
    rule(
        &["overmounted mounts"],
        Subject::Files,
        "an open file lies under a later mount",
        "close it, or mount first and start afterwards",
    ),
    // Mounts
    rule(
        &["No mapping for", "mountpoint"],
        Subject::Mounts,
        "a bind mount was not named as external",
        "each bind mount and masked file of the container must be given in dump and restore (`mnt[...]`)",
    ),
    rule(
        &["doesn't have a proper root mount"],
        Subject::Mounts,
        "a mount comes from outside the container",
        "give it as external (`mnt[...]`)",
    ),
    rule(
        &["autodetected external mount"],
        Subject::Mounts,
        "a mount comes from outside the container",
        "give it as external (`mnt[...]`)",
    ),
    rule(
        &["fuse mount but not external"],
        Subject::Mounts,
        "the container has a FUSE mount of its own",
        "CRIU cannot move it: unmount it, or mount it on both hosts and give it as external",
    ),
    rule(
        &["FS mnt", "unsupported"],
        Subject::Mounts,
        "the container has a mount of a kind CRIU cannot move",
        "unmount it, or mount it on both hosts and give it as external",
    ),
    rule(
        &["Nested mount namespaces"],
        Subject::Mounts,
        "the container has mount namespaces inside",
        "CRIU cannot move them together with this user namespace",
    ),
    rule(
        &["external netns"],
        Subject::Mounts,
        "the network namespace was not handed to the restore under the dump's key",
        "make the namespace before the restore; images of an earlier dump in the same directory do this too",
    ),
    rule(
        &["external pidns"],
        Subject::Mounts,
        "the pid namespace was not handed to the restore under the dump's key",
        "make the namespace before the restore",
    ),
    // Terminal
    rule(
        &["Found slave peer", "without"],
        Subject::Terminal,
        "a terminal's other end is outside the container",
        "allow it (`orphan_pts_master`) and give the restore a console socket, or start the container without a terminal",
    ),
    rule(
        &["dangling tty"],
        Subject::Terminal,
        "a terminal of another session is open",
        "start the container without a terminal, or with its own (`orphan_pts_master`)",
    ),
    rule(
        &["Unable to find a master"],
        Subject::Terminal,
        "a terminal's other end is outside the container",
        "start the container without a terminal, or with its own (`orphan_pts_master`)",
    ),
    rule(
        &["Don't have tty to inherit"],
        Subject::Terminal,
        "the restore has no terminal to give",
        "restore with a console socket, or start the container without a terminal",
    ),
    rule(
        &["session leader"],
        Subject::Terminal,
        "the processes belong to a session whose leader is not among them",
        "start the tree with `setsid`, or allow a foreign session (`shell_job`)",
    ),
    // Sockets
    rule(
        &["Connected TCP socket"],
        Subject::Sockets,
        "the container has TCP connections",
        "allow them (`tcp_established`) in dump and restore",
    ),
    rule(
        &["In-flight connection"],
        Subject::Sockets,
        "a TCP connection is just being made",
        "try again, or leave such connections out (`tcp_skip_in_flight`)",
    ),
    rule(
        &["External socket"],
        Subject::Sockets,
        "a unix socket's other end is outside the container",
        "allow it (`ext_unix_sk`) or close it before the move",
    ),
    rule(
        &["name-less external socket"],
        Subject::Sockets,
        "a unix socket pair reaches outside the container",
        "it cannot be moved: close it, or give it as external (`unix[...]`)",
    ),
    rule(
        &["Unsupported proto 262"],
        Subject::Sockets,
        "the container uses multipath TCP, which CRIU cannot move",
        "for Go programs set `GODEBUG=multipathtcp=0`",
    ),
    rule(
        &["Unsupported proto"],
        Subject::Sockets,
        "the container uses a network protocol CRIU cannot move",
        "close such sockets before the move",
    ),
    rule(
        &["Can't bind inet socket", "Cannot assign requested address"],
        Subject::Sockets,
        "an address of the container does not exist on this host",
        "give the network namespace the container's addresses before the restore",
    ),
    rule(
        &["Can't bind inet socket", "Address already in use"],
        Subject::Sockets,
        "a port of the container is in use on this host",
        "stop what listens there, or give the container its own network namespace",
    ),
    rule(
        &["Can't bind inet socket"],
        Subject::Sockets,
        "a socket's address cannot be had on this host",
        "give the network namespace the container's addresses, and look for what uses the port",
    ),
    rule(
        &["external network namespace"],
        Subject::Sockets,
        "a socket belongs to another network namespace",
        "close it before the move",
    ),
    rule(
        &["iptables"],
        Subject::Sockets,
        "iptables cannot be run",
        "install iptables (or nftables) on this host",
    ),
    // Processes
    rule(
        &["Can't fork for", "File exists"],
        Subject::Processes,
        "a pid of the container is taken on this host",
        "restore into a pid namespace of its own, or end the process with that pid",
    ),
    rule(
        &["Pid", "do not match expected"],
        Subject::Processes,
        "a pid of the container is taken on this host",
        "restore into a pid namespace of its own, or end the process with that pid",
    ),
    rule(
        &["already being traced"],
        Subject::Processes,
        "a process of the container is traced by a debugger",
        "detach the debugger",
    ),
    rule(
        &["is already traced"],
        Subject::Processes,
        "a process of the container is traced by a debugger",
        "detach the debugger",
    ),
    rule(
        &["Unseizable non-zombie"],
        Subject::Processes,
        "a process cannot be stopped: it is traced, or waits in the kernel",
        "look at its state and stack in /proc; a hanging network file system is a common reason",
    ),
    rule(
        &["Timeout reached"],
        Subject::Processes,
        "the processes could not be stopped in time",
        "one of them waits in the kernel (state D), or its cgroup was frozen and not named",
    ),
    rule(
        &["Can't write pidfile"],
        Subject::Processes,
        "the pid file exists already",
        "remove the pid file of the earlier restore",
    ),
    rule(
        &["Zombie thread"],
        Subject::Processes,
        "a process has a dead thread group leader with living threads",
        "restart that process",
    ),
    // Cgroups
    rule(
        &["Unable to freeze cgroup"],
        Subject::Cgroup,
        "the cgroup could not be frozen in time",
        "one of its processes waits in the kernel (state D)",
    ),
    rule(
        &["cgroup.freeze"],
        Subject::Cgroup,
        "the cgroup to freeze has no freezer",
        "name the container's own cgroup directory, of cgroup v2 or of the v1 freezer hierarchy",
    ),
    rule(
        &["cgns prefix"],
        Subject::Cgroup,
        "the images hold the cgroup path of another container id",
        "restore under the same id, or rewrite the id in `cgroup.img`",
    ),
    rule(
        &["cgroup"],
        Subject::Cgroup,
        "a cgroup of the container cannot be had on this host",
        "compare the cgroup hierarchies and controllers of both hosts",
    ),
    rule(
        &["cg:"],
        Subject::Cgroup,
        "a cgroup of the container cannot be had on this host",
        "compare the cgroup hierarchies and controllers of both hosts",
    ),
    // Security
    rule(
        &["seccomp"],
        Subject::Security,
        "a seccomp filter is in the way",
        "criu must be root with CAP_SYS_ADMIN, and the kernel have CONFIG_CHECKPOINT_RESTORE",
    ),
    rule(
        &["LSM"],
        Subject::Security,
        "the container's security profile is not the same on this host",
        "load the AppArmor profile or SELinux policy on this host",
    ),
    rule(
        &["apparmor"],
        Subject::Security,
        "the container's AppArmor profile is not on this host",
        "load the profile on this host",
    ),
    rule(
        &["transport socket", "Permission denied"],
        Subject::Security,
        "a security module keeps CRIU's code in the container from talking to CRIU",
        "look at the audit log for AppArmor or SELinux denials",
    ),
    rule(
        &["You need to be root"],
        Subject::Security,
        "criu needs root",
        "run it as root with all capabilities",
    ),
    // Space
    rule(
        &["No space left on device"],
        Subject::Space,
        "the images do not fit",
        "free room, or put the images elsewhere",
    ),
    rule(
        &["Cannot allocate memory"],
        Subject::Space,
        "not enough memory",
        "free memory on this host, or raise the cgroup's limit",
    ),
    rule(
        &["Can't open images directory"],
        Subject::Space,
        "the images directory is not there",
        "look whether the images were copied to this host",
    ),
    rule(
        &["Unexpected EOF on"],
        Subject::Space,
        "an image is missing or cut short",
        "look whether the images were copied completely",
    ),
    rule(
        &["Unable to open", "inventory"],
        Subject::Space,
        "the images directory has no inventory",
        "look whether the images were copied completely",
    ),
];

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::*;

    /// Messages as CRIU prints them, and a word of the cause that must come out.
    const SAMPLES: &[(&str, &str)] = &[
        ("x86: FPU xsave area present, but host cpu doesn't support it", "xsave"),
        (
            "cpu: FPU feature required by image is not supported on host (fpu:0 fxsr:0 osxsave:0 xsaves:1)",
            "processor",
        ),
        ("Tracking memory is not available. Consider omitting --track-mem option.", "soft-dirty"),
        ("vdso: Unexpected rt vDSO area bounds", "too old"),
        ("Can't get 1:16 opt: Operation not supported", "too old"),
        ("page-pipe: tee: 65536: Operation not permitted", "pipes"),
        ("Missing 7f0000001000 in parent pagemap", "earlier round"),
        ("File root/app.log has bad size 297 (expect 279)", "differs"),
        ("File etc/x has bad mode 0100600 (expect 0100644)", "permissions"),
        ("Can't open file srv/x on restore: No such file or directory", "not on this host"),
        ("Can't dump ghost file /tmp/x of 9000000 size, increase limit", "deleted file"),
        ("Some file locks are hold by dumping tasks! You can try --file-locks to dump them.", "locks"),
        ("Can't lookup mount=24 for fd=1 path=/root/c1.out", "standard output"),
        ("Can't lookup mount=24 for fd=12 path=/root/c1.out", "outside the container"),
        ("mnt: No mapping for 352:(null) mountpoint", "bind mount"),
        ("mnt: 12:./data doesn't have a proper root mount", "outside"),
        ("Unable to find an external netns: extRootNetNS", "network namespace"),
        ("tty: Found slave peer index 3 without correspond master peer", "terminal"),
        ("The root process 77 is not a session leader. Consider using --shell-job option", "session"),
        ("inet: Connected TCP socket, consider using --tcp-established option.", "TCP connections"),
        ("sk unix: External socket is used. Consider using --ext-unix-sk option.", "unix socket"),
        ("inet: Unsupported proto 262 for socket 1c", "multipath"),
        ("inet: Can't bind inet socket (id 5): Cannot assign requested address", "does not exist"),
        ("inet: Can't bind inet socket (id 5): Address already in use", "in use"),
        ("Can't fork for 31: File exists", "pid"),
        ("SEIZE 12: task is already traced", "debugger"),
        ("Timeout reached. Try to interrupt: 0", "stopped in time"),
        ("Can't write pidfile: File exists", "pid file"),
        ("cg: couldn't set cgns prefix /docker/x: No such file or directory", "container id"),
        ("Unexpected EOF on (empty-image)", "missing"),
        ("page-xfer: Can't write: No space left on device", "do not fit"),
    ];

    #[test]
    fn each_sample_finds_its_rule() {
        for (message, word) in SAMPLES {
            let explanation =
                explain(&format!("(00.012345)    31: Error (criu/some-file.c:1234): {message}\n"));
            assert!(explanation.cause.contains(word), "{message}: {explanation}");
            assert!(explanation.cause.contains(message), "the message itself is kept");
            assert!(explanation.hint.is_some());
        }
    }

    #[test]
    fn every_rule_can_be_reached() {
        for rule in RULES {
            let message = rule.words.join(" ");
            let found = find(&message).unwrap();
            assert_eq!(found.words, rule.words, "shadowed by an earlier rule");
        }
    }
}
