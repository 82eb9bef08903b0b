//! Going on with what a dead process has left of an arriving container.
//!
//! Nothing here follows what was once intended: it looks at what there is, and at what the journal says must not be
//! done any more. Who may let the container run is decided in [`godwit_migration::ownership`], by the source.

use crate::job::{private_dir, remove_images};
use crate::pages::FILLED;
use crate::processes::{await_the_end_of_restores, end_the_receiver, is_filling};
use crate::trees::Before;
use crate::volumes;
use godwit_engine::{DestinationContainer, Engine};
use godwit_hooks::{About, Calls};
use godwit_migration::hooks::{HookUrl, Hooks, Moment, Target};
use godwit_migration::journal::{Event, Found, Journal, JournalState, Line, of_container};
use godwit_migration::lock::{ContainerLock, holder, lock_container};
use godwit_migration::ownership::{Presence, Standing, is_held, may_have_run};
use godwit_migration::takeover::{Takeover, unreadable};
use godwit_migration::{Failure, FailureKind, MigrationId, Role, remains};
use godwit_transfer::Refusal;
use godwit_transfer::message::PassedVolume;
use godwit_transfer::stale::StaleCopies;
use godwit_witness::{Witness, WitnessPlace};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the process that received it may take to notice that its link is gone.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// After this long it is told.
const OWN_NOTICE: Duration = Duration::from_secs(1);
/// How long memory may take to be filled.
const FILL: Duration = Duration::from_secs(600);

/// What must outlast the process that receives.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Remains {
    /// The engine.
    pub(crate) engine: String,
    /// What the engine wants to know.
    pub(crate) container: Option<String>,
    /// What lay at the places of the trees.
    pub(crate) trees: Vec<Before>,
    /// Its memory is filled on demand.
    pub(crate) lazy: bool,
    /// Who must be asked before it is let run.
    #[serde(default)]
    pub(crate) witness: Option<String>,
    /// What tells the application that it goes on.
    #[serde(default)]
    pub(crate) resume_hook: Option<HookUrl>,
}

/// Why a witness does not let the container run here.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// It is the source's.
    #[error("the witness says that it is the source's")]
    Source,
    /// Nothing is known.
    #[error("the witness cannot be asked")]
    Silent(#[source] std::io::Error),
}

/// Claims a migration for this side, where there is a witness.
pub(crate) fn claim(witness: Option<&str>, id: &MigrationId) -> Result<(), WitnessError> {
    let Some(witness) = witness else { return Ok(()) };
    let claimed = place(witness).and_then(|witness| witness.claim(id, Role::Destination));
    match claimed.map_err(WitnessError::Silent)? {
        Role::Destination => Ok(()),
        Role::Source => Err(WitnessError::Source),
    }
}

/// Tells the witness, where there is one, that it runs here. If that fails the source keeps its copy until it can ask this host.
pub(crate) fn note_running(witness: Option<&str>, id: &MigrationId) {
    let noted = witness.map(|witness| place(witness).and_then(|witness| witness.note_running(id)));
    if let Some(Err(error)) = noted {
        tracing::warn!(%error, "the witness does not know that it runs here");
    }
}

/// Whether the witness answers here, before anything is touched: once all is frozen that would be found out too late.
pub(crate) fn examine_witness(witness: Option<&str>, id: &MigrationId) -> Result<(), Refusal> {
    let Some(witness) = witness else { return Ok(()) };
    place(witness).and_then(|witness| witness.holder(id)).map(drop).map_err(|error| {
        Refusal::new(format!("the witness `{witness}` cannot be asked there: {error}"))
            .hint("mend that, name one that both hosts reach, or leave `--witness` out")
    })
}

fn place(witness: &str) -> std::io::Result<WitnessPlace> {
    witness.parse().map_err(std::io::Error::other)
}

/// Tells the application of a container that runs here that it goes on. Gives what went wrong.
pub(crate) fn tell_application(
    url: &HookUrl,
    (migration, name, pid): (&MigrationId, &str, i32),
    journal: &mut Journal,
) -> Option<String> {
    let about = About::migration(migration.clone(), name.to_owned(), String::new());
    let hooks = Hooks { resume: Some(Target::Url(url.clone())), ..Hooks::default() };
    let told = Calls::at_destination(hooks, about, pid).call(Moment::Resume, journal, None);
    told.err().map(|error| error.to_string())
}

/// An arriving container whose process is dead.
pub struct Orphan {
    /// `ENGINE:NAME`.
    pub name: String,
    id: MigrationId,
    root: PathBuf,
    dir: PathBuf,
    journal: Journal,
    lines: Vec<Line>,
    remains: Remains,
    container: Option<Box<dyn DestinationContainer>>,
    _lock: ContainerLock,
}

impl Orphan {
    /// Takes over; none when this host never received such a migration. Waits until its process, its runtime and its CRIU
    /// have ended.
    ///
    /// # Errors
    /// [`FailureKind::Locked`] when somebody still works on it; when what was left cannot be read.
    pub fn adopt(
        root: &Path,
        engines: &[Box<dyn Engine>],
        id: &MigrationId,
    ) -> Result<Option<Self>, Failure> {
        let lock = |name: &str| lock(root, name);
        let Some(taken) = Takeover::<Remains>::begin(root, Role::Destination, id, lock)? else {
            return Ok(None);
        };
        let Takeover { container: name, dir, journal, lines, remains, lock, .. } = taken;
        let remains = remains.unwrap_or_default();
        if !journal.state().is_settled() {
            await_the_end_of_restores(&dir);
        }
        let engine = engines.iter().find(|engine| engine.kind() == remains.engine);
        let container = match (engine, &remains.container) {
            (Some(engine), Some(text)) => {
                Some(engine.reopen_destination(text).map_err(|error| unreadable(id, &error))?)
            }
            _ => None,
        };
        let id = id.clone();
        Ok(Some(Self {
            name,
            id,
            root: root.to_owned(),
            dir,
            journal,
            lines,
            remains,
            container,
            _lock: lock,
        }))
    }

    /// Where this side stands.
    pub fn standing(&self) -> Standing {
        let state = self.journal.state();
        // one that was removed is gone, whatever has come under its name since
        let is_removed = state.is_settled() && !may_have_run(state);
        let container = self.container.as_ref().filter(|_| !is_removed);
        let found = container.map_or(Presence::Gone, |container| container.presence());
        let wants_memory = self.remains.lazy && (is_held(state) || may_have_run(state));
        let presence = match found {
            // without the one that fills them, missing pages are pages of zeroes
            Presence::Frozen if wants_memory && !self.has_its_memory() => Presence::Gone,
            found => found,
        };
        Standing { state, presence }
    }

    /// Whether every page is in its place, or somebody puts it there.
    fn has_its_memory(&self) -> bool {
        // in this order: between the two it may come to its end
        is_filling(&self.id) || self.dir.join(FILLED).exists()
    }

    /// Its first process, when the journal tells.
    pub fn pid(&self) -> Option<i32> {
        self.lines.iter().rev().find_map(|line| match line.event {
            Event::Running { pid } => Some(pid),
            _ => None,
        })
    }

    /// The checkpoint that it comes from, where there is no other source.
    pub fn checkpoint(&self) -> Option<&Path> {
        self.lines.first().and_then(|line| line.event.checkpoint())
    }

    /// Removes everything; gives what could not be removed. For one that never ran here, and never will.
    ///
    /// # Errors
    /// When the journal does not allow it, or cannot be written.
    pub fn abandon(&mut self, reason: &str) -> Result<Vec<String>, Failure> {
        if self.journal.state().is_settled() {
            return Ok(vec![]);
        }
        self.write(Event::Failed { reason: reason.into() })?;
        let mut leftovers = self.container.as_mut().map(|container| container.abandon()).unwrap_or_default();
        for tree in &self.remains.trees {
            leftovers
                .extend(tree.put_back().err().map(|error| format!("`{}`: {error}", tree.path().display())));
        }
        leftovers.extend(clear(&self.dir).err().map(|error| format!("images: {error}")));
        self.write(Event::RolledBack)?;
        Ok(leftovers)
    }

    /// The source gave its word, and `passed` its volumes: lets it run, if it does not yet. Gives its first process.
    ///
    /// # Errors
    /// When it cannot be let run.
    pub fn go(&mut self, passed: Vec<PassedVolume>) -> Result<i32, Failure> {
        let state = self.journal.state();
        // a source that says so may err: all of it is there only from `restored` on
        if !is_held(state) && !may_have_run(state) && self.standing().presence == Presence::Frozen {
            let failure = Failure::new(FailureKind::Failed, "it may not be let run here");
            return Err(failure.because("its restore was never finished"));
        }
        if is_held(state) {
            claim(self.remains.witness.as_deref(), &self.id).map_err(|error| {
                Failure::new(FailureKind::InDoubt, "it may not be let run here").because_of(&error)
            })?;
            self.write(Event::Going)?;
        }
        let cannot = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(FailureKind::InDoubt, "it could not be let run").because_of(error)
        };
        if self.standing().presence == Presence::Frozen
            && let Some(container) = &mut self.container
        {
            // what was kept of its frames went with the process that kept them: their senders send again
            container.go(&[]).map_err(|error| cannot(&error))?;
        }
        let pid = self.pid().or_else(|| self.container.as_ref()?.pid()).unwrap_or_default();
        if may_have_run(self.journal.state())
            && !matches!(self.journal.state(), JournalState::Running | JournalState::Completed)
        {
            self.write(Event::Running { pid })?;
        }
        note_running(self.remains.witness.as_deref(), &self.id);
        let places: Vec<&Path> = self.remains.trees.iter().map(Before::path).collect();
        for error in volumes::take(&self.root, &places, passed, &self.id) {
            tracing::warn!(error, "left over");
        }
        Ok(pid)
    }

    /// It runs here: what was only for the move goes. Gives what could not be removed.
    pub fn complete(&mut self) -> Vec<String> {
        if self.journal.state() != JournalState::Running {
            return vec![];
        }
        let mut leftovers = self.container.as_mut().map(|container| container.settle()).unwrap_or_default();
        leftovers.extend(self.tell_application());
        let until = Instant::now() + FILL;
        while is_filling(&self.id) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let copies = StaleCopies::below(&self.root);
        for tree in &self.remains.trees {
            leftovers
                .extend(sync(tree.path()).err().map(|error| format!("`{}`: {error}", tree.path().display())));
            leftovers.extend(
                copies.forget(tree.path()).err().map(|error| format!("record of a left copy: {error}")),
            );
        }
        leftovers.extend(clear(&self.dir).err().map(|error| format!("images: {error}")));
        let completed = Event::Completed { downtime_us: None, leftovers: leftovers.clone() };
        leftovers.extend(self.write(completed).err().map(|failure| failure.to_string()));
        leftovers
    }

    /// The application learns that it goes on, unless it was told so before.
    fn tell_application(&mut self) -> Option<String> {
        let url = self.remains.resume_hook.clone()?;
        let is_over = |line: &Line| matches!(line.event, Event::Called { moment: Moment::Resume, .. });
        if self.lines.iter().any(is_over) {
            return None;
        }
        let pid = self.pid().or_else(|| self.container.as_ref()?.pid())?;
        tell_application(&url, (&self.id, &self.name, pid), &mut self.journal)
    }

    /// Whom the witness has given it to; none where there is no witness, or nobody has asked it for this one.
    ///
    /// # Errors
    /// When the witness cannot be asked.
    pub fn holder(&self) -> Result<Option<Role>, WitnessError> {
        let Some(witness) = &self.remains.witness else { return Ok(None) };
        place(witness).and_then(|witness| witness.holder(&self.id)).map_err(WitnessError::Silent)
    }

    /// Its tasks are gone, and nothing is left to be decided.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn bury(&mut self) -> Result<Vec<String>, Failure> {
        if self.journal.state().is_settled() {
            return Ok(vec![]);
        }
        let mut leftovers = self.container.as_mut().map(|container| container.abandon()).unwrap_or_default();
        leftovers.extend(clear(&self.dir).err().map(|error| format!("images: {error}")));
        self.write(Event::Lost { reason: "nothing of it is left on either host".into() })?;
        Ok(leftovers)
    }

    fn write(&mut self, event: Event) -> Result<(), Failure> {
        self.journal.append(event).map_err(|error| {
            Failure::new(FailureKind::InDoubt, "the journal cannot be written").because_of(&error)
        })
    }
}

/// What earlier migrations of a container have left here: put in order, unless the container may still be this host's to
/// run. Those in `void` may not: its source has rolled them back. Neither may what was held when the restore of a checkpoint
/// died: all of it is still in the checkpoint, if that is there.
///
/// # Errors
/// Which one waits, in words.
pub(crate) fn settle_earlier(
    root: &Path,
    engines: &[Box<dyn Engine>],
    name: &str,
    void: &[MigrationId],
) -> Result<(), String> {
    let (engine, bare_name) = name.split_once(':').unwrap_or(("", name));
    for Found { id, lines, state } in of_container(root, Role::Destination, name, usize::MAX) {
        if state.is_settled() {
            continue;
        }
        let is_void = void.contains(&id);
        let checkpoint = lines.first().and_then(|line| line.event.checkpoint());
        let is_kept = checkpoint.is_some_and(Path::is_dir);
        if may_have_run(state) || is_held(state) && !is_void && !is_kept {
            let place = if checkpoint.is_some() { "there" } else { "on its source" };
            let hint = format!("`godwit resume {id}` {place} ends it");
            return Err(format!("migration {id} of `{name}` is in doubt there: {hint}"));
        }
        if !is_void && holder(root, engine, bare_name).is_some() {
            // it is at work: the lock will tell
            continue;
        }
        let adopted = Orphan::adopt(root, engines, &id).map_err(|failure| failure.to_string())?;
        if let Some(mut orphan) = adopted {
            orphan.abandon("another migration begins").map_err(|failure| failure.to_string())?;
        }
    }
    Ok(())
}

/// Makes the directory and writes what will be made, before it is.
pub(crate) fn note(dir: &Path, what: &Remains) -> std::io::Result<()> {
    private_dir(dir)?;
    remains::keep(dir, what)
}

/// Removes images, and sockets that nobody listens on any more. Journal and logs stay.
fn clear(dir: &Path) -> std::io::Result<()> {
    remove_images(dir)?;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_socket() {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn lock(root: &Path, name: &str) -> Result<ContainerLock, Failure> {
    let (engine, bare_name) = name.split_once(':').unwrap_or(("", name));
    let begun = Instant::now();
    let until = begun + LAST_WORDS;
    let mut told = false;
    loop {
        match lock_container(root, engine, bare_name) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if Instant::now() < until => {
                if begun.elapsed() > OWN_NOTICE && !std::mem::replace(&mut told, true) {
                    end_the_receiver(holder(root, engine, bare_name));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(None) => {
                return Err(Failure::new(
                    FailureKind::Locked,
                    format!("a process there still works on `{name}`"),
                )
                .hint("wait until it notices that its link is gone, or end it, and try again"));
            }
            Err(error) => {
                return Err(Failure::new(FailureKind::Failed, format!("`{name}` cannot be locked"))
                    .because_of(&error));
            }
        }
    }
}

/// Waits until the file system of a tree is on disk (syncfs(2)).
fn sync(path: &Path) -> std::io::Result<()> {
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) => Ok(nix::unistd::syncfs(file)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::journal::{VERSION, checkpoint_as_peer, dir_of, read};

    /// What a process that died while it held a container leaves.
    fn held(root: &Path, peer: &str) -> MigrationId {
        let id = MigrationId::generate().unwrap();
        let mut journal = Journal::create(&dir_of(root, &id)).unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: id.clone(),
            role: Role::Destination,
            container: "runc:web".into(),
            peer: format!("{peer} (rack1)"),
            godwit: "0.1.0".into(),
        };
        for event in [planned, Event::Prepared, Event::Ready, Event::Restoring, Event::Restored] {
            journal.append(event).unwrap();
        }
        id
    }

    #[test]
    fn what_a_dead_restore_holds_goes_when_its_checkpoint_is_there() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let state = |id: &MigrationId| read(&dir_of(root, id).join("journal")).unwrap().1;
        let checkpoint = root.join("checkpoint");
        std::fs::create_dir(&checkpoint).unwrap();
        let id = held(root, &checkpoint_as_peer(&checkpoint));
        // one that still works on it is left to it
        let lock = lock_container(root, "runc", "web").unwrap();
        settle_earlier(root, &[], "runc:web", &[]).unwrap();
        assert_eq!(state(&id), JournalState::Restored);
        drop(lock);
        settle_earlier(root, &[], "runc:web", &[]).unwrap();
        assert_eq!(state(&id), JournalState::RolledBack);
        let id = held(root, &checkpoint_as_peer(&root.join("removed")));
        let why = settle_earlier(root, &[], "runc:web", &[]).unwrap_err();
        assert!(why.contains(&format!("`godwit resume {id}` there")), "{why}");
        settle_earlier(root, &[], "runc:web", std::slice::from_ref(&id)).unwrap();
        // another host may have given its word meanwhile
        let id = held(root, "ssh from 10.0.0.1");
        let why = settle_earlier(root, &[], "runc:web", &[]).unwrap_err();
        assert!(why.contains(&format!("`godwit resume {id}` on its source")), "{why}");
        assert_eq!(state(&id), JournalState::Restored);
    }
}
