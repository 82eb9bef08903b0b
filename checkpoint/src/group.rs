//! Containers that move together: one freeze, one word.
//!
//! Each of them is a migration of its own, with a wire, a journal and a thread; here they wait for each other. The first one
//! *leads*: what they share comes with it, and what its journal says of the word counts for all. So the rule of ownership is that of a
//! single container: before the leader's `Committed` is on the disk every one of them goes on at the source, after it none does.
//! What a dead process has left of one that follows is decided by the leader's journal, too (`recovery.rs`).

use crate::source::{Source, SourceError};
use godwit_migration::{Cancel, Failure, FailureKind, MigrationId};
use godwit_transfer::WireError;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often somebody's wish to stop is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// From the end of a round to the next one of a container that waits for others to have come as far.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(200);

/// Where they wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// The destination takes it.
    Accepted,
    /// The destination has made all that can exist early.
    Prepared,
    /// Another round would bring little.
    Converged,
    /// The destination's engine is started.
    Started,
    /// Another round has followed that.
    Switchover,
    /// Whoever wants to know that it will stand still has been told: hooks run in containers that run.
    Announced,
    /// It stands still, and nothing comes in.
    Frozen,
    /// All of it is at the destination.
    Brought,
    /// It is held there.
    Restored,
    /// It stands still here as before.
    Verified,
}

/// Containers that move together.
pub struct Group {
    size: usize,
    leader: MigrationId,
    meeting: Mutex<Meeting>,
    moved: Condvar,
}

#[derive(Default)]
struct Meeting {
    /// How many have come to a point.
    come: BTreeMap<Point, usize>,
    /// Who gave up first, and why.
    failed: Option<(usize, String)>,
    word: Word,
    /// How many of those that follow have come to their end.
    ended: usize,
}

/// The leader's.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    NotYet,
    /// It is being written down: nobody can give up any more.
    Pending,
    Given,
}

/// One of them.
pub struct Member {
    group: Arc<Group>,
    /// From 0, which leads.
    number: usize,
    /// It has come to its end.
    is_over: bool,
}

impl Group {
    /// `size` containers, of which the first is moved by the migration `leader`.
    pub fn of(size: usize, leader: MigrationId) -> Arc<Self> {
        Arc::new(Self { size, leader, meeting: Mutex::default(), moved: Condvar::new() })
    }

    /// The migration that leads.
    pub fn leader(&self) -> &MigrationId {
        &self.leader
    }

    /// One of them, from 0.
    pub fn member(self: &Arc<Self>, number: usize) -> Member {
        Member { group: self.clone(), number, is_over: false }
    }

    /// Who gave up first.
    pub fn first_to_fail(&self) -> Option<usize> {
        self.meeting().failed.as_ref().map(|(number, _)| *number)
    }

    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        // what is in it is whole after every step
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something holds of the meeting, or somebody gave up.
    fn wait_until(
        &self,
        cancel: &Cancel,
        mut holds: impl FnMut(&Meeting) -> bool,
    ) -> Result<(), SourceError> {
        let mut meeting = self.meeting();
        loop {
            if let Some((_, reason)) = &meeting.failed {
                return Err(given_up(reason));
            }
            if holds(&meeting) {
                return Ok(());
            }
            if cancel.is_raised() && meeting.word == Word::NotYet {
                return Err(WireError::Interrupted.into());
            }
            let waited = self.moved.wait_timeout(meeting, LOOK);
            meeting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn given_up(reason: &str) -> SourceError {
    let failure =
        Failure::new(FailureKind::Failed, "another container that moves with it could not be moved");
    SourceError::Failure(Box::new(failure.because(reason)))
}

impl Member {
    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.number == 0
    }

    /// The migration that it follows.
    pub(crate) fn follows(&self) -> Option<&MigrationId> {
        (!self.leads()).then_some(&self.group.leader)
    }

    /// It has come to a point.
    fn come(&self, point: Point) {
        *self.group.meeting().come.entry(point).or_default() += 1;
        self.group.moved.notify_all();
    }

    /// Whether all have come to a point.
    fn all_have_come(&self, point: Point) -> Result<bool, SourceError> {
        let meeting = self.group.meeting();
        match &meeting.failed {
            Some((_, reason)) => Err(given_up(reason)),
            None => Ok(meeting.come.get(&point) == Some(&self.group.size)),
        }
    }

    fn wait_for(&self, point: Point, how_many: usize, cancel: &Cancel) -> Result<(), SourceError> {
        let come = |meeting: &Meeting| meeting.come.get(&point).copied().unwrap_or(0) >= how_many;
        self.group.wait_until(cancel, come)
    }

    /// It gives up, and with it all others, if the word was not given yet.
    pub(crate) fn fail(&mut self, reason: &str) {
        let mut meeting = self.group.meeting();
        while meeting.word == Word::Pending && !self.leads() {
            let waited = self.group.moved.wait_timeout(meeting, LOOK);
            meeting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if meeting.word != Word::Given {
            meeting.word = Word::NotYet;
            meeting.failed.get_or_insert_with(|| (self.number, reason.to_owned()));
        }
        drop(meeting);
        self.end();
    }

    /// The leader is about to write its word down: from here on nobody else can give up.
    pub(crate) fn begin_word(&self) -> Result<(), SourceError> {
        let mut meeting = self.group.meeting();
        if let Some((_, reason)) = &meeting.failed {
            return Err(given_up(reason));
        }
        meeting.word = Word::Pending;
        Ok(())
    }

    /// The leader's word is on the disk.
    pub(crate) fn give_word(&self) {
        self.group.meeting().word = Word::Given;
        self.group.moved.notify_all();
    }

    /// Waits for the leader's word.
    pub(crate) fn await_word(&self, cancel: &Cancel) -> Result<(), SourceError> {
        self.group.wait_until(cancel, |meeting| meeting.word == Word::Given)
    }

    /// It has come to its end, whichever.
    pub(crate) fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.group.meeting().ended += 1;
            self.group.moved.notify_all();
        }
    }

    /// Waits until all others have come to their ends: what they share goes last.
    pub(crate) fn wait_for_others(&self) {
        let mut meeting = self.group.meeting();
        while meeting.ended + 1 < self.group.size {
            let waited = self.group.moved.wait_timeout(meeting, LOOK);
            meeting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.is_over {
            self.fail("its thread died");
        }
    }
}

impl Source<'_> {
    /// Waits until all that move together have come to a point.
    pub(crate) fn meet(&self, point: Point) -> Result<(), SourceError> {
        let Some(member) = &self.member else { return Ok(()) };
        member.come(point);
        member.wait_for(point, member.group.size, &self.cancel)
    }

    /// Does something when those before it have: the leader first, and one after the other.
    pub(crate) fn in_turn<T>(
        &mut self,
        point: Point,
        work: impl FnOnce(&mut Self) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        if let Some(member) = &self.member {
            member.wait_for(point, member.number, &self.cancel)?;
        }
        let done = work(self)?;
        if let Some(member) = &self.member {
            member.come(point);
        }
        Ok(done)
    }

    /// Waits as [`Source::meet`] does, and goes on sending what is written meanwhile.
    pub(crate) fn meet_in_rounds(
        &mut self,
        point: Point,
        mut round: impl FnMut(&mut Self) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        if let Some(member) = &self.member {
            member.come(point);
        }
        self.rounds_until(point, &mut round)
    }

    /// Sends what is written until all have come to a point.
    pub(crate) fn rounds_until(
        &mut self,
        point: Point,
        round: &mut dyn FnMut(&mut Self) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        while let Some(member) = &self.member
            && !member.all_have_come(point)?
        {
            let ends = Instant::now() + BETWEEN_ROUNDS;
            while Instant::now() < ends && !member.all_have_come(point)? {
                self.cancel.wait(LOOK);
                if self.cancel.is_raised() {
                    return Err(WireError::Interrupted.into());
                }
            }
            if !member.all_have_come(point)? {
                round(self)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(size: usize) -> (Arc<Group>, Vec<Member>) {
        let group = Group::of(size, MigrationId::generate().unwrap());
        let members = (0..size).map(|number| group.member(number)).collect();
        (group, members)
    }

    #[test]
    fn nobody_goes_on_before_all_have_come() {
        let (_, members) = group(3);
        let cancel = Cancel::default();
        members[0].come(Point::Frozen);
        members[1].come(Point::Frozen);
        assert!(!members[0].all_have_come(Point::Frozen).unwrap());
        assert!(!members[0].all_have_come(Point::Brought).unwrap());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| members[1].wait_for(Point::Frozen, 3, &cancel).is_ok());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waits.is_finished());
            members[2].come(Point::Frozen);
            assert!(waits.join().unwrap());
        });
    }

    #[test]
    fn who_gives_up_takes_the_others_along_until_the_word() {
        let (group, mut members) = group(3);
        let cancel = Cancel::default();
        members[2].fail("the link is gone");
        let failed = members[1].wait_for(Point::Frozen, 3, &cancel).unwrap_err();
        let SourceError::Failure(failure) = failed else { panic!("{failed}") };
        assert!(failure.causes.iter().any(|cause| cause.contains("the link is gone")), "{failure:?}");
        assert!(members[0].begin_word().is_err() && members[1].await_word(&cancel).is_err());
        members[1].fail("another reason");
        assert_eq!(group.first_to_fail(), Some(2));
    }

    #[test]
    fn after_the_word_nobody_can_give_up() {
        let (group, mut members) = group(2);
        let cancel = Cancel::default();
        members[0].begin_word().unwrap();
        cancel.raise();
        std::thread::scope(|scope| {
            let mut follower = members.pop().unwrap();
            let waits = scope.spawn(move || {
                let word = follower.await_word(&cancel).is_ok();
                follower.fail("too late");
                word
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waits.is_finished(), "the word is being written down");
            members[0].give_word();
            assert!(waits.join().unwrap());
        });
        assert_eq!(group.first_to_fail(), None);
        members[0].wait_for_others();
    }

    #[test]
    fn a_word_that_could_not_be_written_down_is_none() {
        let (_, mut members) = group(2);
        members[0].begin_word().unwrap();
        members[0].fail("the disk is full");
        assert!(members[1].await_word(&Cancel::default()).is_err());
    }

    #[test]
    fn a_thread_that_dies_takes_the_others_along() {
        let (group, mut members) = group(2);
        drop(members.pop());
        assert_eq!(group.first_to_fail(), Some(1));
        members[0].wait_for_others();
        assert!(members[0].begin_word().is_err());
    }
}
