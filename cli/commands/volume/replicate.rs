//! `godwit volume replicate`: snapshots that another node has, or shall have.

use super::forget::policy;
use super::stream::{Way, say_store, say_stream};
use super::{Past, shown};
use crate::args::{Elsewhere, Neighbours, VolumeReplicateArgs};
use crate::commands::{cancel_on_signal, node};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, FetchError, Mark, Neighbour, fetch};
use godwit_store::{Digest, Manifest, store_of};
use godwit_transfer::Address;
use godwit_volumes::{History, Snapshot, VolumeError};
use serde_json::json;
use std::cmp::Reverse;

impl Past {
    pub(super) fn replicate(&self, wanted: &VolumeReplicateArgs, draw: &Draw) -> Result<u8, Failure> {
        match (&wanted.from, &wanted.to) {
            (Some(Elsewhere::Node(node)), _) => self.fetch_from(node, wanted, draw),
            (Some(Elsewhere::Place(place)), _) => self.replicate_from_place(wanted, place, draw),
            (_, Some(Elsewhere::Node(node))) => self.bring_to(node, wanted, draw),
            (_, Some(Elsewhere::Place(place))) => self.replicate_to_place(wanted, place, draw),
            // the command line has one of them
            (None, None) => Err(Failure::new(FailureKind::Usage, "neither `--from` nor `--to`")),
        }
    }

    fn fetch_from(&self, from: &Address, wanted: &VolumeReplicateArgs, draw: &Draw) -> Result<u8, Failure> {
        if !wanted.identities.is_empty() {
            return Err(Failure::new(FailureKind::Usage, "another node gives nothing that is encrypted")
                .hint("leave `--identity` out"));
        }
        node::refuse_exposed(&Neighbours(vec![from.clone()]), wanted.insecure)?;
        let cancel = cancel_on_signal();
        let failed = |error: VolumeError| self.failure("not all of it is here", &error);
        let broken = |why: String| self.broken_off(from, &cancel, &why);
        let mut neighbour = Acquaintance::new(from.clone(), &host_name(), cancel.clone());
        let found = self.all_of(&mut neighbour, wanted).map_err(broken)?;
        if found.is_empty() {
            let message = format!("`{from}` shows no snapshot of `{}`", wanted.volume);
            return Err(Failure::new(FailureKind::NotFound, message)
                .hint("`godwit volume list` there shows the names"));
        }
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        let marks: Vec<Mark> = found.iter().filter_map(|found| found.mark).collect();
        let here = history.list(Some(&wanted.volume)).map_err(failed)?;
        // the oldest first: what is broken off has no gap
        let wanted_ones = found.into_iter().take(if wanted.all { usize::MAX } else { 1 }).rev();
        let (there_too, news): (Vec<Found>, Vec<Found>) =
            wanted_ones.partition(|found| here.iter().any(|here| here.is(&found.snapshot)));
        for found in there_too {
            draw.talk(&format!("{} is here already", found.snapshot.id));
        }
        if !wanted.diverged {
            let offered: Vec<Snapshot> = news.iter().map(|found| found.snapshot.clone()).collect();
            let refused = |error: VolumeError| self.failure("nothing was replicated", &error);
            history.refuse_diverged(&offered).map_err(refused)?;
        }
        for found in news {
            let mut manifest = found.snapshot.manifest;
            let mut way = json!({});
            if found.snapshot.kept.is_some() {
                let room = wanted.quota.unwrap_or(u64::MAX);
                let visit = neighbour.visit().map_err(broken)?;
                let one = (&found.snapshot, found.mark);
                let came = self.receive_stream(&history, visit, one, &marks, room, &broken)?;
                self.bar.finish_and_clear();
                match came {
                    Way::WasThere => {
                        draw.talk(&format!(
                            "{} was here already, and is written down now",
                            found.snapshot.id
                        ));
                        continue;
                    }
                    Way::Stream { upon, bytes } => {
                        let came = history.same(&found.snapshot).map_err(failed)?;
                        let came = came.as_ref().unwrap_or(&found.snapshot);
                        say_stream(came, upon.as_deref(), (None, bytes), draw);
                        continue;
                    }
                    Way::Store(why) => way = say_store(&found.snapshot, &why, draw),
                }
                manifest = self.have_read(neighbour.visit().map_err(broken)?, manifest).map_err(broken)?;
            }
            let mut lease = history.lease().map_err(failed)?;
            let fetched = fetch(&mut neighbour, &mut lease, manifest, &mut self.progress());
            let fetched = fetched.map_err(|error| match error {
                FetchError::Neighbour(why) => broken(why),
                FetchError::Store(error) => failed(error.into()),
            })?;
            let snapshot = history.adopt(&mut lease, manifest, &fetched.described).map_err(failed)?;
            self.bar.finish_and_clear();
            if draw.is_json() {
                let mut line = shown(&snapshot);
                line["message_type"] = "volume_replicated".into();
                line["needed_bytes"] = fetched.needed_bytes.into();
                line["received_bytes"] = fetched.received_bytes.into();
                line.as_object_mut().into_iter().for_each(|line| {
                    line.extend(way.as_object().cloned().unwrap_or_default());
                });
                draw.json_line(&line);
            } else {
                draw.data(&snapshot.id);
            }
            let (received, needed) = (show_bytes(fetched.received_bytes), show_bytes(fetched.needed_bytes));
            draw.talk(&format!("{received} of {needed} came, the rest was here"));
        }
        self.say_standing(&history, &wanted.volume, draw);
        for gone in Self::apply(&history, &wanted.volume, &policy(&wanted.keep)).map_err(failed)? {
            draw.talk(&format!("{gone} went by the policy"));
        }
        Ok(0)
    }

    /// What the node has of the volume, the newest first; where it has none that a file system keeps, and only the newest is wanted, that
    /// alone.
    fn all_of(
        &self,
        neighbour: &mut Acquaintance,
        wanted: &VolumeReplicateArgs,
    ) -> Result<Vec<Found>, String> {
        let visit = neighbour.visit()?;
        let mut all: Vec<(Digest, Option<Mark>)> =
            visit.snapshots(&wanted.volume)?.into_iter().map(|manifest| (manifest, None)).collect();
        let kept = visit.kept(&wanted.volume)?;
        if kept.is_empty() && !wanted.all {
            all.truncate(1);
        }
        all.extend(kept);
        let described = |(manifest, mark)| {
            offered(neighbour, manifest, &wanted.volume).map(|snapshot| Found { snapshot, mark })
        };
        let mut found = all.into_iter().map(described).collect::<Result<Vec<Found>, String>>()?;
        found.sort_by_key(|found| Reverse((found.snapshot.generation(), found.snapshot.made_unix_us)));
        Ok(found)
    }

    fn broken_off(&self, from: &Address, cancel: &Cancel, why: &str) -> Failure {
        if cancel.is_raised() {
            return Failure::new(FailureKind::Interrupted, "interrupted: what has come need not come again");
        }
        let message = format!("not all of it is here: `{from}`: {why}");
        let store = store_of(&self.root);
        Failure::new(FailureKind::Failed, message)
            .hint(format!("what has come is in `{}` for a while: once more brings the rest", store.display()))
    }
}

/// A snapshot of the node's, and its mark where its file system can send it.
struct Found {
    snapshot: Snapshot,
    mark: Option<Mark>,
}

/// What a neighbour says of a snapshot, before any of its content comes.
fn offered(from: &mut Acquaintance, manifest: Digest, volume: &str) -> Result<Snapshot, String> {
    let Some(Manifest::Described(described)) = from.manifest(manifest)? else {
        return Err(format!("it has no snapshot {manifest}"));
    };
    let snapshot = Snapshot::known(manifest, &described).filter(|snapshot| snapshot.volume == volume);
    snapshot.ok_or_else(|| "it gave a snapshot of another volume".into())
}
