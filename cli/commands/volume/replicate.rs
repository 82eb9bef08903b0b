//! `godwit volume replicate`: snapshots that another node has.

use super::{Past, policy, shown};
use crate::args::{Elsewhere, Neighbours, VolumeReplicateArgs};
use crate::commands::{cancel_on_signal, node};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, FetchError, fetch};
use godwit_store::{Digest, store_of};
use godwit_transfer::Address;
use godwit_volumes::{History, VolumeError};

impl Past {
    pub(super) fn replicate(&self, wanted: &VolumeReplicateArgs, draw: &Draw) -> Result<u8, Failure> {
        match (&wanted.from, &wanted.to) {
            (Some(Elsewhere::Node(node)), _) => self.replicate_from_node(wanted, node, draw),
            (Some(Elsewhere::Place(place)), _) => self.replicate_from_place(wanted, place, draw),
            (None, Some(place)) => self.replicate_to_place(wanted, place, draw),
            (None, None) => Err(Failure::new(FailureKind::Usage, "neither `--from` nor `--to` was given")),
        }
    }

    fn replicate_from_node(
        &self,
        wanted: &VolumeReplicateArgs,
        from: &Address,
        draw: &Draw,
    ) -> Result<u8, Failure> {
        if !wanted.identities.is_empty() {
            return Err(Failure::new(FailureKind::Usage, "another node gives nothing that is encrypted")
                .hint("leave `--identity` out"));
        }
        node::refuse_exposed(&Neighbours(vec![from.clone()]), wanted.insecure)?;
        let cancel = cancel_on_signal();
        let failed = |error: VolumeError| self.failure("not all of it is here", &error);
        let mut neighbour = Acquaintance::new(from.clone(), &host_name(), cancel.clone());
        let found = neighbour.visit().and_then(|visit| visit.snapshots(&wanted.volume));
        let mut found: Vec<Digest> = found.map_err(|why| self.unreachable(from, &cancel, &why))?;
        if found.is_empty() {
            let message = format!("`{from}` shows no snapshot of `{}`", wanted.volume);
            return Err(Failure::new(FailureKind::NotFound, message)
                .hint("`godwit volume list` there shows the names"));
        }
        found.truncate(if wanted.all { found.len() } else { 1 });
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        let here = history.list(Some(&wanted.volume)).map_err(failed)?;
        // the oldest first: what is broken off has no gap
        for manifest in found.into_iter().rev() {
            if let Some(snapshot) = here.iter().find(|snapshot| snapshot.manifest == manifest) {
                draw.talk(&format!("{} is here already", snapshot.id));
                continue;
            }
            let mut lease = history.lease().map_err(failed)?;
            let fetched = fetch(&mut neighbour, &mut lease, manifest, &mut self.progress());
            let fetched = fetched.map_err(|error| match error {
                FetchError::Neighbour(why) => self.unreachable(from, &cancel, &why),
                FetchError::Store(error) => failed(error.into()),
            })?;
            if fetched.described.facts.get("volume") != Some(&wanted.volume) {
                return Err(self.unreachable(from, &cancel, "it gave a snapshot of another volume"));
            }
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
        for gone in Self::apply(&history, &wanted.volume, &policy(&wanted.keep)).map_err(failed)? {
            draw.talk(&format!("{gone} went by the policy"));
        }
        Ok(0)
    }

    fn unreachable(&self, from: &Address, cancel: &Cancel, why: &str) -> Failure {
        if cancel.is_raised() {
            return Failure::new(FailureKind::Interrupted, "interrupted: what has come need not come again");
        }
        let message = format!("not all of it is here: `{from}`: {why}");
        let store = store_of(&self.root);
        Failure::new(FailureKind::Failed, message)
            .hint(format!("what has come is in `{}` for a while: once more brings the rest", store.display()))
    }
}
