//! `godwit images`.

use super::{KeepArgs, Location};
use clap::{Args as ClapArgs, Subcommand};
use godwit_migration::quantity;
use godwit_object_storage::PlaceName;
use std::path::PathBuf;
use std::time::Duration;

/// Seconds of a day.
const DAY: u64 = 86_400;

/// `godwit images`.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List checkpoints: these, or those that lie in a directory or a place; of a place also the snapshots of volumes
    Ls {
        /// A checkpoint, a directory with some, a place in object storage: `s3://BUCKET/PREFIX`, `file:///PATH`, or `store`: those that this
        /// host's store keeps
        #[arg(required = true, value_name = "PATH|PLACE|store", value_parser = Location::parser())]
        paths: Vec<Location>,
    },
    /// Show what is in one: processes, files, sockets, mounts, sizes
    Inspect(ImageArgs),
    /// Read all of one, and say what is missing or damaged; nothing is restored
    Verify(ImageArgs),
    /// Let go of images in a place, or of checkpoints that this host's store keeps: of some by name, or of those that nothing of
    /// `--keep-…` keeps. What only they needed goes from a place a day later, with the next `forget` or `gc`
    Forget(ImagesForgetArgs),
    /// Take away what no image of a place needs, and what uploads have left that were broken off
    Gc(ImagesGcArgs),
}

/// One checkpoint.
#[derive(Debug, ClapArgs)]
pub struct ImageArgs {
    /// A directory, an encrypted checkpoint, podman's archive (.tar, .tar.gz, .tar.zst), or `store:ID`. To `verify` also a place in object
    /// storage
    #[arg(value_name = "PATH|PLACE|store:ID", value_parser = Location::parser())]
    pub image: Location,
    /// A file with the secret key that opens it, when it is encrypted; repeatable
    #[arg(long = "identity", value_name = "KEYFILE")]
    pub identities: Vec<PathBuf>,
}

/// `godwit images forget`.
#[derive(Debug, ClapArgs)]
pub struct ImagesForgetArgs {
    /// Which, as `images ls` shows them: `store:ID`, or all of one place, `s3://BUCKET/PREFIX#IMAGE`. With `--keep-…` or `--expire` the
    /// place alone
    #[arg(required_unless_present = "container", conflicts_with = "container", value_name = "store:ID|PLACE#IMAGE|PLACE",
        value_parser = Location::parser())]
    pub images: Vec<Location>,
    /// Of those that the store keeps, all of this container but what the policy keeps; what was pinned by hand only goes by its name
    #[arg(long, value_name = "ENGINE:NAME", conflicts_with = "expire")]
    pub container: Option<String>,
    /// Which stay, of the checkpoints and of each volume's snapshots; a rollback's stash only goes by its name
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Let go of what was made longer ago than this, whatever keeps it: 30d, 12h
    #[arg(long, value_parser = time_span, value_name = "AGE")]
    pub expire: Option<Duration>,
    #[command(flatten)]
    pub gc: GcArgs,
}

/// `godwit images gc`.
#[derive(Debug, ClapArgs)]
pub struct ImagesGcArgs {
    /// The place: `s3://BUCKET/PREFIX` or `file:///PATH`
    pub place: PlaceName,
    #[command(flatten)]
    pub gc: GcArgs,
}

/// How a place is collected.
#[derive(Debug, ClapArgs)]
pub struct GcArgs {
    /// A file with the secret key that opens what is encrypted there: what such snapshots need has to be known. Repeatable
    #[arg(long = "identity", value_name = "KEYFILE")]
    pub identities: Vec<PathBuf>,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// A duration, also in days: `30d`.
fn time_span(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) if days > 0 => Ok(Duration::from_secs(u64::from(days) * DAY)),
        Some(_) => Err("write a number of days above zero, as `30d`".into()),
        None => quantity::positive_duration(text).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_span_may_be_in_days() {
        assert_eq!(time_span("2d"), Ok(Duration::from_secs(2 * DAY)));
        assert_eq!(time_span("12h"), Ok(Duration::from_secs(DAY / 2)));
        for text in ["", "d", "0d", "-1d", "3", "0s"] {
            assert!(time_span(text).is_err(), "{text}");
        }
    }
}
