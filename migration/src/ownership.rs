//! Whose the container is, after whatever happened: the one rule that may never break, as a pure function.
//!
//! Before the source's journal says `Committed` the container is the source's; once the destination's says `Going` it is the
//! destination's; between the two nobody may let it run but by the other's word. What lies on the hosts counts besides
//! what the journals say: tasks that are gone cannot be anybody's, tasks that run must not run twice.

use crate::journal::JournalState;
use serde::{Deserialize, Serialize};

/// What there is of the container on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It runs.
    Running,
    /// All of it is there, and frozen.
    Frozen,
    /// Nothing that could run: its tasks are gone, or not all of its memory is there.
    Gone,
}

/// Where one side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What its journal says.
    pub state: JournalState,
    /// What there is.
    pub presence: Presence,
}

/// Who lets the container run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The source: the destination removes what it has, then the source thaws.
    Source,
    /// The destination: the source gives its word, the destination thaws, the source removes what it has.
    Destination,
    /// Nobody: nothing that could run is left.
    Nobody,
    /// A person must decide.
    Undecided(Doubt),
}

/// Why a person must decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// The source gave its word, and the destination does not know of this migration.
    Unknown,
    /// It ran on one host, or may have, and is gone there; the copy on the other one is older.
    Outdated,
    /// It runs on both hosts, or on the one that may not let it.
    Twice,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => {
                "the source has given its word, and the destination does not know of this migration"
            }
            Self::Outdated => {
                "it may have run since the copy that is left was frozen, and is gone where it ran"
            }
            Self::Twice => "it runs on a host that may not let it run",
        })
    }
}

/// Whether the source's journal says that it gave its word, and has not taken it back.
pub fn has_given_word(source: JournalState) -> bool {
    use JournalState::*;
    matches!(source, Committed | InDoubt | Running | Completed)
}

/// Whether the container may have run an instruction at the destination.
pub fn may_have_run(destination: JournalState) -> bool {
    use JournalState::*;
    matches!(destination, Committed | InDoubt | Running | Completed)
}

/// Whether the container may have run at the source after the destination got its copy.
fn may_have_gone_on(source: JournalState) -> bool {
    use JournalState::*;
    matches!(source, Failed | Stuck | RolledBack | Untold)
}

/// Whether the destination holds the container and only waits for the word.
pub fn is_held(destination: JournalState) -> bool {
    matches!(destination, JournalState::Restored | JournalState::Waiting)
}

/// Who lets the container run, by where both sides stand; `None` when the destination does not know of the migration.
pub fn decide(source: Standing, destination: Option<Standing>) -> Verdict {
    use Presence::{Frozen, Gone, Running};
    let Some(destination) = destination else {
        return match source.presence {
            Gone => Verdict::Nobody,
            _ if has_given_word(source.state) => Verdict::Undecided(Doubt::Unknown),
            _ => Verdict::Source,
        };
    };
    if may_have_run(destination.state) {
        return match (source.presence, destination.presence) {
            (Running, _) => Verdict::Undecided(Doubt::Twice),
            // over there its own life has gone on, and may have ended
            (_, Running | Frozen) => Verdict::Destination,
            (_, Gone) if destination.state == JournalState::Completed => Verdict::Destination,
            (Frozen, Gone) => Verdict::Undecided(Doubt::Outdated),
            (Gone, Gone) => Verdict::Nobody,
        };
    }
    match (source.presence, destination.presence) {
        (Running, Running) => Verdict::Undecided(Doubt::Twice),
        // by no word of godwit's: but there it runs, and here it does not
        (Frozen | Gone, Running) => Verdict::Destination,
        (Running, _) => Verdict::Source,
        (Frozen, Frozen) if has_given_word(source.state) && is_held(destination.state) => {
            Verdict::Destination
        }
        // it has run nowhere else, and will not: also when the word was given to one who has lost it since
        (Frozen, _) => Verdict::Source,
        // it has run on at the source, and ended: what is held is not wanted any more
        (Gone, _) if matches!(source.state, JournalState::RolledBack | JournalState::Untold) => {
            Verdict::Source
        }
        (Gone, Frozen) if is_held(destination.state) && may_have_gone_on(source.state) => {
            Verdict::Undecided(Doubt::Outdated)
        }
        (Gone, Frozen) if is_held(destination.state) => Verdict::Destination,
        (Gone, _) => Verdict::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use JournalState::*;

    const STATES: [JournalState; 17] = [
        Empty, Planned, PreCopy, Freezing, Dumped, Ready, Restoring, Restored, Committed, Running, Completed,
        Failed, RolledBack, InDoubt, Waiting, Stuck, Untold,
    ];
    const COPIES: [Presence; 3] = [Presence::Running, Presence::Frozen, Presence::Gone];

    /// Every pair of standings there can be, and more that cannot.
    fn for_all(check: impl Fn(Standing, Option<Standing>, Verdict)) {
        let standings = || {
            STATES
                .into_iter()
                .flat_map(|state| COPIES.into_iter().map(move |presence| Standing { state, presence }))
        };
        for source in standings() {
            for destination in standings().map(Some).chain([None]) {
                check(source, destination, decide(source, destination));
            }
        }
    }

    #[test]
    fn nobody_is_let_run_beside_one_that_runs() {
        for_all(|source, destination, verdict| match verdict {
            Verdict::Source => assert!(
                destination
                    .is_none_or(|there| there.presence != Presence::Running && !may_have_run(there.state)),
                "{source:?} {destination:?}"
            ),
            Verdict::Destination => {
                assert_ne!(source.presence, Presence::Running, "{source:?} {destination:?}")
            }
            _ => {}
        });
    }

    #[test]
    fn a_word_that_reached_one_who_can_keep_it_is_kept() {
        for_all(|source, destination, verdict| {
            if let Some(there) = destination
                && has_given_word(source.state)
                && is_held(there.state)
                && there.presence == Presence::Frozen
                && source.presence != Presence::Running
            {
                assert_eq!(verdict, Verdict::Destination, "{source:?} {destination:?}");
            }
        });
    }

    #[test]
    fn nothing_that_could_run_is_given_up() {
        for_all(|source, destination, verdict| {
            let at_source = source.presence != Presence::Gone;
            let held = destination.is_some_and(|there| {
                there.presence == Presence::Frozen && (is_held(there.state) || may_have_run(there.state))
            });
            let unwanted = matches!(source.state, RolledBack | Untold);
            if at_source || held && !unwanted {
                assert_ne!(verdict, Verdict::Nobody, "{source:?} {destination:?}");
            }
        });
    }

    #[test]
    fn a_copy_that_the_other_host_may_have_outrun_is_never_let_run() {
        for_all(|source, destination, verdict| {
            let Some(there) = destination else { return };
            let fresh_there = may_have_run(there.state) || there.presence == Presence::Running;
            if may_have_gone_on(source.state) && source.presence == Presence::Gone && !fresh_there {
                assert_ne!(verdict, Verdict::Destination, "{source:?} {destination:?}");
            }
            if may_have_run(there.state) && there.presence == Presence::Gone {
                assert_ne!(verdict, Verdict::Source, "{source:?} {destination:?}");
            }
        });
    }

    #[test]
    fn before_the_word_a_container_at_the_source_is_the_source_s() {
        for_all(|source, destination, verdict| {
            let untouched_there = destination
                .is_none_or(|there| !may_have_run(there.state) && there.presence != Presence::Running);
            if !has_given_word(source.state) && source.presence != Presence::Gone && untouched_there {
                assert_eq!(verdict, Verdict::Source, "{source:?} {destination:?}");
            }
        });
    }

    #[test]
    fn what_was_decided_is_decided_the_same_way_again_when_it_was_done() {
        for_all(|source, destination, verdict| {
            let (Some(mut there), mut here) = (destination, source) else { return };
            match verdict {
                Verdict::Source => {
                    // the destination first, the source last
                    there = Standing { state: RolledBack, presence: Presence::Gone };
                    assert_eq!(decide(here, Some(there)), verdict, "half way, {source:?} {destination:?}");
                    here = Standing { state: RolledBack, presence: Presence::Running };
                }
                Verdict::Destination if there.presence != Presence::Gone => {
                    here.state = Committed;
                    assert_eq!(decide(here, Some(there)), verdict, "the word, {source:?} {destination:?}");
                    there = Standing { state: Running, presence: Presence::Running };
                    assert_eq!(decide(here, Some(there)), verdict, "it runs, {source:?} {destination:?}");
                    here = Standing { state: Completed, presence: Presence::Gone };
                }
                _ => return,
            }
            assert_eq!(decide(here, Some(there)), verdict, "{source:?} {destination:?}");
        });
    }
}
