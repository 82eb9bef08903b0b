//! CRIU's images of a dump, and whether they hold together.

use super::parts::Parts;
use super::{Descriptor, Process, shown};
use godwit_criu::images::contents::{self, Core, Fault, FileKind, Mount, OpenFile, Socket};
use std::collections::BTreeMap;

/// What a dump holds.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) processes: Vec<Process>,
    pub(super) files: Vec<Descriptor>,
    pub(super) sockets: Vec<Socket>,
    pub(super) mounts: Vec<Mount>,
    /// Version of CRIU, from its log.
    pub(super) criu: Option<String>,
    /// The kernel, from CRIU's log.
    pub(super) kernel: Option<String>,
    /// What does not hold together.
    pub(super) faults: Vec<String>,
}

/// Reads the images whose names begin with `prefix`.
pub(super) fn read(parts: &Parts, prefix: &str) -> Dump {
    let mut reading = Reading { parts, prefix, dump: Dump::default() };
    reading.all();
    reading.dump
}

struct Reading<'a> {
    parts: &'a Parts,
    prefix: &'a str,
    dump: Dump,
}

impl Reading<'_> {
    fn all(&mut self) {
        self.decode("inventory.img", contents::inventory_version);
        let memory = self.memory();
        let open: BTreeMap<u32, FileKind> = match self.parts.has(&self.path("files.img")) {
            true => self.decode("files.img", contents::open_files).unwrap_or_default(),
            false => Vec::new(),
        }
        .into_iter()
        .map(|OpenFile { id, what }| (id, what))
        .collect();
        for task in self.decode("pstree.img", contents::tasks).unwrap_or_default() {
            let core: Core =
                self.decode(&format!("core-{}.img", task.pid), contents::core).unwrap_or_default();
            for thread in task.threads.iter().filter(|thread| **thread != task.pid) {
                self.decode(&format!("core-{thread}.img"), contents::core);
            }
            let has = |reading: &Self, name: String| reading.parts.has(&reading.path(&name));
            let pagemap = format!("pagemap-{}.img", task.pid);
            if has(self, format!("mm-{}.img", task.pid)) && !has(self, pagemap.clone()) {
                self.missing(&pagemap);
            }
            let ids = format!("ids-{}.img", task.pid);
            let files_id = match has(self, ids.clone()) {
                true => self.decode(&ids, contents::files_id).unwrap_or_default(),
                false => core.files_id,
            };
            if files_id != 0 {
                self.descriptors(task.pid, files_id, &open);
            }
            self.dump.processes.push(Process {
                pid: task.pid,
                ppid: task.ppid,
                comm: core.comm,
                threads: task.threads.len().max(1),
                memory_bytes: memory.get(&task.pid).copied().unwrap_or_default(),
            });
        }
        self.dump.sockets = open
            .into_values()
            .filter_map(|what| match what {
                FileKind::Socket(socket) => Some(socket),
                _ => None,
            })
            .collect();
        for name in self.names("mountpoints-") {
            let mounts = self.decode(&name, contents::mounts).unwrap_or_default();
            self.dump.mounts.extend(mounts);
        }
        self.log();
    }

    /// Of each process, from its pagemap; and whether the pages are there.
    fn memory(&mut self) -> BTreeMap<u32, u64> {
        let mut memory = BTreeMap::new();
        for name in self.names("pagemap-") {
            let Some((pages, bytes, parent)) = self.decode(&name, contents::memory) else { continue };
            let pages = format!("pages-{pages}.img");
            match self.parts.files.get(&self.path(&pages)) {
                None if bytes > 0 => self.missing(&pages),
                Some(part) if part.bytes < bytes => {
                    let line = format!("`{pages}` has {} bytes, and `{name}` needs {bytes}", part.bytes);
                    self.dump.faults.push(line);
                }
                _ => {}
            }
            if parent > 0 && !self.parts.has(&self.path("parent")) {
                self.dump.faults.push(format!(
                    "`{name}` needs the images of an earlier dump, and there is no link to them"
                ));
            }
            let pid = name.trim_start_matches("pagemap-").trim_end_matches(".img").parse();
            if let Ok(pid) = pid {
                memory.insert(pid, bytes.saturating_add(parent));
            }
        }
        memory
    }

    fn descriptors(&mut self, pid: u32, files_id: u32, open: &BTreeMap<u32, FileKind>) {
        let found = self.decode(&format!("fdinfo-{files_id}.img"), contents::descriptors).unwrap_or_default();
        let descriptor = |found: contents::Descriptor| {
            let (kind, name) = match open.get(&found.file)? {
                FileKind::Path(path) => ("file", path.clone()),
                FileKind::Socket(socket) if socket.remote.is_empty() => {
                    (socket.protocol, socket.local.clone())
                }
                FileKind::Socket(socket) => {
                    (socket.protocol, format!("{} to {}", socket.local, socket.remote))
                }
                FileKind::Other(kind) => (*kind, String::new()),
            };
            Some(Descriptor { pid, fd: found.fd, kind, name })
        };
        self.dump.files.extend(found.into_iter().filter_map(descriptor));
    }

    /// CRIU says in the first lines of its log what it is.
    fn log(&mut self) {
        let logs = [self.path("dump.log"), "work/dump.log".into(), "dump.log".into()];
        let Some(log) = logs.iter().find_map(|log| self.parts.get(log)) else { return };
        let head = String::from_utf8_lossy(&log[..log.len().min(64 << 10)]).into_owned();
        let after = |words: &str| {
            let line = head.lines().find_map(|line| Some(line.split_once(words)?.1))?;
            Some(shown(line.as_bytes()))
        };
        let first = |text: String| text.split_whitespace().next().map(str::to_owned);
        self.dump.criu = after("Version: ").and_then(first);
        self.dump.kernel =
            after("Running on ").and_then(|host| host.split_whitespace().nth(2).map(str::to_owned));
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Names of images that begin so, without the directory.
    fn names(&self, begin: &str) -> Vec<String> {
        let name = |path: &String| Some(path.strip_prefix(self.prefix)?.to_owned());
        let is_one = |name: &String| name.starts_with(begin) && name.ends_with(".img") && !name.contains('/');
        self.parts.files.keys().filter_map(name).filter(is_one).collect()
    }

    fn missing(&mut self, name: &str) {
        self.dump.faults.push(format!("`{name}` is missing"));
    }

    fn decode<T>(&mut self, name: &str, decode: impl FnOnce(&[u8]) -> Result<T, Fault>) -> Option<T> {
        let path = self.path(name);
        let Some(part) = self.parts.files.get(&path) else {
            self.missing(name);
            return None;
        };
        let decoded = match &part.kept {
            Some(bytes) => decode(bytes),
            None => Err("it is larger than what is looked at"),
        };
        decoded.map_err(|why| self.dump.faults.push(format!("`{name}` is broken: {why}"))).ok()
    }
}
