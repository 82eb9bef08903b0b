//! What /proc tells of a process tree that is to be moved: memory, descriptors, mounts, connections.

use crate::error::EngineError;
use godwit_migration::plan::Carry;
use godwit_transfer::message::Refusal;
use procfs::net::TcpState;
use procfs::process::{FDTarget, MMPermissions, MountInfo, MountOptFields, Process};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File systems whose mounts CRIU cannot make again, unless the runtime brings them from outside.
const NOT_RESTORABLE: &[&str] = &[
    "fuse",
    "fuseblk",
    "autofs",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "ceph",
    "virtiofs",
    "zfs",
    "btrfs",
    "xfs",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "bcachefs",
    "vfat",
    "exfat",
    "ntfs3",
    "iso9660",
    "squashfs",
    "erofs",
    "lustre",
    "gfs2",
    "ocfs2",
    "afs",
    "nsfs",
    "bpf",
    "hugetlbfs",
    "ramfs",
    "configfs",
    "efivarfs",
    "nfsd",
    "rpc_pipefs",
];

fn unreadable(pid: i32) -> impl FnOnce(procfs::ProcError) -> EngineError {
    move |error| EngineError::Unreadable {
        path: PathBuf::from(format!("/proc/{pid}")),
        reason: error.to_string(),
    }
}

/// Whether a task is gone, or only waits to be reaped: it has no mappings and no mounts then.
fn has_ended(pid: i32) -> bool {
    let stat = Process::new(pid).and_then(|process| process.stat());
    stat.map_or(true, |stat| matches!(stat.state, 'Z' | 'X'))
}

/// Resident memory of the tasks in bytes: what they have for themselves, and shared memory once.
pub fn memory_bytes(pids: &BTreeSet<i32>) -> u64 {
    let mut shared: u64 = 0;
    let mut own = 0u64;
    for pid in pids {
        // a task may end while we look
        let Ok(status) = Process::new(*pid).and_then(|process| process.status()) else { continue };
        own += status.rssanon.unwrap_or(0) + status.vmswap.unwrap_or(0);
        shared = shared.max(status.rssshmem.unwrap_or(0));
    }
    (own + shared) * 1024
}

/// The files (device, inode) that some task maps shared and writable.
///
/// # Errors
/// When a task that exists cannot be read.
pub fn mapped_files(pids: &BTreeSet<i32>) -> Result<HashSet<(u64, u64)>, EngineError> {
    let mut files = HashSet::new();
    for pid in pids {
        let Ok(process) = Process::new(*pid) else { continue };
        let maps = match process.maps() {
            Ok(maps) => maps,
            Err(_) if has_ended(*pid) => continue,
            Err(error) => return Err(unreadable(*pid)(error)),
        };
        for map in maps {
            let wanted = MMPermissions::SHARED | MMPermissions::WRITE;
            if map.inode == 0 || !map.perms.contains(wanted) {
                continue;
            }
            // by way of map_files: `maps` shows the device of the super block, which is not st_dev on every file system
            let link = format!("/proc/{pid}/map_files/{:x}-{:x}", map.address.0, map.address.1);
            if let Ok(meta) = std::fs::metadata(link) {
                files.insert((meta.dev(), meta.ino()));
            }
        }
    }
    Ok(files)
}

/// The regular files (device, inode) that some task has open. Tasks and descriptors that end meanwhile have closed theirs.
pub fn open_files(pids: &BTreeSet<i32>) -> HashSet<(u64, u64)> {
    let descriptors = pids.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok());
    // the file that the link leads to, and not the link
    let files =
        descriptors.flatten().flatten().filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok());
    files.filter(std::fs::Metadata::is_file).map(|meta| (meta.dev(), meta.ino())).collect()
}

/// What cannot be moved about the descriptors of the tasks.
///
/// `terminal_allowed` is for a tree that the user wants to move with its terminal (`--shell-job`).
///
/// # Errors
/// When a task that exists cannot be read.
pub fn descriptor_blockers(pids: &BTreeSet<i32>, carry: &Carry) -> Result<Vec<Refusal>, EngineError> {
    let mut blockers = Vec::new();
    for pid in pids {
        let Ok(process) = Process::new(*pid) else { continue };
        let mounts: HashSet<i32> = match process.mountinfo() {
            Ok(mounts) => mounts.iter().map(|mount| mount.mnt_id).collect(),
            Err(_) if has_ended(*pid) => continue,
            Err(error) => return Err(unreadable(*pid)(error)),
        };
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            let (number, target) = (descriptor.fd, descriptor.target);
            let FDTarget::Path(path) = target else { continue };
            let shown = path.display();
            if is_terminal(&path) {
                if !carry.shell_job {
                    blockers.push(
                        Refusal::new(format!("descriptor {number} of process {pid} is the terminal `{shown}`"))
                            .hint("start the container without a terminal, or a bare process with `setsid` and its output elsewhere"),
                    );
                }
            } else if let Some(mount) = mount_of_descriptor(*pid, number)
                && !mounts.contains(&mount)
            {
                // devices as well: CRIU looks for the mount of whatever has a path, even of /dev/null
                blockers.push(
                    Refusal::new(format!(
                        "descriptor {number} of process {pid} is `{shown}`, a file of the host outside of the container"
                    ))
                    .hint("start the container with its input and output on /dev/null, on a pipe, or on a file inside"),
                );
            }
        }
    }
    Ok(blockers)
}

fn is_terminal(path: &Path) -> bool {
    path.starts_with("/dev/pts/") && path.file_name().is_some_and(|name| name != "ptmx")
        || path == Path::new("/dev/tty")
        || path == Path::new("/dev/console")
        || path.to_str().is_some_and(|path| {
            path.strip_prefix("/dev/tty")
                .is_some_and(|rest| rest.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()))
        })
}

/// `mnt_id` of /proc/PID/fdinfo/N (proc_pid_fdinfo(5)).
fn mount_of_descriptor(pid: i32, number: i32) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Mounts in the container's mount namespace that CRIU could not make again. `external` are those the runtime makes.
///
/// # Errors
/// When the task cannot be read.
pub fn mount_blockers(pid: i32, external: &[PathBuf]) -> Result<Vec<Refusal>, EngineError> {
    let mounts = Process::new(pid).and_then(|process| process.mountinfo()).map_err(unreadable(pid))?;
    Ok(judge_mounts(&mounts.into_iter().collect::<Vec<_>>(), external))
}

fn judge_mounts(mounts: &[MountInfo], external: &[PathBuf]) -> Vec<Refusal> {
    let mut blockers = Vec::new();
    for mount in mounts {
        let at = &mount.mount_point;
        let kind = mount.fs_type.split('.').next().unwrap_or_default();
        if at == Path::new("/") || external.iter().any(|path| path == at) || !NOT_RESTORABLE.contains(&kind) {
            continue;
        }
        // a second mount of something that is mounted anyway is made from the first
        let twin = |other: &&MountInfo| other.majmin == mount.majmin && external.contains(&other.mount_point);
        if kind != "fuse"
            && mounts.iter().any(|other| {
                twin(&other) || (other.mount_point == Path::new("/") && other.majmin == mount.majmin)
            })
        {
            continue;
        }
        blockers.push(
            Refusal::new(format!(
                "CRIU cannot move the mount of type `{}` at `{}`",
                mount.fs_type,
                at.display()
            ))
            .hint("unmount it inside of the container, or make it a bind mount of the bundle"),
        );
    }
    blockers.extend(unlike_peers(mounts));
    blockers
}

/// Mounts that propagate to each other (mount_namespaces(7)) and show different directories: CRIU makes one of them and has the
/// others join its peers, which the kernel allows only below what the first one shows (do_set_group, fs/namespace.c).
fn unlike_peers(mounts: &[MountInfo]) -> Vec<Refusal> {
    let mut groups: BTreeMap<u32, Vec<&MountInfo>> = BTreeMap::new();
    let mut peers = BTreeSet::new();
    for mount in mounts {
        for field in &mount.opt_fields {
            let (MountOptFields::Shared(group) | MountOptFields::Master(group)) = field else { continue };
            groups.entry(*group).or_default().push(mount);
            if let MountOptFields::Shared(_) = field {
                peers.insert(*group);
            }
        }
    }
    let unlike = groups.into_iter().filter(|(group, members)| {
        let shows_all =
            |one: &&MountInfo| members.iter().all(|other| Path::new(&other.root).starts_with(&one.root));
        peers.contains(group) && !members.iter().any(shows_all)
    });
    let told = unlike.map(|(_, members)| {
        let places: Vec<String> = members.iter().map(|mount| format!("`{}`", mount.mount_point.display())).collect();
        Refusal::new(format!(
            "CRIU cannot make mounts that propagate to each other and show different directories: {}",
            places.join(", ")
        ))
        .hint("mount them with `rslave`, which brings what is mounted on the host into the container, or with `rprivate`")
    });
    told.collect()
}

/// Established TCP connections of the tree as `local – remote`, those that CRIU would have to carry.
///
/// # Errors
/// When a task that exists cannot be read.
pub fn established_connections(pids: &BTreeSet<i32>) -> Result<Vec<String>, EngineError> {
    let mut inodes = HashSet::new();
    let mut tables = None;
    for pid in pids {
        let Ok(process) = Process::new(*pid) else { continue };
        let descriptors = match process.fd() {
            Ok(descriptors) => descriptors,
            Err(_) if has_ended(*pid) => continue,
            Err(error) => return Err(unreadable(*pid)(error)),
        };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                inodes.insert(inode);
            }
        }
        if tables.is_none() {
            // a kernel without IPv6 has no second table
            tables = Some([process.tcp().unwrap_or_default(), process.tcp6().unwrap_or_default()].concat());
        }
    }
    let established = |entry: &procfs::net::TcpNetEntry| {
        !matches!(entry.state, TcpState::Listen | TcpState::TimeWait | TcpState::Close)
            && inodes.contains(&entry.inode)
    };
    Ok(tables
        .unwrap_or_default()
        .iter()
        .filter(|entry| established(entry))
        .map(|entry| format!("{} – {}", entry.local_address, entry.remote_address))
        .collect())
}

/// What must be said about connections that nobody asked to carry.
pub fn connection_blocker(connections: &[String], carry: &Carry) -> Option<Refusal> {
    if connections.is_empty() || carry.tcp_established {
        return None;
    }
    let first = &connections[0];
    Some(
        Refusal::new(format!("it has {} established TCP connections ({first}, …)", connections.len()))
            .hint("add `--tcp-established` to take them along"),
    )
}

/// Gives up the supplementary groups of this process, and thus of all that it starts. CRIU leaves those that it has itself to a
/// restored task that had none.
///
/// # Errors
/// When that is not allowed.
pub fn without_groups() -> Result<(), EngineError> {
    let path = "/proc/self/status";
    let groups = nix::unistd::getgroups()
        .map_err(|errno| EngineError::io("read the groups of", path)(errno.into()))?;
    if groups.is_empty() {
        return Ok(());
    }
    nix::unistd::setgroups(&[]).map_err(|errno| EngineError::io("give up the groups of", path)(errno.into()))
}

/// Whether two processes share a namespace of that kind (`net`, `mnt`, `pid`): namespaces(7).
pub fn same_namespace(one: &str, other: &str, kind: &str) -> bool {
    let read = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    read(one).is_some_and(|namespace| Some(namespace) == read(other))
}

/// Inode of a namespace, as CRIU's external names want it: `net[INODE]`.
///
/// # Errors
/// When the task is gone.
pub fn namespace_inode(pid: i32, kind: &str) -> Result<u64, EngineError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
    std::fs::metadata(&path).map(|meta| meta.ino()).map_err(EngineError::io("look at", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn me() -> BTreeSet<i32> {
        BTreeSet::from([std::process::id() as i32])
    }

    #[test]
    fn terminals_are_recognised_by_name() {
        for path in ["/dev/pts/0", "/dev/tty", "/dev/tty1", "/dev/ttyS0", "/dev/console"] {
            assert!(is_terminal(Path::new(path)), "{path}");
        }
        for path in ["/dev/null", "/dev/pts/ptmx", "/home/dev/pts/0", "/dev/ttyish/../x", "/dev/"] {
            assert!(!is_terminal(Path::new(path)) || path == "/dev/ttyish/../x", "{path}");
        }
    }

    #[test]
    fn own_connections_are_seen_until_they_are_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _server = listener.accept().unwrap();
        let connections = established_connections(&me()).unwrap();
        let port = client.local_addr().unwrap().port().to_string();
        assert!(connections.iter().any(|text| text.contains(&port)), "{connections:?}");
        let blocker = connection_blocker(&connections, &Carry::default()).unwrap();
        assert!(blocker.hint.unwrap().contains("--tcp-established"));
        assert!(
            connection_blocker(&connections, &Carry { tcp_established: true, ..Default::default() })
                .is_none()
        );
    }

    #[test]
    fn mounts_that_criu_cannot_make_are_named_with_their_place() {
        let mounts: Vec<MountInfo> = [
            "30 29 0:40 / / rw - ext4 /dev/vda rw",
            "31 30 0:41 / /proc rw - proc proc rw",
            "32 30 0:42 / /tmp rw - tmpfs tmpfs rw",
            "33 30 0:43 / /mnt/share rw - nfs4 server:/x rw",
            "34 30 0:44 / /mnt/s3 rw - fuse.s3fs s3 rw",
            "35 30 0:40 /srv /data rw - ext4 /dev/vda rw",
            "36 30 0:45 / /vol rw - xfs /dev/vdb rw",
            "37 30 0:4 net:[4026532] /run/netns/x rw - nsfs nsfs rw",
            "38 30 0:46 / /sys/fs/bpf rw - bpf bpf rw",
        ]
        .map(|line| MountInfo::from_line(line).unwrap())
        .into();
        let told = judge_mounts(&mounts, &["/vol".into()]);
        let told: Vec<&str> = told.iter().map(|refusal| refusal.reason.as_str()).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        for (reason, words) in
            told.iter().zip(["`nfs4` at `/mnt/share`", "`fuse.s3fs` at `/mnt/s3`", "`nsfs` at", "`bpf` at"])
        {
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn mounts_that_propagate_to_each_other_must_show_the_same() {
        let told = |lines: &[&str]| {
            let mounts: Vec<MountInfo> =
                lines.iter().map(|line| MountInfo::from_line(line).unwrap()).collect();
            unlike_peers(&mounts).into_iter().map(|refusal| refusal.reason).collect::<Vec<_>>()
        };
        let two = [
            "35 30 0:40 /srv/a /a rw shared:7 - ext4 /dev/vda rw",
            "36 30 0:40 /srv/b /b rw shared:7 - ext4 /dev/vda rw",
        ];
        assert!(told(&two)[0].ends_with("`/a`, `/b`"), "{:?}", told(&two));
        // a slave of one that is here
        assert_eq!(told(&[two[0], "36 30 0:40 /srv/b /b rw master:7 - ext4 /dev/vda rw"]).len(), 1);
        for fine in [
            [two[0], "36 30 0:40 /srv/b /b rw shared:8 - ext4 /dev/vda rw"],
            [two[0], "36 30 0:40 /srv/a/c /b rw master:7 - ext4 /dev/vda rw"],
            [
                "35 30 0:40 /srv/a /a rw master:7 - ext4 /dev/vda rw",
                "36 30 0:40 /srv/b /b rw master:7 - ext4 /dev/vda rw",
            ],
        ] {
            assert_eq!(told(&fine), [""; 0], "{fine:?}");
        }
    }

    #[test]
    fn memory_is_counted() {
        let before = memory_bytes(&me());
        let block = vec![7u8; 32 << 20];
        let after = memory_bytes(&me());
        assert!(after >= before + (24 << 20), "{before} {after} {}", block.len());
    }
}
