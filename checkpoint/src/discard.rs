//! What stays at the source when the container has gone.

use crate::order::{Job, Parting};
use crate::volumes;
use godwit_engine::SourceContainer;
use godwit_migration::journal::{Event, Journal};
use godwit_transfer::stale::StaleCopies;

/// It runs at the destination: the frozen copy goes. Its files stay, and are noted as copies that it left. `container` is
/// none where nothing of it was ever touched. Gives what could not be removed, or not be written down. Its volumes belong to
/// the destination, as `to` has it.
pub(crate) fn discard(
    container: Option<&mut (dyn SourceContainer + 'static)>,
    parting: &Parting,
    (name, to): (&str, &str),
    job: &Job,
    journal: &mut Journal,
) -> Vec<String> {
    let mut leftovers = Vec::new();
    let mut trees = Vec::new();
    if let Some(container) = container {
        leftovers.extend(volumes::pass(container.facts(), parting, to, job));
        leftovers.extend(container.spare(&parting.skipped).err().map(|error| error.to_string()));
        leftovers.extend(if parting.keep { container.retire() } else { container.discard() });
        // what was read out of a checkpoint is no copy that the container left, nor is what has never left this host
        let left = container.facts().trees.iter().filter(|tree| {
            tree.content == tree.path && !tree.made_there && !parting.skipped.contains(&tree.path)
        });
        trees.extend(left.map(|tree| tree.path.clone()));
    }
    leftovers.extend(journal.append(Event::Discarded).err().map(|error| format!("journal: {error}")));
    let copies = StaleCopies::below(&job.root);
    // an engine may have removed one with the container
    for tree in trees.into_iter().filter(|tree| tree.exists()) {
        let noted = copies.note(&tree, name);
        leftovers.extend(noted.err().map(|error| format!("record of a left copy: {error}")));
    }
    leftovers.extend(job.remove_images().err().map(|error| format!("images: {error}")));
    leftovers
}
