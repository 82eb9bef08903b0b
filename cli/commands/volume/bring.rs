//! Snapshots that go to another node: by `godwit volume replicate --to`, and soon after each was made by `follow --to`.

use super::forget::policy;
use super::stream::{Way, say_store, say_stream};
use super::{DIVERGED, Past, shown};
use crate::args::{Neighbours, VolumeReplicateArgs};
use crate::commands::{cancel_on_signal, node};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, BringError, Brought, bring};
use godwit_transfer::Address;
use godwit_volumes::{History, Snapshot, VolumeError};

/// Where snapshots go.
pub struct Outlet {
    pub(super) to: Address,
    /// Also where histories have diverged.
    pub(super) despite: bool,
    cancel: Cancel,
}

impl Outlet {
    /// Nobody is spoken to yet.
    ///
    /// # Errors
    /// When that would be in the open, and nobody said that it may.
    pub fn new(to: &Address, insecure: bool, despite: bool, cancel: &Cancel) -> Result<Self, Failure> {
        node::refuse_exposed(&Neighbours(vec![to.clone()]), insecure)?;
        Ok(Self { to: to.clone(), despite, cancel: cancel.clone() })
    }

    pub(super) fn failure(&self, past: &Past, error: BringError) -> Failure {
        let what = format!("not all of it is at `{}`", self.to);
        match error {
            BringError::Store(error) => past.failure(&what, &VolumeError::Store(error)),
            BringError::Neighbour(_) if self.cancel.is_raised() => {
                Failure::new(FailureKind::Interrupted, "interrupted: what has come there need not come again")
            }
            BringError::Neighbour(_) => Failure::new(FailureKind::Failed, what)
                .because_of(&error)
                .hint("what has come there stays for a while: once more brings the rest"),
            BringError::Refused(_) => Failure::new(FailureKind::Refused, what).because_of(&error),
            BringError::Diverged(_) => {
                Failure::new(FailureKind::Locked, what).because_of(&error).hint(DIVERGED)
            }
        }
    }
}

impl Past {
    pub(super) fn bring_to(
        &self,
        to: &Address,
        wanted: &VolumeReplicateArgs,
        draw: &Draw,
    ) -> Result<u8, Failure> {
        if !policy(&wanted.keep).is_empty() {
            let message = "`--keep-…` says what stays here, and `--to` changes nothing here";
            return Err(Failure::new(FailureKind::Usage, message)
                .hint("`godwit volume forget` on the other node says what stays there"));
        }
        if !wanted.recipients.is_empty() {
            return Err(Failure::new(FailureKind::Usage, "another node takes nothing that is encrypted")
                .hint("leave `--recipient` out"));
        }
        let outlet = Outlet::new(to, wanted.insecure, wanted.diverged, &cancel_on_signal())?;
        let history = self.existing(&wanted.volume)?;
        self.bring(&history, &self.that_travel(&history, wanted, &|_| true)?, &outlet, draw)?;
        Ok(0)
    }

    /// The newest snapshot of a volume, or all of them, oldest first, as far as they can go there.
    ///
    /// # Errors
    /// When there is none that can leave this host.
    pub(super) fn that_travel(
        &self,
        history: &History,
        wanted: &VolumeReplicateArgs,
        can: &dyn Fn(&Snapshot) -> bool,
    ) -> Result<Vec<Snapshot>, Failure> {
        let all = history.list(Some(&Self::name(&wanted.volume)));
        let mut all = all.map_err(|error| self.failure("nothing was replicated", &error))?;
        all.retain(can);
        if all.is_empty() {
            let none = VolumeError::NoSnapshot(format!("{}@latest", wanted.volume));
            return Err(self.failure("nothing was replicated", &none));
        }
        let first = if wanted.all { 0 } else { all.len() - 1 };
        Ok(all.split_off(first))
    }

    /// Brings these to another node, one after the other. The newest goes first: it may be the one that brings together what had diverged.
    ///
    /// # Errors
    /// Which of them is not there, and why; those after it are.
    pub(super) fn bring(
        &self,
        history: &History,
        snapshots: &[Snapshot],
        outlet: &Outlet,
        draw: &Draw,
    ) -> Result<(), Failure> {
        let mut neighbour = Acquaintance::new(outlet.to.clone(), &host_name(), outlet.cancel.clone());
        let visit = neighbour.visit().map_err(|why| outlet.failure(self, BringError::Neighbour(why)))?;
        for snapshot in snapshots.iter().rev() {
            let mut lease =
                history.lease().map_err(|error| self.failure("nothing was replicated", &error))?;
            let mut way = serde_json::json!({});
            let mut going = snapshot.clone();
            if snapshot.kept.is_some() {
                let went = self.send_stream(history, visit, snapshot, outlet)?;
                self.bar.finish_and_clear();
                match went {
                    Way::WasThere => {
                        draw.talk(&format!("{} is there already", snapshot.id));
                        continue;
                    }
                    Way::Stream { upon, bytes } => {
                        say_stream(snapshot, upon.as_deref(), (Some(&outlet.to), bytes), draw);
                        continue;
                    }
                    Way::Store(why) => way = say_store(snapshot, &why, draw),
                }
                let read = history.read(&mut lease, snapshot, &mut self.reading());
                going = read.map_err(|error| self.failure("nothing was replicated", &error))?;
            }
            let brought = bring(visit, &mut lease, going.manifest, outlet.despite, &mut self.progress());
            self.bar.finish_and_clear();
            let brought = brought.map_err(|error| outlet.failure(self, error))?;
            let Brought::Kept { needed_bytes, sent_bytes } = brought else {
                draw.talk(&format!("{} is there already", snapshot.id));
                continue;
            };
            if draw.is_json() {
                let mut line = shown(snapshot);
                line["message_type"] = "volume_replicated".into();
                line["to"] = outlet.to.to_string().into();
                line["needed_bytes"] = needed_bytes.into();
                line["sent_bytes"] = sent_bytes.into();
                line.as_object_mut().into_iter().for_each(|line| {
                    line.extend(way.as_object().cloned().unwrap_or_default());
                });
                draw.json_line(&line);
            }
            let (sent, needed) = (show_bytes(sent_bytes), show_bytes(needed_bytes));
            draw.talk(&format!(
                "{} is at `{}`: {sent} of {needed} went there, the rest was there",
                snapshot.id, outlet.to
            ));
        }
        Ok(())
    }
}
