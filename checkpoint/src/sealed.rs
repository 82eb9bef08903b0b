//! Checkpoints that only the holders of a key can read: the directory of [`crate::archive`] as tar writes it (POSIX.1-2001,
//! with extended attributes), encrypted as age does (age-encryption.org/v1).
//!
//! Sealing hides and keeps whole; it does not say who sealed: whoever knows a recipient can seal something for it.

use age::x25519;
use godwit_migration::Cancel;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// With what every age file begins.
const MAGIC: &[u8] = b"age-encryption.org/";

/// Why something could not be sealed or opened. None of it says anything of what is sealed, or of a secret key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not one that can be sealed for.
    #[error("`{text}` is no recipient: {why}")]
    Recipient {
        /// What was given.
        text: String,
        /// Why.
        why: String,
    },
    /// Not a file of secret keys.
    #[error("`{}` gives no identity: {why}", path.display())]
    Identity {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is sealed for others.
    #[error("`{}` is sealed for others: none of the identities opens it", path.display())]
    NotForUs {
        /// Which file.
        path: PathBuf,
    },
    /// It is not, or not all of it, what was sealed.
    #[error("`{}` is damaged or cut off: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program that makes one file of many.
    #[error("tar failed: {0}")]
    Tar(String),
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SealError {
    let path = path.to_owned();
    move |source| SealError::Io { act, path, source }
}

/// Whom a checkpoint is sealed for: at least one.
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Reads `age1…`, and those in a file (one a line, `#` begins a comment) for `@FILE`.
    ///
    /// # Errors
    /// The first that is not one.
    pub fn parse(texts: &[String]) -> Result<Self, SealError> {
        let one = |text: &str| {
            let wrong = |why: &str| SealError::Recipient { text: text.to_owned(), why: why.to_owned() };
            text.parse::<x25519::Recipient>().map_err(wrong)
        };
        let mut found = Vec::new();
        for text in texts {
            match text.strip_prefix('@') {
                None => found.push(one(text)?),
                Some(file) => {
                    let lines = std::fs::read_to_string(file).map_err(io_error("read", Path::new(file)))?;
                    let lines = lines.lines().map(str::trim);
                    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                        // a line may be a secret key that came to the wrong place
                        let recipient = line.parse().map_err(|_| SealError::Recipient {
                            text: text.clone(),
                            why: "a line of it is not `age1…`".into(),
                        });
                        found.push(recipient?);
                    }
                }
            }
        }
        match texts.last() {
            Some(text) if found.is_empty() => {
                Err(SealError::Recipient { text: text.clone(), why: "it names none".into() })
            }
            _ => Ok(Self(found)),
        }
    }
}

impl Recipients {
    /// Some bytes, so that only they can read them.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn seal_bytes(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let age = age::Encryptor::with_recipients(self.0.iter().map(|one| one as &dyn age::Recipient));
        let mut sealed =
            age.map_err(io::Error::other)?.wrap_output(Vec::with_capacity(plain.len() + 1024))?;
        sealed.write_all(plain)?;
        sealed.finish()
    }

    /// All of them, as they are written, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }
}

/// The secret keys that may open a checkpoint.
pub struct Identities(Vec<Box<dyn age::Identity + Send + Sync>>);

impl Identities {
    /// Reads files as `age-keygen` writes them; others must not be able to read them.
    ///
    /// # Errors
    /// The first that is not one.
    pub fn read(files: &[PathBuf]) -> Result<Self, SealError> {
        let mut found = Vec::new();
        for path in files {
            let wrong = |why: String| SealError::Identity { path: path.clone(), why };
            let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
            let meta = file.metadata().map_err(|error| wrong(error.to_string()))?;
            if meta.is_file() && meta.mode() & 0o077 != 0 {
                return Err(wrong(format!("others can read it; `chmod 600 {}`", path.display())));
            }
            // its errors name the line, not what is in it
            let identities = age::IdentityFile::from_buffer(BufReader::new(file))
                .map_err(|error| wrong(error.to_string()))?
                .into_identities()
                .map_err(|error| wrong(error.to_string()))?;
            if identities.is_empty() {
                return Err(wrong("it has no line `AGE-SECRET-KEY-1…`".into()));
            }
            found.extend(identities);
        }
        Ok(Self(found))
    }
}

impl Identities {
    /// What [`Recipients::seal_bytes`] has sealed; none when it was sealed for others.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn open_bytes(&self, sealed: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let age = age::Decryptor::new_buffered(sealed).map_err(io::Error::other)?;
        let mut plain = Vec::with_capacity(sealed.len());
        match age.decrypt(self.0.iter().map(|one| &**one as &dyn age::Identity)) {
            Err(age::DecryptError::NoMatchingKeys) => Ok(None),
            opened => {
                opened.map_err(io::Error::other)?.read_to_end(&mut plain)?;
                Ok(Some(plain))
            }
        }
    }
}

/// Whether these bytes are sealed, to all appearances.
pub fn are_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether this is a sealed file, to all appearances.
///
/// # Errors
/// When it is there and cannot be read.
pub fn is_sealed(path: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    if path.is_file() {
        File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut begin)?;
    }
    Ok(are_sealed(&begin))
}

/// Asks whether tar is there, and the one that keeps extended attributes: GNU's.
///
/// # Errors
/// What is missing.
pub fn check_tar() -> Result<(), SealError> {
    let cannot = |error: io::Error| SealError::Tar(format!("it cannot be run: {error}"));
    let output = Command::new("tar").arg("--version").output().map_err(cannot)?;
    match String::from_utf8_lossy(&output.stdout).contains("GNU tar") {
        true => Ok(()),
        false => Err(SealError::Tar("the `tar` of this host is not GNU tar".into())),
    }
}

/// Writes all of a directory to the file `to`, which appears when it is complete and on disk; its length in bytes.
///
/// # Errors
/// When that was not possible: then nothing of it is left.
pub fn seal(dir: &Path, to: &Path, recipients: &Recipients, cancel: &Cancel) -> Result<u64, SealError> {
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // what a dead one has left; not what a link of that name leads to
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("replace", &part)(error));
        }
        _ => {}
    }
    let written = write_part(dir, &part, recipients, cancel).and_then(|bytes| {
        std::fs::rename(&part, to).map_err(io_error("make", to))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_error("write", parent))?;
        Ok(bytes)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_part(dir: &Path, part: &Path, recipients: &Recipients, cancel: &Cancel) -> Result<u64, SealError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part);
    let file = BufWriter::with_capacity(1 << 20, file.map_err(io_error("make", part))?);
    let age = age::Encryptor::with_recipients(recipients.0.iter().map(|one| one as &dyn age::Recipient));
    let age = age.map_err(|error| io_error("seal", part)(io::Error::other(error)))?;
    let mut sealed = age.wrap_output(file).map_err(io_error("write", part))?;
    let mut tar = Tar::start(dir, &["--create", "--format=posix", "--sparse", "."])?;
    let mut plain = tar.child.stdout.take().ok_or_else(no_pipe)?;
    let copied = copy(&mut plain, &mut sealed, cancel);
    drop(plain);
    let ended = tar.end(copied.is_ok());
    match copied {
        Err(Copying::Interrupted) => return Err(SealError::Interrupted),
        Err(Copying::Write(error)) => return Err(io_error("write", part)(error)),
        Err(Copying::Read(error)) => return Err(SealError::Tar(error.to_string())),
        Ok(()) => ended?,
    }
    let file = sealed.finish().and_then(|file| file.into_inner().map_err(|error| error.into_error()));
    let file = file.map_err(io_error("write", part))?;
    file.sync_all().map_err(io_error("write", part))?;
    Ok(file.metadata().map_err(io_error("write", part))?.len())
}

/// Opens a sealed file into a directory that is there and empty. When this is well, all of the file was what was sealed, to
/// its very end.
///
/// # Errors
/// When it is for others, damaged, cut off, or cannot be written: what is in `into` then is of no use.
pub fn unseal(file: &Path, identities: &Identities, into: &Path, cancel: &Cancel) -> Result<(), SealError> {
    let damaged = |why: String| SealError::Damaged { path: file.to_owned(), why };
    let opened = BufReader::with_capacity(1 << 20, File::open(file).map_err(io_error("read", file))?);
    let refused = |error| match error {
        age::DecryptError::NoMatchingKeys => SealError::NotForUs { path: file.to_owned() },
        age::DecryptError::Io(error) if error.raw_os_error().is_some() => io_error("read", file)(error),
        error => damaged(error.to_string()),
    };
    let age = age::Decryptor::new_buffered(opened).map_err(refused)?;
    let mut plain =
        age.decrypt(identities.0.iter().map(|one| &**one as &dyn age::Identity)).map_err(refused)?;
    let mut tar = Tar::start(into, &["--extract", "--same-owner", "--same-permissions"])?;
    let mut stdin = tar.child.stdin.take().ok_or_else(no_pipe)?;
    let mut copied = copy(&mut plain, &mut stdin, cancel);
    if matches!(copied, Err(Copying::Write(_))) {
        // tar says why; but a file that is damaged is not worth another reason
        copied = copy(&mut plain, &mut io::sink(), cancel);
    }
    drop(stdin);
    let ended = tar.end(copied.is_ok());
    match copied {
        Err(Copying::Interrupted) => Err(SealError::Interrupted),
        Err(Copying::Read(error)) if error.raw_os_error().is_some() => Err(io_error("read", file)(error)),
        Err(Copying::Read(error)) => Err(damaged(error.to_string())),
        Err(Copying::Write(error)) => Err(io_error("write", into)(error)),
        Ok(()) => ended,
    }
}

/// Which end of a copy failed.
enum Copying {
    Read(io::Error),
    Write(io::Error),
    Interrupted,
}

/// Copies all, looking between pieces whether it shall go on.
fn copy(from: &mut impl Read, to: &mut impl Write, cancel: &Cancel) -> Result<(), Copying> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        if cancel.is_raised() {
            return Err(Copying::Interrupted);
        }
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length]).map_err(Copying::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Copying::Read(error)),
        }
    }
}

/// The real tar, which knows every kind of file, owners, and extended attributes.
struct Tar {
    child: Child,
    errors: JoinHandle<String>,
}

fn no_pipe() -> SealError {
    SealError::Tar("it has no pipe".into())
}

impl Tar {
    /// Starts it in a directory, between two pipes. It refuses to leave the directory: names with `..`, absolute ones, links.
    fn start(dir: &Path, args: &[&str]) -> Result<Self, SealError> {
        let mut child = Command::new("tar")
            .args(["--file=-", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"])
            .arg("--directory")
            .arg(dir)
            .args(args)
            .env("LC_ALL", "C")
            .env_remove("TAR_OPTIONS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is godwit's to handle
            .process_group(0)
            .spawn()
            .map_err(|error| SealError::Tar(format!("it cannot be run: {error}")))?;
        let stderr = child.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(4 << 10).read_to_end(&mut text);
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            String::from_utf8_lossy(&text).trim().replace('\n', "; ")
        });
        Ok(Self { child, errors })
    }

    /// Waits for its good end, or makes an end of it.
    fn end(mut self, is_wanted: bool) -> Result<(), SealError> {
        if !is_wanted {
            let _ = self.child.kill();
        }
        let status = self.child.wait().map_err(|error| SealError::Tar(error.to_string()))?;
        let errors = self.errors.join().unwrap_or_default();
        if status.success() { Ok(()) } else { Err(SealError::Tar(format!("{status}: {errors}"))) }
    }
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
