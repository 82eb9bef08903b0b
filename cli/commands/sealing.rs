//! Keys and memory for checkpoints that are encrypted: what `godwit checkpoint --recipient` and `godwit restore --identity`
//! have in common.

use crate::draw::Draw;
use godwit_checkpoint::sealed::{self, Identities, Recipients, SealError};
use godwit_checkpoint::staging::{self, Staging};
use godwit_engine::SourceContainer;
use godwit_memory::available_memory;
use godwit_migration::journal::dir_of;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind, MigrationId};
use std::path::{Path, PathBuf};

/// Where in its staging an opened checkpoint is.
pub const OPENED: &str = "checkpoint";

/// Memory that is left to everybody else, bytes.
const SPARE: u64 = 128 << 20;

/// Whom to seal for; none when it shall not be sealed.
///
/// # Errors
/// When one is no recipient, or this host cannot seal.
pub fn recipients(texts: &[String]) -> Result<Option<Recipients>, Failure> {
    if texts.is_empty() {
        return Ok(None);
    }
    let recipients = Recipients::parse(texts).map_err(|error| {
        Failure::new(FailureKind::Usage, "the checkpoint cannot be encrypted")
            .because_of(&error)
            .hint("`age-keygen` makes a key, and prints `age1…`; `@FILE` is a file with one a line")
    })?;
    check_tar()?;
    Ok(Some(recipients))
}

/// The keys for a checkpoint; none when it is a directory.
///
/// # Errors
/// When it needs keys and there are none, the other way round, or one is no identity.
pub fn identities_for(checkpoint: &Path, files: &[PathBuf]) -> Result<Option<Identities>, Failure> {
    let shown = checkpoint.display();
    let is_sealed = sealed::is_sealed(checkpoint).map_err(|error| {
        Failure::new(FailureKind::NotFound, format!("cannot read `{shown}`")).because_of(&error)
    })?;
    match (is_sealed, files.is_empty()) {
        (false, true) => Ok(None),
        (false, false) if checkpoint.is_dir() => {
            Err(Failure::new(FailureKind::Usage, format!("`{shown}` is a checkpoint that is not encrypted"))
                .hint("leave `--identity` out if that is what you expect"))
        }
        (false, false) => {
            Err(Failure::new(FailureKind::NotFound, format!("`{shown}` is not an encrypted checkpoint"))
                .hint("name the file that `godwit checkpoint --recipient` wrote"))
        }
        (true, true) => Err(Failure::new(FailureKind::Usage, format!("`{shown}` is encrypted"))
            .hint("name the file with the secret key: `--identity KEYFILE`")),
        (true, false) => {
            let identities = read_identities(files)?;
            check_tar()?;
            Ok(identities)
        }
    }
}

/// The keys in some files; none when there are no files.
///
/// # Errors
/// When one is no identity.
pub fn read_identities(files: &[PathBuf]) -> Result<Option<Identities>, Failure> {
    if files.is_empty() {
        return Ok(None);
    }
    Identities::read(files).map(Some).map_err(|error| {
        Failure::new(FailureKind::Usage, "nothing encrypted can be opened")
            .because_of(&error)
            .hint("an identity is a file as `age-keygen -o KEYFILE` writes it, mode 0600")
    })
}

fn check_tar() -> Result<(), Failure> {
    sealed::check_tar().map_err(|error| {
        Failure::new(FailureKind::Missing, "encrypted checkpoints need GNU tar")
            .because_of(&error)
            .hint("install tar")
    })
}

/// Memory for the checkpoint of a container, which is only looked at; and for its image, if that goes along.
///
/// # Errors
/// When there is not enough, or the container would see it.
pub fn staging_for(
    container: &dyn SourceContainer,
    with_image: bool,
    root: &Path,
    draw: &Draw,
) -> Result<Staging, Failure> {
    let facts = container.facts();
    let image = match with_image {
        // the headers and paddings of its archives
        true => container.image_bytes().map(|bytes| bytes.saturating_add(bytes / 4)).map_err(|error| {
            let name = facts.image.as_deref().unwrap_or_default();
            Failure::new(FailureKind::Missing, format!("the image `{name}` cannot be looked at"))
                .because_of(&error)
        })?,
        false => 0,
    };
    let staging = make(staging::size(facts).saturating_add(image), root, draw)?;
    match container.has_own_mounts() && staging.is_mounted_for(facts.pid).unwrap_or(false) {
        false => Ok(staging),
        true => Err(Failure::new(FailureKind::Missing, format!("cannot encrypt in `{}`", root.display()))
            .because("what is mounted there is mounted in the container, too, and would be dumped with it")
            .hint(
                "name another directory with `--root`, on a mount that is private (mount(8), --make-private)",
            )),
    }
}

fn make(bytes: u64, root: &Path, draw: &Draw) -> Result<Staging, Failure> {
    enough(bytes)?;
    let staging = Staging::make(root, bytes).map_err(|error| {
        Failure::new(FailureKind::Missing, format!("no memory can be mounted in `{}`", root.display()))
            .because_of(&error)
            .hint("name another directory with `--root`")
    })?;
    if staging.is_swappable() {
        draw.talk(
            "warning: this host swaps, and what is kept in memory meanwhile may come to the swap's disk; `swapoff -a` prevents that",
        );
    }
    Ok(staging)
}

fn enough(bytes: u64) -> Result<(), Failure> {
    let available = available_memory().map_err(|error| {
        Failure::new(FailureKind::Missing, "this host could not be looked at").because_of(&error)
    })?;
    if available >= bytes.saturating_add(SPARE) {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Missing, "an encrypted checkpoint does not fit in memory")
        .because(format!(
            "it needs {} and {} for everything else, and {} are available",
            show_bytes(bytes),
            show_bytes(SPARE),
            show_bytes(available)
        ))
        .hint("free memory, or use a checkpoint that is not encrypted, on a disk that is"))
}

/// Opens a sealed checkpoint in memory: its whole, or nothing.
///
/// # Errors
/// When it is for others, damaged, or does not fit.
pub fn open(
    checkpoint: &Path,
    identities: &Identities,
    root: &Path,
    draw: &Draw,
    cancel: &Cancel,
) -> Result<Staging, Failure> {
    let failed = |kind, error: &(dyn std::error::Error + 'static)| {
        let message = format!("`{}` cannot be opened; nothing was restored", checkpoint.display());
        Failure::new(kind, message).because_of(error)
    };
    let bytes = checkpoint.metadata().map_err(|error| failed(FailureKind::NotFound, &error))?.len();
    // its images once more where the other half receives them; they are part of it
    let staging = make(bytes.saturating_mul(2), root, draw)?;
    let into = staging.path().join(OPENED);
    std::fs::create_dir(&into).map_err(|error| failed(FailureKind::Failed, &error))?;
    sealed::unseal(checkpoint, identities, &into, cancel).map_err(|error| match error {
        SealError::NotForUs { .. } => failed(FailureKind::Usage, &error)
            .hint("name the identity of one of the recipients that it was written for"),
        SealError::Damaged { .. } => failed(FailureKind::NotFound, &error).hint("use another copy of it"),
        SealError::Interrupted => failed(FailureKind::Interrupted, &error),
        error => failed(FailureKind::Failed, &error),
    })?;
    Ok(staging)
}

/// Has the images of a restore in memory, where they would be on a disk; `memory_bytes` is what its tasks will have besides.
///
/// # Errors
/// When it does not fit.
pub fn keep_images_off_disks(
    staging: &Staging,
    memory_bytes: u64,
    root: &Path,
    id: &MigrationId,
) -> Result<(), Failure> {
    enough(memory_bytes.saturating_mul(2))?;
    staging.lend(&dir_of(root, id).join("images")).map_err(|error| {
        Failure::new(FailureKind::Missing, format!("cannot write to `{}`", root.display())).because_of(&error)
    })
}
