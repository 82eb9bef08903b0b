//! The volumes of a container change hands with it: whose they are is written down on both hosts.

use crate::order::{Job, Parting};
use godwit_engine::container::{Facts, Tree};
use godwit_migration::volume_owner::VolumeOwners;
use godwit_transfer::message::{PassedVolume, TreeKind};

/// Those that it may write to, and that move with it.
fn written_to<'a>(facts: &'a Facts, parting: &'a Parting) -> impl Iterator<Item = &'a Tree> {
    facts.trees.iter().filter(|tree| {
        let is_volume = matches!(tree.kind, TreeKind::Root | TreeKind::Volume) && !tree.single_file;
        let moves = tree.content == tree.path && !tree.made_there && !parting.skipped.contains(&tree.path);
        is_volume && moves && !tree.read_only
    })
}

/// What they take along. A record that cannot be read holds nobody up: nothing of that volume's past is told then.
pub(crate) fn passing(facts: &Facts, parting: &Parting, job: &Job) -> Vec<PassedVolume> {
    let owners = VolumeOwners::below(&job.root);
    let told = written_to(facts, parting).map(|tree| match owners.passing(&tree.path, &job.id) {
        Ok(passed) => Some(PassedVolume { path: tree.path.clone(), passed }),
        Err(error) => {
            tracing::warn!(%error, path = %tree.path.display(), "whose it is cannot be read");
            None
        }
    });
    told.flatten().collect()
}

/// They are the destination's, as `to` has it. Gives what could not be written down.
pub(crate) fn pass(facts: &Facts, parting: &Parting, to: &str, job: &Job) -> Vec<String> {
    let owners = VolumeOwners::below(&job.root);
    let passed = written_to(facts, parting).filter_map(|tree| {
        let error = owners.pass(&tree.path, to, &job.id).err()?;
        Some(format!("record whose `{}` is: {error}", tree.path.display()))
    });
    passed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::MigrationId;
    use std::path::{Path, PathBuf};

    fn tree(kind: TreeKind, path: &str) -> Tree {
        Tree {
            kind,
            path: path.into(),
            content: path.into(),
            single_file: false,
            read_only: false,
            merged: None,
            made_there: false,
            gone: None,
        }
    }

    #[test]
    fn what_the_container_writes_to_and_takes_along_changes_hands() {
        let root = tempfile::tempdir().unwrap();
        let job = Job::new(root.path(), MigrationId::generate().unwrap());
        let data = || tree(TreeKind::Volume, "/srv/data");
        let trees = vec![
            data(),
            tree(TreeKind::Volume, "/srv/skipped"),
            tree(TreeKind::Layer, "/var/layer"),
            Tree { read_only: true, path: "/srv/read".into(), content: "/srv/read".into(), ..data() },
            Tree { single_file: true, path: "/srv/file".into(), content: "/srv/file".into(), ..data() },
            Tree { path: "/srv/of-a-checkpoint".into(), ..data() },
        ];
        let facts = Facts {
            engine: "runc",
            name: "web".into(),
            pid: 1,
            memory_bytes: 0,
            trees,
            network: None,
            recipe: "{}".into(),
            warnings: vec![],
            starts_slowly: false,
            annotations: Default::default(),
            image: None,
            image_id: None,
        };
        let parting = Parting { keep: false, skipped: vec!["/srv/skipped".into()] };
        let told = passing(&facts, &parting, &job);
        assert_eq!(told.iter().map(|volume| &volume.path).collect::<Vec<_>>(), [&PathBuf::from("/srv/data")]);
        assert_eq!(told[0].passed.generation, 2);
        assert_eq!(pass(&facts, &parting, "ssh://rack2", &job), [""; 0]);
        // a resume says the same once more
        assert_eq!(passing(&facts, &parting, &job), told);
        let known = VolumeOwners::below(root.path()).of(Path::new("/srv/data")).unwrap();
        assert_eq!((known.elsewhere(), known.generation), (Some("ssh://rack2"), 2));
        assert_eq!(VolumeOwners::below(root.path()).all().unwrap().len(), 1);
    }
}
