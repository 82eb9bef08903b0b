//! The journals of this host, for `status` and `log`: found by any part of an id that is enough, put into words.

use godwit_migration::journal::{Event, JournalError, JournalState, Line, read};
use godwit_migration::lock::lock_container;
use godwit_migration::ownership::is_held;
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::{Failure, FailureKind, Role};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// A directory of a migration below godwit's root.
#[derive(Debug)]
pub struct Found {
    /// The migration's id, or whatever the directory is called.
    pub id: String,
    /// Its journal.
    pub path: PathBuf,
}

impl Found {
    /// Reads and replays it.
    pub fn read(&self) -> Result<(Vec<Line>, JournalState), JournalError> {
        read(&self.path)
    }
}

/// All migrations that this host knows, oldest first: ids sort by time.
///
/// # Errors
/// When the directory is there and cannot be read.
pub fn all(root: &Path) -> Result<Vec<Found>, Failure> {
    let dir = root.join("migrations");
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Failure::new(FailureKind::Missing, format!("cannot read `{}`", dir.display()))
                .because_of(&error)
                .hint("run with sudo, or name another directory with `--root`"));
        }
        Ok(entries) => entries,
    };
    let mut found: Vec<Found> = entries
        .flatten()
        .map(|entry| Found {
            id: entry.file_name().to_string_lossy().into_owned(),
            path: entry.path().join("journal"),
        })
        .filter(|found| found.path.exists())
        .collect();
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// The one migration whose id is, begins or ends with `text`.
///
/// # Errors
/// [`FailureKind::NotFound`] when there is none, [`FailureKind::Usage`] when there are several.
pub fn find(root: &Path, text: &str) -> Result<Found, Failure> {
    let mut matching: Vec<Found> = all(root)?
        .into_iter()
        .filter(|found| !text.is_empty() && (found.id.starts_with(text) || found.id.ends_with(text)))
        .collect();
    if let Some(exact) = matching.iter().position(|found| found.id == text) {
        return Ok(matching.swap_remove(exact));
    }
    if matching.len() > 1 {
        let ids = matching.iter().map(|found| format!("`{}`", found.id)).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(FailureKind::Usage, format!("`{text}` is ambiguous"))
            .because(format!("it may mean {ids}"))
            .hint("write more of the id"));
    }
    matching.pop().ok_or_else(|| {
        Failure::new(FailureKind::NotFound, format!("no migration `{text}` on this host"))
            .hint("`godwit status` lists those that this host knows")
    })
}

/// What a whole journal says.
pub struct Told<'a> {
    pub role: Role,
    /// There is no source but a checkpoint.
    pub is_restore: bool,
    pub container: &'a str,
    pub peer: &'a str,
    pub state: JournalState,
    /// Some process still works on it.
    pub under_way: bool,
    pub downtime: Option<Duration>,
    pub begun_unix_us: u64,
    pub last_unix_us: u64,
}

impl<'a> Told<'a> {
    /// From the lines of a journal; none when it has no first line yet. Whether a process still works on it is asked of
    /// the container's lock, which the kernel takes away from a process that ends.
    pub fn of(root: &Path, lines: &'a [Line], state: JournalState) -> Option<Self> {
        let first = lines.first()?;
        let last = lines.last()?;
        let Event::Planned { role, container, peer, .. } = &first.event else { return None };
        let downtime = lines.iter().rev().find_map(|line| match line.event {
            Event::Completed { downtime_us, .. } => downtime_us.map(Duration::from_micros),
            _ => None,
        });
        Some(Self {
            role: *role,
            is_restore: first.event.checkpoint().is_some(),
            container,
            peer,
            state,
            under_way: !state.is_over() && is_locked(root, container),
            downtime,
            begun_unix_us: first.unix_us,
            last_unix_us: last.unix_us,
        })
    }

    /// The state in words.
    pub fn words(&self) -> String {
        let there = match self.role {
            Role::Source => format!("running at {}", self.peer),
            Role::Destination => "running here".to_owned(),
        };
        match self.state {
            state if self.is_restore && is_held(state) && !self.under_way => {
                "held frozen: the restore was broken off".into()
            }
            JournalState::Completed => there,
            JournalState::RolledBack => "rolled back".into(),
            JournalState::Lost => "lost: its tasks are gone".into(),
            JournalState::InDoubt => "in doubt: frozen, the word was given".into(),
            JournalState::Waiting => "in doubt: held frozen, waits for the word".into(),
            JournalState::Stuck => "not all of it could be undone".into(),
            JournalState::Untold => "rolled back, and the other side may not know it".into(),
            state if self.under_way => format!("under way: {}", stage(state)),
            state => format!("ended without a word in {}", stage(state)),
        }
    }
}

/// A lock that this user may not look at counts as free: only root migrates.
pub fn is_locked(root: &Path, container: &str) -> bool {
    let Some((engine, name)) = container.split_once(':') else { return false };
    // a probe must not make what is not there
    root.join("locks").exists() && matches!(lock_container(root, engine, name), Ok(None))
}

fn stage(state: JournalState) -> &'static str {
    match state {
        JournalState::Empty | JournalState::Planned => "negotiation",
        JournalState::PreCopy => "pre-copy",
        JournalState::Freezing => "freeze and final dump",
        JournalState::Dumped | JournalState::Ready => "the final transfer",
        JournalState::Restoring => "restore",
        JournalState::Restored => "the hold before switchover",
        JournalState::Committed => "switchover",
        JournalState::Running => "clearing up",
        JournalState::Failed => "rollback",
        JournalState::Waiting | JournalState::InDoubt | JournalState::Stuck | JournalState::Untold => "doubt",
        JournalState::Completed | JournalState::RolledBack | JournalState::Lost => "nothing",
    }
}

/// An event's name and details, as `godwit log` shows them.
pub fn event_words(event: &Event) -> (String, String) {
    let details = match event {
        Event::Planned { container, peer, role, godwit, .. } => {
            let way = if *role == Role::Source { "to" } else { "from" };
            format!("{container} {way} {peer}, godwit {godwit}")
        }
        Event::Follows { leader } => format!("together with {leader}, whose word counts"),
        Event::Accepted => "both sides agree".into(),
        Event::Prepared => "everything that can exist early is there".into(),
        Event::Round { round, wire_bytes } => {
            format!("pre-copy {round}, {} on the wire", show_bytes(*wire_bytes))
        }
        Event::Throttling(change) => {
            let file = change.file.display();
            format!("`{file}`: `{}` instead of `{}`", change.now, change.original)
        }
        Event::Unthrottled => "its CPU limit is what it was".into(),
        Event::Hooks { hooks, .. } => {
            let programs = hooks.programs.iter().map(|it| format!("{} {}", it.at, it.path.display()));
            let targets =
                [("shutdown", &hooks.shutdown), ("quiesce", &hooks.quiesce), ("resume", &hooks.resume)];
            let targets =
                targets.into_iter().filter_map(|(name, it)| Some(format!("{name} {}", it.as_ref()?)));
            programs.chain(targets).collect::<Vec<_>>().join(", ")
        }
        Event::Calling { moment } => format!("{moment}"),
        Event::Called { moment, error: None } => format!("{moment}"),
        Event::Called { moment, error: Some(error) } => format!("{moment}: {error}"),
        Event::Freezing => "about to lock the network and to freeze".into(),
        Event::Frozen => "every task is frozen".into(),
        Event::Dumped => "the final dump is complete".into(),
        Event::Ready => "every digest verified".into(),
        Event::Restoring => "about to restore".into(),
        Event::Restored => "held frozen at the destination".into(),
        Event::Committed => "switchover granted".into(),
        Event::Going => "the source gave its word".into(),
        Event::Running { pid } => format!("pid {pid}"),
        Event::Discarded => "the frozen copy is gone".into(),
        Event::Completed { downtime_us, leftovers } => {
            let downtime =
                downtime_us.map(|us| format!("downtime {}", show_duration(Duration::from_micros(us))));
            let leftovers = (!leftovers.is_empty()).then(|| format!("left over: {}", leftovers.join("; ")));
            downtime.into_iter().chain(leftovers).collect::<Vec<_>>().join(", ")
        }
        Event::Failed { reason } | Event::InDoubt { reason } => reason.clone(),
        Event::RolledBack => "everything was undone".into(),
        Event::Untold => "the destination did not say that it has removed its copy".into(),
        Event::Resumed { godwit } => format!("another process goes on, godwit {godwit}"),
        Event::TakenBack { reason } => format!("the word given is void: {reason}"),
        Event::GivenAway => "a person decided: it is the destination's".into(),
        Event::Lost { reason } => reason.clone(),
    };
    (event.name(), details)
}

/// How long ago, for a table: `12 s`, `3 m`, `5 h`, `2 d`.
pub fn show_age(unix_us: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.saturating_sub(Duration::from_micros(unix_us)).as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} m ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}
