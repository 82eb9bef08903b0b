//! `godwit volume list`.

use super::owner::Standing;
use super::{Past, shown};
use crate::draw::{Draw, table};
use godwit_migration::Failure;
use godwit_migration::calendar::show_time;
use godwit_volumes::{History, Snapshot, VolumeError};
use serde_json::{Value, json};

const HEAD: [&str; 8] = ["SNAPSHOT", "VOLUME", "MADE (UTC)", "HOST", "GEN", "STEMS FROM", "CAUSE", "NOTE"];

impl Past {
    pub(super) fn list(&self, volume: Option<&str>, draw: &Draw) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("the snapshots cannot be read", &error);
        let history = History::find_in(&self.root).map_err(failed)?;
        let name = volume.map(Self::name);
        let listed =
            history.as_ref().map(|history| history.list(name.as_deref())).transpose().map_err(failed)?;
        let listed = listed.unwrap_or_default();
        let standings =
            history.map(|history| Standing::of_all(&history, &listed)).transpose().map_err(failed)?;
        let standings = standings.unwrap_or_default();
        if draw.is_json() {
            let all: Vec<Value> = listed.iter().map(shown).collect();
            let volumes: Vec<Value> = standings.iter().map(Standing::json).collect();
            let line = json!({ "message_type": "volume_snapshots", "snapshots": all, "volumes": volumes });
            draw.json_line(&line);
            return Ok(0);
        }
        if listed.is_empty() {
            draw.talk("there are no snapshots");
            return Ok(0);
        }
        let rows: Vec<Vec<String>> =
            std::iter::once(HEAD.map(str::to_owned).to_vec()).chain(listed.iter().map(row)).collect();
        draw.data(table(&rows).trim_end());
        standings.iter().for_each(|standing| standing.say(draw));
        Ok(0)
    }
}

fn row(snapshot: &Snapshot) -> Vec<String> {
    let position = snapshot.position.as_ref();
    // of the same volume its time is enough
    let time = |parent: &str| parent.rsplit_once('@').map_or(parent, |(_, time)| time).to_owned();
    let parent = position.and_then(|position| position.parent.as_deref()).map(time);
    vec![
        snapshot.id.clone(),
        snapshot.volume.clone(),
        show_time(snapshot.made_unix_us),
        snapshot.host.clone(),
        position.map(|position| position.generation.to_string()).unwrap_or_default(),
        parent.unwrap_or_default(),
        snapshot.cause.to_string(),
        snapshot.note.clone().unwrap_or_default(),
    ]
}
