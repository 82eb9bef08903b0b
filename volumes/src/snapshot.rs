//! A snapshot: what a volume was at one time, its name, and the facts that the store keeps of it.

use crate::moment::Kept;
use godwit_migration::Lineage;
use godwit_migration::calendar::date_of_day;
use godwit_migration::volume_owner::Position;
use godwit_store::manifest::Described;
use godwit_store::{Digest, PinName, StoreError};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Kind of the pins that keep snapshots.
pub(crate) const KIND: &str = "snapshot";
/// The fact that says which file system keeps a snapshot's content.
const KEPT_BY: &str = "kept_by";
/// What an id has of the volume's name at most, bytes.
const LABEL: usize = 80;

/// Why a snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Asked,
    /// A rollback put away what the volume had become. No policy lets go of it.
    Stash,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Asked => "asked",
            Cause::Stash => "stash",
        })
    }
}

/// What a volume was at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name: `LABEL@20261122T084011.123456Z`, UTC.
    pub id: String,
    /// The volume's name.
    pub volume: String,
    /// Where it was.
    pub path: PathBuf,
    /// On which host.
    pub host: String,
    /// When it was begun, µs since 1970.
    pub made_unix_us: u64,
    /// Why.
    pub cause: Cause,
    /// For how long its writers stood still, so that it is of one moment, µs. None: each file is of some moment of its own, where
    /// somebody wrote meanwhile.
    pub stood_us: Option<u64>,
    /// The file system that has shown it as it was, without changes under the reader: as a host that lost power would find it.
    pub shown_by: Option<String>,
    /// What somebody wanted to be remembered.
    pub note: Option<String>,
    /// What it stems from; none of those that a godwit without lineages has made.
    pub position: Option<Position>,
    /// Its file system keeps it: the tree has no entries.
    pub kept: Option<Kept>,
    /// What the pin keeps.
    pub manifest: Digest,
    /// The tree: the same for two snapshots between which nothing has changed.
    pub tree: Digest,
}

impl Snapshot {
    /// What it stems from, as far as that is known.
    pub fn lineage(&self) -> Option<&Lineage> {
        self.position.as_ref().map(|position| &position.lineage)
    }

    /// How often the volume had changed hands; 0 where that is not known.
    pub fn generation(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.generation)
    }

    /// From what the store has; none if it is not a snapshot's.
    pub(crate) fn of(
        id: String,
        manifest: Digest,
        tree: Digest,
        facts: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let fact = |name: &str| facts.get(name).cloned();
        let (volume, made_unix_us) = (fact("volume")?, fact("made_unix_us")?.parse().ok()?);
        Some(Self {
            id,
            volume,
            path: fact("path")?.into(),
            host: fact("host")?,
            made_unix_us,
            cause: if fact("cause")? == Cause::Stash.to_string() { Cause::Stash } else { Cause::Asked },
            stood_us: fact("stood_us").and_then(|text| text.parse().ok()),
            shown_by: fact("shown_by"),
            note: fact("note"),
            position: position(facts),
            kept: kept(facts),
            manifest,
            tree,
        })
    }

    /// One that another node has made, under the name that it has there; none if it is not a snapshot's, or its content is not in the
    /// store.
    pub fn offered(manifest: Digest, described: &Described) -> Option<Self> {
        Self::known(manifest, described).filter(|found| found.kept.is_none())
    }

    /// The same, also where its file system keeps its content there.
    pub fn known(manifest: Digest, described: &Described) -> Option<Self> {
        let found = Self::of(String::new(), manifest, described.tree, &described.facts)?;
        Some(Self { id: id(&found.volume, found.made_unix_us), ..found })
    }

    /// Whether it is the same snapshot, which a file system may keep on one node, and the store on another one.
    pub fn is(&self, other: &Snapshot) -> bool {
        let is_same = self.id == other.id && self.host == other.host && self.position == other.position;
        self.manifest == other.manifest || (is_same && self.position.is_some())
    }

    /// What the store keeps of it beside the tree.
    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let (position, kept) = (self.position.as_ref(), self.kept.as_ref());
        let facts = [
            ("volume", Some(self.volume.clone())),
            ("path", Some(self.path.display().to_string())),
            ("host", Some(self.host.clone())),
            ("made_unix_us", Some(self.made_unix_us.to_string())),
            ("stood_us", self.stood_us.map(|stood| stood.to_string())),
            ("shown_by", self.shown_by.clone()),
            ("cause", Some(self.cause.to_string())),
            ("note", self.note.clone()),
            ("generation", position.map(|position| position.generation.to_string())),
            ("lineage", position.map(|position| position.lineage.to_string())),
            ("parent", position.and_then(|position| position.parent.clone())),
            (KEPT_BY, kept.map(|kept| kept.by.clone())),
            ("kept_as", kept.map(|kept| kept.name.clone())),
            ("kept_at", kept.map(|kept| kept.at.display().to_string())),
        ];
        facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
    }
}

fn kept(facts: &BTreeMap<String, String>) -> Option<Kept> {
    let fact = |name: &str| facts.get(name).cloned();
    Some(Kept { by: fact(KEPT_BY)?, name: fact("kept_as")?, at: fact("kept_at")?.into() })
}

fn position(facts: &BTreeMap<String, String>) -> Option<Position> {
    Some(Position {
        generation: facts.get("generation")?.parse().ok()?,
        lineage: facts.get("lineage")?.parse().ok()?,
        parent: facts.get("parent").cloned(),
    })
}

pub(crate) fn pin(id: &str) -> Result<PinName, StoreError> {
    format!("{KIND}/{id}").parse()
}

/// What an id has of a volume's name: its end, in letters that a pin may have.
pub(crate) fn label(volume: &str) -> String {
    let plain: String = volume
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._:+-".contains(c) { c } else { '-' })
        .collect();
    let end = plain[plain.len().saturating_sub(LABEL)..].trim_start_matches(['-', '.']);
    if end.is_empty() { "volume".into() } else { end.to_owned() }
}

/// The name of what is kept of a volume, or of a container, at a time (µs since 1970); a pin can be called so.
pub fn id(volume: &str, unix_us: u64) -> String {
    format!("{}@{}", label(volume), time(unix_us))
}

/// As ids have it: `20261122T084011.123456Z`, UTC.
pub(crate) fn time(unix_us: u64) -> String {
    let since = Duration::from_micros(unix_us);
    let (day, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of_day(day);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_pins_whatever_a_volume_is_called() {
        assert_eq!(id("podman:data", 951_782_400_000_007), "podman:data@20000229T000000.000007Z");
        assert_eq!(label("/srv/web data"), "srv-web-data");
        for name in ["/", "..", "/ä/b", &"/x".repeat(200), "a@b/c", "-"] {
            let id = id(name, 1);
            assert!(pin(&id).is_ok(), "{name}: {id}");
        }
    }
}
