//! `godwit volume follow`: snapshots by themselves.

use super::bring::Outlet;
use super::forget::policy;
use super::still::Containers;
use super::{Past, line};
use crate::args::VolumeFollowArgs;
use crate::commands::cancel_on_signal;
use crate::draw::Draw;
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::tree::ChangeNotice;
use godwit_volumes::{History, Policy, Rhythm, Snapshot, Volume, VolumeError};
use std::time::{Duration, Instant};

/// How often it looks whether something was changed, and whether somebody pressed Ctrl-C.
const LOOK_UP: Duration = Duration::from_millis(200);

/// A volume that is followed.
struct Following<'a> {
    past: &'a Past,
    wanted: &'a VolumeFollowArgs,
    draw: &'a Draw,
    history: History,
    volume: Volume,
    policy: Policy,
    /// The newest snapshot.
    last: Option<Snapshot>,
    outlet: Option<Outlet>,
    /// The newest snapshot is not at the other node yet: when that was tried last.
    unbrought: Option<Instant>,
    /// Whose the volume is, when it is not this node's: that was said.
    elsewhere: Option<String>,
}

impl Past {
    pub(super) fn follow(&self, wanted: &VolumeFollowArgs, draw: &Draw) -> Result<u8, Failure> {
        let volume = self.volume(&wanted.volume, "no snapshot was made")?;
        let cancel = cancel_on_signal();
        let outlet =
            wanted.to.as_ref().map(|to| Outlet::new(to, wanted.insecure, false, &cancel)).transpose()?;
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
        let last = history.list(Some(&volume.name)).map_err(failed)?.pop();
        let mut rhythm = Rhythm::new(wanted.interval, wanted.every);
        draw.talk(&format!("following `{}`", volume.name));
        let policy = policy(&wanted.keep);
        let (unbrought, elsewhere) = (None, None);
        let mut following = Following {
            past: self,
            wanted,
            draw,
            history,
            volume,
            policy,
            last,
            outlet,
            unbrought,
            elsewhere,
        };
        while !cancel.is_raised() {
            if notice.as_ref().is_some_and(ChangeNotice::has_come) {
                rhythm.changed(Instant::now());
            }
            if !rhythm.is_due(Instant::now()) {
                following.bring_again();
                std::thread::sleep(LOOK_UP);
                continue;
            }
            rhythm.begun(Instant::now());
            if let Err(failure) = following.look() {
                // a file that changed under the reader, somebody else at work on it, no room: it may be otherwise next time
                draw.talk(&format!("warning: {failure}"));
                rhythm.changed(Instant::now());
            }
        }
        Ok(0)
    }
}

impl Following<'_> {
    /// A snapshot is due.
    fn look(&mut self) -> Result<(), Failure> {
        let failed = |error: VolumeError| self.past.failure("no snapshot was made this time", &error);
        if !self.is_here().map_err(failed)? {
            return Ok(());
        }
        // found anew each time: one may have been started again
        let mut containers = Containers::of(&self.wanted.still, &self.past.root, &self.volume)?;
        let kept = self.keep(containers.as_mut());
        let untold = containers.as_ref().map(Containers::untold).unwrap_or_default();
        untold.iter().for_each(|why| self.draw.talk(&format!("warning: {why}")));
        kept.map_err(|error| self.past.failure("no snapshot was made this time", &error))
    }

    /// Whether the volume is this node's. Of a copy that stayed when it moved nothing is kept: nobody writes to it, and what it was
    /// in the end went along.
    fn is_here(&mut self) -> Result<bool, VolumeError> {
        let known = self.history.ownership(&self.volume.path)?;
        let (elsewhere, volume) = (known.elsewhere().map(str::to_owned), &self.volume.name);
        match (&self.elsewhere, &elsewhere) {
            (was, Some(node)) if was.as_ref() != Some(node) => {
                self.draw.talk(&format!(
                    "`{volume}` belongs to {node}: nothing is kept of it here until it is back"
                ));
            }
            (Some(_), None) => self.draw.talk(&format!("`{volume}` is this node's again")),
            _ => {}
        }
        self.elsewhere = elsewhere;
        Ok(self.elsewhere.is_none())
    }

    /// Takes one, unless it would be like the last, and lets go of those that the policy does not keep.
    fn keep(&mut self, containers: Option<&mut Containers>) -> Result<(), VolumeError> {
        let (history, volume) = (&self.history, &self.volume);
        let taken = match containers {
            Some(containers) => history.take_of(volume, None, containers, &mut |_| {})?,
            None => history.take(volume, None, &mut |_| {})?,
        };
        let is_like = |last: &Snapshot| last.kept.is_none() && last.tree == taken.snapshot.tree;
        if self.last.as_ref().is_some_and(is_like) {
            return history.take_back(volume, &taken.snapshot);
        }
        self.last = Some(taken.snapshot.clone());
        let gone = Past::apply(history, &volume.name, &self.policy)?;
        if self.draw.is_json() {
            let mut line = line(&taken);
            line["forgotten"] = gone.into();
            self.draw.json_line(&line);
        } else {
            self.draw.data(&taken.snapshot.id);
        }
        self.bring();
        Ok(())
    }

    /// Brings the newest to the other node, if there is one. What fails is said, and tried again.
    fn bring(&mut self) {
        let (Some(outlet), Some(last)) = (&self.outlet, &self.last) else { return };
        let brought = self.past.bring(&self.history, std::slice::from_ref(last), outlet, self.draw);
        self.unbrought = brought.is_err().then(Instant::now);
        if let Err(failure) = brought {
            self.draw.talk(&format!("warning: {failure}"));
        }
    }

    fn bring_again(&mut self) {
        let wait = self.wanted.interval.max(LOOK_UP);
        if self.unbrought.is_some_and(|tried| tried.elapsed() >= wait) {
            self.bring();
        }
    }
}
