//! The calls of one migration: who is called at a moment, and what the journal says of it, so that another process can go on.

use crate::application::{Application, ApplicationError};
use crate::program::{self, ProgramError};
use crate::reports::{Reports, Word};
use crate::token::Token;
use godwit_migration::hooks::{Hooks, Moment, Target};
use godwit_migration::journal::{Event, Journal, JournalError, Line};
use godwit_migration::{Cancel, MigrationId};
use procfs::process::Process;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// Why a moment did not go by as it should.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody was called: it could not be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The user has pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Somebody failed, or took too long.
    #[error("hook `{moment}`: {}", why.join("; "))]
    Hook {
        /// When.
        moment: Moment,
        /// Who, and how.
        why: Vec<String>,
    },
}

/// A container's first process, which is not taken for another one that has its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstProcess {
    /// Its number on this host.
    pub pid: i32,
    /// Clock ticks after the start of the kernel: field 22 of proc_pid_stat(5).
    pub started: u64,
}

impl FirstProcess {
    /// The process that has this number now.
    pub fn now(pid: i32) -> Self {
        Self { pid, started: started(pid).unwrap_or_default() }
    }

    /// Whether it still lives.
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

fn started(pid: i32) -> Option<u64> {
    let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

/// What everybody who is called is told.
#[derive(Clone, Debug)]
pub struct About {
    /// `ENGINE:NAME`.
    pub container: String,
    /// What it is all for.
    pub occasion: Occasion,
}

/// Why somebody is called.
#[derive(Clone, Debug)]
pub enum Occasion {
    /// A container moves.
    Migration {
        /// Which migration.
        id: MigrationId,
        /// The destination as the user wrote it.
        destination: String,
    },
    /// A snapshot is made of a volume.
    Snapshot {
        /// The volume's name.
        volume: String,
    },
}

impl About {
    /// Of a container that moves.
    pub fn migration(id: MigrationId, container: String, destination: String) -> Self {
        Self { container, occasion: Occasion::Migration { id, destination } }
    }

    /// What a program finds in its environment.
    pub(crate) fn environment(&self, moment: Moment, process: FirstProcess) -> Vec<(&'static str, OsString)> {
        let mut environment =
            vec![("GODWIT_HOOK", moment.name().into()), ("GODWIT_CONTAINER", self.container.clone().into())];
        match &self.occasion {
            Occasion::Migration { id, destination } => {
                environment.push(("GODWIT_MIGRATION", id.as_str().into()));
                environment.push(("GODWIT_DESTINATION", destination.clone().into()));
            }
            Occasion::Snapshot { volume } => environment.push(("GODWIT_VOLUME", volume.clone().into())),
        }
        if process.is_alive() {
            environment.push(("GODWIT_PID", process.pid.to_string().into()));
        }
        environment
    }
}

/// Who is called during one migration, and who has been.
pub struct Calls {
    hooks: Hooks,
    about: About,
    process: FirstProcess,
    /// This is the destination.
    is_there: bool,
    /// The journal tells of them: whoever undoes the migration calls them, too.
    announced: bool,
    /// Those that were begun, by this process or one before it.
    begun: BTreeSet<Moment>,
    /// Those that are over.
    over: BTreeSet<Moment>,
    /// Where the application has given its word, or may give it.
    door: Option<Reports>,
}

impl Calls {
    /// Those of a migration that begins.
    pub fn new(hooks: Hooks, about: About, pid: i32) -> Self {
        let process = FirstProcess::now(pid);
        Self {
            hooks,
            about,
            process,
            is_there: false,
            announced: false,
            begun: BTreeSet::new(),
            over: BTreeSet::new(),
            door: None,
        }
    }

    /// Those at the destination, where a container runs by now.
    pub fn at_destination(hooks: Hooks, about: About, pid: i32) -> Self {
        Self { is_there: true, ..Self::new(hooks, about, pid) }
    }

    /// Those of a migration that another process has begun; nobody, when it had not come that far.
    pub fn of_journal(lines: &[Line], about: About) -> Self {
        let mut calls = Self::new(Hooks::default(), about, 0);
        for line in lines {
            match &line.event {
                Event::Hooks { hooks, pid, started } => {
                    calls.hooks = (**hooks).clone();
                    calls.process = FirstProcess { pid: *pid, started: *started };
                    calls.announced = true;
                }
                Event::Calling { moment } => {
                    calls.begun.insert(*moment);
                }
                Event::Called { moment, .. } => {
                    calls.over.insert(*moment);
                }
                _ => {}
            }
        }
        calls
    }

    /// Whether anybody is called at a moment.
    pub fn wants(&self, moment: Moment) -> bool {
        let is_owed = !self.over.contains(&moment) && (self.announced || moment != Moment::Rollback);
        is_owed && (self.hooks.programs_at(moment).next().is_some() || self.target(moment).is_some())
    }

    /// How the application is called at a moment, if it is.
    fn target(&self, moment: Moment) -> Option<&Target> {
        let target = self.hooks.target(moment)?;
        let was_asked = [Moment::Shutdown, Moment::Quiesce].iter().any(|asked| self.begun.contains(asked));
        let is_called = match moment {
            // it is called where it runs then; a program is the source's
            Moment::Resume => matches!(target, Target::Program(_)) != self.is_there,
            Moment::Rollback => was_asked,
            _ => true,
        };
        is_called.then_some(target)
    }

    /// The application's word is not waited for any more: who comes with it then finds nobody.
    pub fn close_door(&mut self) {
        self.door = None;
    }

    /// Writes down who will be called: from here on a rollback is told. Nothing where nobody is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn announce(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        if self.announced || self.hooks.is_empty() {
            return Ok(());
        }
        let FirstProcess { pid, started } = self.process;
        journal.append(Event::Hooks { hooks: Box::new(self.hooks.clone()), pid, started })?;
        self.announced = true;
        Ok(())
    }

    /// Calls everybody of a moment, and waits for them. What cannot be undone any more, or is being undone, is told to all of
    /// them; else the first failure ends it. `cancel` ends the wait, where there is one.
    ///
    /// # Errors
    /// Who failed, and how.
    pub fn call(
        &mut self,
        moment: Moment,
        journal: &mut Journal,
        cancel: Option<&Cancel>,
    ) -> Result<(), CallError> {
        if !self.wants(moment) {
            return Ok(());
        }
        let must_be_told = matches!(moment, Moment::Rollback | Moment::PostCommit | Moment::Resume);
        match journal.append(Event::Calling { moment }) {
            Err(error) if !must_be_told => return Err(error.into()),
            _ => self.begun.insert(moment),
        };
        let called = self.call_all(moment, must_be_told, cancel);
        let error = called.as_ref().err().map(ToString::to_string);
        let noted = journal.append(Event::Called { moment, error });
        self.over.insert(moment);
        called?;
        match noted {
            Err(error) if !must_be_told => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn call_all(
        &mut self,
        moment: Moment,
        must_be_told: bool,
        cancel: Option<&Cancel>,
    ) -> Result<(), CallError> {
        let until = Instant::now() + self.hooks.limit(moment);
        let mut why = Vec::new();
        for path in self.hooks.programs_at(moment) {
            // one that must be told has time of its own, even if others have used it up
            let least = if must_be_told { Duration::from_millis(500) } else { Duration::ZERO };
            let left = until.saturating_duration_since(Instant::now()).max(least);
            match program::run(path, &self.environment(moment), left, cancel) {
                Ok(()) => {}
                Err(ProgramError::Interrupted { .. }) => return Err(CallError::Interrupted),
                Err(error) => why.push(error.to_string()),
            }
            if !why.is_empty() && !must_be_told {
                break;
            }
        }
        if let Some(target) = self.target(moment).cloned().filter(|_| why.is_empty() || must_be_told) {
            match self.call_application(moment, &target, cancel) {
                Ok(()) => {}
                Err(Unmoved::Interrupted) => return Err(CallError::Interrupted),
                Err(Unmoved::Because(error)) => why.push(error),
            }
        }
        if why.is_empty() { Ok(()) } else { Err(CallError::Hook { moment, why }) }
    }

    fn call_application(
        &mut self,
        moment: Moment,
        target: &Target,
        cancel: Option<&Cancel>,
    ) -> Result<(), Unmoved> {
        let limit = self.hooks.limit(moment);
        match (moment, target) {
            (Moment::Shutdown, _) => self.shut_down(target, limit, cancel),
            (_, Target::Program(path)) => Ok(program::run(path, &self.environment(moment), limit, cancel)?),
            (_, Target::Url(url)) => {
                Ok(Application::of(&self.about, self.process)?.tell(url, moment, limit)?)
            }
        }
    }

    /// Asks the application to get ready, and waits until it is: it says so at the door, or the program ends well, and nobody
    /// has said at the door that it cannot.
    fn shut_down(
        &mut self,
        target: &Target,
        limit: Duration,
        cancel: Option<&Cancel>,
    ) -> Result<(), Unmoved> {
        let application = Application::of(&self.about, self.process)?;
        let token = Token::generate().map_err(|error| Unmoved::Because(error.to_string()))?;
        let door = application.open_door(self.hooks.listen, &token)?;
        match target {
            Target::Url(url) => application.shut_down(url, limit, (&token, &door), cancel)?,
            Target::Program(path) => {
                let mut environment = self.environment(Moment::Shutdown);
                environment.push(("GODWIT_TOKEN", token.reveal().into()));
                environment.push(("GODWIT_REPORT", door.url().into()));
                program::run(path, &environment, limit, cancel)?;
                if let Some(Word::Cannot(why)) = door.wait(Duration::ZERO) {
                    return Err(ApplicationError::Cannot(why).into());
                }
            }
        }
        self.door = Some(door);
        Ok(())
    }

    fn environment(&self, moment: Moment) -> Vec<(&'static str, OsString)> {
        self.about.environment(moment, self.process)
    }
}

/// Why an application did not do as it was asked.
enum Unmoved {
    Interrupted,
    Because(String),
}

impl From<ProgramError> for Unmoved {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Interrupted { .. } => Self::Interrupted,
            error => Self::Because(error.to_string()),
        }
    }
}

impl From<ApplicationError> for Unmoved {
    fn from(error: ApplicationError) -> Self {
        match error {
            ApplicationError::Interrupted => Self::Interrupted,
            error => Self::Because(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_migration::Role;
    use godwit_migration::journal::{VERSION, read};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn about() -> About {
        let id = MigrationId::generate().unwrap();
        About::migration(id, "runc:web".into(), "ssh://rack2".into())
    }

    /// A journal of a source whose destination is prepared.
    fn prepared(dir: &Path) -> Journal {
        let mut journal = Journal::create(dir).unwrap();
        let planned = Event::Planned {
            version: VERSION,
            migration: MigrationId::generate().unwrap(),
            role: Role::Source,
            container: "runc:web".into(),
            peer: "ssh://rack2".into(),
            godwit: "test".into(),
        };
        journal.append(planned).unwrap();
        journal.append(Event::Prepared).unwrap();
        journal
    }

    /// A hook beside the journal that notes its moments in `seen`, and fails at one of them.
    fn hook(dir: &Path, fails_at: &str) -> String {
        let path = dir.join("hook");
        let seen = dir.join("seen");
        let text =
            format!("#!/bin/sh\necho $GODWIT_HOOK >> {}\n[ $GODWIT_HOOK != {fails_at} ]\n", seen.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn seen(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join("seen")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A directory of root's alone; none without root.
    fn scratch() -> Option<tempfile::TempDir> {
        nix::unistd::geteuid().is_root().then(|| tempfile::tempdir_in("/root").unwrap())
    }

    #[test]
    fn a_rollback_is_told_once_whoever_tells_it() {
        let Some(dir) = scratch() else { return };
        let dir = dir.path();
        let path = hook(dir, "pre-copy");
        let programs = ["pre-copy", "rollback"].map(|moment| format!("{moment}={path}").parse().unwrap());
        let hooks = Hooks { programs: programs.to_vec(), ..Hooks::default() };
        let mut journal = prepared(&dir.join("m"));
        let mut calls = Calls::new(hooks, about(), std::process::id() as i32);
        calls.call(Moment::Rollback, &mut journal, None).unwrap();
        assert_eq!(seen(dir), [""; 0], "nobody was called that would have to know");
        calls.announce(&mut journal).unwrap();
        let failed = calls.call(Moment::PreCopy, &mut journal, None).unwrap_err().to_string();
        assert!(failed.contains("hook `pre-copy`") && failed.contains("exit status: 1"), "{failed}");
        // the process dies; another goes on
        journal.append(Event::Failed { reason: "x".into() }).unwrap();
        let again = || Calls::of_journal(&read(&dir.join("m/journal")).unwrap().0, about());
        again().call(Moment::Rollback, &mut journal, None).unwrap();
        assert_eq!(seen(dir), ["pre-copy", "rollback"]);
        again().call(Moment::Rollback, &mut journal, None).unwrap();
        assert_eq!(seen(dir), ["pre-copy", "rollback"]);
    }

    #[test]
    fn a_failure_ends_what_can_be_undone_and_nothing_else() {
        let Some(dir) = scratch() else { return };
        let dir = dir.path();
        let path = hook(dir, "$GODWIT_HOOK");
        let at = |moment: Moment| [0, 1].map(|_| format!("{moment}={path}").parse().unwrap());
        let programs = [at(Moment::PreFreeze), at(Moment::PostCommit)].concat();
        let hooks = Hooks { programs, ..Hooks::default() };
        let mut journal = prepared(&dir.join("m"));
        let mut calls = Calls::new(hooks, about(), 1);
        calls.call(Moment::PreFreeze, &mut journal, None).unwrap_err();
        assert_eq!(seen(dir).len(), 1, "the second was not called");
        for event in [Event::Freezing, Event::Restored, Event::Committed, Event::Running { pid: 1 }] {
            journal.append(event).unwrap();
        }
        let error = calls.call(Moment::PostCommit, &mut journal, None).unwrap_err();
        assert!(matches!(error, CallError::Hook { why, .. } if why.len() == 2));
        assert_eq!(seen(dir).len(), 3);
    }

    #[test]
    fn an_application_hears_of_a_rollback_when_it_was_asked_before() {
        let resume = Some("/bin/true".parse().unwrap());
        let mut calls = Calls::new(Hooks { resume, ..Hooks::default() }, about(), 1);
        calls.announced = true;
        assert!(!calls.wants(Moment::Rollback) && calls.wants(Moment::Resume));
        calls.begun.insert(Moment::Quiesce);
        assert!(calls.wants(Moment::Rollback));
        calls.over.insert(Moment::Rollback);
        assert!(!calls.wants(Moment::Rollback));
        // a URL is called where it runs
        let resume = Some("http://127.0.0.1:80/".parse().unwrap());
        let hooks = Hooks { resume, ..Hooks::default() };
        assert!(!Calls::new(hooks.clone(), about(), 1).wants(Moment::Resume));
        assert!(Calls::at_destination(hooks, about(), 1).wants(Moment::Resume));
    }

    #[test]
    fn a_number_that_another_process_has_is_not_the_first_process() {
        let own = FirstProcess::now(std::process::id() as i32);
        assert!(own.is_alive());
        assert!(!FirstProcess { started: own.started + 1, ..own }.is_alive());
    }
}
