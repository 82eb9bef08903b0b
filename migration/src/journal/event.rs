//! What can happen, and what may follow what.

use crate::hooks::{Hooks, Moment};
use crate::id::MigrationId;
use crate::phase::Role;
use crate::throttle::LimitChange;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What comes before the path of a checkpoint; no address and no host's name begins so.
const CHECKPOINT: &str = "file:";

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The first line of every journal.
    Planned {
        /// The file's format.
        version: u32,
        /// Which migration.
        migration: MigrationId,
        /// Whose journal this is.
        role: Role,
        /// The container as the user named it.
        container: String,
        /// The other host, as far as it is known.
        peer: String,
        /// The godwit that wrote it.
        godwit: String,
    },
    /// Source: it moves together with others, and the word of this migration is that of all.
    Follows {
        /// The one that leads.
        leader: MigrationId,
    },
    /// Both sides agreed.
    Accepted,
    /// The destination made everything that can exist early.
    Prepared,
    /// A pre-copy round is complete on both sides.
    Round {
        /// Which one, from 0.
        round: u32,
        /// Bytes over the wire.
        wire_bytes: u64,
    },
    /// Source: about to change the container's CPU limit.
    Throttling(LimitChange),
    /// Source: the CPU limit is what it was before the first change.
    Unthrottled,
    /// Source: hooks will be called; before the first one. From here on a rollback is told.
    Hooks {
        /// Who is called.
        hooks: Box<Hooks>,
        /// The container's first process here.
        pid: i32,
        /// When that was started: clock ticks after the start of the kernel, so that no other process is taken for it.
        started: u64,
    },
    /// Whoever wants to hear of a moment is about to be called.
    Calling {
        /// Which moment.
        moment: Moment,
    },
    /// All of them have been.
    Called {
        /// Which moment.
        moment: Moment,
        /// What went wrong with one of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Source: about to lock the network and to freeze.
    Freezing,
    /// Source: every task is frozen.
    Frozen,
    /// Source: the final dump is complete, and the tasks are still frozen.
    Dumped,
    /// Destination: everything is there and every digest was right.
    Ready,
    /// Destination: about to restore.
    Restoring,
    /// Both: the restored tree is held frozen at the destination.
    Restored,
    /// Source: from here on the source never lets it run again by itself.
    Committed,
    /// Destination: the source gave its word; about to let it run.
    Going,
    /// Both: it runs at the destination.
    Running {
        /// The container's first process there.
        pid: i32,
    },
    /// Source: the frozen copy is gone.
    Discarded,
    /// Done.
    Completed {
        /// Downtime in microseconds; the source's journal only.
        downtime_us: Option<u64>,
        /// What could not be cleaned up.
        leftovers: Vec<String>,
    },
    /// Something failed; what follows is the undoing.
    Failed {
        /// Why.
        reason: String,
    },
    /// Everything was undone: it runs at the source, nothing of it is at the destination.
    RolledBack,
    /// Source, after [`Event::RolledBack`]: the destination may hold a copy, and did not say that it has removed it.
    Untold,
    /// This side cannot go on alone: what was not undone stays as it is, frozen, until somebody resumes.
    InDoubt {
        /// Why.
        reason: String,
    },
    /// Another process goes on with what a dead one has left.
    Resumed {
        /// The godwit that does.
        godwit: String,
    },
    /// Source: the destination will never let it run, or a person has decided so: the word given at commit is void.
    TakenBack {
        /// Whose word this is.
        reason: String,
    },
    /// Source: a person has decided that it is the destination's.
    GivenAway,
    /// Its tasks are gone, as after a loss of power: nothing can be undone or finished here.
    Lost {
        /// How that was seen.
        reason: String,
    },
}

/// Where a migration stands, as its journal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JournalState {
    /// Nothing was written yet.
    Empty,
    /// Preflight and negotiation.
    Planned,
    /// Rounds.
    PreCopy,
    /// The source may be frozen.
    Freezing,
    /// The source is frozen, the final dump is complete.
    Dumped,
    /// Destination: it has everything.
    Ready,
    /// Destination: a restore may be under way.
    Restoring,
    /// The tree is held frozen at the destination, whole at the source.
    Restored,
    /// The source gave its word, the destination may not know it yet.
    Committed,
    /// It runs at the destination.
    Running,
    /// Over: it runs at the destination.
    Completed,
    /// Being undone.
    Failed,
    /// Over: it runs at the source.
    RolledBack,
    /// It runs at the source, and the destination may not know that.
    Untold,
    /// The word was given, and nobody knows here whether it runs at the destination.
    InDoubt,
    /// Destination: held frozen, and the link was lost: the source may have given its word.
    Waiting,
    /// It could not be undone completely.
    Stuck,
    /// Over: its tasks are gone.
    Lost,
}

/// Said when an event cannot follow what the journal holds.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`{event}` cannot follow the state `{state:?}`")]
pub struct IllegalEvent {
    pub(super) state: JournalState,
    pub(super) event: String,
}

impl JournalState {
    /// The state after `event`. Pure; used to write and to replay.
    ///
    /// # Errors
    /// When the event cannot follow: most of all, nothing is undone after `Committed`.
    pub fn apply(self, event: &Event) -> Result<Self, IllegalEvent> {
        use JournalState::*;
        let next = match (self, event) {
            (Empty, Event::Planned { .. }) => Planned,
            (Planned, Event::Follows { .. } | Event::Accepted) => Planned,
            (Planned, Event::Prepared) => PreCopy,
            (PreCopy, Event::Round { .. }) => PreCopy,
            (PreCopy, Event::Throttling(_)) => PreCopy,
            (PreCopy, Event::Hooks { .. }) => PreCopy,
            // after the freeze, after the commit, or while it is undone
            (
                state @ (PreCopy | Freezing | Failed | Running),
                Event::Calling { .. } | Event::Called { .. },
            ) => state,
            (PreCopy, Event::Freezing) => Freezing,
            (Freezing, Event::Frozen) => Freezing,
            (Freezing, Event::Dumped) => Dumped,
            (PreCopy, Event::Ready) => Ready,
            (Ready, Event::Restoring) => Restoring,
            // a loss of power may take what was not yet on the disk
            (Freezing | Dumped | Restoring, Event::Restored) => Restored,
            (Restored, Event::Committed | Event::Going) => Committed,
            (Waiting, Event::Going) => Committed,
            (Committed | InDoubt, Event::Running { .. } | Event::GivenAway) => Running,
            (Running, Event::Discarded) => Running,
            (Running, Event::Completed { .. }) => Completed,
            // whoever comes across it after a crash may be the one that does it
            (state, Event::Unthrottled) if state != Empty => state,
            (
                Planned | PreCopy | Freezing | Dumped | Ready | Restoring | Restored | Failed | Waiting
                | Stuck,
                Event::Failed { .. },
            ) => Failed,
            (Committed | InDoubt, Event::TakenBack { .. }) => Failed,
            (Failed | Untold, Event::RolledBack) => RolledBack,
            (RolledBack, Event::Untold) => Untold,
            (Restored, Event::InDoubt { .. }) => Waiting,
            (Committed, Event::InDoubt { .. }) => InDoubt,
            (Failed, Event::InDoubt { .. }) => Stuck,
            (state @ (Waiting | InDoubt | Stuck), Event::InDoubt { .. }) => state,
            (state, Event::Resumed { .. }) if state != Empty && !state.is_settled() => state,
            (state, Event::Lost { .. }) if state != Empty && !state.is_settled() => Lost,
            (state, event) => {
                return Err(IllegalEvent { state, event: event.name() });
            }
        };
        Ok(next)
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(self) -> bool {
        self.is_settled() || self.is_open()
    }

    /// Whether nothing is left to do, for anybody.
    pub fn is_settled(self) -> bool {
        matches!(self, JournalState::Completed | JournalState::RolledBack | JournalState::Lost)
    }

    /// Whether it waits for somebody who resumes it.
    pub fn is_open(self) -> bool {
        use JournalState::*;
        matches!(self, InDoubt | Waiting | Stuck | Untold)
    }
}

/// How the destination's journal calls a checkpoint that is brought back: there is no other source.
pub fn checkpoint_as_peer(checkpoint: &Path) -> String {
    format!("{CHECKPOINT}{}", checkpoint.display())
}

/// The checkpoint that is written, where the peer of a source is one.
pub fn checkpoint_of_peer(peer: &str) -> Option<&Path> {
    peer.strip_prefix(CHECKPOINT).map(Path::new)
}

impl Event {
    /// The directory of the checkpoint that is brought back, where the first line says that there is no other source.
    pub fn checkpoint(&self) -> Option<&Path> {
        let Self::Planned { role: Role::Destination, peer, .. } = self else { return None };
        // the host that wrote it follows
        let (path, _) = peer.strip_prefix(CHECKPOINT)?.rsplit_once(" (")?;
        Some(Path::new(path))
    }

    /// The event's name as it stands in the file.
    pub fn name(&self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.get("event").and_then(|name| name.as_str().map(str::to_owned)))
            .unwrap_or_default()
    }

    /// Events that must be on disk before anything else happens. The others only tell how far it had come: a crash of
    /// godwit leaves them in the file all the same, and after a loss of power nothing that they speak of is left. Most of
    /// those fall into the downtime, which must not wait for a disk more often than it has to.
    pub(super) fn must_reach_the_disk(&self) -> bool {
        // the container stands still, and a loss of power undoes that
        let in_downtime = matches!(
            self,
            Event::Calling { moment: Moment::PostFreeze } | Event::Called { moment: Moment::PostFreeze, .. }
        );
        let only_tells = matches!(
            self,
            Event::Round { .. }
                | Event::Throttling(_)
                | Event::Unthrottled
                | Event::Accepted
                | Event::Frozen
                | Event::Dumped
                | Event::Ready
                | Event::Restoring
                | Event::Resumed { .. }
        );
        !in_downtime && !only_tells
    }
}
