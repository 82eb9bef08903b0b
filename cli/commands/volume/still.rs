//! Containers that stand still while the last of a volume is read.

use crate::args::FreezeArgs;
use crate::commands::{Trouble, hooks, open};
use godwit_engine::freezer::Freezer;
use godwit_engine::process;
use godwit_engine::standstill::{Keeper, Standstill};
use godwit_engine::{ContainerName, EngineError, OpenRequest, SourceContainer};
use godwit_hooks::{About, Occasion, Pause};
use godwit_migration::lock::{ContainerLock, lock_container};
use godwit_migration::plan::Carry;
use godwit_migration::{Failure, FailureKind};
use godwit_store::{Files, Restless, Writers};
use godwit_volumes::users::users;
use godwit_volumes::{Volume, VolumeError};
use std::path::Path;
use std::time::Duration;

/// Those that use a volume, and nobody else does. Dropped, they go on, and then those that were asked to stand still hear of it.
pub struct Containers {
    standing: Vec<Standstill>,
    each: Vec<Held>,
    limit: Duration,
    /// Who was not told that it goes on, and why.
    untold: Vec<String>,
}

struct Held {
    pause: Option<Pause>,
    name: ContainerName,
    container: Box<dyn SourceContainer>,
    freezer: Freezer,
    lock: ContainerLock,
}

impl Containers {
    /// Finds them; none when nobody is to stand still. Nothing is touched but their locks.
    ///
    /// # Errors
    /// When one is not there or is on the move, and when somebody else uses the volume.
    pub fn of(wanted: &FreezeArgs, root: &Path, volume: &Volume) -> Result<Option<Self>, Failure> {
        let (given, pause) = (wanted.pause.hooks(), &wanted.pause);
        if wanted.freeze.len() != 1 && (given.quiesce.is_some() || given.resume.is_some()) {
            let message = "`--quiesce-hook` and `--resume-hook` are of one container: `--freeze`";
            let hint = "where there are several, each has its own as its labels `godwit.quiesce-hook` and `godwit.resume-hook`";
            return Err(Failure::new(FailureKind::Usage, message).hint(hint));
        }
        if wanted.freeze.is_empty() {
            return Ok(None);
        }
        let given = hooks::checked(given)?;
        let find = |text: &String| {
            let mut held = Held::find(text, root)?;
            let facts = held.container.facts();
            let hooks = hooks::with_pause_labels(given.clone(), pause, &facts.annotations)?;
            let occasion = Occasion::Snapshot { volume: volume.name.clone() };
            let about = About { container: held.name.to_string(), occasion };
            held.pause = Pause::of(hooks, about, facts.pid);
            Ok(held)
        };
        let each = wanted.freeze.iter().map(find).collect::<Result<Vec<_>, Failure>>()?;
        let what = "no snapshot was made";
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(FailureKind::Failed, what).because_of(error)
        };
        let mut strangers = users(&volume.path).map_err(|error| failed(&error))?;
        for held in &each {
            let own = held.freezer.pids().map_err(|error| failed(&error))?;
            strangers.retain(|user| !own.contains(&user.pid));
        }
        if strangers.is_empty() {
            let (standing, untold) = (Vec::new(), Vec::new());
            return Ok(Some(Self { standing, each, limit: wanted.freeze_limit, untold }));
        }
        let in_use = VolumeError::InUse { volume: volume.name.clone(), users: Vec::new() };
        let failure = strangers
            .iter()
            .fold(Failure::new(FailureKind::Locked, what).because_of(&in_use), |failure, user| {
                failure.because(user.to_string())
            });
        Err(failure.hint("name all containers that use it with `--freeze`, and stop what is no container"))
    }

    /// Which applications were not told that they go on, and why.
    pub fn untold(&self) -> &[String] {
        &self.untold
    }
}

impl Held {
    fn find(text: &str, root: &Path) -> Result<Self, Failure> {
        // nothing is moved: whatever would need a word first does not matter here
        let request = OpenRequest { carry: Carry::ALL, ip_change: true, ..OpenRequest::default() };
        let (name, container) = open(text, &request).map_err(|trouble: Trouble| *trouble.failure)?;
        let failed = |what: String, error: &(dyn std::error::Error + 'static)| {
            Failure::new(FailureKind::Missing, what).because_of(error)
        };
        let freezer = Freezer::of_pid(container.facts().pid)
            .map_err(|error| failed(format!("`{name}` cannot stand still"), &error))?;
        let lock = lock_container(root, name.engine, &name.name)
            .map_err(|error| failed(format!("cannot write to `{}`", root.display()), &error))?;
        let Some(lock) = lock else {
            let message = format!("a migration or a snapshot of `{name}` is under way");
            return Err(Failure::new(FailureKind::Locked, message).hint("`godwit status` shows it"));
        };
        Ok(Self { pause: None, name, container, freezer, lock })
    }

    fn keeper(&self, limit: Duration) -> Result<Keeper, EngineError> {
        let lock = self.lock.share().map_err(EngineError::io("share the lock of", self.name.to_string()))?;
        Keeper::start(self.freezer.clone(), lock, limit)
    }

    fn stand(&self, keeper: Keeper) -> Result<Standstill, EngineError> {
        Standstill::begin(keeper, &self.container.tasks()?)
    }
}

impl Writers for Containers {
    fn files(&mut self) -> Result<Files, Restless> {
        let mut all = Files::default();
        for held in &self.each {
            let tasks = held.freezer.pids()?;
            all.open.extend(process::open_files(&tasks));
            all.mapped.extend(process::mapped_files(&tasks)?);
        }
        Ok(all)
    }

    fn quiesce(&mut self) -> Result<(), Restless> {
        let stands = self.limit * self.each.len() as u32;
        for pause in self.each.iter_mut().filter_map(|held| held.pause.as_mut()) {
            pause.quiesce(stands)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Restless> {
        // no process is started while the first of them stands still already
        let keepers = self.each.iter().map(|held| held.keeper(self.limit)).collect::<Result<Vec<_>, _>>()?;
        for (held, keeper) in self.each.iter().zip(keepers) {
            match held.stand(keeper) {
                Ok(standing) => self.standing.push(standing),
                Err(error) => {
                    // dropped, they go on
                    self.standing.clear();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn go_on(&mut self) -> Result<(), Restless> {
        let ended: Vec<_> = self.standing.drain(..).map(Standstill::end).collect();
        ended.into_iter().collect::<Result<(), _>>().map_err(Into::into)
    }

    fn resume(&mut self) {
        for held in &mut self.each {
            let Some(Err(error)) = held.pause.as_mut().map(Pause::resume) else { continue };
            self.untold.push(format!("`{}` was not told that it goes on: {error}", held.name));
        }
    }
}
