//! `godwit volume replicate`: snapshots that another node has, or shall have.

use super::forget::policy;
use super::{Past, shown};
use crate::args::{Elsewhere, Neighbours, VolumeReplicateArgs};
use crate::commands::{cancel_on_signal, node};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, FetchError, Neighbour, fetch};
use godwit_store::{Digest, Manifest, store_of};
use godwit_transfer::Address;
use godwit_volumes::{History, Snapshot, VolumeError};

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
        let found = neighbour.visit().and_then(|visit| visit.snapshots(&wanted.volume));
        let mut found: Vec<Digest> = found.map_err(broken)?;
        if found.is_empty() {
            let message = format!("`{from}` shows no snapshot of `{}`", wanted.volume);
            return Err(Failure::new(FailureKind::NotFound, message)
                .hint("`godwit volume list` there shows the names"));
        }
        found.truncate(if wanted.all { found.len() } else { 1 });
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        let here = history.list(Some(&wanted.volume)).map_err(failed)?;
        // the oldest first: what is broken off has no gap
        found.reverse();
        for snapshot in here.iter().filter(|snapshot| found.contains(&snapshot.manifest)) {
            draw.talk(&format!("{} is here already", snapshot.id));
        }
        found.retain(|manifest| here.iter().all(|snapshot| snapshot.manifest != *manifest));
        let offered = found.iter().map(|manifest| offered(&mut neighbour, *manifest, &wanted.volume));
        let offered = offered.collect::<Result<Vec<Snapshot>, String>>().map_err(broken)?;
        if !wanted.diverged {
            let refused = |error: VolumeError| self.failure("nothing was replicated", &error);
            history.refuse_diverged(&offered).map_err(refused)?;
        }
        for manifest in found {
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

/// What a neighbour says of a snapshot, before any of its content comes.
fn offered(from: &mut Acquaintance, manifest: Digest, volume: &str) -> Result<Snapshot, String> {
    let Some(Manifest::Described(described)) = from.manifest(manifest)? else {
        return Err(format!("it has no snapshot {manifest}"));
    };
    let snapshot = Snapshot::offered(manifest, &described).filter(|snapshot| snapshot.volume == volume);
    snapshot.ok_or_else(|| "it gave a snapshot of another volume".into())
}
