//! What a host is or has: processor, kernel, security modules, room.

use super::Subject::{Kernel, Processor, Security, Space};
use super::{Rule, rule};

const LIKE_PROCESSORS: &str =
    "use a host with the same or a newer processor, or give both virtual machines one CPU model";
const NO_TRACKING: &str = "the kernel cannot tell which pages were written (no soft-dirty)";
const TRACK_OTHERWISE: &str = "pre-dumps need CONFIG_MEM_SOFT_DIRTY: use `--tracker auto`, which has other ways, or `--strategy stop-and-copy`";

pub(super) const RULES: &[Rule] = &[
    rule(
        &["FPU xsave area present"],
        Processor,
        "the destination's processor lacks register state (xsave) that the container uses",
        LIKE_PROCESSORS,
    ),
    rule(&["CPU xsave"], Processor, "the two processors save different register state", LIKE_PROCESSORS),
    rule(&["CPU xfeatures"], Processor, "this processor lacks register state of the source's", LIKE_PROCESSORS)
        .at(&[("bits", "unsupported bits (", ")")]),
    rule(
        &["CPU Feature", "not supported on host"],
        Processor,
        "this processor lacks a feature of the source's",
        LIKE_PROCESSORS,
    )
    .at(&[("feature", "CPU Feature ", " not supported")]),
    rule(
        &["required by image is not supported"],
        Processor,
        "this processor lacks a feature of the source's",
        LIKE_PROCESSORS,
    )
    .at(&[("features", "on host (", ")")]),
    rule(&["x86:", "not supported"], Processor, "this processor lacks a feature of the source's", LIKE_PROCESSORS),
    rule(
        &["capabilities do not match run time"],
        Processor,
        "this processor lacks features of the source's",
        LIKE_PROCESSORS,
    ),
    rule(
        &["killed by signal 4:"],
        Processor,
        "a restored process used an instruction that this processor does not have",
        "use a host with the source's processor features; or start the program with the missing ones masked \
         (`GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F`, `GODEBUG=cpu.avx512f=off`, `OPENSSL_ia32cap`) and move it then",
    )
    .at(&[("pid", "", " killed by")]),
    // Kernel
    rule(&["racking memory is not available"], Kernel, NO_TRACKING, TRACK_OTHERWISE),
    rule(&["rack mem", "not supported"], Kernel, NO_TRACKING, TRACK_OTHERWISE),
    rule(
        &["Unexpected rt vDSO area bounds"],
        Kernel,
        "this criu is too old for the kernel",
        "install criu 4.1 or newer",
    ),
    rule(
        &["Can't get 1:16 opt"],
        Kernel,
        "this criu is too old for the kernel (socket option SO_PASSCRED on an inet socket)",
        "install criu 4.2 or newer on kernels 6.16 and newer",
    ),
    rule(
        &["UFFD is not supported"],
        Kernel,
        "the kernel cannot fill memory on demand (userfaultfd)",
        "use `--restore eager`, or a kernel with CONFIG_USERFAULTFD",
    ),
    rule(
        &["Incompatible uffd API"],
        Kernel,
        "the kernel's userfaultfd lacks what filling memory on demand needs",
        "use `--restore eager`, or a newer kernel",
    ),
    rule(
        &["has rseq but kernel lacks"],
        Kernel,
        "the program has restartable sequences (glibc 2.35 and newer) that this kernel does not tell CRIU of",
        "use kernel 5.13 or newer, or start it with `GLIBC_TUNABLES=glibc.pthread.rseq=0`",
    )
    .at(&[("thread", "", " has rseq")]),
    rule(
        &["rseq:", "support"],
        Kernel,
        "the kernel cannot restore restartable sequences",
        "use kernel 5.13 or newer, or start the program with `GLIBC_TUNABLES=glibc.pthread.rseq=0`",
    ),
    rule(
        &["RSEQ ABI version"],
        Kernel,
        "the program uses a version of restartable sequences that CRIU does not know",
        "install the newest criu on both hosts",
    ),
    rule(
        &["Time namespaces are not supported"],
        Kernel,
        "the container has a time namespace and this kernel has none",
        "use kernel 5.6 or newer",
    ),
    rule(
        &["monotonic clock offset"],
        Kernel,
        "the clock of the container's time namespace cannot be set here",
        "CRIU must be root outside of any user namespace, and the kernel 5.6 or newer",
    ),
    rule(
        &["boottime clock offset"],
        Kernel,
        "the clock of the container's time namespace cannot be set here",
        "CRIU must be root outside of any user namespace, and the kernel 5.6 or newer",
    ),
    rule(
        &["timens_offsets"],
        Kernel,
        "this kernel has no time namespaces",
        "use kernel 5.6 or newer with CONFIG_TIME_NS",
    ),
    rule(
        &["Diag module missing"],
        Kernel,
        "a kernel module for socket information is missing",
        "load them: `modprobe -a unix_diag tcp_diag udp_diag inet_diag netlink_diag af_packet_diag`",
    ),
    rule(
        &["tee:", "Operation not permitted"],
        Kernel,
        "pipes may not be made large enough",
        "raise the limit: `sysctl -w fs.pipe-max-size=16777216`, or give criu CAP_SYS_RESOURCE",
    ),
    rule(
        &["Unsupported configuration file format"],
        Kernel,
        "CRIU does not understand its configuration file",
        "look at /etc/criu/default.conf, /etc/criu/runc.conf and ~/.criu/default.conf; an older criu knows fewer options",
    ),
    // Security
    rule(
        &["suspend seccomp"],
        Security,
        "a seccomp filter is in the way",
        "criu must be root with CAP_SYS_ADMIN, and the kernel have CONFIG_CHECKPOINT_RESTORE",
    ),
    rule(
        &["seccomp"],
        Security,
        "a seccomp filter is in the way",
        "criu must be root with CAP_SYS_ADMIN, and the kernel have CONFIG_CHECKPOINT_RESTORE",
    ),
    rule(
        &["apparmor not supported by kernel"],
        Security,
        "the container has an AppArmor profile and this kernel no AppArmor",
        "start the kernel with `apparmor=1`, or run the container without a profile and move it then",
    ),
    rule(
        &["selinux not supported by kernel"],
        Security,
        "the container has an SELinux label and this kernel no SELinux",
        "turn SELinux on here, or run the container with `label=disable` and move it then",
    ),
    rule(
        &["SELinux"],
        Security,
        "the container's SELinux label cannot be used on this host",
        "load the same SELinux policy (container-selinux) on both hosts, and look for denials: `ausearch -m avc`",
    ),
    rule(
        &["selinux"],
        Security,
        "the container's SELinux label cannot be used on this host",
        "load the same SELinux policy (container-selinux) on both hosts, and look for denials: `ausearch -m avc`",
    ),
    rule(
        &["lsm profile"],
        Security,
        "the container's security profile cannot be entered on this host",
        "load it: `apparmor_parser -r` with the source's profile, or install the same SELinux policy",
    ),
    rule(
        &["LSM"],
        Security,
        "the container's security profile is not the same on this host",
        "load the AppArmor profile or SELinux policy on this host",
    ),
    rule(
        &["apparmor"],
        Security,
        "the container's AppArmor profile is not on this host",
        "copy the profile from /etc/apparmor.d of the source, and load it: `apparmor_parser -r FILE`",
    ),
    rule(
        &["transport socket", "Permission denied"],
        Security,
        "a security module keeps CRIU's code in the container from talking to CRIU",
        "look for denials of AppArmor or SELinux: `dmesg | grep -i denied`, `ausearch -m avc`",
    ),
    rule(&["You need to be root"], Security, "criu needs root", "run it as root with all capabilities"),
    rule(
        &["CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE"],
        Security,
        "criu lacks a capability",
        "run it as root with all capabilities; containers without root cannot be moved",
    ),
    // Space
    rule(
        &["No space left on device"],
        Space,
        "the images do not fit",
        "free room in godwit's directory, or name another with `--root`",
    ),
    rule(
        &["Cannot allocate memory"],
        Space,
        "not enough memory",
        "free memory on this host, or raise the cgroup's limit",
    ),
    rule(
        &["Can't open images directory"],
        Space,
        "the images directory is not there",
        "look whether the images were copied to this host",
    ),
    rule(
        &["Unexpected EOF on"],
        Space,
        "an image is missing or cut short",
        "look whether the images were copied completely",
    ),
    rule(
        &["Unable to open", "inventory"],
        Space,
        "the images directory has no inventory",
        "look whether the images were copied completely",
    ),
    rule(
        &["Not supported images version"],
        Space,
        "the images are of another version of CRIU",
        "install the same criu on both hosts",
    ),
];
