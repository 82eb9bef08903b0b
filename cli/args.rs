//! The command line.

use crate::probe::ProbeArgs;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use godwit_criu::pageless::Rung;
use godwit_engine::network::NetworkPlan;
use godwit_migration::plan::{Carry, Limits, OnTimeout, Restoration, Strategy, Tracker, TrackerChoice};
use godwit_migration::{SharedDirectory, quantity};
use godwit_transfer::Compression;
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
    Migrate(MigrateArgs),
    /// Wait for one migration (over ssh the source starts this itself)
    Receive(ReceiveArgs),
    /// Write a checkpoint of a container to a directory
    Checkpoint(CheckpointArgs),
    /// Bring a checkpoint back here
    Restore(RestoreArgs),
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
    /// Hold a container if CRIU is killed (started beside CRIU)
    #[command(hide = true)]
    Guard,
    /// Make this host's key, and say which hosts it trusts over `tls://`
    #[command(subcommand)]
    Keys(KeysCommand),
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

/// `godwit migrate`.
#[derive(Debug, ClapArgs)]
pub struct MigrateArgs {
    /// The container: `runc:NAME`, `pid:PID`, or a name that only one engine knows
    pub container: String,
    /// Where to: `ssh://[user@]host[:port]`, `tls://[name@]host[:port]`, `tcp://host:port`, `unix:///path`
    pub destination: String,
    /// How memory travels
    #[arg(long, value_enum, default_value_t = StrategyArg::PreCopy)]
    pub strategy: StrategyArg,
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
    /// A directory that both hosts have mounted, `file:PATH`: where they ask whose the container is when they cannot reach each
    /// other
    #[arg(long, value_name = "URL")]
    pub witness: Option<SharedDirectory>,
    /// How often to begin again when the link is lost before switchover; the container runs on meanwhile
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    pub retries: u32,
    /// Compression on the wire: `auto` (as link and processor have it), `zstd`, `zstd:LEVEL` or `none`
    #[arg(long, default_value = "auto", value_parser = str::parse::<Compression>)]
    pub compress: Compression,
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
    /// A directory or file to take along, besides those that the engine knows
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<PathBuf>,
    /// A path that is at the destination already, by other means
    #[arg(long, value_name = "PATH")]
    pub no_copy: Vec<PathBuf>,
    /// Where its network is attached: `same`, `bridge=NAME`, `none` or `hook=PATH`
    #[arg(long, default_value = "same", value_parser = network_plan)]
    pub network_plan: NetworkPlan,
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

/// `godwit receive`.
#[derive(Debug, ClapArgs)]
pub struct ReceiveArgs {
    /// Where to listen: `tls://host[:port]`, `tcp://host:port` or `unix:///path`
    #[arg(long, required_unless_present = "stdio", value_name = "URL")]
    pub listen: Option<String>,
    /// Speak over standard input and output
    #[arg(long, conflicts_with = "listen")]
    pub stdio: bool,
    /// Wait for the next migration when one is over
    #[arg(long, conflicts_with = "stdio")]
    pub forever: bool,
    /// Accept plain TCP: neither encrypted nor authenticated
    #[arg(long)]
    pub insecure: bool,
}

/// `godwit checkpoint`.
#[derive(Debug, ClapArgs)]
pub struct CheckpointArgs {
    /// The container: `runc:NAME`, `pid:PID`, or a name that only one engine knows
    pub container: String,
    /// The directory to write; must not exist yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Let the container run on afterwards
    #[arg(short = 'R', long)]
    pub leave_running: bool,
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
    /// The directory that `godwit checkpoint` wrote
    pub checkpoint: PathBuf,
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
    /// The witness that the migration was begun with: asked when the other side cannot be
    #[arg(long, value_name = "URL")]
    pub witness: Option<SharedDirectory>,
    /// How long to call the other side
    #[arg(long, default_value = "60s", value_parser = quantity::positive_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// What ssh runs at the destination
    #[arg(long, default_value = "godwit receive --stdio", value_name = "COMMAND")]
    pub remote_command: String,
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
            timeout: self.timeout,
            remote_command: self.remote_command.clone(),
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StrategyArg {
    /// Everything under one freeze
    StopAndCopy,
    /// Most of it while the container runs
    PreCopy,
}

impl From<StrategyArg> for Strategy {
    fn from(arg: StrategyArg) -> Self {
        match arg {
            StrategyArg::StopAndCopy => Strategy::StopAndCopy,
            StrategyArg::PreCopy => Strategy::PreCopy,
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

fn network_plan(text: &str) -> Result<NetworkPlan, String> {
    text.parse().map_err(|error| format!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        crate::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused_with_exit_code_2() {
        for flags in [
            ["--max-downtime", "0ms"],
            ["--max-downtime", "0"],
            ["--max-downtime", "fast"],
            ["--max-rounds", "0"],
            ["--timeout", "-1s"],
            ["--bandwidth", "500MiB"],
            ["--bandwidth", "0gbit"],
            ["--compress", "zstd:99"],
            ["--compress", "lz4"],
            ["--network-plan", "bridge="],
            ["--tracker", "magic"],
            ["--restore", "later"],
            ["--connections", "0"],
            ["--on-timeout", "hope"],
            ["--throttle", "0"],
            ["--throttle", "100"],
            ["--throttle", "half"],
        ] {
            let line = ["godwit", "migrate", "web", "ssh://x"].into_iter().chain(flags);
            let error = Args::try_parse_from(line).expect_err(flags[1]);
            assert_eq!(error.exit_code(), 2, "{flags:?}");
            assert!(error.to_string().contains(flags[1]), "{error}");
        }
    }

    #[test]
    fn somebody_is_asked_where_somebody_sits() {
        let limits = |flags: &[&str], can_ask| {
            let line = ["godwit", "migrate", "web", "ssh://x"].iter().chain(flags);
            match Args::try_parse_from(line).unwrap().command {
                Command::Migrate(migrate) => migrate.limits(can_ask),
                _ => unreachable!(),
            }
        };
        assert_eq!(limits(&[], true).on_timeout, OnTimeout::Ask);
        assert_eq!(limits(&[], false).on_timeout, OnTimeout::Cancel);
        for can_ask in [true, false] {
            assert_eq!(limits(&["--on-timeout", "cancel"], can_ask).on_timeout, OnTimeout::Cancel);
            assert_eq!(limits(&["--on-timeout", "switchover"], can_ask).on_timeout, OnTimeout::Switchover);
            assert_eq!(limits(&["--on-timeout", "ask"], can_ask).on_timeout, OnTimeout::Ask);
        }
        assert_eq!(limits(&[], true).throttle, 0);
        assert_eq!(limits(&["--throttle", "90"], true).throttle, 90);
    }
}
