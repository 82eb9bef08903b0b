//! Starting the guardian of CRIU: godwit itself, as a small process.

use crate::tool::own_program;
use godwit_guardian::Guardian;
use std::sync::Arc;

/// The hidden subcommand of godwit that is the guardian.
const SUBCOMMAND: &str = "guard";

/// Starts one; it is ready a few milliseconds later. What fails is said when a CRIU is to be watched.
pub(crate) fn start() -> Arc<Guardian> {
    Guardian::start(&own_program(), &[SUBCOMMAND])
}
