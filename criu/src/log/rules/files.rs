//! Open files, mounts, terminals.

use super::Subject::{Files, Mounts, Terminal};
use super::{Rule, rule};

const SAME_FILES: &str = "the destination's root file system or volume must be that of the dump: let godwit copy it \
                          (no `--no-copy` for it), or copy it again after the freeze";
const STANDARD_STREAMS: &str = "start the container with standard streams on `/dev/null` or a pipe";
const NAME_MOUNT: &str =
    "make it a bind mount of the bundle, so that the runtime makes it again, or unmount it in the container";
const NO_TERMINAL: &str =
    "start the container without a terminal (no `-t`, `terminal: false`), or a bare process with `setsid`";
const WATCHER: &str =
    "overlay file systems hide it from older CRIUs: use the newest criu; or stop the watcher before the move";

pub(super) const RULES: &[Rule] = &[
    rule(&["has bad size"], Files, "a file differs from the one that was open at the dump", SAME_FILES)
        .at(&[("file", "File ", " has bad size")]),
    rule(&["has bad mode"], Files, "a file's permissions differ from those at the dump", SAME_FILES)
        .at(&[("file", "File ", " has bad mode")]),
    rule(&["has bad build-ID"], Files, "a program or library differs from the one that ran at the dump", SAME_FILES)
        .at(&[("file", "File ", " has bad build-ID")]),
    rule(&["Can't open file", "on restore"], Files, "a file that was open at the dump is not on this host", SAME_FILES)
        .at(&[("file", "Can't open file ", " on restore")]),
    rule(&["ghost file", "increase limit"], Files, "a deleted file that is still open is too large for the images",
        "let the program close or empty it before the move: godwit lets CRIU take 64 MiB of each along")
        .at(&[("file", "ghost file ", " of "), ("bytes", " of ", " size")]),
    rule(&["link remap for"], Files, "an open file was deleted but has other names", "add `--link-remap`")
        .at(&[("file", "link remap for ", ".")]),
    rule(&["link-remap"], Files, "an open file was deleted but has other names", "add `--link-remap`"),
    rule(&["Some file locks are hold"], Files, "the container holds file locks", "add `--file-locks`"),
    rule(&["suitable path for handle"], Files, "a watched file cannot be found again (inotify, fanotify)", WATCHER)
        .at(&[("device", "dev ", ""), ("inode", "ino ", "")]),
    rule(&["Can't dump that handle"], Files, "a watched file cannot be found again (inotify, fanotify)", WATCHER),
    rule(&["inotify"], Files, "a watched file cannot be found again (inotify)", WATCHER),
    rule(&["fanotify"], Files, "a file watched by fanotify cannot be watched again", WATCHER),
    // the kernel hands such a descriptor to nobody (since 6.7, net/core/scm.c)
    rule(
        &["send_fds failed (-22)"],
        Files,
        "a descriptor cannot be handed to CRIU: io_uring, which it cannot move",
        "turn it off in the application (for example `UV_USE_IO_URING=0` in Node.js, `io_method = worker` in PostgreSQL)",
    ),
    rule(&["io_uring"], Files, "CRIU cannot move io_uring",
        "turn it off in the application (for example `UV_USE_IO_URING=0` in Node.js, `io_method = worker` in PostgreSQL)")
        .at(&[("fd", "Can't dump file ", " of that type")]),
    rule(&["of that type", "userfaultfd"], Files, "CRIU cannot move userfaultfd descriptors",
        "turn off what uses it (for some Java collectors `-XX:-UseZGC`), and move it then")
        .at(&[("fd", "Can't dump file ", " of that type")]),
    rule(&["of that type", "perf_event"], Files, "CRIU cannot move descriptors of performance counters",
        "end the profiler in the container before the move").at(&[("fd", "Can't dump file ", " of that type")]),
    rule(&["of that type", "bpf"], Files, "CRIU cannot move descriptors of BPF programs and links",
        "end what loaded them in the container before the move").at(&[("fd", "Can't dump file ", " of that type")]),
    rule(&["of that type", "chr"], Files, "a device is open that CRIU cannot move",
        "close it before the move; processors of graphics cards need a plugin of CRIU's")
        .at(&[("fd", "Can't dump file ", " of that type"), ("device", "(chr ", ")")]),
    rule(&["of that type"], Files, "something is open that CRIU cannot move",
        "let the program close it before the move")
        .at(&[("fd", "Can't dump file ", " of that type"), ("what", "] (", ")")]),
    rule(&["Can't lookup mount", "fd=0 "], Files, "standard input is a file of the host", STANDARD_STREAMS)
        .at(&[("fd", "fd=", ""), ("mount", "mount=", ""), ("file", "path=", "")]),
    rule(&["Can't lookup mount", "fd=1 "], Files, "standard output is a file of the host", STANDARD_STREAMS)
        .at(&[("fd", "fd=", ""), ("mount", "mount=", ""), ("file", "path=", "")]),
    rule(&["Can't lookup mount", "fd=2 "], Files, "standard error is a file of the host", STANDARD_STREAMS)
        .at(&[("fd", "fd=", ""), ("mount", "mount=", ""), ("file", "path=", "")]),
    rule(&["Can't lookup mount"], Files,
        "a process has a file open that is outside the container, or the kernel tells a mount that is not (old overlay, aufs)",
        "close it, or start the container without inherited descriptors; else use a newer kernel")
        .at(&[("fd", "fd=", ""), ("mount", "mount=", ""), ("file", "path=", "")]),
    rule(&["overmounted mounts"], Files, "an open file lies under a later mount",
        "close it, or mount first and start afterwards")
        .at(&[("fd", "fd=", ""), ("mount", "mount=", ""), ("file", "path=", "")]),
    rule(&["Unaccessible path opened"], Files, "an open file is not what its path leads to now",
        "it was replaced or lies under a mount: let the program open it again; on overlay file systems use a newer kernel"),
    // Mounts
    rule(&["No mapping for", "mountpoint"], Mounts, "a bind mount was not named as external",
        "each bind mount and masked file of the container must be given in dump and restore (`mnt[...]`)")
        .at(&[("mount", "No mapping for ", " mountpoint")]),
    rule(&["doesn't have a proper root mount"], Mounts, "a mount comes from outside the container", NAME_MOUNT)
        .at(&[("mount", ":", " doesn't have")]),
    rule(&["autodetected external mount"], Mounts, "a mount comes from outside the container", NAME_MOUNT),
    rule(&["fuse mount but not external"], Mounts, "the container has a FUSE mount of its own",
        "CRIU cannot move it: unmount it, or mount it on both hosts and make it a bind mount of the bundle"),
    rule(&["FS mnt", "unsupported"], Mounts, "the container has a mount of a kind CRIU cannot move",
        "unmount it (NFS, FUSE, autofs, another overlay), or mount it on both hosts and make it a bind mount of the bundle")
        .at(&[("mount", "FS mnt ", " dev")]),
    rule(&["unreachable sharing"], Mounts, "a mount shares its events with one outside of the container",
        "make it private before the container starts: `mount --make-rprivate`, or `propagation` in the bundle")
        .at(&[("mount", "Mount ", " (master_id")]),
    rule(&["copy sharing from"], Mounts, "mounts that propagate to each other show different directories",
        "mount them with `rslave` or `rprivate` propagation"),
    rule(&["autofs"], Mounts, "the container has an automounter's mount that CRIU cannot move",
        "unmount it in the container; automount on the host and bind the place instead"),
    rule(&["mount points can't be mounted"], Mounts, "mounts of the container cannot be made on this host",
        "look whether the sources of its bind mounts are on this host"),
    rule(&["Unable to dump a file system"], Mounts, "the content of a file system in memory could not be saved",
        "look at the lines before: tar must be on the host, and have room").at(&[("mount", "for ", "")]),
    rule(&["Can't bind-mount"], Mounts, "a bind mount cannot be made on this host",
        "its source must be on this host").at(&[("mount", "Can't bind-mount ", " to ")]),
    // Terminal
    rule(&["Found slave peer", "without"], Terminal, "a terminal's other end is outside the container", NO_TERMINAL)
        .at(&[("terminal", "index ", "")]),
    rule(&["Only one slave", "external peer"], Terminal, "several terminals' other ends are outside the container", NO_TERMINAL)
        .at(&[("terminal", "index ", "")]),
    rule(&["dangling tty"], Terminal, "a terminal of another session is open", NO_TERMINAL)
        .at(&[("terminal", "(", ")"), ("fd", "peer fd ", ".")]),
    rule(&["Unable to find a master"], Terminal, "a terminal's other end is outside the container", NO_TERMINAL)
        .at(&[("terminal", "master for ", "")]),
    rule(&["Don't have tty to inherit"], Terminal, "the restore has no terminal to give",
        "restore with a console socket, or start the container without a terminal"),
    rule(&["ctty inheritance"], Terminal, "the controlling terminal is inherited from a session outside", NO_TERMINAL),
    rule(&["not a session leader"], Terminal, "the processes belong to a session whose leader is not among them",
        "start the tree with `setsid`, or add `--shell-job`").at(&[("pid", "process ", "")]),
];
