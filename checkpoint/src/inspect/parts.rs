//! The files that a checkpoint is of: from a directory or out of an archive, whichever way it is compressed. Small ones that say
//! something are kept in memory; of all others only the length is. Nothing is written anywhere.

use super::InspectError;
use super::tar;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Largest file that is kept, bytes.
const MAX_KEPT: u64 = 64 << 20;
/// What is kept altogether at most, bytes.
const MAX_ALL: u64 = 256 << 20;
/// Directories below that of a checkpoint whose files are looked at one by one.
const LOOKED_INTO: [&str; 3] = ["images", "checkpoint", "work"];

/// A file.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Its length.
    pub(super) bytes: u64,
    /// When it was last changed, seconds since the epoch.
    pub(super) changed_s: u64,
    /// All of it, if it says something.
    pub(super) kept: Option<Vec<u8>>,
}

/// All files, by path below the checkpoint.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) files: BTreeMap<String, Part>,
    kept: u64,
}

impl Parts {
    /// Reads a directory, or an archive to its end.
    pub(super) fn read(path: &Path) -> Result<Self, InspectError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                InspectError::Damaged { path: path.to_owned(), why: source.to_string() }
            }
            _ => InspectError::Io { path: path.to_owned(), source },
        };
        let mut parts = Self::default();
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            parts.add_directory(path, "").map_err(failed)?;
        } else {
            let mut archive = Archive::open(path).map_err(failed)?;
            let read = tar::each(&mut archive, |entry, contents| match entry.is_file {
                true => parts.add(entry.path.clone(), entry.bytes, entry.changed_s, contents),
                false => Ok(()),
            });
            // whoever uncompresses knows better what is wrong
            archive.end().and(read).map_err(failed)?;
        }
        Ok(parts)
    }

    fn add_directory(&mut self, dir: &Path, below: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() && below.is_empty() && LOOKED_INTO.contains(&name.as_str()) {
                self.add_directory(&entry.path(), &format!("{name}/"))?;
            } else if kind.is_file() {
                // not through a link, should one come into its place
                let open =
                    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(entry.path());
                let file = open?;
                let meta = file.metadata()?;
                let changed_s = u64::try_from(meta.mtime()).unwrap_or_default();
                self.add(name, meta.len(), changed_s, &mut { file })?;
            } else if kind.is_symlink() {
                self.files.insert(name, Part::default());
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, bytes: u64, changed_s: u64, contents: &mut dyn Read) -> io::Result<()> {
        let mut kept = None;
        if says_something(&name) && bytes <= MAX_KEPT && self.kept + bytes <= MAX_ALL {
            let mut all = Vec::new();
            contents.take(bytes).read_to_end(&mut all)?;
            if all.len() as u64 != bytes {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` is cut off")));
            }
            self.kept += bytes;
            kept = Some(all);
        }
        self.files.insert(name, Part { bytes, changed_s, kept });
        Ok(())
    }

    /// The contents of a file that is kept.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name)?.kept.as_deref()
    }

    /// Whether there is a file of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Bytes of all files whose names begin so.
    pub(super) fn bytes_below(&self, prefix: &str) -> u64 {
        self.files.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, part)| part.bytes).sum()
    }
}

/// Descriptions of whoever wrote it, and those of CRIU's images that are decoded.
fn says_something(name: &str) -> bool {
    let (dir, file) = name.rsplit_once('/').unwrap_or(("", name));
    let is_image = |kinds: &[&str]| file.ends_with(".img") && kinds.iter().any(|kind| file.starts_with(kind));
    match dir {
        "" if ["checkpoint.json", "config.dump", "spec.dump", "dump.log"].contains(&file) => true,
        "work" => file == "dump.log",
        "" | "images" | "checkpoint" => {
            file == "dump.log"
                || is_image(&[
                    "inventory",
                    "pstree",
                    "core-",
                    "ids-",
                    "files",
                    "fdinfo-",
                    "mountpoints-",
                    "pagemap-",
                ])
        }
        _ => false,
    }
}

/// A tar archive, uncompressed on the way.
enum Archive {
    Plain(BufReader<File>),
    Zstd(Box<zstd::Decoder<'static, BufReader<File>>>),
    Gzip(Child),
}

impl Archive {
    fn open(path: &Path) -> io::Result<Self> {
        let mut begin = Vec::new();
        File::open(path)?.take(4).read_to_end(&mut begin)?;
        let file = File::open(path)?;
        Ok(match begin[..] {
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd(Box::new(zstd::Decoder::new(file)?)),
            [0x1f, 0x8b, ..] => {
                let mut gzip = Command::new("gzip");
                gzip.args(["--decompress", "--stdout"])
                    .stdin(file)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null());
                Self::Gzip(gzip.spawn().map_err(|error| {
                    io::Error::other(format!("it is compressed, and gzip cannot be run: {error}"))
                })?)
            }
            _ => Self::Plain(BufReader::new(file)),
        })
    }

    /// Whether all of it could be uncompressed, as far as whoever did that knows.
    fn end(self) -> io::Result<()> {
        let Self::Gzip(mut gzip) = self else { return Ok(()) };
        let closed = gzip.stdout.take().is_some();
        let status = gzip.wait()?;
        // who stopped reading has a reason of its own
        let ended_early = std::os::unix::process::ExitStatusExt::signal(&status).is_some();
        match status.success() || (closed && ended_early) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "gzip cannot uncompress it")),
        }
    }
}

impl Read for &mut Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Archive::Plain(file) => file.read(buffer),
            // what zstd cannot understand is no error of the disk
            Archive::Zstd(zstd) => zstd.read(buffer).map_err(|error| match error.raw_os_error() {
                Some(_) => error,
                None => io::Error::new(io::ErrorKind::InvalidData, error),
            }),
            Archive::Gzip(gzip) => gzip.stdout.as_mut().map_or(Ok(0), |stdout| stdout.read(buffer)),
        }
    }
}
