//! The configuration of this host: what options are when a command line leaves them out, and names for other hosts.
//!
//! A command line counts first, then an environment variable, then the file, then what is built in. The file gives clap other
//! defaults, so a value is understood, and refused, as it is on a command line.

mod file;
mod keys;
#[cfg(test)]
mod tests;

pub use file::{ConfigError, FILE, Setting, edit, keep_as_good};
pub use keys::{HOSTS, KEYS, Key, Name};

use crate::args::{Args, Command};
use clap::FromArgMatches;
use godwit_transfer::tls::config_dir;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the file says.
#[derive(Debug, Default)]
pub struct Config {
    /// Options that have another default.
    pub options: Vec<(&'static Key, Setting)>,
    /// Destinations by their names.
    pub hosts: BTreeMap<String, Setting>,
}

impl Config {
    /// Reads the file of this host; none is an empty one.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read, or is not right: then no part of it counts.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(&path())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(path: &Path) -> Result<Self, ConfigError> {
        file::read(path)?.map_or_else(|| Ok(Self::default()), |text| file::understand(path, &text))
    }

    /// The command line, with the defaults that the file gives.
    pub fn apply(&self, command: clap::Command) -> clap::Command {
        self.options.iter().fold(command, |command, (key, setting)| key.with_default(command, &setting.value))
    }

    /// Puts destinations in the place of their names.
    fn name_hosts(&self, command: &mut Command) {
        let destination = match command {
            Command::Migrate(command) => Some(&mut command.destination),
            Command::Check(command) => command.destination.as_mut(),
            _ => None,
        };
        if let Some(text) = destination
            && let Some(setting) = self.hosts.get(text.as_str())
        {
            text.clone_from(&setting.value);
        }
    }

    /// What a key says, and where: none if the file does not have it.
    pub fn setting(&self, name: &Name) -> Option<&Setting> {
        match name {
            Name::Option(key) => self.options.iter().find(|(set, _)| set == key).map(|(_, setting)| setting),
            Name::Host(host) => self.hosts.get(host),
        }
    }
}

/// The file of this host.
pub fn path() -> PathBuf {
    config_dir().join(FILE)
}

/// Parses the command line. The file is read only for commands that have something in it: nothing that is wrong with it
/// keeps `resume` or `status` from their work.
///
/// # Errors
/// What clap says, and what is wrong with the file.
pub fn parse(line: &[OsString]) -> Result<Args, ParseError> {
    let plain = crate::command().try_get_matches_from(line)?;
    if !KEYS.iter().any(|key| key.is_of(&plain)) && plain.subcommand_name() != Some("check") {
        return Ok(Args::from_arg_matches(&plain)?);
    }
    let config = Config::load()?;
    // for the day when it is broken; where that cannot be written it is done without
    let _ = keep_as_good(&path());
    let matches = config.apply(crate::command()).try_get_matches_from(line)?;
    let mut args = Args::from_arg_matches(&matches)?;
    config.name_hosts(&mut args.command);
    Ok(args)
}

/// Why a command line does not say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It cannot be right, or help was asked for.
    #[error(transparent)]
    Line(#[from] clap::Error),
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
