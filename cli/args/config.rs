//! `godwit config`.

use clap::Subcommand;
use std::path::PathBuf;

/// `godwit config`; its file is config.toml in /etc/godwit, or where `GODWIT_ETC` says.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show what is in force for a key, whatever it comes from
    Get {
        /// `migrate.max-downtime`, `hosts.NAME`: `godwit config show` lists them
        key: String,
    },
    /// Set a key in the file; comments in it stay
    Set {
        /// Which; `hosts.NAME` is a name for a destination
        key: String,
        /// As it would be on a command line
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Take a key out of the file: what is built in is in force again
    Unset {
        /// Which
        key: String,
    },
    /// Show all keys and what is in force for each
    Show {
        /// And where it comes from: the file and its line, an environment variable, or what is built in
        #[arg(long)]
        origin: bool,
    },
    /// Say whether the file is right; if not, which line is wrong and why
    Validate {
        /// Another file than that of this host
        file: Option<PathBuf>,
    },
}
