//! `godwit volume forget`, and the policy that says what stays.

use super::Past;
use crate::args::{KeepArgs, VolumeForgetArgs};
use crate::draw::{Draw, table};
use godwit_migration::{Failure, FailureKind};
use godwit_volumes::{History, Policy, VolumeError};
use serde_json::{Value, json};

impl Past {
    /// Lets go of what a policy does not keep, if there is any policy; the names.
    pub(super) fn apply(
        history: &History,
        volume: &str,
        policy: &Policy,
    ) -> Result<Vec<String>, VolumeError> {
        let mut gone = Vec::new();
        if policy.is_empty() {
            return Ok(gone);
        }
        for (snapshot, _) in history.judge(volume, policy)?.into_iter().filter(|(_, why)| why.is_empty()) {
            history.forget(&snapshot)?;
            gone.push(snapshot.id);
        }
        Ok(gone)
    }

    pub(super) fn forget(&self, wanted: &VolumeForgetArgs, draw: &Draw) -> Result<u8, Failure> {
        let policy = policy(&wanted.keep);
        if policy.is_empty() == wanted.volume.is_some() {
            let message = "`--volume` and one of `--keep-…` belong together";
            return Err(Failure::new(FailureKind::Usage, message)
                .hint("nothing is forgotten by a policy that keeps nothing: name the snapshots"));
        }
        let failed = |error: VolumeError| self.failure("not all of them are forgotten", &error);
        let (history, judged) = match &wanted.volume {
            Some(volume) => {
                let history = self.existing(volume)?;
                let judged = history.judge(&Self::name(volume), &policy).map_err(failed)?;
                (history, judged)
            }
            None => {
                let history = self.existing(&wanted.snapshots[0])?;
                let named = wanted.snapshots.iter().map(|text| Ok((history.find(text)?, vec![])));
                let named = named.collect::<Result<Vec<_>, VolumeError>>().map_err(failed)?;
                (history, named)
            }
        };
        let (stay, go): (Vec<_>, Vec<_>) = judged.into_iter().partition(|(_, why)| !why.is_empty());
        if !wanted.dry_run {
            go.iter().try_for_each(|(snapshot, _)| history.forget(snapshot)).map_err(failed)?;
        }
        let why = |why: &[godwit_volumes::Reason]| why.iter().map(ToString::to_string).collect::<Vec<_>>();
        if draw.is_json() {
            let kept: Vec<Value> = stay
                .iter()
                .map(|(snapshot, reasons)| json!({ "id": snapshot.id, "reasons": why(reasons) }))
                .collect();
            let gone: Vec<&str> = go.iter().map(|(snapshot, _)| snapshot.id.as_str()).collect();
            draw.json_line(&json!({
                "message_type": "volume_forgotten", "dry_run": wanted.dry_run, "forgotten": gone, "kept": kept,
            }));
            return Ok(0);
        }
        let does = if wanted.dry_run { "would go" } else { "gone" };
        let mut rows: Vec<Vec<String>> = stay
            .iter()
            .map(|(snapshot, reasons)| {
                vec![snapshot.id.clone(), format!("stays: {}", why(reasons).join(", "))]
            })
            .collect();
        rows.extend(go.iter().map(|(snapshot, _)| vec![snapshot.id.clone(), does.to_owned()]));
        if rows.is_empty() {
            draw.talk("there are no snapshots of it");
        } else {
            draw.data(table(&rows).trim_end());
        }
        if !go.is_empty() && !wanted.dry_run {
            draw.talk("`godwit store gc` makes room now; else it is made when it is needed");
        }
        Ok(0)
    }
}

/// What stays by the options of a command.
pub fn policy(keep: &KeepArgs) -> Policy {
    Policy {
        last: keep.keep_last,
        hourly: keep.keep_hourly,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
    }
}
