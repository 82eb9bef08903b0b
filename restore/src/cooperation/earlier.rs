//! Which earlier checkpoint of a container memory begins with: the newest that this host's store or a neighbour keeps, the own one of
//! two of the same time. A link needs no weight in that: whoever has the pages of it gives them, and slow ones give less.

use super::signs::Signs;
use crate::error::DestinationError;
use godwit_neighbours::question::Known;
use godwit_neighbours::{Neighbour, checkpoints};
use godwit_store::{Digest, Manifest, Store};
use std::cmp::Reverse;

/// So many of them are tried, the newest first.
const TRIES: usize = 3;

/// The chunks of the pages of the best checkpoint of `container`; none where there is no checkpoint.
///
/// # Errors
/// Those of [`Signs::give`].
pub(super) fn find(
    container: &str,
    own: Option<&Store>,
    neighbours: &mut [Box<dyn Neighbour>],
    signs: &mut Signs<'_>,
) -> Result<Vec<(Digest, u64)>, DestinationError> {
    let mut found: Vec<(Known, Option<usize>)> = Vec::new();
    found.extend(own.map(|own| checkpoints(own, container)).into_iter().flatten().map(|known| (known, None)));
    for (number, known) in signs.meanwhile(|| ask_all(neighbours, container))?.into_iter().enumerate() {
        found.extend(known.into_iter().map(|known| (known, Some(number))));
    }
    // stable: this host comes first
    found.sort_by_key(|(known, _)| Reverse(known.made_unix_s));
    for (known, at) in found.into_iter().take(TRIES) {
        let manifest = signs.meanwhile(|| match at {
            None => {
                own.and_then(|own| own.manifest_bytes(known.tree).ok()).map(|bytes| Manifest::decode(&bytes))
            }
            Some(number) => neighbours[number].manifest(known.tree).transpose(),
        })?;
        match manifest {
            Some(Ok(Manifest::Tree(tree))) => return Ok(tree.page_chunks()),
            Some(Err(why)) => tracing::info!(why, "a checkpoint is not made use of"),
            Some(Ok(Manifest::Described(_))) | None => {}
        }
    }
    Ok(Vec::new())
}

/// Asks all at once. Whoever does not answer has none: it is named when it is asked for chunks.
fn ask_all(neighbours: &mut [Box<dyn Neighbour>], container: &str) -> Vec<Vec<Known>> {
    std::thread::scope(|scope| {
        let ask = |neighbour: &mut Box<dyn Neighbour>| neighbour.checkpoints(container).unwrap_or_default();
        let asked: Vec<_> =
            neighbours.iter_mut().map(|neighbour| scope.spawn(move || ask(neighbour))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap_or_default()).collect()
    })
}
