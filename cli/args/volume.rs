//! `godwit volume`.

use super::{Elsewhere, PauseArgs};
use clap::{Args as ClapArgs, Subcommand};
use godwit_migration::quantity;
use godwit_transfer::Address;
use std::path::PathBuf;
use std::time::Duration;

/// `godwit volume`: VOLUME is `podman:NAME`, `docker:NAME` or a directory; SNAPSHOT is an id as `list` shows it, the beginning
/// of one, its time, or `VOLUME@latest`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Keep what is in a volume now, in the content store
    Snapshot(VolumeSnapshotArgs),
    /// Keep a snapshot soon after each change, until somebody ends it
    Follow(VolumeFollowArgs),
    /// Have the newest snapshot of a volume that another node or a place has here, or that is here there; what is there already does not
    /// travel
    Replicate(VolumeReplicateArgs),
    /// Show whose volumes are, and whether what several nodes have made of one has diverged
    Owner(VolumeOwnerArgs),
    /// Show the snapshots of this host, or of one volume, oldest first
    List {
        /// Of which volume
        volume: Option<String>,
    },
    /// Show in what a snapshot differs from another one, or from the volume as it is now
    Diff {
        /// The earlier one
        #[arg(value_name = "SNAPSHOT")]
        before: String,
        /// The later one; without it: the volume as it is now
        #[arg(value_name = "SNAPSHOT")]
        after: Option<String>,
    },
    /// Make a directory of a snapshot
    Restore {
        /// Which
        snapshot: String,
        /// The directory to make; empty if it is there
        path: PathBuf,
    },
    /// Make a volume what it was; what it has become is kept as one more snapshot. Refused while somebody uses the volume
    Rollback {
        /// To which snapshot
        snapshot: String,
        /// Also where the volume belongs to another node: it is this one's from then on
        #[arg(long)]
        take: bool,
    },
    /// Let go of snapshots: of some by name, or of those of a volume that nothing of `--keep-…` keeps
    Forget(VolumeForgetArgs),
}

/// Who stands still for a snapshot.
#[derive(Debug, ClapArgs)]
pub struct FreezeArgs {
    /// Have this container stand still while the last of the volume is read: the snapshot is of one moment. Repeatable; all who use the
    /// volume must be named
    #[arg(long, value_name = "CONTAINER")]
    pub freeze: Vec<String>,
    /// For how long at most; else there is no snapshot
    #[arg(long, default_value = "2s", value_parser = quantity::positive_duration, value_name = "DURATION")]
    pub freeze_limit: Duration,
    #[command(flatten)]
    pub pause: PauseArgs,
}

/// `godwit volume snapshot`.
#[derive(Debug, ClapArgs)]
pub struct VolumeSnapshotArgs {
    /// Of which volume
    pub volume: String,
    #[command(flatten)]
    pub still: FreezeArgs,
    /// Have its file system keep it (btrfs, ZFS): at once, and nothing is copied
    #[arg(long)]
    pub native: bool,
    /// What to remember of it
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// How much the store may have on disk: what nothing needs goes, the least recently used first, and then it is refused
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
}

/// `godwit volume forget`.
#[derive(Debug, ClapArgs)]
pub struct VolumeForgetArgs {
    /// Which
    #[arg(value_name = "SNAPSHOT", required_unless_present = "volume", conflicts_with = "volume")]
    pub snapshots: Vec<String>,
    /// All of this volume but what the policy keeps; a rollback's stash only goes by its name
    #[arg(long)]
    pub volume: Option<String>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// `godwit volume follow`.
#[derive(Debug, ClapArgs)]
pub struct VolumeFollowArgs {
    /// Which volume
    pub volume: String,
    /// The least time between two snapshots, however much is changed: 30s, 5m, 1h
    #[arg(long, default_value = "1m", value_parser = quantity::duration, value_name = "DURATION")]
    pub interval: Duration,
    /// One after this time, too, whatever was heard of changes; needed where the kernel tells of none
    #[arg(long, value_parser = quantity::duration, value_name = "DURATION")]
    pub every: Option<Duration>,
    /// Bring each to this node, too, as soon as it is there
    #[arg(long, value_name = "URL", value_parser = str::parse::<Address>)]
    pub to: Option<Address>,
    /// Plain TCP, too
    #[arg(long)]
    pub insecure: bool,
    #[command(flatten)]
    pub still: FreezeArgs,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// How much the store may have on disk: what nothing needs goes, the least recently used first, and then it is refused
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
}

/// `godwit volume owner`.
#[derive(Debug, ClapArgs)]
pub struct VolumeOwnerArgs {
    /// Of which volume; without it: of all that are known here
    pub volume: Option<String>,
    /// This node is its owner from now on, and what is here goes on from all snapshots of it that are here
    #[arg(long, requires = "volume")]
    pub take: bool,
}

/// `godwit volume replicate`.
#[derive(Debug, ClapArgs)]
pub struct VolumeReplicateArgs {
    /// Of which volume, by the name that it has where they come from
    pub volume: String,
    /// From this node: `ssh://HOST`, `tls://NAME@HOST`, where `godwit node serve` answers; or from a place in object storage:
    /// `s3://BUCKET/PREFIX`, `file:///PATH`
    #[arg(long, value_name = "URL", value_parser = str::parse::<Elsewhere>, required_unless_present = "to", conflicts_with = "to")]
    pub from: Option<Elsewhere>,
    /// To this node, which has to allow it, or to a place
    #[arg(long, value_name = "URL", value_parser = str::parse::<Elsewhere>)]
    pub to: Option<Elsewhere>,
    /// Encrypt it in the place, so that only the holder of this key of age's can read it: `age1…`, or `@FILE` with one a line; repeatable
    #[arg(long = "recipient", value_name = "RECIPIENT", requires = "to")]
    pub recipients: Vec<String>,
    /// A file with the secret key that opens what is encrypted in a place; repeatable
    #[arg(long = "identity", value_name = "KEYFILE", requires = "from")]
    pub identities: Vec<PathBuf>,
    /// All that there are, and not the newest alone
    #[arg(long)]
    pub all: bool,
    /// Also where the histories of the two nodes have diverged: both are kept then
    #[arg(long)]
    pub diverged: bool,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// How much the store may have on disk: what nothing needs goes, the least recently used first, and then it is refused
    #[arg(long, env = "GODWIT_STORE_QUOTA", value_parser = quantity::bytes, value_name = "SIZE")]
    pub quota: Option<u64>,
    /// Plain TCP, too
    #[arg(long)]
    pub insecure: bool,
}

/// Which snapshots stay.
#[derive(Debug, ClapArgs)]
pub struct KeepArgs {
    /// Keep the newest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_last: u32,
    /// Keep the newest of each of the latest N hours in which there is one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_hourly: u32,
    /// The same of days
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_daily: u32,
    /// The same of weeks, which begin on Monday
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_weekly: u32,
    /// The same of months
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_monthly: u32,
}
