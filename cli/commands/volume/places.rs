//! `godwit volume replicate` to and from places in object storage.

use super::forget::policy;
use super::{Past, shown};
use crate::args::VolumeReplicateArgs;
use crate::commands::images::forget::place::{self as forgotten, ThisHost};
use crate::commands::{cancel_on_signal, object_storage, sealing};
use crate::draw::Draw;
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Failure, FailureKind};
use godwit_object_storage::index::Keys;
use godwit_object_storage::{Kind, Order, Place, PlaceError, PlaceName, download, upload};
use godwit_store::Digest;
use godwit_volumes::{History, Snapshot, VolumeError};
use serde_json::Value;

impl Past {
    /// Puts the newest snapshot of a volume, or all of them, into a place.
    pub(super) fn replicate_to_place(
        &self,
        wanted: &VolumeReplicateArgs,
        name: &PlaceName,
        draw: &Draw,
    ) -> Result<u8, Failure> {
        let what = format!("not all of it is in `{name}`");
        let failed = |error: VolumeError| self.failure(&what, &error);
        let refused = |error: PlaceError| object_storage::failure(&what, &error, &self.root);
        refuse(wanted, name)?;
        let recipients = sealing::recipients(&wanted.recipients)?;
        let volume = Self::name(&wanted.volume);
        let history = self.existing(&volume)?;
        let all = history.list(Some(&volume)).map_err(failed)?;
        let native = all.iter().filter(|snapshot| snapshot.kept.is_some()).count();
        if native > 0 {
            draw.talk(&format!("{native} of its snapshots are kept by its file system, and go to no place"));
        }
        let here = self.that_travel(&history, wanted, &|snapshot| snapshot.kept.is_none())?;
        let place = object_storage::open(name, &cancel_on_signal())?;
        place.claim().map_err(refused)?;
        let there = place.images(Kind::Snapshot).map_err(refused)?;
        let ledgers = object_storage::ledgers_of(&self.root);
        // the oldest first: what is broken off has no gap
        for snapshot in here {
            if there.contains(&snapshot.manifest) {
                draw.talk(&format!("{} is there already", snapshot.id));
                continue;
            }
            let mut lease = history.lease().map_err(failed)?;
            let order = Order {
                manifest: snapshot.manifest,
                kind: Kind::Snapshot,
                recipients: recipients.as_ref(),
                ledgers: &ledgers,
            };
            let put = upload(&place, &mut lease, &order, &mut object_storage::progress(&self.bar, "Putting"));
            let put = put.map_err(refused)?;
            self.bar.finish_and_clear();
            tell(&snapshot, ("sent_bytes", put.sent_bytes), put.needed_bytes, draw);
            let (sent, needed) = (show_bytes(put.sent_bytes), show_bytes(put.needed_bytes));
            draw.talk(&format!("{sent} went there, for {needed}"));
        }
        let host = ThisHost { root: &self.root, bar: self.bar.clone() };
        let of_volume = |image: &forgotten::Image| image.volume.as_ref() == Some(&volume);
        forgotten::apply(&host, &place, policy(&wanted.keep), &of_volume, draw)?;
        Ok(0)
    }

    /// Has the newest snapshot of a volume that a place has, or all of them, come here.
    pub(super) fn replicate_from_place(
        &self,
        wanted: &VolumeReplicateArgs,
        name: &PlaceName,
        draw: &Draw,
    ) -> Result<u8, Failure> {
        let failed = |error: VolumeError| self.failure("not all of it is here", &error);
        let refused =
            |error: PlaceError| object_storage::failure("not all of it is here", &error, &self.root);
        refuse(wanted, name)?;
        let identities = sealing::read_identities(&wanted.identities)?;
        let keys = Keys(identities.as_ref());
        let place = object_storage::open(name, &cancel_on_signal())?;
        let mut found = snapshots(&place, &wanted.volume, keys).map_err(refused)?;
        if found.is_empty() {
            let message = format!("`{name}` has no snapshot of `{}`", wanted.volume);
            return Err(Failure::new(FailureKind::NotFound, message)
                .hint("the name is the one that the volume had where the snapshot was made"));
        }
        if !wanted.all {
            found.drain(..found.len() - 1);
        }
        let history = History::open(&self.root, wanted.quota).map_err(failed)?;
        let here = history.list(Some(&wanted.volume)).map_err(failed)?;
        if !wanted.diverged {
            let offered = |(_, manifest): &(u64, Digest)| {
                let index = place.index(Kind::Snapshot, *manifest, keys)?;
                Ok(Snapshot::offered(*manifest, &index.described))
            };
            let offered: Result<Vec<Option<Snapshot>>, PlaceError> = found.iter().map(offered).collect();
            let offered: Vec<Snapshot> = offered.map_err(refused)?.into_iter().flatten().collect();
            let diverged = |error: VolumeError| self.failure("nothing was replicated", &error);
            history.refuse_diverged(&offered).map_err(diverged)?;
        }
        for (_, manifest) in found {
            if let Some(snapshot) = here.iter().find(|snapshot| snapshot.manifest == manifest) {
                draw.talk(&format!("{} is here already", snapshot.id));
                continue;
            }
            let index = place.index(Kind::Snapshot, manifest, keys).map_err(refused)?;
            let mut lease = history.lease().map_err(failed)?;
            let progress = &mut object_storage::progress(&self.bar, "Fetching");
            let come = download(&place, &mut lease, &index, keys, progress).map_err(refused)?;
            let snapshot = history.adopt(&mut lease, manifest, &index.described).map_err(failed)?;
            self.bar.finish_and_clear();
            tell(&snapshot, ("received_bytes", come.received_bytes), come.needed_bytes, draw);
            let (received, needed) = (show_bytes(come.received_bytes), show_bytes(come.needed_bytes));
            draw.talk(&format!("{received} came, for {needed}"));
        }
        self.say_standing(&history, &wanted.volume, draw);
        for gone in Self::apply(&history, &wanted.volume, &policy(&wanted.keep)).map_err(failed)? {
            draw.talk(&format!("{gone} went by the policy"));
        }
        Ok(0)
    }
}

/// What cannot go together.
fn refuse(wanted: &VolumeReplicateArgs, name: &PlaceName) -> Result<(), Failure> {
    if name.image.is_some() {
        return Err(Failure::new(FailureKind::Usage, format!("`{name}` names an image, and not a place"))
            .hint(format!("write `{}`", name.whole())));
    }
    if !wanted.recipients.is_empty() && !policy(&wanted.keep).is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "which of them stay cannot be known of what is encrypted",
        )
        .hint("leave `--keep-…` out: `godwit images forget` does it with `--identity`"));
    }
    Ok(())
}

/// The snapshots of a volume in a place, oldest first: when each was made, and its manifest.
fn snapshots(place: &Place, volume: &str, keys: Keys<'_>) -> Result<Vec<(u64, Digest)>, PlaceError> {
    let mut found = Vec::new();
    for manifest in place.images(Kind::Snapshot)? {
        let index = place.index(Kind::Snapshot, manifest, keys)?;
        if index.fact("volume") == Some(volume) {
            let made = index.fact("made_unix_us").and_then(|text| text.parse().ok());
            found.push((made.unwrap_or(0), manifest));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn tell(snapshot: &Snapshot, (way, travelled): (&str, u64), needed: u64, draw: &Draw) {
    if !draw.is_json() {
        draw.data(&snapshot.id);
        return;
    }
    let mut line = shown(snapshot);
    line["message_type"] = "volume_replicated".into();
    line["needed_bytes"] = needed.into();
    line[way] = Value::from(travelled);
    draw.json_line(&line);
}
