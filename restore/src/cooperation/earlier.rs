//! Which earlier checkpoint of a container memory begins with: the newest that this host's store or a neighbour keeps, the own one of
//! two of the same time. A link needs no weight in that: whoever has the pages of it gives them, and slow ones give less.

use crate::error::DestinationError;
use godwit_neighbours::question::Known;
use godwit_neighbours::{Neighbour, checkpoints};
use godwit_store::{Digest, Manifest, Store};
use std::cmp::Reverse;
use std::time::Duration;

/// How often a wait looks whether it is over.
const LOOK_UP: Duration = Duration::from_millis(5);
/// So many of them are tried, the newest first.
const TRIES: usize = 3;

/// The chunks of the pages of the best checkpoint of `container`; none where there is no checkpoint. `alive` is told meanwhile, and may
/// end it.
///
/// # Errors
/// Those of `alive`.
pub(super) fn find(
    container: &str,
    own: Option<&Store>,
    neighbours: &mut [Box<dyn Neighbour + '_>],
    alive: &mut dyn FnMut() -> Result<(), DestinationError>,
) -> Result<Vec<(Digest, u64)>, DestinationError> {
    let mut found: Vec<(Known, Option<usize>)> = Vec::new();
    found.extend(own.map(|own| checkpoints(own, container)).into_iter().flatten().map(|known| (known, None)));
    for (number, answer) in ask_all(neighbours, container, alive)?.into_iter().enumerate() {
        // whoever does not answer is named when it is asked for chunks
        found.extend(answer.into_iter().flatten().map(|known| (known, Some(number))));
    }
    // stable: this host comes first
    found.sort_by_key(|(known, _)| Reverse(known.made_unix_s));
    for (known, at) in found.into_iter().take(TRIES) {
        let manifest = match at {
            None => {
                own.and_then(|own| own.manifest_bytes(known.tree).ok()).map(|bytes| Manifest::decode(&bytes))
            }
            Some(number) => neighbours[number].manifest(known.tree).transpose(),
        };
        alive()?;
        match manifest {
            Some(Ok(Manifest::Tree(tree))) => return Ok(tree.page_chunks()),
            Some(Err(why)) => tracing::info!(why, "a checkpoint is not made use of"),
            Some(Ok(Manifest::Described(_))) | None => {}
        }
    }
    Ok(Vec::new())
}

/// Asks all at once.
fn ask_all(
    neighbours: &mut [Box<dyn Neighbour + '_>],
    container: &str,
    alive: &mut dyn FnMut() -> Result<(), DestinationError>,
) -> Result<Vec<Result<Vec<Known>, String>>, DestinationError> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = neighbours
            .iter_mut()
            .map(|neighbour| scope.spawn(move || neighbour.checkpoints(container)))
            .collect();
        while asked.iter().any(|asked| !asked.is_finished()) {
            std::thread::sleep(LOOK_UP);
            alive()?;
        }
        let died = |_| Err("it could not be asked".to_owned());
        Ok(asked.into_iter().map(|asked| asked.join().unwrap_or_else(died)).collect())
    })
}
