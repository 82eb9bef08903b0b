//! Going on with what a dead process has left of a container on its way out.
//!
//! Nothing here follows what was once intended: it looks at what there is, and at what the journal says must not be
//! done any more. Who may let the container run is decided in [`godwit_migration::ownership`].

use crate::archive::partial_of;
use crate::discard::discard;
use crate::order::{Job, Parting};
use crate::rollback::put_back;
use crate::volumes;
use godwit_engine::remains::wait_until_untraced;
use godwit_engine::{Engine, SourceContainer};
use godwit_hooks::{About, Calls};
use godwit_migration::hooks::Moment;
use godwit_migration::journal::{
    Event, Journal, JournalState, Line, checkpoint_of_peer, dir_of, of_container, read,
};
use godwit_migration::lock::{ContainerLock, lock_container};
use godwit_migration::ownership::{Presence, Standing, has_given_word};
use godwit_migration::takeover::{Takeover, unreadable};
use godwit_migration::{Failure, FailureKind, MigrationId, Role};
use godwit_transfer::message::PassedVolume;
use godwit_witness::WitnessPlace;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long a CRIU whose master died may hold on to the tasks.
const LETTING_GO: Duration = Duration::from_secs(60);

/// What must outlast the process that moves a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remains {
    /// The engine.
    pub(crate) engine: String,
    /// What the engine wants to know.
    pub(crate) container: String,
    /// What of it stays here.
    #[serde(default)]
    pub(crate) parting: Parting,
    /// Who is asked when the destination cannot be.
    #[serde(default)]
    pub(crate) witness: Option<String>,
}

/// Migrations of a container that this host has rolled back, the latest at most: a destination that still holds a copy of one
/// of them may remove it.
pub(crate) fn void(root: &Path, name: &str) -> Vec<MigrationId> {
    const LATEST: usize = 64;
    let found = of_container(root, Role::Source, name, LATEST).rev();
    let void = found.filter(|it| matches!(it.state, JournalState::RolledBack | JournalState::Untold));
    void.map(|it| it.id).collect()
}

/// A container on its way out whose process is dead.
pub struct Interrupted {
    /// `ENGINE:NAME`.
    pub name: String,
    /// The destination as the user wrote it.
    pub peer: String,
    job: Job,
    journal: Journal,
    container: Option<Box<dyn SourceContainer>>,
    parting: Parting,
    witness: Option<WitnessPlace>,
    /// Without remains nothing was touched: whether there is a container of that name.
    is_known: bool,
    calls: Calls,
    _lock: ContainerLock,
}

/// Whether the word that a migration waited for was given: it follows another one, whose journal has it.
///
/// # Errors
/// When that journal cannot be read: the others may have gone.
fn is_given_away_by_leader(root: &Path, lines: &[Line], state: JournalState) -> Result<bool, Failure> {
    use JournalState::{Committed, Completed, Dumped, Freezing, InDoubt, Restored, Running};
    let leader = lines.iter().find_map(|line| match &line.event {
        Event::Follows { leader } => Some(leader),
        _ => None,
    });
    // what the power took of its own journal was there when the leader wrote
    let waits = matches!(state, Freezing | Dumped | Restored);
    let Some(leader) = leader.filter(|_| waits) else { return Ok(false) };
    let (_, state) =
        read(&dir_of(root, leader).join("journal")).map_err(|error| unreadable(leader, &error))?;
    Ok(matches!(state, Committed | InDoubt | Running | Completed))
}

impl Interrupted {
    /// Takes over; none when this host never sent such a migration. Waits until its CRIU has let go of the tasks.
    ///
    /// # Errors
    /// [`FailureKind::Locked`] when somebody still works on it; when what was left cannot be read.
    pub fn adopt(
        root: &Path,
        engines: &[Box<dyn Engine>],
        id: &MigrationId,
    ) -> Result<Option<Self>, Failure> {
        let lock = |name: &str| {
            let (kind, bare_name) = name.split_once(':').unwrap_or(("", name));
            lock_container(root, kind, bare_name).map_err(|error| unreadable(id, &error))?.ok_or_else(|| {
                Failure::new(FailureKind::Locked, format!("a migration of `{name}` is under way"))
                    .hint("`godwit status` shows it; `godwit cancel` stops it")
            })
        };
        let Some(taken) = Takeover::<Remains>::begin(root, Role::Source, id, lock)? else { return Ok(None) };
        let Takeover { container: name, peer, journal, remains, lines, lock, .. } = taken;
        let (kind, bare_name) = name.split_once(':').unwrap_or(("", &name));
        let engine = engines.iter().find(|engine| engine.kind() == kind);
        let mut parting = Parting::default();
        let mut witness = None;
        let container = match (engine, remains) {
            (Some(engine), Some(remains)) => {
                parting = remains.parting;
                witness = remains.witness.and_then(|text| text.parse().ok());
                Some(engine.reopen_source(&remains.container).map_err(|error| unreadable(id, &error))?)
            }
            _ => None,
        };
        if let Some(container) = &container {
            let tasks = || container.tasks().unwrap_or_default().into_iter().collect();
            if !journal.state().is_settled() && !wait_until_untraced(tasks, LETTING_GO) {
                return Err(Failure::new(
                    FailureKind::InDoubt,
                    format!("CRIU still holds the tasks of `{name}`"),
                )
                .hint("end it (`pgrep criu`), and try again"));
            }
        }
        let is_known = engine.is_some_and(|engine| engine.knows(bare_name));
        let job = Job::new(root, id.clone());
        let about = About::migration(id.clone(), name.clone(), peer.clone());
        let calls = Calls::of_journal(&lines, about);
        let mut adopted =
            Self { peer, job, journal, container, parting, witness, is_known, calls, _lock: lock, name };
        if is_given_away_by_leader(root, &lines, adopted.journal.state())? {
            adopted.give_word()?;
        }
        Ok(Some(adopted))
    }

    /// Where this side stands.
    pub fn standing(&self) -> Standing {
        let presence = match &self.container {
            Some(container) => container.presence(),
            None if self.is_known => Presence::Running,
            None => Presence::Gone,
        };
        Standing { state: self.journal.state(), presence }
    }

    /// Which migration.
    pub fn id(&self) -> &MigrationId {
        &self.job.id
    }

    /// Who is asked when the destination cannot be, if the migration was begun with somebody.
    pub fn witness(&self) -> Option<&WitnessPlace> {
        self.witness.as_ref()
    }

    /// Whether nothing is left to do.
    pub fn is_settled(&self) -> bool {
        self.journal.state().is_settled()
    }

    /// It is this side's: makes it as if nothing had been tried, and lets it run. `reason` says who has decided so.
    ///
    /// # Errors
    /// When it could not be put back; when the journal cannot be written.
    pub fn take_back(&mut self, reason: &str) -> Result<(), Failure> {
        let state = self.journal.state();
        if state.is_settled() {
            return Ok(());
        }
        if state == JournalState::Untold {
            // it runs already, or has ended by itself since
            return self.write(Event::RolledBack);
        }
        let event = match has_given_word(state) {
            true => Event::TakenBack { reason: reason.into() },
            false => Event::Failed { reason: reason.into() },
        };
        self.write(event)?;
        if let Some(container) = &mut self.container {
            let errors = put_back(&mut **container);
            if !errors.is_empty() {
                let reason = errors.join("; ");
                let _ = self.write(Event::InDoubt { reason: reason.clone() });
                return Err(Failure::new(
                    FailureKind::InDoubt,
                    format!("`{}` could not be put back", self.name),
                )
                .because(reason)
                .hint("mend that, and resume once more"));
            }
        }
        if let Err(error) = self.calls.call(Moment::Rollback, &mut self.journal, None) {
            tracing::warn!(%error, "it is rolled back all the same");
        }
        if let Err(error) = self.job.remove_images() {
            tracing::warn!(%error, "images are left over");
        }
        if let Some(partial) = self.checkpoint().map(partial_of)
            && let Err(error) = std::fs::remove_dir_all(&partial)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "`{}` is left over", partial.display());
        }
        self.write(Event::RolledBack)
    }

    /// What was being written, if it was to go nowhere but into a checkpoint.
    pub fn checkpoint(&self) -> Option<&Path> {
        checkpoint_of_peer(&self.peer)
    }

    /// The checkpoint is complete: the container goes, none of it having run since. Gives what could not be removed.
    ///
    /// # Errors
    /// When the journal cannot be written: then nothing was removed.
    pub fn conclude_checkpoint(&mut self) -> Result<Vec<String>, Failure> {
        if matches!(self.journal.state(), JournalState::Committed | JournalState::InDoubt) {
            self.write(Event::GivenAway)?;
        }
        let mut leftovers = self.container.as_mut().map(|container| container.discard()).unwrap_or_default();
        self.close(&mut leftovers)?;
        Ok(leftovers)
    }

    /// It is held at the destination, and shall run there: gives the word. It is on disk when this returns.
    ///
    /// # Errors
    /// When it may run here; when the journal cannot be written.
    pub fn give_word(&mut self) -> Result<(), Failure> {
        if self.standing().presence == Presence::Running {
            return Err(Failure::new(FailureKind::InDoubt, format!("`{}` runs here", self.name)));
        }
        let state = self.journal.state();
        if has_given_word(state) {
            return Ok(());
        }
        if state != JournalState::Restored {
            self.write(Event::Restored)?;
        }
        self.write(Event::Committed)
    }

    /// A person says that it is the destination's.
    ///
    /// # Errors
    /// When the word was never given; when the journal cannot be written.
    pub fn give_away(&mut self) -> Result<Vec<String>, Failure> {
        self.give_word()?;
        if matches!(self.journal.state(), JournalState::Committed | JournalState::InDoubt) {
            self.write(Event::GivenAway)?;
        }
        Ok(self.discard())
    }

    /// It runs at the destination: what is left here goes. Gives what could not be removed.
    ///
    /// # Errors
    /// When the journal cannot be written: then nothing was removed.
    pub fn conclude(&mut self, pid: i32) -> Result<Vec<String>, Failure> {
        if matches!(self.journal.state(), JournalState::Committed | JournalState::InDoubt) {
            self.write(Event::Running { pid })?;
        }
        Ok(self.discard())
    }

    fn discard(&mut self) -> Vec<String> {
        if self.journal.state() != JournalState::Running {
            return vec![];
        }
        let names = (&*self.name, &*self.peer);
        discard(self.container.as_deref_mut(), &self.parting, names, &self.job, &mut self.journal)
    }

    /// The volumes that the container takes along.
    pub(crate) fn passing(&self) -> Vec<PassedVolume> {
        let facts = self.container.as_ref().map(|container| container.facts());
        facts.map(|facts| volumes::passing(facts, &self.parting, &self.job)).unwrap_or_default()
    }

    /// After [`Interrupted::conclude`] or [`Interrupted::give_away`], with all that is left over on both sides. Whoever waits for
    /// the end is told.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn close(&mut self, leftovers: &mut Vec<String>) -> Result<(), Failure> {
        match self.journal.state() {
            JournalState::Running => {
                for moment in [Moment::Resume, Moment::PostCommit] {
                    let told = self.calls.call(moment, &mut self.journal, None);
                    leftovers.extend(told.err().map(|error| error.to_string()));
                }
                self.write(Event::Completed { downtime_us: None, leftovers: leftovers.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Its tasks are gone, here and there.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn bury(&mut self) -> Result<(), Failure> {
        if self.is_settled() {
            return Ok(());
        }
        if let Some(container) = &mut self.container {
            let spared = container.spare(&self.parting.skipped).err().map(|error| error.to_string());
            for leftover in spared.into_iter().chain(container.discard()) {
                tracing::warn!(%leftover, "could not be removed");
            }
        }
        if let Err(error) = self.job.remove_images() {
            tracing::warn!(%error, "images are left over");
        }
        self.write(Event::Lost { reason: "nothing of it is left on either host".into() })
    }

    /// After [`Interrupted::take_back`]: the destination may hold a copy, and could not be told. Whoever resumes next tells it.
    pub fn leave_untold(&mut self) {
        let _ = self.write(Event::Untold);
    }

    /// Notes why nobody can decide.
    pub fn doubt(&mut self, reason: &str) {
        let _ = self.write(Event::InDoubt { reason: reason.into() });
    }

    fn write(&mut self, event: Event) -> Result<(), Failure> {
        self.journal.append(event).map_err(|error| {
            Failure::new(FailureKind::InDoubt, "the journal cannot be written").because_of(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::journal::VERSION;

    fn begin(root: &Path, more: &[Event]) -> MigrationId {
        let id = MigrationId::generate().unwrap();
        let mut journal = Journal::create(&dir_of(root, &id)).unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: id.clone(),
            role: Role::Source,
            container: "podman:pod/shop".into(),
            peer: "ssh://rack2".into(),
            godwit: "0.1.0".into(),
        };
        [planned].iter().chain(more).for_each(|event| journal.append(event.clone()).unwrap());
        id
    }

    #[test]
    fn the_leaders_word_is_that_of_who_follows() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let held = [Event::Prepared, Event::Freezing, Event::Frozen, Event::Dumped, Event::Restored];
        let given = [&held[..], &[Event::Committed]].concat();
        let taken_back =
            [&given[..], &[Event::TakenBack { reason: "it is not there".into() }, Event::RolledBack]]
                .concat();
        let gone = [&given[..], &[Event::Running { pid: 7 }]].concat();
        for (leader, more, is_given) in [
            (&held[..], &held[..], false),
            (&given, &held, true),
            (&given, &held[..4], true),
            (&gone, &held, true),
            (&taken_back, &held, false),
            // it had given up, or has the word itself
            (&given, &held[..1], false),
            (&given, &given, false),
        ] {
            let leader = begin(root, leader);
            let follows = begin(root, &[&[Event::Follows { leader }], more].concat());
            let (lines, state) = read(&dir_of(root, &follows).join("journal")).unwrap();
            assert_eq!(is_given_away_by_leader(root, &lines, state).unwrap(), is_given, "{lines:?}");
        }
        let unknown = begin(
            root,
            &[&[Event::Follows { leader: MigrationId::generate().unwrap() }], &held[..]].concat(),
        );
        let (lines, state) = read(&dir_of(root, &unknown).join("journal")).unwrap();
        assert!(
            is_given_away_by_leader(root, &lines, state).is_err(),
            "nobody knows what a journal that is gone said"
        );
    }
}
