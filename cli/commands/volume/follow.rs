//! `godwit volume follow`: snapshots by themselves.

use super::still::Containers;
use super::{Past, line, policy};
use crate::args::VolumeFollowArgs;
use crate::commands::cancel_on_signal;
use crate::draw::Draw;
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::tree::ChangeNotice;
use godwit_volumes::{History, Policy, Rhythm, Snapshot, Volume, VolumeError};
use std::time::{Duration, Instant};

/// How often it looks whether something was changed, and whether somebody pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(200);

impl Past {
    pub(super) fn follow(&self, wanted: &VolumeFollowArgs, draw: &Draw) -> Result<u8, Failure> {
        let volume = self.volume(&wanted.volume, "no snapshot was made")?;
        let policy = policy(&wanted.keep);
        let cancel = cancel_on_signal();
        // before the first one is taken: what is changed while it is belongs to the next
        let notice = match ChangeNotice::of(&volume.path) {
            Ok(notice) => Some(notice),
            Err(error) if wanted.every.is_some() => {
                draw.talk(&format!(
                    "the kernel tells of no changes of `{}` ({error}): by the timer alone",
                    volume.name
                ));
                None
            }
            Err(error) => {
                let message = format!("the kernel tells of no changes of `{}`", volume.name);
                let failure = Failure::new(FailureKind::Missing, message).because_of(&error);
                return Err(failure.hint("`--every DURATION` takes one at times, changed or not"));
            }
        };
        let failed = |error: VolumeError| self.failure("no snapshot was made", &error);
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        let mut last = history.list(Some(&volume.name)).map_err(failed)?.pop();
        let mut rhythm = Rhythm::new(wanted.interval, wanted.every);
        draw.talk(&format!("following `{}`", volume.name));
        while !cancel.is_raised() {
            if notice.as_ref().is_some_and(ChangeNotice::has_come) {
                rhythm.changed(Instant::now());
            }
            if !rhythm.is_due(Instant::now()) {
                std::thread::sleep(LOOK_UP);
                continue;
            }
            rhythm.begun(Instant::now());
            let failed = |error: VolumeError| self.failure("no snapshot was made this time", &error);
            // found anew each time: one may have been started again
            let kept = Containers::of(&wanted.still, &self.root, &volume).and_then(|containers| {
                let mut containers = containers;
                let kept = self.keep(&history, &volume, containers.as_mut(), &policy, &mut last, draw);
                let untold = containers.as_ref().map(Containers::untold).unwrap_or_default();
                untold.iter().for_each(|why| draw.talk(&format!("warning: {why}")));
                kept.map_err(failed)
            });
            if let Err(failure) = kept {
                // a file that changed under the reader, somebody else at work on it, no room: it may be otherwise next time
                draw.talk(&format!("warning: {failure}"));
                rhythm.changed(Instant::now());
            }
        }
        Ok(0)
    }

    /// Takes one, unless it would be like the last, and lets go of those that the policy does not keep.
    fn keep(
        &self,
        history: &History,
        volume: &Volume,
        containers: Option<&mut Containers>,
        policy: &Policy,
        last: &mut Option<Snapshot>,
        draw: &Draw,
    ) -> Result<(), VolumeError> {
        let taken = match containers {
            Some(containers) => history.take_of(volume, None, containers, &mut |_| {})?,
            None => history.take(volume, None, &mut |_| {})?,
        };
        if last.as_ref().is_some_and(|last| last.tree == taken.snapshot.tree) {
            return history.forget(&taken.snapshot);
        }
        *last = Some(taken.snapshot.clone());
        let gone = Self::apply(history, &volume.name, policy)?;
        if draw.is_json() {
            let mut line = line(&taken);
            line["forgotten"] = gone.into();
            draw.json_line(&line);
        } else {
            draw.data(&taken.snapshot.id);
        }
        Ok(())
    }
}
