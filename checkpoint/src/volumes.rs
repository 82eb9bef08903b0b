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
