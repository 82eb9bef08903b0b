//! The file: TOML, written by `godwit config` and by people, whose comments stay.

use super::Config;
use super::keys::{HOSTS, Name};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use toml_edit::{Document, DocumentMut, Item, Table, Value};

/// Its name in godwit's directory.
pub const FILE: &str = "config.toml";
/// What it was when it was last understood.
pub const LAST_GOOD: &str = "config.last-good.toml";
/// The version that this godwit writes, and reads.
const VERSION: i64 = 1;
/// Longest file, bytes.
const LIMIT: u64 = 1 << 20;
/// A new one.
const TEMPLATE: &str = "\
# The configuration of godwit on this host. `godwit config` writes it, and so may you: `godwit config validate` then says
# whether it is right. `godwit config show --origin` lists all keys.
version = 1
";

/// A value, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As it would be on a command line.
    pub value: String,
    /// The line of the file, from 1 on.
    pub line: usize,
}

/// Why the configuration does not count, or was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// It is not right.
    #[error("`{}` line {line}: {reason}", path.display())]
    Wrong { path: PathBuf, line: usize, reason: String },
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let Self::Wrong { path, .. } = self else {
            return "godwit's configuration is in /etc/godwit, or where `GODWIT_ETC` says".into();
        };
        let good = path.with_file_name(LAST_GOOD);
        match good.is_file() && path.file_name().is_some_and(|name| name == FILE) {
            true => format!(
                "mend that line; `godwit config validate` looks again. The last one that was right is `{}`",
                good.display()
            ),
            false => "mend that line; `godwit config validate` looks again".into(),
        }
    }
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> ConfigError {
    move |source| ConfigError::Io { action, path: path.to_owned(), source }
}

/// Reads a file; none if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", path)(error)),
        Ok(metadata) if metadata.len() > LIMIT => {
            return Err(io("read", path)(std::io::Error::other(format!("it has more than {LIMIT} bytes"))));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(io("read", path))
}

/// Understands all of a file, or says which line is wrong.
pub(super) fn understand(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let line_of =
        |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let wrong = |at: Option<usize>, reason: String| ConfigError::Wrong {
        path: path.to_owned(),
        line: line_of(at.unwrap_or(0)),
        reason,
    };
    let document = Document::parse(text)
        .map_err(|error| wrong(error.span().map(|span| span.start), error.message().trim().to_owned()))?;
    let mut config = Config::default();
    let mut version = None;
    for (name, item) in document.as_table() {
        let at = document.as_table().key(name).and_then(|key| key.span()).map(|span| span.start);
        if name == "version" {
            version = item.as_integer();
            if version != Some(VERSION) {
                let reason = format!("this godwit understands version {VERSION} of the configuration");
                return Err(wrong(at, reason));
            }
            continue;
        }
        let Some(section) = item.as_table_like() else {
            let unknown = Name::find(name).err().map(|error| error.to_string());
            return Err(wrong(at, unknown.unwrap_or_else(|| format!("`{name}` is a section: `[{name}]`"))));
        };
        for (entry, item) in section.iter() {
            let at = section.key(entry).and_then(|key| key.span()).map(|span| span.start);
            let name =
                Name::find(&format!("{name}.{entry}")).map_err(|error| wrong(at, error.to_string()))?;
            let value = plain(item).ok_or_else(|| wrong(at, format!("`{name}` wants one value")))?;
            name.check(&value).map_err(|reason| wrong(at, reason))?;
            let setting = Setting { value, line: line_of(at.unwrap_or(0)) };
            match name {
                Name::Option(key) => config.options.push((key, setting)),
                Name::Host(host) => drop(config.hosts.insert(host, setting)),
            }
        }
    }
    match version {
        Some(_) => Ok(config),
        None => Err(wrong(None, format!("it has no `version = {VERSION}`"))),
    }
}

/// A value as it would be on a command line.
fn plain(item: &Item) -> Option<String> {
    match item.as_value()? {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        _ => None,
    }
}

/// Sets a key, or takes it out of the file of this host. All else in it stays as it is, comments too.
///
/// # Errors
/// When the file is not right as it is, or cannot be written: then it is as it was.
pub fn edit(path: &Path, name: &Name, value: Option<&str>) -> Result<bool, ConfigError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(io("make", dir))?;
    // held until this returns; its own file, for the other one is replaced
    let lock_path = dir.join(".config.lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = lock.map_err(io("open", &lock_path))?;
    lock.lock().map_err(io("lock", &lock_path))?;

    let text = read(path)?;
    if let Some(text) = &text {
        understand(path, text)?;
    }
    let mut document: DocumentMut = Document::parse(text.unwrap_or_else(|| TEMPLATE.into()))
        .map(Document::into_mut)
        .map_err(|error| ConfigError::Wrong { path: path.to_owned(), line: 1, reason: error.to_string() })?;
    let (section, entry) = match name {
        Name::Option(key) => (key.section, key.option),
        Name::Host(host) => (HOSTS, host.as_str()),
    };
    let was_there = match value {
        Some(value) => put(&mut document, section, entry, value, &name.help()),
        None => take(&mut document, section, entry),
    };
    let text = document.to_string();
    understand(path, &text)?;
    write(path, &text)?;
    write(&path.with_file_name(LAST_GOOD), &text)?;
    Ok(was_there)
}

fn put(document: &mut DocumentMut, section: &str, entry: &str, value: &str, help: &str) -> bool {
    let table = document.entry(section).or_insert_with(|| Item::Table(Table::new()));
    let Some(table) = table.as_table_like_mut() else { return false };
    let value = value.parse::<i64>().map_or_else(|_| Value::from(value), Value::from);
    if let Some(there) = table.get_mut(entry).and_then(Item::as_value_mut) {
        let decor = there.decor().clone();
        *there = value;
        *there.decor_mut() = decor;
        return true;
    }
    table.insert(entry, Item::Value(value));
    if let Some(mut key) = table.key_mut(entry).filter(|_| !help.is_empty()) {
        key.leaf_decor_mut().set_prefix(format!("# {help}\n"));
    }
    false
}

fn take(document: &mut DocumentMut, section: &str, entry: &str) -> bool {
    let Some(table) = document.get_mut(section).and_then(Item::as_table_like_mut) else { return false };
    let was_there = table.remove(entry).is_some();
    if table.is_empty() {
        document.remove(section);
    }
    was_there
}

/// Keeps a file that was understood for the day when it is broken.
///
/// # Errors
/// When it cannot be written.
pub fn keep_as_good(path: &Path) -> Result<(), ConfigError> {
    let good = path.with_file_name(LAST_GOOD);
    match (read(path)?, read(&good)?) {
        (Some(text), kept) if kept.as_ref() != Some(&text) => write(&good, &text),
        _ => Ok(()),
    }
}

/// Replaces a file: it is the old one or the new one, whatever happens.
fn write(path: &Path, text: &str) -> Result<(), ConfigError> {
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|error| {
        // only there when it did not get its name
        let _ = std::fs::remove_file(&draft);
        io("write", path)(error)
    })
}
