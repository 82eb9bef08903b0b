//! Definitions in a directory of hooks (oci-hooks(5)), which podman reads whenever it makes a container.

use super::{OciError, Stage, replace};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A definition longer than this is not ours.
const LONGEST: u64 = 64 << 10;

/// Where the definition for a stage lies.
pub fn path_of(dir: &Path, stage: Stage) -> PathBuf {
    dir.join(format!("godwit-{stage}.json"))
}

/// The definition: containers with the annotation `godwit.migratable` are registered.
pub fn definition(program: &Path, stage: Stage, root: Option<&Path>) -> Value {
    json!({
        "version": "1.0.0",
        "hook": { "path": program, "args": stage.words(root) },
        "when": { "annotations": { "^godwit\\.migratable$": "^(true|1)$" } },
        "stages": [stage.name()],
    })
}

/// Writes both definitions; those that are there are replaced.
///
/// # Errors
/// When something else has their names; when they cannot be written.
pub fn install(dir: &Path, program: &Path, root: Option<&Path>) -> Result<Vec<PathBuf>, OciError> {
    let program = crate::program::check(program)?;
    std::fs::create_dir_all(dir).map_err(OciError::io("make", dir))?;
    for stage in Stage::ALL {
        is_ours(&path_of(dir, stage), stage)?;
    }
    let mut made = Vec::new();
    for stage in Stage::ALL {
        let path = path_of(dir, stage);
        replace(&path, &format!("{:#}\n", definition(&program, stage, root)))?;
        made.push(path);
    }
    Ok(made)
}

/// Removes the definitions that are there, and gives them.
///
/// # Errors
/// When something else has their names; when they cannot be removed.
pub fn uninstall(dir: &Path) -> Result<Vec<PathBuf>, OciError> {
    let mut removed = Vec::new();
    for stage in Stage::ALL {
        let path = path_of(dir, stage);
        if is_ours(&path, stage)? {
            std::fs::remove_file(&path).map_err(OciError::io("remove", &path))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Whether it is there.
fn is_ours(path: &Path, stage: Stage) -> Result<bool, OciError> {
    let text = match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Ok(meta) if meta.len() > LONGEST => String::new(),
        _ => std::fs::read_to_string(path).map_err(OciError::io("read", path))?,
    };
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    if found.pointer("/hook/args").is_some_and(|args| stage.is_called_by(args)) {
        return Ok(true);
    }
    let why = "is not godwit's: move it out of the way, or name another directory with `--dir`";
    Err(OciError::Odd { path: path.to_owned(), why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_come_and_go_and_others_stay() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let scratch = tempfile::tempdir_in("/root").unwrap();
        let dir = scratch.path().join("oci/hooks.d");
        let program = Path::new("/bin/true");
        assert!(uninstall(&dir).unwrap().is_empty());
        let made = install(&dir, program, None).unwrap();
        assert_eq!(made, Stage::ALL.map(|stage| path_of(&dir, stage)));
        assert_eq!(install(&dir, program, Some(Path::new("/x"))).unwrap(), made, "once more");
        std::fs::write(dir.join("10-other.json"), "{}").unwrap();
        let found: Value = serde_json::from_str(&std::fs::read_to_string(&made[0]).unwrap()).unwrap();
        assert_eq!(found["stages"], json!(["createRuntime"]));
        assert_eq!(found["hook"]["args"], json!(["godwit", "--root=/x", "hook", "run", "createRuntime"]));
        assert_eq!(uninstall(&dir).unwrap(), made);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        // what is somebody else's is neither replaced nor removed
        std::fs::write(path_of(&dir, Stage::Poststop), "{\"hook\": {\"args\": [\"x\"]}}").unwrap();
        assert!(install(&dir, program, None).unwrap_err().to_string().contains("is not godwit's"));
        assert!(!path_of(&dir, Stage::CreateRuntime).exists());
        assert!(uninstall(&dir).is_err());
    }
}
