//! `godwit log --bundle`: all that this host knows about a migration in one file, for whoever is to look into it. Only
//! files that are known to be harmless get in: no images, nothing that was noted for a later process (the recipe of a
//! container holds its environment, and that holds passwords).

use super::host::HostReport;
use godwit_migration::{Failure, FailureKind};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How much of a log's end is taken, bytes.
const MAX_LOG: u64 = 16 << 20;
/// How deep logs lie below the directory of a migration.
const DEPTH: u32 = 4;
/// What an event may hold in a bundle. What is not here stays out, also what a newer godwit writes.
const EVENT_FIELDS: &[&str] = &[
    "seq",
    "unix_us",
    "event",
    "version",
    "migration",
    "role",
    "container",
    "peer",
    "godwit",
    "round",
    "wire_bytes",
    "pid",
    "downtime_us",
    "leftovers",
    "reason",
    "file",
    "original",
    "now",
];

/// Packs what is known of the migration in `dir` (its journal and logs) into a new file, and gives the names of what is in it.
///
/// # Errors
/// When `file` is there already, or cannot be written: then there is none.
pub fn pack(id: &str, dir: &Path, root: &Path, file: &Path) -> Result<Vec<String>, Failure> {
    let mut options = File::options();
    let created = options.write(true).create_new(true).mode(0o600).open(file).map_err(|error| {
        let failure =
            Failure::new(FailureKind::Usage, format!("cannot make `{}`", file.display())).because_of(&error);
        match error.kind() {
            io::ErrorKind::AlreadyExists => failure.hint("a bundle overwrites nothing: name another file"),
            _ => failure,
        }
    })?;
    write(id, dir, root, created).map_err(|error| {
        let _ = std::fs::remove_file(file);
        Failure::new(FailureKind::Failed, format!("`{}` could not be written", file.display()))
            .because_of(&error)
    })
}

fn write(id: &str, dir: &Path, root: &Path, file: File) -> io::Result<Vec<String>> {
    let mut archive =
        Archive { out: zstd::Encoder::new(file, 3)?, top: format!("godwit-{id}"), names: Vec::new() };
    archive.add("journal", journal(&std::fs::read(dir.join("journal"))?).as_bytes())?;
    let report = serde_json::to_vec_pretty(&HostReport::of_this_host(root))?;
    archive.add("check.json", &report)?;
    let mut logs = Vec::new();
    find_logs(dir, DEPTH, &mut logs)?;
    logs.sort();
    for path in logs {
        let text = end_of(&path)?;
        // whatever it is called: a log is text
        if !text.contains(&0) {
            archive.add(&path.strip_prefix(dir).unwrap_or(&path).to_string_lossy(), &text)?;
        }
    }
    archive.finish()
}

/// The journal's lines with the fields that are known to be harmless, down to those of what is nested.
fn journal(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    // before the JSON stand its length and its sum
    let line = |line: &str| match serde_json::from_str::<Value>(&line[line.find('{').unwrap_or(0)..]) {
        Ok(Value::Object(mut event)) => {
            event.retain(|name, value| EVENT_FIELDS.contains(&name.as_str()) && !value.is_object());
            format!("{}\n", Value::Object(event))
        }
        // torn by a crash
        _ => format!("{{\"unreadable\":{}}}\n", line.len()),
    };
    text.lines().filter(|text| !text.is_empty()).map(line).collect()
}

/// Logs and figures of CRIU and the runtime. Links are not followed, and where images lie nothing is looked for.
fn find_logs(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let name = name.to_string_lossy();
        if kind.is_dir() && depth > 0 && !matches!(&*name, "images" | "trees") {
            find_logs(&entry.path(), depth - 1, found)?;
        } else if kind.is_file() && is_log(&name) {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// `dump.log`, and `dump.log.1` of an attempt before. CRIU's images end in `.img`.
fn is_log(name: &str) -> bool {
    let (stem, last) = name.rsplit_once('.').unwrap_or((name, ""));
    let stem = if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) { stem } else { name };
    stem.ends_with(".log")
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A tar archive as POSIX.1-1988 has it (ustar, pax(1)), compressed.
struct Archive {
    out: zstd::Encoder<'static, File>,
    top: String,
    names: Vec<String>,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&header(&format!("{}/{name}", self.top), bytes.len())?)?;
        self.out.write_all(bytes)?;
        self.out.write_all(&vec![0; bytes.len().next_multiple_of(512) - bytes.len()])?;
        self.names.push(name.to_owned());
        Ok(())
    }

    fn finish(mut self) -> io::Result<Vec<String>> {
        self.out.write_all(&[0; 1024])?;
        self.out.finish()?.sync_all()?;
        Ok(self.names)
    }
}

/// name 100, mode 8, uid 8, gid 8, size 12, mtime 12, sum 8, type 1, link 100, magic 6, version 2: numbers are octal.
fn header(name: &str, size: usize) -> io::Result<[u8; 512]> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    if name.len() > 100 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the name `{name}` is too long for an archive"),
        ));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{:011o}", now.as_secs()));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    const SECRET: &str = "hunter2";

    fn put(dir: &Path, name: &str, bytes: &[u8]) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn logs_get_in_and_no_image_note_or_link() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("migrations/01abc");
        let journaled = format!(
            "gw2 99 0123456789abcdef {{\"seq\":1,\"unix_us\":5,\"event\":\"planned\",\"container\":\"runc:web\",\"remains\":\"PASSWORD={SECRET}\"}}\n\
             {{\"seq\":2,\"unix_us\":6,\"event\":\"made\",\"note\":{{\"env\":\"{SECRET}\"}}}}\n{{\"torn {SECRET}"
        );
        put(&dir, "journal", journaled.as_bytes());
        for log in ["work/dump.log", "work/0/dump.log.1", "work/restore.log", "work/runc.log"] {
            put(&dir, log, b"(00.1) a line\n");
        }
        for other in [
            "images/pages-1.img",
            "images/dump.log",
            "images/0/x.log",
            "work/pages-2.img",
            "work/core-1.img",
            "work/descriptors.json",
            "remains",
            "work/pages.log.img",
            "store/1",
            "criu.kdat",
        ] {
            put(&dir, other, SECRET.as_bytes());
        }
        put(&dir, "work/binary.log", format!("{SECRET}\0").as_bytes());
        put(root.path(), "elsewhere", SECRET.as_bytes());
        std::os::unix::fs::symlink(root.path().join("elsewhere"), dir.join("work/link.log")).unwrap();

        let file = root.path().join("out.tar.zst");
        let names = pack("01abc", &dir, root.path(), &file).unwrap();
        let expected = [
            "journal",
            "check.json",
            "work/0/dump.log.1",
            "work/dump.log",
            "work/restore.log",
            "work/runc.log",
        ];
        assert_eq!(names, expected);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let plain = zstd::decode_all(File::open(&file).unwrap()).unwrap();
        assert!(!String::from_utf8_lossy(&plain).contains(SECRET));

        // as tar(1) sees it
        std::fs::write(root.path().join("out.tar"), &plain).unwrap();
        let tar = |args: &[&str]| Command::new("tar").current_dir(root.path()).args(args).output().unwrap();
        let listed = tar(&["-tf", "out.tar"]);
        let expected: Vec<String> = expected.iter().map(|name| format!("godwit-01abc/{name}")).collect();
        assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().collect::<Vec<_>>(), expected);
        assert!(tar(&["-xf", "out.tar"]).status.success());
        let kept = std::fs::read_to_string(root.path().join("godwit-01abc/journal")).unwrap();
        assert!(kept.contains("\"container\":\"runc:web\"") && kept.contains("unreadable"), "{kept}");

        let refused = pack("01abc", &dir, root.path(), &file).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Usage);
        assert!(refused.hints[0].contains("overwrites nothing"), "{refused:?}");
    }

    #[test]
    fn nothing_is_left_of_a_bundle_that_failed() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("out");
        assert!(pack("x", &root.path().join("nowhere"), root.path(), &file).is_err());
        assert!(!file.exists());
    }
}
