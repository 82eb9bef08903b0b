//! Which version of the wire two ends speak: the preambles that they exchange first.

use super::WireError;

/// Oldest version of the wire that this godwit speaks: one back, so that hosts can be brought up to date one after another.
pub const OLDEST: u16 = 2;
/// Newest version of the wire that this godwit speaks.
///
/// | version | since | what changed |
/// |---|---|---|
/// | 1 | 0.1.0 | the first |
/// | 2 | 0.2.0 | memory pages, several connections |
/// | 3 | 0.3.0 | a migration that was broken off is taken up again: `resume`, `standing`, `bury` |
/// | 4 | 0.4.0 | places that the destination's engine makes, an engine that is started before the freeze, containers that are stopped and started, a resume hook |
/// | 5 | 0.5.0 | containers that move together |
pub const NEWEST: u16 = 5;
/// The version from which on a migration that was broken off can be taken up again.
pub const RESUMES: u16 = 3;
/// The version from which on an engine's own places can be filled.
pub const ENGINE_PLACES: u16 = 4;
/// The version from which on a destination tells the application that it goes on.
pub const RESUME_HOOKS: u16 = 4;

/// The version from which on containers can move together.
pub const GROUPS: u16 = 5;

const MAGIC: &[u8; 8] = b"godwit\r\n";
/// Bytes of a preamble.
pub(super) const PREAMBLE: usize = 16;

/// The first bytes of an end that speaks these versions.
pub(super) fn preamble(oldest: u16, newest: u16) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&oldest.to_le_bytes());
    bytes[10..12].copy_from_slice(&newest.to_le_bytes());
    bytes
}

/// The newest version that this end and another one both speak.
pub(super) fn common_version(theirs: &[u8; PREAMBLE]) -> Result<u16, WireError> {
    if &theirs[..8] != MAGIC {
        return Err(WireError::NotGodwit(theirs[..8].to_vec()));
    }
    let theirs_oldest = u16::from_le_bytes([theirs[8], theirs[9]]);
    let theirs_newest = u16::from_le_bytes([theirs[10], theirs[11]]);
    let newest = NEWEST.min(theirs_newest);
    if newest < OLDEST || newest < theirs_oldest {
        return Err(WireError::Version { theirs_oldest, theirs_newest });
    }
    Ok(newest)
}
