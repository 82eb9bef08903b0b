//! What the images of a dump hold, for people: processes, open files, sockets, mounts. Whoever reads the files gives their bytes;
//! all of them may be anybody's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::file::{Kind, split_records};
use super::pagemap::{PAGE_SIZE, Pagemap};
use super::pstree::{self, Task};
use super::wire::{Fields, Malformed, Value};

/// What is wrong with an image.
pub type Fault = &'static str;

/// More records than any container has of a kind: each may become larger than it is in the image.
const MAX_RECORDS: usize = 1 << 20;

fn records(bytes: &[u8], kind: Kind) -> Result<Vec<&[u8]>, Fault> {
    let records = split_records(bytes, kind)?;
    if records.len() > MAX_RECORDS { Err("it has more records than any container") } else { Ok(records) }
}

/// What a task is (core.proto).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Core {
    /// Its name, 15 bytes at most in the kernel; control characters are replaced.
    pub comm: String,
    /// Whose descriptors it has: the number in the name of their image. 0 when it does not say: then [`files_id`] does.
    pub files_id: u32,
}

/// An open file that the descriptors of one or more tasks lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// What descriptors call it.
    pub id: u32,
    /// What it is.
    pub what: FileKind,
}

/// What an open file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A file or directory, by its path in the container.
    Path(String),
    /// A socket.
    Socket(Socket),
    /// Anything else, as CRIU calls it.
    Other(&'static str),
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `tcp`, `udp`, `unix`, …
    pub protocol: &'static str,
    /// `established`, `listen`, …
    pub state: &'static str,
    /// Its own address.
    pub local: String,
    /// That of the other end; empty when there is none.
    pub remote: String,
}

/// A descriptor of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// The open file: [`OpenFile::id`].
    pub file: u32,
}

/// A mount of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: String,
    /// The type of its file system, as far as it is told.
    pub file_system: String,
    /// What is mounted.
    pub source: String,
    /// What of the file system is mounted.
    pub root: String,
    /// It comes from outside of the container.
    pub external: bool,
}

/// The version of the format in `inventory.img`.
///
/// # Errors
/// When the bytes are no such image.
pub fn inventory_version(bytes: &[u8]) -> Result<u32, Fault> {
    let found = records(bytes, Kind::Inventory)?;
    for field in Fields(found.first().ok_or("it is empty")?) {
        if let (1, value) = field? {
            return Ok(value.u32()?);
        }
    }
    Err("it does not say its version")
}

/// The tasks in `pstree.img`, the root first.
///
/// # Errors
/// When the bytes are no such image.
pub fn tasks(bytes: &[u8]) -> Result<Vec<Task>, Fault> {
    let found = records(bytes, Kind::Pstree)?;
    Ok(found.into_iter().map(pstree::parse).collect::<Result<_, _>>()?)
}

/// `core-PID.img`.
///
/// # Errors
/// When the bytes are no such image.
pub fn core(bytes: &[u8]) -> Result<Core, Fault> {
    let found = records(bytes, Kind::Core)?;
    let mut core = Core::default();
    for field in Fields(found.first().ok_or("it is empty")?) {
        match field? {
            (3, task) => core.comm = find(task, 6)?.map(text).transpose()?.unwrap_or_default(),
            (4, ids) => core.files_id = find(ids, 2)?.map(Value::u32).transpose()?.unwrap_or_default(),
            _ => {}
        }
    }
    Ok(core)
}

/// `ids-PID.img`: whose descriptors a task has.
///
/// # Errors
/// When the bytes are no such image.
pub fn files_id(bytes: &[u8]) -> Result<u32, Fault> {
    let found = records(bytes, Kind::Ids)?;
    let ids = Value::Bytes(found.first().ok_or("it is empty")?);
    Ok(find(ids, 2)?.map(Value::u32).transpose()?.unwrap_or_default())
}

/// `pagemap-*.img`: the number of the file with its pages, the bytes in it, and those in the parent's images.
///
/// # Errors
/// When the bytes are no such image.
pub fn memory(bytes: &[u8]) -> Result<(u32, u64, u64), Fault> {
    // runs of pages are no larger than their records
    let map = Pagemap::parse(split_records(bytes, Kind::Pagemap)?.into_iter())?;
    let parent = map.entries.iter().filter(|entry| entry.in_parent());
    let parent = parent.fold(0u64, |sum, entry| sum.saturating_add(entry.nr_pages));
    Ok((map.pages_id, map.present_pages().saturating_mul(PAGE_SIZE), parent.saturating_mul(PAGE_SIZE)))
}

/// `files.img`.
///
/// # Errors
/// When the bytes are no such image.
pub fn open_files(bytes: &[u8]) -> Result<Vec<OpenFile>, Fault> {
    Ok(records(bytes, Kind::Files)?.into_iter().map(open_file).collect::<Result<_, _>>()?)
}

fn open_file(record: &[u8]) -> Result<OpenFile, Malformed> {
    let (mut id, mut what) = (0, FileKind::Other("file"));
    for field in Fields(record) {
        match field? {
            (1, kind) => {
                if let FileKind::Other(name) = &mut what {
                    *name = kind_name(kind.u32()?);
                }
            }
            (2, value) => id = value.u32()?,
            (3, file) => what = FileKind::Path(find(file, 6)?.map(text).transpose()?.unwrap_or_default()),
            (4, socket) => what = FileKind::Socket(inet_socket(socket.bytes()?)?),
            (16, socket) => what = FileKind::Socket(unix_socket(socket.bytes()?)?),
            _ => {}
        }
    }
    Ok(OpenFile { id, what })
}

/// `fdinfo-*.img`.
///
/// # Errors
/// When the bytes are no such image.
pub fn descriptors(bytes: &[u8]) -> Result<Vec<Descriptor>, Fault> {
    let descriptor = |record: &[u8]| {
        let mut found = Descriptor { fd: 0, file: 0 };
        for field in Fields(record) {
            match field? {
                (1, value) => found.file = value.u32()?,
                (4, value) => found.fd = value.u32()?,
                _ => {}
            }
        }
        Ok::<_, Malformed>(found)
    };
    Ok(records(bytes, Kind::FdInfo)?.into_iter().map(descriptor).collect::<Result<_, _>>()?)
}

/// `mountpoints-*.img`.
///
/// # Errors
/// When the bytes are no such image.
pub fn mounts(bytes: &[u8]) -> Result<Vec<Mount>, Fault> {
    Ok(records(bytes, Kind::Mounts)?.into_iter().map(mount).collect::<Result<_, _>>()?)
}

fn mount(record: &[u8]) -> Result<Mount, Malformed> {
    let (mut kind, mut named) = (0, String::new());
    let mut mount = Mount {
        at: String::new(),
        file_system: String::new(),
        source: String::new(),
        root: String::new(),
        external: false,
    };
    for field in Fields(record) {
        match field? {
            (1, value) => kind = value.u32()?,
            (6, value) => mount.root = text(value)?,
            (7, value) => mount.at = text(value)?,
            (8, value) => mount.source = text(value)?,
            (13, value) => mount.external = value.u64()? != 0,
            (14, value) => named = text(value)?,
            (18, value) => mount.external |= !value.bytes()?.is_empty(),
            _ => {}
        }
    }
    mount.file_system = if named.is_empty() { file_system(kind).to_owned() } else { named };
    Ok(mount)
}

/// The first field of that number in a message.
fn find(message: Value<'_>, wanted: u32) -> Result<Option<Value<'_>>, Malformed> {
    for field in Fields(message.bytes()?) {
        let (number, value) = field?;
        if number == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// What can be shown on a terminal without doing anything to it.
fn text(value: Value<'_>) -> Result<String, Malformed> {
    Ok(shown(value.bytes()?))
}

/// Bytes as text without control characters: each becomes U+FFFD.
pub fn shown(bytes: &[u8]) -> String {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(bytes).chars().map(plain).collect()
}

fn inet_socket(message: &[u8]) -> Result<Socket, Malformed> {
    let (mut family, mut protocol, mut state) = (0, 0, 0);
    let (mut ports, mut addresses) = ((0, 0), (Vec::new(), Vec::new()));
    for field in Fields(message) {
        match field? {
            (3, value) => family = value.u32()?,
            (5, value) => protocol = value.u32()?,
            (6, value) => state = value.u32()?,
            (7, value) => ports.0 = value.u32()?,
            (8, value) => ports.1 = value.u32()?,
            (11, value) => value.numbers(&mut addresses.0)?,
            (12, value) => value.numbers(&mut addresses.1)?,
            _ => {}
        }
    }
    let state = tcp_state(state);
    let has_peer = ports.1 != 0;
    Ok(Socket {
        protocol: match protocol {
            1 => "icmp",
            6 => "tcp",
            17 => "udp",
            58 => "icmpv6",
            136 => "udplite",
            _ => "inet",
        },
        state,
        local: endpoint(family, &addresses.0, ports.0),
        remote: if has_peer { endpoint(family, &addresses.1, ports.1) } else { String::new() },
    })
}

/// Words of an address as they lie in memory, and a port.
fn endpoint(family: u32, words: &[u32], port: u32) -> String {
    const INET6: u32 = 10;
    let mut octets = [0; 16];
    for (slot, word) in octets.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let [a, b, c, d, ..] = octets;
    match family {
        INET6 => format!("[{}]:{port}", IpAddr::V6(Ipv6Addr::from(octets))),
        _ => format!("{}:{port}", IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
    }
}

fn unix_socket(message: &[u8]) -> Result<Socket, Malformed> {
    let (mut state, mut peer, mut name) = (0, 0, String::new());
    for field in Fields(message) {
        match field? {
            (4, value) => state = value.u32()?,
            (8, value) => peer = value.u32()?,
            (11, value) => {
                let bytes = value.bytes()?;
                name = match bytes.split_first() {
                    Some((0, name)) => format!("@{}", shown(name)),
                    _ => shown(bytes.strip_suffix(&[0]).unwrap_or(bytes)),
                };
            }
            _ => {}
        }
    }
    let remote = if peer == 0 { String::new() } else { format!("inode {peer}") };
    Ok(Socket { protocol: "unix", state: tcp_state(state), local: name, remote })
}

/// include/net/tcp_states.h; unix sockets use them, too.
fn tcp_state(state: u32) -> &'static str {
    match state {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-recv",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        _ => "unknown",
    }
}

/// `fd_types` of fdinfo.proto.
fn kind_name(kind: u32) -> &'static str {
    match kind {
        1 => "file",
        2 => "pipe",
        3 => "fifo",
        4 => "inet socket",
        5 => "unix socket",
        6 => "eventfd",
        7 => "epoll",
        8 => "inotify",
        9 => "signalfd",
        10 => "packet socket",
        11 => "tty",
        12 => "fanotify",
        13 => "netlink socket",
        14 => "namespace",
        15 => "tun",
        16 => "external file",
        17 => "timerfd",
        18 => "memfd",
        _ => "other",
    }
}

/// `fstype` of mnt.proto.
fn file_system(kind: u32) -> &'static str {
    match kind {
        1 => "proc",
        2 => "sysfs",
        3 => "devtmpfs",
        4 => "binfmt_misc",
        5 => "tmpfs",
        6 => "devpts",
        8 => "pstore",
        9 => "securityfs",
        10 => "fusectl",
        11 => "debugfs",
        12 => "cgroup",
        14 => "mqueue",
        15 => "fuse",
        17 => "overlay",
        18 => "autofs",
        19 => "tracefs",
        23 => "cgroup2",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::join_records;
    use super::super::wire::{put_bytes, put_varint};
    use super::*;
    use proptest::prelude::*;

    fn message(fields: &[(u32, u64)], texts: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        fields.iter().for_each(|(number, value)| put_varint(&mut out, *number, *value));
        texts.iter().for_each(|(number, bytes)| put_bytes(&mut out, *number, bytes));
        out
    }

    #[test]
    fn processes_and_their_names() {
        let (task, ids) = (message(&[], &[(6, b"red\x1b[31mis")]), message(&[(1, 9), (2, 4)], &[]));
        let image = join_records(Kind::Core, [message(&[(1, 1)], &[(3, &task), (4, &ids)])]);
        assert_eq!(core(&image).unwrap(), Core { comm: "red\u{fffd}[31mis".into(), files_id: 4 });
        assert!(core(&join_records(Kind::Pstree, [b""])).is_err());
    }

    #[test]
    fn files_and_sockets() {
        let file = message(&[(1, 7)], &[(6, b"/data/x")]);
        let established = message(
            &[(3, 2), (5, 6), (6, 1), (7, 6379), (8, 40000), (11, 0x6400_4d0a), (12, 0x0100_007f)],
            &[],
        );
        let listening = message(&[(3, 10), (5, 6), (6, 10), (7, 80), (8, 0)], &[]);
        let hidden = message(&[(4, 10), (8, 0)], &[(11, b"\0name")]);
        let record =
            |id: u64, kind: u64, number: u32, of: &[u8]| message(&[(1, kind), (2, id)], &[(number, of)]);
        let image = join_records(
            Kind::Files,
            [
                record(1, 1, 3, &file),
                record(2, 4, 4, &established),
                record(3, 4, 4, &listening),
                record(4, 5, 16, &hidden),
                record(5, 7, 9, b""),
            ],
        );
        let socket = |protocol, state, local: &str, remote: &str| {
            FileKind::Socket(Socket { protocol, state, local: local.into(), remote: remote.into() })
        };
        let found: Vec<FileKind> = open_files(&image).unwrap().into_iter().map(|file| file.what).collect();
        assert_eq!(
            found,
            [
                FileKind::Path("/data/x".into()),
                socket("tcp", "established", "10.77.0.100:6379", "127.0.0.1:40000"),
                socket("tcp", "listen", "[::]:80", ""),
                socket("unix", "listen", "@name", ""),
                FileKind::Other("epoll"),
            ]
        );
    }

    #[test]
    fn mounts_and_descriptors() {
        let record = message(&[(1, 5), (13, 1)], &[(6, b"/"), (7, b"/dev/shm"), (8, b"shm")]);
        let found = mounts(&join_records(Kind::Mounts, [record])).unwrap();
        assert_eq!((found[0].at.as_str(), found[0].file_system.as_str()), ("/dev/shm", "tmpfs"));
        assert!(found[0].external);
        let image = join_records(Kind::FdInfo, [message(&[(1, 8), (2, 0), (3, 1), (4, 3)], &[])]);
        assert_eq!(descriptors(&image).unwrap(), [Descriptor { fd: 3, file: 8 }]);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            for kind in [Kind::Core, Kind::Files, Kind::FdInfo, Kind::Mounts, Kind::Pagemap, Kind::Pstree, Kind::Inventory, Kind::Ids] {
                let image = join_records(kind, [&bytes]);
                let _ = (core(&image), open_files(&image), descriptors(&image), mounts(&image));
                let _ = (memory(&image), tasks(&image), inventory_version(&image), files_id(&image));
            }
            let _ = (core(&bytes), open_files(&bytes));
        }
    }
}
