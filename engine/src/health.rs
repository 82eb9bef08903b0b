//! Health checks: an engine puts a program into the container every now and then, to hear whether it is well.
//!
//! CRIU cannot dump what was put in, and it is nothing that anybody would miss. So godwit looks at a container between two checks;
//! one that begins while it stands still waits in the frozen cgroup, and ends with the copy that stays behind.

use crate::error::EngineError;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a check may take: what is open longer is taken for a session of somebody's.
const LIMIT: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What `inspect` shows of a container while no check is under way in it: podman and docker call things alike.
///
/// # Errors
/// Those of `inspect`.
pub(crate) fn between_checks(
    mut inspect: impl FnMut() -> Result<Value, EngineError>,
) -> Result<Value, EngineError> {
    let begun = Instant::now();
    loop {
        let shown = inspect()?;
        if !may_be_checked_now(&shown) || begun.elapsed() > LIMIT {
            return Ok(shown);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

fn may_be_checked_now(shown: &Value) -> bool {
    let is_checked = shown.pointer("/Config/Healthcheck").is_some_and(|check| !check.is_null());
    is_checked && shown["ExecIDs"].as_array().is_some_and(|sessions| !sessions.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_is_waited_for_and_a_session_of_somebody_without_one_is_not() {
        let shown =
            |check: Value, sessions: &[&str]| json!({"Config": {"Healthcheck": check}, "ExecIDs": sessions});
        let mut looks = 0;
        let seen = between_checks(|| {
            looks += 1;
            Ok(shown(json!({"Test": ["true"]}), if looks < 3 { &["a"] } else { &[] }))
        });
        assert_eq!((looks, seen.unwrap()["ExecIDs"].clone()), (3, json!([])));
        for without in [shown(Value::Null, &["a"]), json!({"ExecIDs": ["a"]}), json!({})] {
            assert_eq!(between_checks(|| Ok(without.clone())).unwrap(), without);
        }
        assert!(between_checks(|| Err(EngineError::NotFound("x".into()))).is_err());
    }
}
