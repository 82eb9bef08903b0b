//! Whose a volume is, and whether what two nodes have made of it has diverged.
//!
//! The rule is [`godwit_migration::lineage`]'s, the records are [`godwit_migration::volume_owner`]'s; here they meet the
//! snapshots of a node, whoever made them.

use crate::{History, Snapshot, Volume, VolumeError};
use godwit_migration::Lineage;
use godwit_migration::lineage::ends;
use godwit_migration::volume_owner::Ownership;
use std::fmt;
use std::path::Path;

/// The end of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A snapshot.
    Snapshot(Box<Snapshot>),
    /// The volume as it is here.
    Volume,
}

/// Histories of a volume of which none has all that the others have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The last snapshot that all of them stem from, if one is there.
    pub since: Option<Snapshot>,
    /// Where they end: two or more.
    pub ends: Vec<End>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let End::Snapshot(snapshot) = self else { return f.write_str("the volume as it is here") };
        write!(f, "{} of {}", snapshot.id, snapshot.host)?;
        match &snapshot.position {
            Some(position) => write!(f, " (generation {})", position.generation),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.since {
            Some(since) => write!(f, "since {}: ", since.id)?,
            None => f.write_str("no snapshot is known that both stem from: ")?,
        }
        let ends: Vec<String> = self.ends.iter().map(End::to_string).collect();
        f.write_str(&ends.join(" against "))
    }
}

/// How the histories of a volume have diverged that end in its `snapshots`, oldest first, and in the volume as it `is` on this node,
/// where that owns it. Snapshots of which nobody knows what they stem from do not count.
pub fn divergence(snapshots: &[Snapshot], is: Option<&Lineage>) -> Option<Divergence> {
    let known: Vec<(&Snapshot, &Lineage)> =
        snapshots.iter().filter_map(|snapshot| Some((snapshot, snapshot.lineage()?))).collect();
    let mut all: Vec<&Lineage> = known.iter().map(|(_, lineage)| *lineage).collect();
    all.extend(is.filter(|lineage| !lineage.is_empty()));
    let last = ends(&all);
    if last.len() < 2 {
        return None;
    }
    let stems = |lineage: &Lineage| last.iter().all(|end| lineage < all[*end]);
    let common: Vec<(&Snapshot, &Lineage)> =
        known.iter().filter(|(_, lineage)| stems(lineage)).copied().collect();
    let newest = ends(&common.iter().map(|(_, lineage)| *lineage).collect::<Vec<_>>()).pop();
    let end = |at: &usize| {
        known.get(*at).map_or(End::Volume, |(snapshot, _)| End::Snapshot(Box::new((*snapshot).clone())))
    };
    Some(Divergence { since: newest.map(|at| common[at].0.clone()), ends: last.iter().map(end).collect() })
}

impl History {
    /// What is known of whose a volume is; by its directory.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn ownership(&self, path: &Path) -> Result<Ownership, VolumeError> {
        self.owners.of(path).map_err(VolumeError::io("read the owner of", path))
    }

    /// How the histories of a volume have diverged, as far as this node has their snapshots.
    ///
    /// # Errors
    /// As [`History::list`].
    pub fn divergence(&self, volume: &str) -> Result<Option<Divergence>, VolumeError> {
        let snapshots = self.list(Some(volume))?;
        let is = self.lineage_here(&snapshots)?;
        Ok(divergence(&snapshots, is.as_ref()))
    }

    /// Refuses what another node offers when the histories have diverged, or would by what comes.
    ///
    /// # Errors
    /// [`VolumeError::Diverged`].
    pub fn refuse_diverged(&self, offered: &[Snapshot]) -> Result<(), VolumeError> {
        let Some(volume) = offered.first().map(|snapshot| snapshot.volume.clone()) else { return Ok(()) };
        let mut snapshots = self.list(Some(&volume))?;
        let is = self.lineage_here(&snapshots)?;
        let is_new = |one: &&Snapshot| snapshots.iter().all(|here| here.manifest != one.manifest);
        let news: Vec<Snapshot> = offered.iter().filter(is_new).cloned().collect();
        snapshots.extend(news.iter().cloned());
        let of_news = |end: &End| matches!(end, End::Snapshot(end) if news.contains(&**end));
        match divergence(&snapshots, is.as_ref()).filter(|found| found.ends.iter().any(of_news)) {
            Some(divergence) => Err(VolumeError::Diverged { volume, divergence: Box::new(divergence) }),
            None => Ok(()),
        }
    }

    /// What the volume of these snapshots stems from here, if it is this node's.
    fn lineage_here(&self, snapshots: &[Snapshot]) -> Result<Option<Lineage>, VolumeError> {
        let Some(newest) = snapshots.last() else { return Ok(None) };
        let known = self.ownership(&newest.path)?;
        Ok(known.elsewhere().is_none().then_some(known.lineage))
    }

    /// This node owns the volume now, and what is here goes on from all snapshots of it that are here.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn take_over(&self, volume: &Volume) -> Result<Ownership, VolumeError> {
        let all = self.list(Some(&volume.name))?;
        let known = all.iter().filter_map(Snapshot::lineage);
        let others = known.fold(Lineage::default(), |others, lineage| others.joined(lineage));
        let taken = self.owners.take(&volume.path, &volume.name, &others);
        taken.map_err(VolumeError::io("write down the owner of", &volume.path))
    }

    /// A snapshot of a later owner tells whose the volume is.
    pub(crate) fn hear(&self, snapshot: &Snapshot) -> Result<(), VolumeError> {
        let Some(position) = &snapshot.position else { return Ok(()) };
        let heard = self.owners.heard(&snapshot.path, &snapshot.volume, &snapshot.host, position.generation);
        heard.map(drop).map_err(VolumeError::io("write down the owner of", &snapshot.path))
    }

    pub(crate) fn refuse_foreign(&self, volume: &Volume) -> Result<(), VolumeError> {
        let known = self.ownership(&volume.path)?;
        match known.elsewhere() {
            None => Ok(()),
            Some(node) => Err(VolumeError::Elsewhere {
                volume: volume.name.clone(),
                node: node.to_owned(),
                generation: known.generation,
            }),
        }
    }

    pub(crate) fn went_back(&self, volume: &Volume, to: &Snapshot) -> Result<(), VolumeError> {
        let lineage = to.lineage().cloned().unwrap_or_default();
        let noted = self.owners.went_back(&volume.path, &lineage, &to.id);
        noted.map_err(VolumeError::io("write down the owner of", &volume.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cause;
    use godwit_migration::WriterId;
    use godwit_migration::volume_owner::Position;
    use godwit_store::Digest;

    fn writer(number: u64) -> WriterId {
        format!("{number:016x}").parse().unwrap()
    }

    fn made(id: &str, lineage: &Lineage, generation: u64) -> Snapshot {
        Snapshot {
            id: id.into(),
            volume: "podman:data".into(),
            path: "/srv/data".into(),
            host: "rack1".into(),
            made_unix_us: 0,
            cause: Cause::Asked,
            stood_us: None,
            shown_by: None,
            note: None,
            position: Some(Position { generation, lineage: lineage.clone(), parent: None }),
            kept: None,
            manifest: Digest::of(id.as_bytes()),
            tree: Digest::of(id.as_bytes()),
        }
    }

    #[test]
    fn two_ends_and_the_last_snapshot_that_both_stem_from_are_named() {
        let (here, there) = (writer(1), writer(2));
        let first = Lineage::default().next(&here);
        let second = first.next(&here);
        let (third, other) = (second.next(&here), second.next(&there));
        let all = [made("1", &first, 1), made("2", &second, 1), made("3", &third, 1), made("4", &other, 2)];
        assert_eq!(divergence(&all[..3], Some(&third)), None);
        let found = divergence(&all, Some(&third)).unwrap();
        assert_eq!(found.since.as_ref().map(|since| &*since.id), Some("2"));
        assert_eq!(
            found.ends,
            [End::Snapshot(Box::new(all[2].clone())), End::Snapshot(Box::new(all[3].clone()))]
        );
        let said = "since 2: 3 of rack1 (generation 1) against 4 of rack1 (generation 2)";
        assert_eq!(found.to_string(), said);
        // what is forgotten cannot be named, and has happened all the same
        let found = divergence(&all[2..], None).unwrap();
        assert_eq!((found.since, found.ends.len()), (None, 2));
        // the volume itself goes on from both, or from one of them
        assert_eq!(divergence(&all, Some(&third.joined(&other))), None);
        let found = divergence(&[all[1].clone(), all[3].clone()], Some(&third)).unwrap();
        assert_eq!(found.ends, [End::Snapshot(Box::new(all[3].clone())), End::Volume]);
    }

    #[test]
    fn what_is_not_known_to_stem_from_anything_has_not_diverged() {
        let mut old = made("1", &Lineage::default(), 1);
        old.position = None;
        let new = made("2", &Lineage::default().next(&writer(1)), 1);
        assert_eq!(divergence(&[old, new], Some(&Lineage::default())), None);
        assert_eq!(divergence(&[], None), None);
    }
}
