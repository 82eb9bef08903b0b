//! What a godwit that was killed leaves in a directory: a file that was to become an object is `NAME#NUMBER` until it is complete, as
//! object_store names it, and no listing shows it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::name::At;
use crate::place::DIRECTORIES;
use crate::records::{GRACE, age};
use crate::{Place, PlaceError};

/// Takes away such files that nobody has written to for [`GRACE`]; how many. `now`: by the place's clock.
pub(crate) fn remove_files(place: &Place, now: SystemTime) -> Result<u64, PlaceError> {
    let At::Directory(root) = &place.name().at else { return Ok(0) };
    let mut removed = remove_from(root, now)?;
    for directory in DIRECTORIES {
        removed += remove_from(&root.join(directory), now)?;
    }
    Ok(removed)
}

fn remove_from(directory: &Path, now: SystemTime) -> Result<u64, PlaceError> {
    let mut removed = 0;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(PlaceError::io("read", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(PlaceError::io("read", directory))?;
        let path = entry.path();
        let is_old = || {
            let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(age(meta.modified().ok()?, now) >= GRACE)
        };
        if !entry.file_name().to_str().is_some_and(is_unfinished) || is_old() != Some(true) {
            continue;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PlaceError::io("remove", &path)(error));
            }
            _ => removed += 1,
        }
    }
    Ok(removed)
}

/// Only what would have become an object of ours: a digest, a name of a list, or the place's own.
fn is_unfinished(name: &str) -> bool {
    let Some((object, number)) = name.rsplit_once('#') else { return false };
    let is_ours = object.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    is_ours && !object.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::Cancel;
    use std::time::Duration;

    #[test]
    fn what_was_never_completed_goes_when_it_is_old_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let packs = dir.path().join("packs");
        fs::create_dir_all(&packs).unwrap();
        let digest = "ab".repeat(32);
        let old = SystemTime::now() - GRACE - Duration::from_secs(1);
        let write = |name: &str, modified: SystemTime| {
            let path = packs.join(name);
            fs::write(&path, "x").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
            path
        };
        let dead = write(&format!("{digest}#1"), old);
        let stay = [
            write(&format!("{digest}#2"), SystemTime::now()),
            write(&digest, old),
            write("My notes#1", old),
            write("notes#x", old),
        ];
        let name = format!("file://{}", dir.path().display()).parse().unwrap();
        let place = Place::open(&name, Cancel::default()).unwrap();
        assert_eq!(remove_files(&place, SystemTime::now()).unwrap(), 1);
        assert!(!dead.exists() && stay.iter().all(|path| path.exists()));
    }
}
