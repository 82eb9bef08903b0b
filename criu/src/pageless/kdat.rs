//! CRIU's cache of what the kernel can do, `/run/criu.kdat`, with the word that the kernel tracks dirty memory.
//!
//! Where it does not, all pages count as clean. The altered copy is only ever seen by CRIU processes of ours, each in a
//! mount namespace of its own; the file itself stays as it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rust_criu::rust_criu_protobuf::rpc::{Criu_features, Criu_req_type};

use crate::binary::CriuBinary;
use crate::error::CriuError;
use crate::images::file::write_private;
use crate::session::{Bind, NotifyAnswer, Session, SessionOptions, expect_success, request_of};

/// The cache; only there when `/run` is a tmpfs (kerndat.c).
const CACHE: &str = "/run/criu.kdat";
/// Offset of `has_dirty_track` in `struct kerndat_s`, from 3.17 to 4.2: behind two magics (u32), shmem_dev (u64), last_cap
/// (i32, padded) and zero_page_pfn (u64). Whether it is right is tried.
const HAS_DIRTY_TRACK: usize = 32;
const QUESTION_TIME: Duration = Duration::from_secs(10);

/// A copy in `file` that says the kernel tracks dirty memory, to be seen in place of the cache. `Ok(Err(why))` when there
/// can be none.
pub(super) fn alter(criu: &CriuBinary, file: PathBuf) -> Result<Result<Bind, String>, CriuError> {
    // CRIU makes the cache, or makes it anew when it is another CRIU's.
    if says_dirty_track(criu, None)? {
        return Ok(Err("criu believes the kernel to track dirty memory, which it does not".into()));
    }
    let mut bytes = match std::fs::read(CACHE) {
        Ok(bytes) => bytes,
        Err(e) => return Ok(Err(format!("cannot read `{CACHE}`: {e}"))),
    };
    match bytes.get_mut(HAS_DIRTY_TRACK) {
        Some(byte @ 0) => *byte = 1,
        _ => return Ok(Err(format!("`{CACHE}` looks unlike any known"))),
    }
    write_private(&file, &bytes)?;
    let bind = Bind { file, over: CACHE.into() };
    match says_dirty_track(criu, Some(bind.clone())) {
        Ok(true) => Ok(Ok(bind)),
        Ok(false) => Ok(Err(format!("criu does not take an altered `{CACHE}`"))),
        Err(error) => Ok(Err(format!("criu in a mount namespace of its own: {error}"))),
    }
}

/// Whether the CRIU says that the kernel tracks dirty memory.
fn says_dirty_track(criu: &CriuBinary, bind: Option<Bind>) -> Result<bool, CriuError> {
    const OPERATION: &str = "feature check";
    let mut wanted = Criu_features::new();
    wanted.set_mem_track(true);
    let mut request = request_of(Criu_req_type::FEATURE_CHECK, None);
    request.features = Some(wanted).into();
    let mut session = Session::start(criu, SessionOptions { bind, ..Default::default() })?;
    let answer = session.request(OPERATION, &request, QUESTION_TIME, &mut |_| NotifyAnswer::Continue);
    let answer = expect_success(OPERATION, Criu_req_type::FEATURE_CHECK, answer, None)?;
    session.finish()?;
    Ok(answer.features.mem_track())
}

/// Marks all memory of the task as clean, where the kernel tracks it: 4 in `/proc/PID/clear_refs` (proc(5)).
pub(super) fn mark_clean(pid: i32) -> Result<(), CriuError> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(Path::new(&path), "4").map_err(CriuError::io(format!("cannot write `{path}`")))
}
