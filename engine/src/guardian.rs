//! Starting the guardian of CRIU: godwit itself, as a small process.

use godwit_guardian::Guardian;
use std::sync::Arc;

/// The hidden subcommand of godwit that is the guardian.
const SUBCOMMAND: &str = "guard";

/// Starts one; it is ready a few milliseconds later. What fails is said when a CRIU is to be watched.
pub(crate) fn start() -> Arc<Guardian> {
    // the file may have been replaced by another version meanwhile
    let exe = std::env::current_exe().ok().filter(|path| path.exists());
    Guardian::start(&exe.unwrap_or_else(|| "/proc/self/exe".into()), &[SUBCOMMAND])
}
