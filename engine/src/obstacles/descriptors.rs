//! Open files that CRIU cannot dump, or only when it is told to.

use super::watches::{Finder, Watch};
use crate::sys::xattr;
use godwit_criu::DumpOptions;
use godwit_migration::plan::Carry;
use godwit_migration::quantity::show_bytes;
use godwit_transfer::message::Refusal;
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

/// Anonymous inodes that CRIU dumps (files.c, dump_one_file()).
const ANONYMOUS: &[&str] =
    &["[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]", "bpf-map"];
/// Protocols of the sockets that CRIU dumps, as the kernel calls them (`struct proto`, net/*).
const PROTOCOLS: &[&str] = &[
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "RAW",
    "RAWv6",
    "PING",
    "PINGv6",
    "UNIX",
    "UNIX-STREAM",
    "UNIX-DGRAM",
    "NETLINK",
    "PACKET",
];
/// Majors of the character devices that CRIU opens again by name, or knows (files.c, dump_chrdev()): memory, terminals,
/// of the miscellaneous ones tun and autofs.
const MEMORY_MAJOR: u64 = 1;
const MISC_MAJOR: u64 = 10;
const MISC_MINORS: &[u64] = &[200, 235];
const TERMINAL_MAJORS: &[u64] = &[4, 5, 136, 137, 138, 139, 140, 141, 142, 143, 188, 204, 229];

/// What /proc tells of a descriptor.
#[derive(Debug, Default, Clone)]
pub(super) struct Descriptor {
    pid: i32,
    number: i32,
    /// Where its link in /proc/PID/fd leads.
    target: String,
    /// /proc/PID/fdinfo/N (proc_pid_fdinfo(5)).
    info: String,
    /// Of a character device: its number.
    device: Option<(u64, u64)>,
    /// Of a file: how many names it has, and its size on disk in bytes.
    names_and_bytes: Option<(u64, u64)>,
    /// Of a socket.
    protocol: Option<String>,
}

impl Descriptor {
    /// All of a task; none when it has gone.
    pub(super) fn all(pid: i32) -> Vec<Descriptor> {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries.flatten().filter_map(number).filter_map(|number| Self::look(pid, number)).collect()
    }

    fn look(pid: i32, number: i32) -> Option<Descriptor> {
        let link = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
        let target = std::fs::read_link(&link).ok()?.to_string_lossy().into_owned();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let mut descriptor = Descriptor { pid, number, target, info, ..Descriptor::default() };
        if descriptor.target.starts_with("socket:") {
            let path = CString::new(link.into_os_string().into_encoded_bytes()).ok()?;
            let name = xattr::get(&path, c"system.sockprotoname").ok();
            descriptor.protocol =
                name.map(|name| String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned());
        } else if let Ok(meta) = std::fs::metadata(&link) {
            if meta.file_type().is_char_device() {
                descriptor.device =
                    Some((nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev())));
            } else if meta.is_file() {
                descriptor.names_and_bytes = Some((meta.nlink(), meta.blocks() * 512));
            }
        }
        Some(descriptor)
    }

    /// The inode of a socket.
    pub(super) fn socket(&self) -> Option<u64> {
        self.target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    /// What is wrong with the files that it watches, if anything is.
    pub(super) fn watched(&self, finder: &mut Finder) -> Option<Refusal> {
        finder.obstacle(self.pid, self.number, &Watch::all(&self.info))
    }

    /// What else is wrong with it, if anything is.
    pub(super) fn obstacle(&self, carry: &Carry) -> Option<Refusal> {
        self.of_anonymous()
            .or_else(|| self.of_socket())
            .or_else(|| self.of_device())
            .or_else(|| self.of_deleted(carry))
            .or_else(|| self.of_lock(carry))
    }

    fn refuse(&self, what: &str, hint: &str) -> Option<Refusal> {
        Some(Refusal::new(format!("descriptor {} of process {} is {what}", self.number, self.pid)).hint(hint))
    }

    fn of_anonymous(&self) -> Option<Refusal> {
        let kind = self.target.strip_prefix("anon_inode:")?;
        if ANONYMOUS.contains(&kind) {
            return None;
        }
        let what = format!("`{kind}`, which CRIU cannot move");
        let hint = match kind {
            "[io_uring]" => {
                "turn io_uring off in the application: `UV_USE_IO_URING=0` for Node.js, `io_method = worker` for PostgreSQL"
            }
            "[userfaultfd]" => {
                "turn off what uses userfaultfd (a Java collector, a debugger), and start it again"
            }
            "[perf_event]" => "end the profiler in the container",
            kind if kind.starts_with("bpf") => "end what loaded BPF programs in the container",
            kind if kind.starts_with("kvm") => "virtual machines are moved by what runs them",
            _ => "let the program close it before the move",
        };
        self.refuse(&what, hint)
    }

    fn of_socket(&self) -> Option<Refusal> {
        let protocol = self.protocol.as_deref()?;
        if PROTOCOLS.contains(&protocol) {
            return None;
        }
        let what = format!("a socket of protocol {protocol}, which CRIU cannot move");
        let hint = match protocol {
            "MPTCP" | "MPTCPv6" => {
                "programs in Go from 1.24 on listen with it: start them with `GODEBUG=multipathtcp=0`; else set the sysctl \
                 `net.mptcp.enabled=0` in the container before they start"
            }
            _ => "let the program close it before the move",
        };
        self.refuse(&what, hint)
    }

    fn of_device(&self) -> Option<Refusal> {
        let (major, minor) = self.device?;
        let known = major == MEMORY_MAJOR
            || TERMINAL_MAJORS.contains(&major)
            || major == MISC_MAJOR && MISC_MINORS.contains(&minor);
        if known {
            return None;
        }
        let what = format!("the device `{}` ({major}:{minor}), which CRIU cannot move", self.target);
        self.refuse(&what, "let the program close it before the move; a graphics card stays with its host")
    }

    fn of_deleted(&self, carry: &Carry) -> Option<Refusal> {
        let path = self.target.strip_suffix(" (deleted)").filter(|path| path.starts_with('/'))?;
        let (names, bytes) = self.names_and_bytes.filter(|_| !path.starts_with("/memfd:"))?;
        let limit = u64::from(DumpOptions::new(0, "", "").ghost_limit);
        match names {
            0 if bytes > limit => {
                let (bytes, limit) = (show_bytes(bytes), show_bytes(limit));
                let what = format!(
                    "the deleted file `{path}` of {bytes}, of which CRIU takes at most {limit} along"
                );
                self.refuse(
                    &what,
                    "let the program close or empty it: often a log that was rotated, or a temporary file",
                )
            }
            0 => None,
            _ if carry.link_remap => None,
            _ => self
                .refuse(&format!("the deleted file `{path}`, which has other names"), "add `--link-remap`"),
        }
    }

    fn of_lock(&self, carry: &Carry) -> Option<Refusal> {
        let lock = self.info.lines().find_map(|line| line.strip_prefix("lock:"))?;
        if carry.file_locks {
            return None;
        }
        let kind = lock.split_whitespace().nth(1).unwrap_or("a");
        self.refuse(
            &format!("`{}` with a lock ({kind}) on it", self.target),
            "add `--file-locks` to take locks along",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn told(descriptor: &Descriptor, carry: &Carry) -> Option<(String, String)> {
        descriptor.obstacle(carry).map(|refusal| (refusal.reason, refusal.hint.unwrap_or_default()))
    }

    fn of(target: &str) -> Descriptor {
        Descriptor { pid: 7, number: 3, target: target.into(), ..Descriptor::default() }
    }

    #[test]
    fn anonymous_inodes_that_criu_does_not_know_are_named_with_their_switch() {
        let carry = Carry::default();
        for (kind, mend) in [
            ("[io_uring]", "UV_USE_IO_URING=0"),
            ("[userfaultfd]", "userfaultfd"),
            ("[perf_event]", "profiler"),
            ("bpf-prog", "BPF"),
            ("kvm-vm", "virtual machines"),
            ("sync_file", "close it"),
        ] {
            let (reason, hint) = told(&of(&format!("anon_inode:{kind}")), &carry).unwrap();
            assert!(reason.contains("descriptor 3 of process 7") && reason.contains(kind), "{reason}");
            assert!(hint.contains(mend), "{kind}: {hint}");
        }
        for kind in ANONYMOUS {
            assert_eq!(told(&of(&format!("anon_inode:{kind}")), &carry), None);
        }
        for target in ["pipe:[12]", "/dev/null", "/srv/x", "socket:[5]", "mnt:[4026531841]"] {
            assert_eq!(told(&of(target), &carry), None, "{target}");
        }
    }

    #[test]
    fn protocols_that_criu_does_not_know_are_refused() {
        let of = |protocol: &str| Descriptor { protocol: Some(protocol.into()), ..of("socket:[5]") };
        let (reason, hint) = told(&of("MPTCP"), &Carry::default()).unwrap();
        assert!(reason.contains("MPTCP") && hint.contains("GODEBUG=multipathtcp=0"), "{reason}: {hint}");
        for protocol in ["SCTP", "AF_VSOCK", "XDP", "CAN_RAW", "RDS"] {
            assert!(told(&of(protocol), &Carry::default()).unwrap().0.contains(protocol));
        }
        assert_eq!(told(&of("TCPv6"), &Carry::default()), None);
    }

    #[test]
    fn own_sockets_have_the_protocol_that_the_kernel_says() {
        use std::net::{TcpListener, UdpSocket};
        use std::os::unix::net::{UnixDatagram, UnixStream};
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let all = Descriptor::all(std::process::id().cast_signed());
        for number in [tcp.as_raw_fd(), udp.as_raw_fd(), stream.as_raw_fd(), datagram.as_raw_fd()] {
            let descriptor = all.iter().find(|descriptor| descriptor.number == number).unwrap();
            let protocol = descriptor.protocol.as_deref().unwrap();
            assert!(PROTOCOLS.contains(&protocol), "{protocol}");
            assert!(descriptor.socket().is_some());
        }
    }

    #[test]
    fn devices_are_judged_by_their_number() {
        let of = |device| Descriptor { device: Some(device), ..of("/dev/some") };
        for known in [(1, 3), (1, 9), (5, 2), (136, 0), (10, 200)] {
            assert_eq!(told(&of(known), &Carry::default()), None, "{known:?}");
        }
        for unknown in [(195, 255), (10, 229), (226, 128), (10, 232)] {
            let (reason, _) = told(&of(unknown), &Carry::default()).unwrap();
            assert!(reason.contains(&format!("({}:{})", unknown.0, unknown.1)), "{reason}");
        }
    }

    #[test]
    fn deleted_files_are_carried_up_to_a_size_and_only_without_other_names() {
        let of = |path: &str, names, bytes| Descriptor {
            names_and_bytes: Some((names, bytes)),
            ..of(&format!("{path} (deleted)"))
        };
        let carry = Carry::default();
        assert_eq!(told(&of("/tmp/x", 0, 1 << 20), &carry), None);
        assert_eq!(told(&of("/memfd:x", 0, 1 << 40), &carry), None);
        let (reason, _) = told(&of("/tmp/x", 0, 1 << 30), &carry).unwrap();
        assert!(reason.contains("`/tmp/x` of 1.0 GiB"), "{reason}");
        let (_, hint) = told(&of("/tmp/x", 1, 1), &carry).unwrap();
        assert!(hint.contains("--link-remap"));
        assert_eq!(told(&of("/tmp/x", 1, 1), &Carry { link_remap: true, ..carry }), None);
    }

    #[test]
    fn a_lock_is_seen_until_it_is_allowed() {
        let file = tempfile::tempfile().unwrap();
        let look = || Descriptor::look(std::process::id().cast_signed(), file.as_raw_fd()).unwrap();
        assert_eq!(told(&look(), &Carry::default()), None);
        file.lock().unwrap();
        let (reason, hint) = told(&look(), &Carry::default()).unwrap();
        assert!(reason.contains("(FLOCK)") && hint.contains("--file-locks"), "{reason}");
        assert_eq!(told(&look(), &Carry { file_locks: true, ..Carry::default() }), None);
    }
}
