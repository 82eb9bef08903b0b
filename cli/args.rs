//! The command line.

mod config;
mod hook;
mod hooks;
mod images;
mod location;
mod migrate;
mod node;
mod store;
#[cfg(test)]
mod tests;
mod volume;

pub use config::ConfigCommand;
pub use hook::HookCommand;
pub use hooks::{Choice, HookArgs, PauseArgs};
pub use images::{ImageArgs, ImagesCommand, ImagesForgetArgs, ImagesGcArgs};
pub use location::{Elsewhere, Location};
pub use migrate::{CooperativeArg, FileWatchArg, IpChangeArg, LayerArg, MigrateArgs, PaceArg};
pub use node::{CatalogArgs, Neighbours, NodeCommand, NodeServeArgs};
pub use store::{StoreAddArgs, StoreCommand, StoreGetArgs};
pub use volume::{
    FreezeArgs, KeepArgs, VolumeCommand, VolumeFollowArgs, VolumeForgetArgs, VolumeOwnerArgs,
    VolumeReplicateArgs, VolumeSnapshotArgs,
};

use crate::probe::ProbeArgs;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use godwit_engine::network::NetworkPlan;
use godwit_migration::plan::Carry;
use godwit_migration::quantity;
use godwit_neighbours::Place;
use godwit_object_storage::PlaceName;
use godwit_transfer::Address;
use godwit_witness::WitnessPlace;
use std::path::PathBuf;
use std::time::Duration;

/// Moves a running container to another host without stopping it for longer than a blink
#[derive(Debug, Parser)]
#[command(name = "godwit", version, propagate_version = true)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, ClapArgs)]
pub struct Global {
    /// Write JSON to standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more; repeat for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How progress is shown
    #[arg(long, global = true, value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// When to use colour; `NO_COLOR` is honoured
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Where godwit keeps journals and images
    #[arg(long, global = true, env = "GODWIT_ROOT", default_value = "/var/lib/godwit", value_name = "DIR")]
    pub root: PathBuf,
    /// Write the log there instead of to standard error
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// How the log is written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A line that is redrawn, when standard error is a terminal
    Auto,
    /// A line for each step
    Plain,
    /// Nothing
    None,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move a running container to another host
    Migrate(Box<MigrateArgs>),
    /// Wait for one migration (over ssh the source starts this itself)
    Receive(ReceiveArgs),
    /// Write a checkpoint of a container to a directory, or to an encrypted file
    Checkpoint(CheckpointArgs),
    /// Bring a checkpoint back here
    Restore(RestoreArgs),
    /// Look into checkpoints: godwit's, podman's exported archives, CRIU's directories of images
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Keep content that checkpoints, volumes and layers have in common once, verified: the store
    #[command(subcommand)]
    Store(StoreCommand),
    /// Let other hosts have content of this host's store, and see which of them let this one
    #[command(subcommand)]
    Node(NodeCommand),
    /// Volumes over time: snapshots, what changed, the way back
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Show migrations, running and recent
    Status(StatusArgs),
    /// Show the journal of a migration
    Log(LogArgs),
    /// Say what a log of CRIU's means: dump.log, restore.log
    Explain(ExplainArgs),
    /// Bring what a crash or a lost link has left to one end
    Resume(ResumeArgs),
    /// Stop a migration: the container stays where it was
    Cancel(CancelArgs),
    /// Say whether this host, or this pair of hosts, can migrate
    Check(CheckArgs),
    /// Give a restored container its memory (started by `receive`)
    #[command(hide = true)]
    Fill {
        /// Which migration, for whoever looks for it
        #[arg(long = "for", value_name = "MIGRATION")]
        migration: Option<String>,
        /// A file to make when every page is in its place
        #[arg(long, value_name = "FILE")]
        done: Option<PathBuf>,
    },
    /// Keep what has come before a link was lost (started by `receive`)
    #[command(hide = true)]
    Park,
    /// Hold a container if CRIU is killed (started beside CRIU)
    #[command(hide = true)]
    Guard,
    /// Let a container go on that stands still, when godwit dies (started by `volume snapshot --freeze`)
    #[command(hide = true)]
    LetGo {
        /// Its cgroup
        cgroup: PathBuf,
        /// When it is to go on at the latest, ms
        limit: u64,
    },
    /// Make this host's key, and say which hosts it trusts over `tls://`
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Set what options are when a command line leaves them out, and names for other hosts
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Take part in the making of containers: register those that are meant to be moved
    #[command(subcommand)]
    Hook(HookCommand),
    /// Measure the gap that a client sees, from a third place
    Probe(ProbeArgs),
    /// Write completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `godwit keys`; its files are in /etc/godwit, or where `GODWIT_ETC` says.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make this host's key: host.key and host.pem
    New,
    /// Show this host's name and the fingerprint of its key
    Show,
    /// Trust another host: `godwit keys show` there prints both
    Trust {
        /// What it is called here: the host in `tls://HOST`
        name: String,
        /// Its key: `sha256:` and 64 hexadecimal digits
        fingerprint: String,
    },
    /// Show the hosts that are trusted
    List,
    /// Trust a host no more
    Forget {
        /// What it is called here
        name: String,
    },
}

/// What CRIU may carry.
#[derive(Clone, Debug, ClapArgs)]
pub struct CarryArgs {
    /// Take established TCP connections along
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow unix sockets whose other end is outside of the container
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Take file locks along
    #[arg(long)]
    pub file_locks: bool,
    /// The process belongs to a terminal session outside
    #[arg(long)]
    pub shell_job: bool,
    /// Take open files along that were unlinked but have other names
    #[arg(long)]
    pub link_remap: bool,
}

impl CarryArgs {
    pub fn carry(&self) -> Carry {
        Carry {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            file_locks: self.file_locks,
            shell_job: self.shell_job,
            link_remap: self.link_remap,
        }
    }
}
/// `godwit receive`.
#[derive(Debug, ClapArgs)]
pub struct ReceiveArgs {
    /// Where to listen: `tls://host[:port]`, `tcp://host:port` or `unix:///path`
    #[arg(long, required_unless_present_any = ["stdio", "via"], value_name = "URL", value_parser = place_to_listen)]
    pub listen: Option<Address>,
    /// Wait at a place in object storage for hosts that cannot reach this one, and trust each other: `s3://BUCKET/PREFIX` or
    /// `file:///PATH`
    #[arg(long, conflicts_with_all = ["listen", "stdio"], value_name = "PLACE", value_parser = place_between)]
    pub via: Option<PlaceName>,
    /// Speak over standard input and output
    #[arg(long, conflicts_with_all = ["listen", "via"])]
    pub stdio: bool,
    /// Wait for the next migration when one is over
    #[arg(long, conflicts_with = "stdio")]
    pub forever: bool,
    /// How long what has come is kept when the link is lost before switchover, for the next attempt; `0s` keeps nothing
    #[arg(long, default_value = "5m", value_parser = quantity::duration, value_name = "DURATION")]
    pub keep_received: Duration,
    /// Hosts near this one that may have content of a container's files (`godwit node serve`), separated by commas:
    /// `tls://host[:port]`, `ssh://[user@]host` or `unix:///path`
    #[arg(long, default_value = "", hide_default_value = true, value_parser = Neighbours::parse, value_name = "URLS")]
    pub neighbours: Neighbours,
    /// The etcd with the catalog of nodes that may be asked besides: `etcds://host[:port][,host…][/name]`
    #[arg(long, value_name = "URL", value_parser = str::parse::<Place>)]
    pub catalog: Option<Place>,
    /// Accept plain TCP, and speak it with neighbours and the catalog: neither encrypted nor authenticated
    #[arg(long)]
    pub insecure: bool,
}

/// `godwit checkpoint`.
#[derive(Debug, ClapArgs)]
pub struct CheckpointArgs {
    /// The container: `runc:NAME`, `pid:PID`, or a name that only one engine knows
    pub container: String,
    /// The directory to write, or with `--recipient` the file; must not exist yet. Or a place in object storage, `s3://BUCKET/PREFIX` or
    /// `file:///PATH`, which may have earlier ones of the container. Or `store`: this host's store keeps it beside earlier ones
    #[arg(long, value_name = "PATH|PLACE|store", value_parser = Location::parser())]
    pub to: Location,
    /// Encrypt it, so that only the holder of this key of age's can read it: `age1…`, or `@FILE` with one a line; repeatable
    #[arg(long = "recipient", value_name = "RECIPIENT")]
    pub recipients: Vec<String>,
    /// Let the container run on afterwards
    #[arg(short = 'R', long)]
    pub leave_running: bool,
    /// Take the image along that it was made of, so that it need not be where it is restored
    #[arg(long)]
    pub with_image: bool,
    /// An earlier checkpoint of the same container: what this one has in common with it is not stored again. It must be kept
    #[arg(long, value_name = "DIR")]
    pub parent: Option<PathBuf>,
    /// How much the store may have on disk: what nothing needs goes, the least recently used first, and then it is refused
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
    /// In the store or in a place: which checkpoints of the container stay there afterwards; without `--keep-…` all do
    #[command(flatten)]
    pub keep: KeepArgs,
    #[command(flatten)]
    pub carry: CarryArgs,
    /// A directory or file to take along, besides those that the engine knows
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// A path that will be there by other means
    #[arg(long, value_name = "PATH")]
    pub no_copy: Vec<PathBuf>,
}

/// `godwit restore`.
#[derive(Debug, ClapArgs)]
pub struct RestoreArgs {
    /// The directory or file that `godwit checkpoint` wrote; or the place that it was put into: the newest there, or `PLACE#IMAGE`; or
    /// one that this host's store keeps: `store:ID`, `store:CONTAINER@latest`
    #[arg(value_name = "PATH|PLACE|store:ID", value_parser = Location::parser())]
    pub checkpoint: Location,
    /// A file with the secret key that opens it, when it is encrypted; repeatable
    #[arg(long = "identity", value_name = "KEYFILE")]
    pub identities: Vec<PathBuf>,
    /// Where its network is attached: `same`, `bridge=NAME`, `none` or `hook=PATH`
    #[arg(long, default_value = "same", value_parser = network_plan)]
    pub network_plan: NetworkPlan,
}

/// `godwit status`.
#[derive(Debug, ClapArgs)]
pub struct StatusArgs {
    /// Which migration; all when absent
    pub migration: Option<String>,
}

/// `godwit log`.
#[derive(Debug, ClapArgs)]
pub struct LogArgs {
    /// Which migration: its id, or enough of its end to be unambiguous
    pub migration: String,
    /// Pack its journal and logs, and what `godwit check` says, into a new file (.tar.zst) instead; no memory gets in
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}

/// `godwit explain`.
#[derive(Debug, ClapArgs)]
pub struct ExplainArgs {
    /// CRIU's log, or that of the runtime above it; `-` reads standard input
    #[arg(required = true, value_name = "LOG")]
    pub logs: Vec<PathBuf>,
}

/// Whose a container shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepArg {
    /// It runs at the source
    Source,
    /// It runs at the destination
    Destination,
}

/// `godwit resume`.
#[derive(Clone, Debug, ClapArgs)]
pub struct ResumeArgs {
    /// Which migration: its id, or enough of its end to be unambiguous (default: all that were broken off)
    pub migration: Option<String>,
    /// Decide yourself where the two hosts cannot: whose it shall be. The other side obeys when it is back
    #[arg(long, value_enum, value_name = "SIDE", requires = "migration")]
    pub keep: Option<KeepArg>,
    /// Where the witness of the migration is now, if it is not where it was: asked when the other side cannot be
    #[arg(long, value_name = "URL")]
    pub witness: Option<WitnessPlace>,
    /// Ask a witness over plain HTTP: neither encrypted nor authenticated
    #[arg(long, requires = "witness")]
    pub insecure: bool,
    /// How long to call the other side
    #[arg(long, default_value = "60s", value_parser = quantity::positive_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// What ssh runs at the destination
    #[arg(long, default_value = "godwit receive --stdio", value_name = "COMMAND")]
    pub remote_command: String,
    /// What has come to the other side is not wanted there for another attempt: `godwit cancel`.
    #[arg(skip)]
    pub forget: bool,
}

/// `godwit cancel`.
#[derive(Debug, ClapArgs)]
pub struct CancelArgs {
    /// Which migration: its id, or enough of its end to be unambiguous
    pub migration: String,
    /// How long to call the other side, when the migration's process is dead
    #[arg(long, default_value = "60s", value_parser = quantity::positive_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// What ssh runs at the destination
    #[arg(long, default_value = "godwit receive --stdio", value_name = "COMMAND")]
    pub remote_command: String,
}

impl CancelArgs {
    /// The same for `godwit resume`.
    pub fn as_resume(&self) -> ResumeArgs {
        ResumeArgs {
            migration: Some(self.migration.clone()),
            keep: None,
            witness: None,
            insecure: false,
            timeout: self.timeout,
            remote_command: self.remote_command.clone(),
            forget: true,
        }
    }
}

/// `godwit check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Another host to compare with: `ssh://[user@]host[:port]`
    pub destination: Option<String>,
    /// What ssh runs at the destination
    #[arg(long, default_value = "godwit check --json", value_name = "COMMAND")]
    pub remote_command: String,
    /// Say how fast this container writes, and what downtime each way of moving it would have
    #[arg(long, value_name = "CONTAINER", conflicts_with = "destination")]
    pub dirty_rate: Option<String>,
    /// How long to watch it; with `--dirty-rate`
    #[arg(long, default_value = "3s", value_parser = quantity::positive_duration, value_name = "DURATION")]
    pub period: Duration,
    /// The link to reckon with; with `--dirty-rate`
    #[arg(long, default_value = "1gbit", value_parser = quantity::bytes_per_second, value_name = "RATE")]
    pub bandwidth: u64,
}

/// Reads where to listen.
fn place_to_listen(text: &str) -> Result<Address, String> {
    match text.parse() {
        Ok(Address::Ssh { .. }) => {
            Err("ssh needs no listener: it starts godwit with `--stdio` itself".into())
        }
        Ok(address) => Ok(address),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a place that carries what is said, and not one of its images.
fn place_between(text: &str) -> Result<PlaceName, String> {
    let place: PlaceName = text.parse().map_err(|error| format!("{error}"))?;
    match place.image {
        Some(_) => Err("it names an image of a place, behind `#`: name the place".into()),
        None => Ok(place),
    }
}

fn network_plan(text: &str) -> Result<NetworkPlan, String> {
    text.parse().map_err(|error| format!("{error}"))
}
