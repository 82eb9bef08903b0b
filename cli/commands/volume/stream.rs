//! Snapshots that a file system keeps, on their way to another node or from it: as its own stream, or by way of the store.

use super::bring::Outlet;
use super::{Past, shown};
use crate::draw::Draw;
use godwit_migration::Failure;
use godwit_migration::quantity::show_bytes;
use godwit_neighbours::custody::told;
use godwit_neighbours::question::MOST_KNOWN;
use godwit_neighbours::stream::STREAM_PIECE;
use godwit_neighbours::{BringError, Mark, StreamOffer, StreamVerdict, Visit};
use godwit_store::Digest;
use godwit_transfer::Address;
use godwit_volumes::{Awaited, History, Reception, Snapshot, VolumeError};
use serde_json::{Value, json};

/// How a snapshot went.
pub enum Way {
    /// It was there.
    WasThere,
    /// As a stream.
    Stream {
        /// What it built upon.
        upon: Option<Box<Snapshot>>,
        /// Bytes on the wire.
        bytes: u64,
    },
    /// Not at all: it has to go by way of the store.
    Store(String),
}

impl Past {
    /// Brings one to another node as a stream, if that can be.
    ///
    /// # Errors
    /// When the node cannot be reached, or does not want it.
    pub(super) fn send_stream(
        &self,
        history: &History,
        visit: &mut Visit,
        snapshot: &Snapshot,
        outlet: &Outlet,
    ) -> Result<Way, Failure> {
        let lost = |why: String| outlet.failure(self, BringError::Neighbour(why));
        let failed = |error: VolumeError| self.failure("nothing was replicated", &error);
        if !visit.streams {
            return Ok(Way::Store("the godwit there is older and knows of no streams".into()));
        }
        let marked = history.marked(&snapshot.volume, MOST_KNOWN).map_err(failed)?;
        let Some((_, mark)) = marked.iter().find(|(one, _)| one == snapshot) else {
            return Ok(Way::Store("its file system cannot send it".into()));
        };
        let described =
            history.store().manifest_bytes(snapshot.manifest).map_err(|error| failed(error.into()))?;
        let parents = marked.iter().map(|(_, one)| *one).filter(|one| one != mark).collect();
        let offer =
            StreamOffer { described: described.into(), despite: outlet.despite, mark: *mark, parents };
        let parent = match visit.offer_stream(offer).map_err(lost)? {
            StreamVerdict::Wanted(parent) => parent,
            StreamVerdict::There => return Ok(Way::WasThere),
            StreamVerdict::Store(why) => return Ok(Way::Store(why)),
            StreamVerdict::Diverged(said) => return Err(outlet.failure(self, BringError::Diverged(said))),
            StreamVerdict::Refused(why) => return Err(outlet.failure(self, BringError::Refused(why))),
        };
        let upon = match parent {
            None => None,
            Some(parent) => match marked.iter().find(|(_, one)| *one == parent) {
                Some((upon, _)) => Some(upon),
                None => return Ok(Way::Store("what it would build upon there is not here".into())),
            },
        };
        let before = visit.travelled().0;
        let mut sending = match history.send(snapshot, upon) {
            Ok(sending) => sending,
            Err(error) => return Ok(Way::Store(told(&error))),
        };
        let mut counted = self.counted("Sending");
        loop {
            let piece = match sending.piece(STREAM_PIECE) {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => return Ok(Way::Store(told(&error))),
            };
            counted(piece.len() as u64);
            if let Err(why) = visit.bring_stream(piece).map_err(lost)? {
                return Ok(Way::Store(format!("`{}`: {why}", outlet.to)));
            }
        }
        match visit.have_stream_kept().map_err(lost)? {
            Ok(_) => {
                Ok(Way::Stream { upon: upon.cloned().map(Box::new), bytes: visit.travelled().0 - before })
            }
            Err(why) => Ok(Way::Store(format!("`{}`: {why}", outlet.to))),
        }
    }

    /// Has one come from another node as a stream, if that can be. `marks`: of all that it has, the newest first.
    ///
    /// # Errors
    /// When the node cannot be reached, or another command works on the volume.
    pub(super) fn receive_stream(
        &self,
        history: &History,
        visit: &mut Visit,
        (snapshot, mark): (&Snapshot, Option<Mark>),
        marks: &[Mark],
        room: u64,
        lost: &dyn Fn(String) -> Failure,
    ) -> Result<Way, Failure> {
        let Some(mark) = mark else { return Ok(Way::Store("its file system cannot send it".into())) };
        let parents: Vec<Mark> = marks.iter().copied().filter(|one| *one != mark).collect();
        let mut reception: Reception = match history.await_stream(snapshot, mark, &parents, room) {
            Ok(Awaited::There(_)) => return Ok(Way::WasThere),
            Ok(Awaited::Stream(reception)) => *reception,
            Err(error @ VolumeError::Moment(_)) => return Ok(Way::Store(told(&error))),
            Err(error) => return Err(self.failure("nothing was replicated", &error)),
        };
        let before = visit.travelled().1;
        let parent = reception.parent();
        if let Err(why) = visit.give_stream(snapshot.manifest, parent).map_err(lost)? {
            return Ok(Way::Store(why));
        }
        let mut counted = self.counted("Receiving");
        loop {
            let piece = match visit.more_of_stream().map_err(lost)? {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => piece,
                Err(why) => return Ok(Way::Store(why)),
            };
            counted(piece.len() as u64);
            if let Err(error) = reception.take(&piece) {
                return Ok(Way::Store(told(&error)));
            }
        }
        if let Err(error) = reception.keep(history) {
            return Ok(Way::Store(told(&error)));
        }
        let known =
            parent.map(|parent| history.marked(&snapshot.volume, usize::MAX).map(|all| (parent, all)));
        let known = known.transpose().map_err(|error| self.failure("it is here", &error))?;
        let upon = known
            .and_then(|(parent, all)| Some(Box::new(all.into_iter().find(|(_, one)| *one == parent)?.0)));
        Ok(Way::Stream { upon, bytes: visit.travelled().1 - before })
    }

    /// Has what a node's file system keeps read into its store there: what describes it then.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn have_read(&self, visit: &mut Visit, manifest: Digest) -> Result<Digest, String> {
        let bar = self.bar.clone();
        bar.set_prefix("Waiting");
        visit
            .have_read(manifest, &mut |bytes| bar.set_message(format!("{} read there", show_bytes(bytes))))?
    }

    fn counted(&self, word: &'static str) -> impl FnMut(u64) {
        let (bar, mut bytes) = (self.bar.clone(), 0);
        bar.set_prefix(word);
        move |more| {
            bytes += more;
            bar.set_message(show_bytes(bytes));
        }
    }
}

/// Says that a stream has gone to a node or has come from one.
pub fn say_stream(
    snapshot: &Snapshot,
    upon: Option<&Snapshot>,
    (to, bytes): (Option<&Address>, u64),
    draw: &Draw,
) {
    let by = "btrfs";
    if draw.is_json() {
        let mut line = shown(snapshot);
        line["message_type"] = "volume_replicated".into();
        line["way"] = by.into();
        line["upon"] = upon.map_or(Value::Null, |upon| upon.id.as_str().into());
        match to {
            Some(to) => {
                line["to"] = to.to_string().into();
                line["sent_bytes"] = bytes.into();
            }
            None => line["received_bytes"] = bytes.into(),
        }
        draw.json_line(&line);
    } else if to.is_none() {
        draw.data(&snapshot.id);
    }
    let bytes = show_bytes(bytes);
    let what = match upon {
        Some(upon) => format!("as {by}'s own difference from {}", upon.id),
        None => format!("as {by}'s own stream, all of it"),
    };
    match to {
        Some(to) => draw.talk(&format!("{} is at `{to}`: {bytes} went there {what}", snapshot.id)),
        None => draw.talk(&format!("{bytes} came {what}")),
    }
}

/// Says that one goes by way of the store, and gives what JSON has of that.
pub fn say_store(snapshot: &Snapshot, why: &str, draw: &Draw) -> Value {
    draw.talk(&format!("{} goes by way of the store: {why}", snapshot.id));
    json!({ "way": "store", "why": why })
}
