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

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::Lineage;
    use godwit_migration::volume_owner::Passed;

    #[test]
    fn a_source_passes_on_what_it_has_offered_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let passed = Passed { generation: 5, lineage: Lineage::default(), stems_from: Some("data@1".into()) };
        let volume = |path: &str| PassedVolume { path: path.into(), passed: passed.clone() };
        let migration = MigrationId::generate().unwrap();
        let both = vec![volume("/srv/data"), volume("/srv/other")];
        assert_eq!(take(root.path(), &[Path::new("/srv/data")], both, &migration), [""; 0]);
        let all = VolumeOwners::below(root.path()).all().unwrap();
        assert_eq!(
            all.iter().map(|known| (&*known.path, known.generation)).collect::<Vec<_>>(),
            [("/srv/data", 5)]
        );
        assert_eq!(all[0].stems_from.as_deref(), Some("data@1"));
    }
}
