//! `godwit node`, and the neighbours of a host.

use clap::{Args as ClapArgs, Subcommand};
use godwit_migration::quantity;
use godwit_transfer::Address;

/// `godwit node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Give content of this host's store to those who may have it, and keep snapshots of those who may bring them
    Serve(NodeServeArgs),
    /// Show which neighbours answer: these, or those of `receive.neighbours` in this host's configuration
    List {
        /// `tls://host[:port]`, `ssh://[user@]host` or `unix:///path`, separated by commas
        #[arg(value_name = "URLS", value_parser = Neighbours::parse)]
        neighbours: Option<Neighbours>,
        /// Speak plain TCP with neighbours that are written as `tcp://`
        #[arg(long)]
        insecure: bool,
    },
}

/// `godwit node serve`.
#[derive(Debug, ClapArgs)]
pub struct NodeServeArgs {
    /// Where to listen: `tls://host[:port]`, `tcp://host:port` or `unix:///path`
    #[arg(long, required_unless_present = "stdio", value_name = "URL")]
    pub listen: Option<String>,
    /// Speak over standard input and output with one visitor, whom ssh brings
    #[arg(long, conflicts_with = "listen")]
    pub stdio: bool,
    /// Accept plain TCP: neither encrypted nor authenticated
    #[arg(long)]
    pub insecure: bool,
    /// How much the store may have on disk: snapshots that visitors bring are refused beyond that
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
}

/// Who may have content that this host needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours(pub Vec<Address>);

impl Neighbours {
    /// Reads addresses, separated by commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let addresses = text.split(',').map(str::trim).filter(|address| !address.is_empty());
        let parsed = addresses.map(str::parse).collect::<Result<_, _>>();
        parsed.map(Self).map_err(|error| format!("{error}"))
    }

    /// The first that is spoken to in the open.
    pub fn exposed(&self) -> Option<&Address> {
        self.0.iter().find(|address| address.is_exposed())
    }
}
