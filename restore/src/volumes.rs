//! The volumes of a container that has come: from now on they are this node's.

use godwit_migration::MigrationId;
use godwit_migration::volume_owner::VolumeOwners;
use godwit_transfer::message::PassedVolume;
use std::path::Path;

/// Writes down that those at `places` which the source has passed on are this node's. Gives what could not be written down.
pub(crate) fn take(
    root: &Path,
    places: &[&Path],
    passed: Vec<PassedVolume>,
    migration: &MigrationId,
) -> Vec<String> {
    let owners = VolumeOwners::below(root);
    let offered = passed.into_iter().filter(|volume| places.contains(&&*volume.path));
    let taken = offered.filter_map(|PassedVolume { path, passed }| {
        let error = owners.arrived(&path, passed, migration).err()?;
        Some(format!("record whose `{}` is: {error}", path.display()))
    });
    taken.collect()
}
