//! Checkpoints that this host's store keeps: several of each container, by pins `checkpoint/ID`. What they have in common is there once.

use super::scratch::Scratch;
use super::store;
use godwit_migration::{Failure, FailureKind, MigrationId};
use godwit_store::manifest::{Described, Manifest};
use godwit_store::{Digest, Lease, PinName, Store, StoreError, store_of};
use godwit_volumes::snapshot;
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// Kind of the pins that keep them.
const KIND: &str = "checkpoint";
/// What means the newest one of a container, in the place of its time.
const LATEST: &str = "latest";

/// A checkpoint that the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `ENGINE-AND-NAME@20261122T084011.123456Z`, UTC; or what somebody has pinned it as by hand.
    pub id: String,
    /// Whose: `ENGINE:NAME`.
    pub container: String,
    /// When it was made, seconds since 1970.
    pub made_unix_s: u64,
    /// The manifest that describes it.
    pub manifest: Digest,
    /// That of its files.
    pub tree: Digest,
}

/// The name that one gets: `made_unix_us` is when it was written, µs since 1970.
pub fn id(container: &str, made_unix_us: u64) -> String {
    snapshot::id(container, made_unix_us)
}

/// The pin that keeps it.
///
/// # Errors
/// When nothing can be called so.
pub fn pin(id: &str) -> Result<PinName, StoreError> {
    format!("{KIND}/{id}").parse()
}

impl Kept {
    fn of(id: &str, manifest: Digest, described: &Described) -> Option<Self> {
        let fact = |name: &str| described.facts.get(name);
        Some(Self {
            id: id.to_owned(),
            container: fact("container")?.clone(),
            made_unix_s: fact("made_unix_s").and_then(|text| text.parse().ok()).unwrap_or(0),
            manifest,
            tree: described.tree,
        })
    }

    /// Somebody has given it its name by hand: no policy lets go of it.
    pub fn is_named_by_hand(&self) -> bool {
        let named = id(&self.container, 0);
        let beginning = named.rsplit_once('@').map_or("", |(label, _)| label);
        self.id.rsplit_once('@').is_none_or(|(label, _)| label != beginning)
    }

    /// Bytes of its files.
    pub fn bytes(&self, store: &Store) -> Option<u64> {
        match Manifest::decode(&store.manifest_bytes(self.tree).ok()?).ok()? {
            Manifest::Tree(tree) => Some(tree.file_bytes()),
            Manifest::Described(_) => None,
        }
    }
}

/// All of them, the newest first.
///
/// # Errors
/// When a pin or what it keeps cannot be read.
pub fn list(store: &Store) -> Result<Vec<Kept>, StoreError> {
    let mut found = Vec::new();
    for pin in store.pins()? {
        let name = pin.name.to_string();
        let Some(id) = name.strip_prefix(KIND).and_then(|rest| rest.strip_prefix('/')) else { continue };
        if let Some(described) = store.described(pin.manifest)? {
            found.extend(Kept::of(id, pin.manifest, &described));
        }
    }
    found.sort_by(|one, other| (other.made_unix_s, &other.id).cmp(&(one.made_unix_s, &one.id)));
    Ok(found)
}

/// Those that a text means, of some that are newest first: by its id, the beginning of one, its time, or `CONTAINER@latest`. One is meant
/// if there is one, else nothing or all that it could be.
fn meant<'a>(all: &'a [Kept], text: &str) -> Vec<&'a Kept> {
    if let Some((container, LATEST)) = text.rsplit_once('@') {
        return all.iter().find(|kept| kept.container == container).into_iter().collect();
    }
    if let Some(exact) = all.iter().find(|kept| kept.id == text) {
        return vec![exact];
    }
    let time = |kept: &Kept| kept.id.rsplit_once('@').is_some_and(|(_, time)| time == text);
    all.iter().filter(|kept| !text.is_empty() && (kept.id.starts_with(text) || time(kept))).collect()
}

/// The one that a user means.
///
/// # Errors
/// When there is none, or several are meant.
pub fn find(store: Option<&Store>, root: &Path, text: &str) -> Result<Kept, Failure> {
    let cannot = |error| store::failure("the checkpoints cannot be listed", &error, &store_of(root));
    let all = store.map(list).transpose().map_err(cannot)?.unwrap_or_default();
    match meant(&all, text)[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(FailureKind::NotFound, format!("the store keeps no checkpoint `{text}`"))
            .hint("`godwit images ls store` shows them")),
        ref several => {
            let failure = Failure::new(FailureKind::Usage, format!("`{text}` means several checkpoints"));
            Err(several.iter().fold(failure, |failure, one| failure.because(format!("`store:{}`", one.id))))
        }
    }
}

/// This host's store, if there is one.
///
/// # Errors
/// When it cannot be opened.
pub fn store_here(root: &Path) -> Result<Option<Store>, Failure> {
    let path = store_of(root);
    Store::find(&path, None).map_err(|error| store::failure("the store cannot be opened", &error, &path))
}

/// The files of a checkpoint, verified, as long as this lives.
pub struct Unpacked {
    pub tree: PathBuf,
    _scratch: Scratch,
}

/// Makes the files of what a lease holds below godwit's directory `root`. `what` is said when that cannot be.
///
/// # Errors
/// When it is not whole, or there is no room for it.
pub fn unpack(
    root: &Path,
    lease: &mut Lease,
    manifest: Digest,
    bar: &ProgressBar,
    what: &str,
) -> Result<Unpacked, Failure> {
    let no_room = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Missing, format!("cannot write to `{}`", root.display())).because_of(error)
    };
    let scratch = Scratch::make(root).map_err(|error| no_room(&error))?;
    let id = MigrationId::generate().map_err(|error| no_room(&error))?;
    let tree = scratch.path.join(format!("fetched-{id}"));
    let made = lease.materialise(manifest, &tree, &mut super::object_storage::progress(bar, "Making"));
    bar.finish_and_clear();
    made.map_err(|error| store::failure(what, &error, &store_of(root)))?;
    Ok(Unpacked { tree, _scratch: scratch })
}

/// The same of a checkpoint that the store keeps.
///
/// # Errors
/// When there is none, it is not whole, or there is no room for it.
pub fn unpack_kept(root: &Path, text: &str, bar: &ProgressBar) -> Result<Unpacked, Failure> {
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    let store = store_here(&root)?;
    let kept = find(store.as_ref(), &root, text)?;
    let what = format!("`store:{}` is not whole, or cannot be read", kept.id);
    let lease = store.map(|store| store.lease()).transpose();
    let lease = lease.map_err(|error| store::failure(&what, &error, &store_of(&root)))?;
    let none = || Failure::new(FailureKind::NotFound, "there is no store");
    unpack(&root, &mut lease.ok_or_else(none)?, kept.manifest, bar, &what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: &str, container: &str, made_unix_s: u64) -> Kept {
        let digest = Digest::of(id.as_bytes());
        Kept { id: id.into(), container: container.into(), made_unix_s, manifest: digest, tree: digest }
    }

    #[test]
    fn a_checkpoint_is_found_by_its_id_its_beginning_its_time_or_as_the_latest() {
        let (new, old) = (id("runc:web", 2_000_000), id("runc:web", 1_000_000));
        let other = id("runc:web-2", 1_000_000);
        let all = [kept(&new, "runc:web", 2), kept(&old, "runc:web", 1), kept(&other, "runc:web-2", 1)];
        let ids = |text: &str| meant(&all, text).into_iter().map(|kept| &*kept.id).collect::<Vec<_>>();
        assert_eq!(ids(&old), [&*old]);
        assert_eq!(ids("runc:web@latest"), [&*new]);
        assert_eq!(ids("runc:web-"), [&*other]);
        assert_eq!(ids("runc:web@").len(), 2);
        assert_eq!(ids(new.rsplit_once('@').unwrap().1), [&*new]);
        assert_eq!(ids("runc:we").len(), 3);
        assert_eq!((ids("").len(), ids("podman:web").len(), ids("podman:web@latest").len()), (0, 0, 0));
    }

    #[test]
    fn a_name_that_somebody_has_given_is_told_from_one_of_ours() {
        assert!(!kept(&id("runc:web", 1), "runc:web", 1).is_named_by_hand());
        for named in ["web", "monday@home", &id("runc:other", 1)] {
            assert!(kept(named, "runc:web", 1).is_named_by_hand(), "{named}");
        }
    }
}
