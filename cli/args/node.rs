//! `godwit node`, and the neighbours of a host.

use clap::{Args as ClapArgs, Subcommand};
use godwit_migration::quantity;
use godwit_neighbours::Place;
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
        #[command(flatten)]
        catalog: CatalogArgs,
    },
    /// Show which nodes have something, by the catalog: the checkpoints of a container, the snapshots of a volume, or a digest
    Find {
        /// `ENGINE:NAME`, a volume's name or path, or the digest of a manifest or a tree
        #[arg(value_name = "NAME|DIGEST")]
        what: String,
        #[command(flatten)]
        catalog: CatalogArgs,
    },
}

/// Where nodes are looked up.
#[derive(Clone, Debug, ClapArgs)]
pub struct CatalogArgs {
    /// The etcd with the catalog of nodes, `etcds://host[:port][,host…][/name]`: that of `receive.catalog` when absent
    #[arg(long, value_name = "URL", value_parser = str::parse::<Place>)]
    pub catalog: Option<Place>,
    /// Speak plain TCP and HTTP with neighbours, and a catalog, that are written as `tcp://` and `etcd://`
    #[arg(long)]
    pub insecure: bool,
}

/// `godwit node serve`.
#[derive(Debug, ClapArgs)]
pub struct NodeServeArgs {
    /// Where to listen: `tls://host[:port]`, `tcp://host:port` or `unix:///path`
    #[arg(long, value_name = "URL", value_parser = super::place_to_listen)]
    pub listen: Option<Address>,
    /// Speak over standard input and output with one visitor, whom ssh brings
    #[arg(long, conflicts_with = "listen")]
    pub stdio: bool,
    /// Put this node into a catalog, in an etcd, with what its store keeps: `etcds://host[:port][,host…][/name]`
    #[arg(long, conflicts_with = "stdio", value_name = "URL", value_parser = str::parse::<Place>)]
    pub catalog: Option<Place>,
    /// Where others reach this node, for the catalog [default: this host's name where it listens on all addresses]
    #[arg(long, requires = "catalog", value_name = "URL", value_parser = str::parse::<Address>)]
    pub advertise: Option<Address>,
    /// Accept plain TCP, and a catalog over plain HTTP: neither encrypted nor authenticated
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
