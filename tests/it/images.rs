//! Memory images are secrets, on both sides.

use crate::stage::{Look, Play, play};
use std::path::PathBuf;
use std::sync::Arc;

#[test]
fn images_are_for_root_alone_while_they_lie_on_disk() {
    use std::os::unix::fs::MetadataExt;
    for scene in [Play::pre_dump(), Play::checkpoint(), Play::stop_and_copy(), Play::pages(3)] {
        let seen = Arc::new(std::sync::Mutex::new((0, Vec::new())));
        let found = seen.clone();
        let look = move |roots: &[PathBuf]| {
            let mut found = found.lock().unwrap();
            let mut todo: Vec<(PathBuf, bool)> =
                roots.iter().map(|root| (root.join("migrations"), true)).collect();
            while let Some((path, exposed)) = todo.pop() {
                let Ok(meta) = path.symlink_metadata() else { continue };
                let open = meta.mode() & 0o077 != 0 && !meta.is_symlink();
                // a directory that nobody can enter protects what is in it
                let exposed = exposed && open;
                if meta.is_dir() {
                    todo.extend(
                        std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| (e.path(), exposed)),
                    );
                } else if path.extension().is_some_and(|extension| extension == "img") {
                    found.0 += 1;
                    if exposed {
                        found.1.push(format!("{} {:o}", path.display(), meta.mode()));
                    }
                }
            }
        };
        let ended = play(Play { look: Some(Look(Arc::new(look))), ..scene });
        ended.assert_moved();
        let (images, exposed) = &*seen.lock().unwrap();
        assert!(*images > 0, "no image was ever seen");
        assert!(exposed.is_empty(), "{exposed:#?}");
    }
}
