//! What an earlier command has left of a container on its way out.

use super::Trouble;
use super::journals::is_locked;
use godwit_checkpoint::recovery::Interrupted;
use godwit_checkpoint::resume::needs_nobody;
use godwit_migration::journal::{Found, JournalState, of_container};
use godwit_migration::ownership::has_given_word;
use godwit_migration::{Failure, FailureKind, Role};
use std::path::Path;

/// Puts in order what an earlier migration or checkpoint of the container has left, if its process died before it gave its word.
/// One that may run elsewhere is not touched.
pub fn settle_earlier(root: &Path, container: &str, tell: &mut dyn FnMut(String)) -> Result<(), Trouble> {
    let Ok((_, name)) = super::find(container) else { return Ok(()) };
    let name = name.to_string();
    for Found { id, state, .. } in of_container(root, Role::Source, &name, usize::MAX) {
        if state.is_settled() || state == JournalState::Untold || is_locked(root, &name) {
            continue;
        }
        let Some(mut earlier) = Interrupted::adopt(root, &godwit_engine::all(), &id)? else { continue };
        let in_checkpoint = earlier.checkpoint().is_some() && has_given_word(state);
        if in_checkpoint || !needs_nobody(earlier.standing()) {
            return Err(Failure::new(
                FailureKind::InDoubt,
                format!("an earlier migration of `{name}` is in doubt"),
            )
            .hint(format!("`godwit resume {id}` ends it"))
            .into());
        }
        earlier.take_back("another migration begins")?;
        tell(format!("migration {id}, whose process died, is rolled back"));
    }
    Ok(())
}
