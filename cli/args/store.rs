//! `godwit store`.

use clap::{Args as ClapArgs, Subcommand};
use godwit_migration::quantity;
use godwit_store::PinName;
use std::path::PathBuf;

/// `godwit store`; it is in `store` below godwit's directory.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Read all of it, and say what is missing or damaged
    Check {
        /// Move what is damaged aside, and take away what lacks something of it
        #[arg(long)]
        repair: bool,
    },
    /// Take away what neither a pin nor a running process needs
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how much there is, and what keeps it
    Stats,
    /// Put a directory, a file, a checkpoint or an engine's image into it
    Add(StoreAddArgs),
    /// Make a directory of what a manifest describes
    Get(StoreGetArgs),
    /// Let go of what a pin keeps; it stays until room is needed or is collected
    Unpin {
        /// Which
        #[arg(value_name = "KIND/NAME", value_parser = pin_name)]
        pin: PinName,
    },
}

/// `godwit store add`.
#[derive(Debug, ClapArgs)]
pub struct StoreAddArgs {
    /// What to put into it
    pub path: PathBuf,
    /// PATH is an image of an engine's: `podman:NAME`, `docker:NAME`
    #[arg(long)]
    pub image: bool,
    /// Keep it under this name; otherwise it stays until room is needed or is collected
    #[arg(long, value_name = "KIND/NAME", value_parser = pin_name)]
    pub pin: Option<PinName>,
    /// How much the store may have on disk: what nothing needs goes, the least recently used first, and then it is refused
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
}

/// `godwit store get`.
#[derive(Debug, ClapArgs)]
pub struct StoreGetArgs {
    /// The manifest: its digest, as `godwit store add` has said it, or a pin
    #[arg(value_name = "DIGEST|KIND/NAME")]
    pub manifest: String,
    /// The directory to make; empty if it is there
    pub path: PathBuf,
}

fn pin_name(text: &str) -> Result<PinName, String> {
    text.parse().map_err(|error| format!("{error}"))
}
