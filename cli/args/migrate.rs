//! The arguments of `godwit migrate`.

use super::{CarryArgs, HookArgs, network_plan, place_between};
use clap::{Args as ClapArgs, ValueEnum};
use godwit_criu::pageless::Rung;
use godwit_engine::network::NetworkPlan;
use godwit_migration::plan::{Limits, OnTimeout, Restoration, Strategy, Tracker, TrackerChoice};
use godwit_migration::quantity;
use godwit_object_storage::PlaceName;
use godwit_transfer::Compression;
use godwit_witness::WitnessPlace;
use std::path::PathBuf;
use std::time::Duration;

/// `godwit migrate`.
#[derive(Debug, ClapArgs)]
pub struct MigrateArgs {
    /// The container: `runc:NAME`, `pid:PID`, or a name that only one engine knows
    pub container: String,
    /// Where to: `ssh://[user@]host[:port]`, `tls://[name@]host[:port]`, `tcp://host:port`, `unix:///path`
    pub destination: String,
    /// A place in object storage that carries all that is said between hosts that cannot reach each other, `s3://BUCKET/PREFIX` or
    /// `file:///PATH`; the destination is then `tls://NAME`, and there runs `godwit receive --via` with the same place
    #[arg(long, value_name = "PLACE", value_parser = place_between)]
    pub via: Option<PlaceName>,
    /// How memory travels
    #[arg(long, value_enum, default_value_t = StrategyArg::PreCopy)]
    pub strategy: StrategyArg,
    /// How long it may take to end by its stop signal before it is killed; with `--strategy restart`, whole seconds
    #[arg(long, default_value = "10s", value_parser = quantity::duration, value_name = "DURATION")]
    pub stop_timeout: Duration,
    /// How changed memory is found
    #[arg(long, value_enum, default_value_t = TrackerArg::Auto)]
    pub tracker: TrackerArg,
    /// The downtime that you accept
    #[arg(long, default_value = "300ms", value_parser = quantity::positive_duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub max_downtime: Duration,
    /// Pre-copy rounds at most
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_rounds: u32,
    /// Time for all rounds together
    #[arg(long, default_value = "10m", value_parser = quantity::positive_duration, allow_hyphen_values = true, value_name = "DURATION")]
    pub timeout: Duration,
    /// When rounds or time run out above the accepted downtime
    /// [default: ask on a terminal, else cancel]
    #[arg(long, value_enum)]
    pub on_timeout: Option<OnTimeoutArg>,
    /// Percent of its CPU time, 1 to 99, that may be taken from a container that writes faster than the link carries
    ///
    /// Taken in steps, and only when the rounds do not come under the accepted downtime; measured against the CPU time that it
    /// used in the round before the first step. It has its own limit again when it is frozen, and whenever the attempt ends. `off`: none
    #[arg(long, default_value = "off", value_parser = throttle, value_name = "off|PERCENT")]
    pub throttle: u8,
    /// Bytes a second at most while the container runs: `500MiB/s`, `1gbit`
    #[arg(long, value_parser = quantity::bytes_per_second, value_name = "RATE")]
    pub bandwidth: Option<u64>,
    /// Connections to the destination: the first for everything, the others for memory
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub connections: u16,
    /// Whom both hosts ask whose the container is when they cannot reach each other: an etcd, `etcds://host[:port][,host…][/name]`, or
    /// a directory that both have mounted, `file:PATH`
    #[arg(long, value_name = "URL")]
    pub witness: Option<WitnessPlace>,
    /// How often to begin again when the link is lost before switchover; the container runs on meanwhile
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    pub retries: u32,
    /// Compression on the wire: `auto` (as link and processor have it), `zstd`, `zstd:LEVEL` or `none`
    #[arg(long, default_value = "auto", value_parser = str::parse::<Compression>)]
    pub compress: Compression,
    /// Whether the destination may have content of the files from elsewhere than this host: its own store, its neighbours
    #[arg(long, value_enum, default_value_t = CooperativeArg::Auto)]
    pub cooperative: CooperativeArg,
    /// Whether the kernel is asked what is changed in volumes of many files, so that the last pass need not look at each of them
    #[arg(long, value_enum, default_value_t = FileWatchArg::Auto)]
    pub file_watch: FileWatchArg,
    /// Whether copying steps back when the container would have to wait for a processor
    #[arg(long, value_enum, default_value_t = PaceArg::Gentle)]
    pub pace: PaceArg,
    /// How the container gets its memory over there
    #[arg(long, value_enum, default_value_t = RestorationArg::Auto)]
    pub restore: RestorationArg,
    /// The highest way of keeping CRIU from dumping pages that is tried
    #[arg(long, value_enum, hide = true)]
    pub highest_rung: Option<RungArg>,
    #[command(flatten)]
    pub carry: CarryArgs,
    /// Of a container: the volumes that move, all others are left as by `--skip-volume`. Of `pid:`: a directory or file to take
    /// along. Repeatable
    #[arg(long = "volume", value_name = "NAME|PATH")]
    pub volumes: Vec<String>,
    /// A path that is at the destination already, by other means
    #[arg(long, value_name = "PATH")]
    pub no_copy: Vec<PathBuf>,
    /// Leave what the container has changed of its image (podman): for those who keep all that matters in volumes
    #[arg(long, value_enum, default_value_t = LayerArg::Migrate)]
    pub layer: LayerArg,
    /// A volume whose content stays here: there it is made, and empty, unless it is there already; repeatable
    #[arg(long = "skip-volume", value_name = "NAME|PATH")]
    pub skip_volumes: Vec<String>,
    /// Keep the stopped container here when it has moved; nothing starts it again by itself
    #[arg(long)]
    pub keep_source: bool,
    /// Move all containers that share its namespaces with it, with one freeze and one word (docker and podman: `--network container:NAME`, `--pid container:NAME`)
    #[arg(long)]
    pub together: bool,
    /// Whether clients may have to use another address: of a container with published ports they must
    #[arg(long, value_enum, default_value_t = IpChangeArg::Refuse)]
    pub ip_change: IpChangeArg,
    /// Where its network is attached: `same`, `bridge=NAME`, `none` or `hook=PATH`
    #[arg(long, default_value = "same", value_parser = network_plan)]
    pub network_plan: NetworkPlan,
    #[command(flatten)]
    pub hooks: HookArgs,
    /// Accept a destination over plain TCP: neither encrypted nor authenticated
    #[arg(long)]
    pub insecure: bool,
    /// What ssh runs at the destination
    #[arg(
        long,
        default_value = "godwit receive --stdio",
        env = "GODWIT_REMOTE_COMMAND",
        value_name = "COMMAND"
    )]
    pub remote_command: String,
    /// Look whether it can be moved, and stop there
    #[arg(long)]
    pub dry_run: bool,
}

impl MigrateArgs {
    /// `can_ask`: somebody sits at a terminal.
    pub fn limits(&self, can_ask: bool) -> Limits {
        let otherwise = if can_ask { OnTimeoutArg::Ask } else { OnTimeoutArg::Cancel };
        Limits {
            max_downtime: self.max_downtime,
            max_rounds: self.max_rounds,
            timeout: self.timeout,
            on_timeout: match self.on_timeout.unwrap_or(otherwise) {
                OnTimeoutArg::Cancel => OnTimeout::Cancel,
                OnTimeoutArg::Switchover => OnTimeout::Switchover,
                OnTimeoutArg::Ask => OnTimeout::Ask,
            },
            throttle: self.throttle,
        }
    }
}
/// What becomes of what a container has changed of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayerArg {
    /// It moves
    Migrate,
    /// It stays here: the container goes on with the image as it is. CRIU refuses that while files of it are open
    Skip,
}

/// Whether clients may have to find the container anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IpChangeArg {
    /// They must not
    Refuse,
    /// They may
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// Everything under one freeze
    StopAndCopy,
    /// Most of it while the container runs
    PreCopy,
    /// Not at all: the container is stopped here and started there, with its files. For what CRIU cannot dump
    Restart,
}

impl From<StrategyArg> for Strategy {
    fn from(arg: StrategyArg) -> Self {
        match arg {
            StrategyArg::StopAndCopy => Strategy::StopAndCopy,
            StrategyArg::PreCopy => Strategy::PreCopy,
            StrategyArg::Restart => Strategy::Restart,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrackerArg {
    /// The best that the kernel can do
    Auto,
    /// Written pages by userfaultfd, read from outside; needs Linux 6.7
    Uffd,
    /// Written pages by the kernel's soft-dirty tracking, read from outside
    SoftDirty,
    /// All pages read from outside in every round, those that changed sent
    Hash,
    /// CRIU's pre-dump rounds; needs the kernel's soft-dirty tracking
    PreDump,
    /// One full checkpoint first, its difference under the freeze
    Checkpoint,
}

impl From<TrackerArg> for TrackerChoice {
    fn from(arg: TrackerArg) -> Self {
        match arg {
            TrackerArg::Auto => TrackerChoice::Auto,
            TrackerArg::Uffd => TrackerChoice::Only(Tracker::Uffd),
            TrackerArg::SoftDirty => TrackerChoice::Only(Tracker::SoftDirty),
            TrackerArg::Hash => TrackerChoice::Only(Tracker::Hash),
            TrackerArg::PreDump => TrackerChoice::Only(Tracker::PreDump),
            TrackerArg::Checkpoint => TrackerChoice::Only(Tracker::Checkpoint),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnTimeoutArg {
    /// The container stays where it is
    Cancel,
    /// Switch over all the same
    Switchover,
    /// Ask on the terminal, while further rounds go on; no answer within 60 s is a no
    Ask,
}

/// Where content of the files comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CooperativeArg {
    /// From whoever near the destination has it, and the rest from here
    Auto,
    /// All from here
    Never,
}

/// Whether the kernel is asked what is changed in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FileWatchArg {
    /// Where it can tell, of volumes of 5,000 files and more
    Auto,
    /// Every file is looked at in every pass
    Never,
}

/// How copying behaves while the container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PaceArg {
    /// It pauses when the container waits for processors more than it did before
    Gentle,
    /// As fast as it can
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestorationArg {
    /// Local-lazy where it can work
    Auto,
    /// All of it before it runs
    Eager,
    /// It runs at once; its pages, which are there already, come as they are touched and in the background
    LocalLazy,
}

impl From<RestorationArg> for Restoration {
    fn from(arg: RestorationArg) -> Self {
        match arg {
            RestorationArg::Auto => Restoration::Auto,
            RestorationArg::Eager => Restoration::Eager,
            RestorationArg::LocalLazy => Restoration::LocalLazy,
        }
    }
}

/// For tests and measurements: each rung must be right by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RungArg {
    ShimWithSmaps,
    Shim,
    FakeParent,
    PageServer,
    Plain,
}

impl From<RungArg> for Rung {
    fn from(arg: RungArg) -> Self {
        match arg {
            RungArg::ShimWithSmaps => Rung::ShimWithSmaps,
            RungArg::Shim => Rung::Shim,
            RungArg::FakeParent => Rung::FakeParent,
            RungArg::PageServer => Rung::PageServer,
            RungArg::Plain => Rung::Plain,
        }
    }
}

/// Percent, or 0 for `off`.
fn throttle(text: &str) -> Result<u8, String> {
    match text {
        "off" => Ok(0),
        _ => text
            .parse()
            .ok()
            .filter(|percent| (1..=99).contains(percent))
            .ok_or_else(|| "neither `off` nor a number from 1 to 99".into()),
    }
}
