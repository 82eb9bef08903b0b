//! Points at which a test makes godwit fail: at every line of the journal, just before it is written and just after.
//!
//! Only in builds with the feature `faults`. What is to happen stands in [`ORDER`], `ROLE EVENT EDGE ACTION`, as in
//! `source committed after kill`, and happens once. The actions:
//!
//! - `kill`: SIGKILL to godwit itself;
//! - `hold DIR`: makes `DIR/reached` and waits, a minute at most, for `DIR/go`: the test does the rest from outside;
//! - `enospc`, `eio`: the line cannot be written.

#[cfg(all(feature = "faults", not(debug_assertions)))]
compile_error!("the feature `faults` is for tests: build it without --release");

use crate::journal::Event;
use crate::phase::Role;
use std::io;

/// The file that holds the order.
pub const ORDER: &str = "/run/godwit-fault";
/// Builds without the feature refuse to run when this is set, so that no test passes for want of faults.
pub const VARIABLE: &str = "GODWIT_FAULTS";

/// Whether this build has the points.
pub const fn is_built_in() -> bool {
    cfg!(feature = "faults")
}

/// When, seen from the line of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It is about to be written.
    Before,
    /// It was written, and is on disk if its kind asks for that.
    After,
}

/// Does what was ordered for this point, if anything was.
///
/// # Errors
/// The one that was ordered.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn point(_: Option<Role>, _: &Event, _: Edge) -> io::Result<()> {
    Ok(())
}

/// Does what was ordered for this point, if anything was.
///
/// # Errors
/// The one that was ordered.
#[cfg(feature = "faults")]
pub fn point(role: Option<Role>, event: &Event, edge: Edge) -> io::Result<()> {
    use nix::errno::Errno;
    let Ok(order) = std::fs::read_to_string(ORDER) else { return Ok(()) };
    let words: Vec<&str> = order.split_whitespace().collect();
    let here = [role.map(|role| role.to_string()).unwrap_or_default(), event.name(), edge.to_string()];
    let [role, event, edge, action, arguments @ ..] = words.as_slice() else { return Ok(()) };
    if here != [*role, *event, *edge] {
        return Ok(());
    }
    std::fs::remove_file(ORDER)?;
    match (*action, arguments) {
        ("kill", []) => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Ok(())
        }
        ("hold", [dir]) => {
            let dir = std::path::Path::new(dir);
            std::fs::write(dir.join("reached"), std::process::id().to_string())?;
            let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while !dir.join("go").exists() && std::time::Instant::now() < until {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Ok(())
        }
        ("enospc", []) => Err(Errno::ENOSPC.into()),
        ("eio", []) => Err(Errno::EIO.into()),
        _ => Err(io::Error::other(format!("`{ORDER}` holds no order: {order}"))),
    }
}

#[cfg(feature = "faults")]
impl std::fmt::Display for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}
