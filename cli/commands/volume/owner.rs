//! `godwit volume owner`: whose volumes are.

use super::Past;
use crate::args::VolumeOwnerArgs;
use crate::draw::{Draw, table};
use godwit_migration::Failure;
use godwit_migration::calendar::show_time;
use godwit_migration::volume_owner::{Ownership, VolumeOwners};
use godwit_volumes::{Divergence, End, History, Snapshot, Volume, VolumeError};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Whose a volume is, as far as this node knows, and whether what several nodes have made of it has diverged.
pub struct Standing {
    volume: String,
    known: Ownership,
    divergence: Option<Divergence>,
}

impl Standing {
    fn of(history: Option<&History>, volume: String, known: Ownership) -> Result<Self, VolumeError> {
        let divergence = history.map(|history| history.divergence(&volume)).transpose()?.flatten();
        Ok(Self { volume, known, divergence })
    }

    /// One for each volume of these snapshots, which are sorted by time.
    pub fn of_all(history: &History, snapshots: &[Snapshot]) -> Result<Vec<Self>, VolumeError> {
        let mut newest: Vec<&Snapshot> = Vec::new();
        for snapshot in snapshots.iter().rev() {
            if newest.iter().all(|other| other.volume != snapshot.volume) {
                newest.push(snapshot);
            }
        }
        let standing = |snapshot: &Snapshot| {
            Self::of(Some(history), snapshot.volume.clone(), history.ownership(&snapshot.path)?)
        };
        newest.into_iter().rev().map(standing).collect()
    }

    pub fn json(&self) -> Value {
        let known = &self.known;
        let end = |end: &End| match end {
            End::Volume => Value::Null,
            End::Snapshot(snapshot) => json!({
                "id": snapshot.id, "host": snapshot.host,
                "generation": snapshot.position.as_ref().map(|position| position.generation),
            }),
        };
        let diverged = self.divergence.as_ref().map(|divergence| {
            let ends: Vec<Value> = divergence.ends.iter().map(end).collect();
            json!({ "since": divergence.since.as_ref().map(|since| &since.id), "ends": ends })
        });
        json!({
            "volume": self.volume, "path": known.path, "is_here": known.elsewhere().is_none(),
            "owner": known.elsewhere(), "generation": known.generation, "since_unix_s": known.since_unix_s,
            "migration": known.migration, "lineage": known.lineage.to_string(), "stems_from": known.stems_from,
            "diverged": diverged,
        })
    }

    /// What a person has to know.
    pub fn say(&self, draw: &Draw) {
        let volume = &self.volume;
        if let Some(node) = self.known.elsewhere() {
            let generation = self.known.generation;
            draw.talk(&format!("`{volume}` belongs to {node}, in generation {generation}"));
        }
        if let Some(divergence) = &self.divergence {
            draw.talk(&format!("warning: the histories of `{volume}` have diverged {divergence}"));
            draw.talk("`godwit volume diff` compares them; `godwit volume rollback`, or `owner --take`, says which goes on");
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.known.elsewhere().unwrap_or("this node").to_owned(),
            self.known.generation.to_string(),
            show_time(self.known.since_unix_s * 1_000_000),
            self.known.stems_from.clone().unwrap_or_default(),
        ]
    }
}

impl Past {
    pub(super) fn owner(&self, wanted: &VolumeOwnerArgs, draw: &Draw) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("whose it is cannot be told", &error);
        let history = History::find_in(&self.root).map_err(failed)?;
        let known = match &wanted.volume {
            Some(text) if wanted.take => vec![self.take(text, draw)?],
            Some(text) => vec![self.known(history.as_ref(), text).map_err(failed)?],
            None => {
                let all = VolumeOwners::below(&self.root).all();
                let all = all.map_err(|source| self.unreadable(source)).map_err(failed)?;
                all.into_iter()
                    .map(|known| (known.name.clone().unwrap_or(known.path.clone()), known))
                    .collect()
            }
        };
        let standings = known.into_iter().map(|(name, known)| Standing::of(history.as_ref(), name, known));
        let standings = standings.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        if draw.is_json() {
            let all: Vec<Value> = standings.iter().map(Standing::json).collect();
            draw.json_line(&json!({ "message_type": "volume_owners", "volumes": all }));
            return Ok(0);
        }
        let head = ["VOLUME", "OWNER", "GENERATION", "SINCE (UTC)", "STEMS FROM"].map(str::to_owned);
        let rows: Vec<Vec<String>> =
            std::iter::once(head.to_vec()).chain(standings.iter().map(Standing::row)).collect();
        draw.data(table(&rows).trim_end());
        for standing in standings.iter().filter(|standing| standing.divergence.is_some()) {
            standing.say(draw);
        }
        Ok(0)
    }

    /// This node owns it from now on.
    fn take(&self, text: &str, draw: &Draw) -> Result<(String, Ownership), Failure> {
        let failed = |error: VolumeError| self.failure("it is whose it was", &error);
        let volume = self.volume(text, "it is whose it was")?;
        let history = History::open(&self.root, None).map_err(failed)?;
        let known = history.ownership(&volume.path).map_err(failed)?;
        let has_diverged = history.divergence(&volume.name).map_err(failed)?.is_some();
        if known.elsewhere().is_none() && !has_diverged {
            draw.talk(&format!("`{}` is this node's already", volume.name));
            return Ok((volume.name, known));
        }
        let taken = history.take_over(&volume).map_err(failed)?;
        draw.talk(&format!("`{}` is this node's, in generation {}", volume.name, taken.generation));
        Ok((volume.name, taken))
    }

    /// What is known of a volume that may not be here, but in snapshots and records.
    fn known(&self, history: Option<&History>, text: &str) -> Result<(String, Ownership), VolumeError> {
        let owners = VolumeOwners::below(&self.root);
        let read = |path: PathBuf| owners.of(&path).map_err(|source| self.unreadable(source));
        let why = match Volume::find(text) {
            Ok(volume) => return Ok((volume.name, read(volume.path)?)),
            Err(error) => error,
        };
        let newest =
            history.map(|history| history.list(Some(text))).transpose()?.and_then(|mut all| all.pop());
        if let Some(newest) = newest {
            return Ok((text.to_owned(), read(newest.path)?));
        }
        let all = owners.all().map_err(|source| self.unreadable(source))?;
        let found = all.into_iter().find(|known| known.path == text || known.name.as_deref() == Some(text));
        found.map(|known| (text.to_owned(), known)).ok_or(why)
    }

    fn unreadable(&self, source: std::io::Error) -> VolumeError {
        VolumeError::Io { act: "read the owners in", path: self.root.join("volumes"), source }
    }

    /// Whose a volume is, where that is not this node, and whether its histories have diverged: said, not returned.
    pub(super) fn say_standing(&self, history: &History, volume: &str, draw: &Draw) {
        let standing = history.list(Some(volume)).and_then(|all| Standing::of_all(history, &all));
        match standing {
            Ok(standings) => standings.iter().for_each(|standing| standing.say(draw)),
            Err(error) => tracing::warn!(%error, "whose it is cannot be told"),
        }
    }
}
