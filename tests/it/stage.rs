//! One migration between two halves in this process, and what must be true of it however it ends.

use crate::fake::{Criu, ENGINE, FakeEngine, Reader, Source};
use crate::link::{Cut, Link, Marks};
use crate::world::{BUSY, Then, Trap, Witness};
use godwit_checkpoint::PageReader;
use godwit_checkpoint::{Job, Order, Parties, Plan, migrate};
use godwit_engine::container::{Facts, Tree};
use godwit_engine::network::NetworkPlan;
use godwit_migration::journal::{self, Event as Wrote, Journal, JournalState, Line};
use godwit_migration::lock::lock_container;
use godwit_migration::observer::{Event, Question};
use godwit_migration::plan::{Carry, Limits, OnTimeout, Restoration, Strategy, Tracker};
use godwit_migration::report::Summary;
use godwit_migration::{Cancel, Disposition, Failure, MigrationId, Observer, Phase, Role, SharedDirectory};
use godwit_restore::{Host, Joins, Outcome, Policy, receive};
use godwit_transfer::tree::equal_digest;
use godwit_transfer::{
    Compression, Descriptors, HostFacts, Message, Peer, Refusal, Transport, TreeKind, Wire,
};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What happens when it is asked whether to switch over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nobody to ask.
    Nobody,
    /// Somebody answers.
    Says(bool),
    /// Somebody was there, and leaves.
    Leaves,
    /// No answer; the container is busy no more.
    CalmsDown,
    /// No answer; Ctrl-C.
    Interrupts,
}

/// How a migration is to go.
#[derive(Clone, Debug)]
pub struct Play {
    pub strategy: Strategy,
    pub tracker: Option<Tracker>,
    pub limits: Limits,
    pub traps: Vec<Trap>,
    /// Connections in all.
    pub connections: u16,
    /// Where the link breaks, by what the source sends and by what the destination sends.
    pub cuts: (Option<Cut>, Option<Cut>),
    /// Ctrl-C at the beginning of a phase: whose, and which.
    pub interrupt: Option<(Role, Phase)>,
    pub source_cancel: Cancel,
    pub destination_cancel: Cancel,
    /// A file that lies in the destination's volume already.
    pub in_the_way: Option<&'static str>,
    /// Why the destination cannot receive anything.
    pub unfit: Option<Refusal>,
    /// What the destination lets in.
    pub policy: Policy,
    /// Another process holds the container's lock at the destination.
    pub locked_there: bool,
    /// A file of so many incompressible bytes more in the volume.
    pub bulk: usize,
    /// Bytes a second at most; 0 is no limit.
    pub bandwidth: u64,
    /// The container writes more than the link carries.
    pub busy: bool,
    /// Whom both ask.
    pub witness: Option<SharedDirectory>,
    /// Who answers at the source.
    pub answer: Answer,
    /// In the midst of the bulk the destination stops reading for a while, and Ctrl-C comes at the source.
    pub interrupt_when_full: bool,
    /// The versions of the wire that each side hears the other offer, when not its own.
    pub peers_speak: Option<(u16, u16)>,
    /// Who answers instead of a real destination.
    pub liar: Option<Liar>,
    /// Looks at godwit's directories of both sides whenever something is told.
    pub look: Option<Look>,
}

/// What a destination that is none says to each message.
#[derive(Clone)]
pub struct Liar(pub Arc<Replace>);

/// What is said instead of a message.
type Replace = dyn Fn(&Message) -> Vec<Message> + Send + Sync;

/// Somebody who looks at directories.
#[derive(Clone)]
pub struct Look(pub Arc<LookAt>);

/// Looks at the directories of both sides.
type LookAt = dyn Fn(&[PathBuf]) + Send + Sync;

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Liar")
    }
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

impl Play {
    /// Two pre-dump rounds, whatever is measured.
    pub fn pre_dump() -> Self {
        Self {
            strategy: Strategy::PreCopy,
            tracker: Some(Tracker::PreDump),
            limits: Limits {
                max_downtime: Duration::from_nanos(1),
                max_rounds: 2,
                on_timeout: OnTimeout::Switchover,
                ..Limits::default()
            },
            traps: vec![],
            connections: 1,
            cuts: (None, None),
            interrupt: None,
            source_cancel: Cancel::default(),
            destination_cancel: Cancel::default(),
            in_the_way: None,
            unfit: None,
            policy: Policy::default(),
            locked_there: false,
            bulk: 0,
            bandwidth: 0,
            busy: false,
            witness: None,
            answer: Answer::Nobody,
            interrupt_when_full: false,
            peers_speak: None,
            liar: None,
            look: None,
        }
    }

    /// One checkpoint of the running container, then its difference.
    pub fn checkpoint() -> Self {
        Self { tracker: Some(Tracker::Checkpoint), ..Self::pre_dump() }
    }

    /// Pages read from outside, and so many connections.
    pub fn pages(connections: u16) -> Self {
        Self { tracker: Some(Tracker::Hash), connections, ..Self::pre_dump() }
    }

    /// As [`Play::pages`], all over the only connection.
    pub fn pages_beside_all_else() -> Self {
        Self::pages(1)
    }

    /// As [`Play::pages`], over two connections of their own.
    pub fn pages_by_themselves() -> Self {
        Self::pages(3)
    }

    /// A container that writes 4 MiB again and again over a link that carries 20 MiB/s, and may be throttled.
    pub fn busy() -> Self {
        let mut play = Self { busy: true, bandwidth: 20 << 20, ..Self::pages(1) };
        play.limits =
            Limits { max_downtime: Duration::from_millis(200), max_rounds: 5, throttle: 60, ..play.limits };
        play
    }

    /// Everything under one freeze.
    pub fn stop_and_copy() -> Self {
        Self { strategy: Strategy::StopAndCopy, tracker: None, ..Self::pre_dump() }
    }

    /// When a call comes for the n-th time the container has more memory than the destination keeps room for.
    pub fn flooded_at(mut self, call: &'static str, nth: usize) -> Self {
        self.traps.push(Trap { call, nth, then: Then::Flood });
        self
    }

    pub fn failing(mut self, call: &'static str, nth: usize) -> Self {
        self.traps.push(Trap { call, nth, then: Then::Fail });
        self
    }

    /// Ctrl-C while a call is under way.
    pub fn interrupted_in(mut self, role: Role, call: &'static str) -> Self {
        let cancel = if role == Role::Source { &self.source_cancel } else { &self.destination_cancel };
        self.traps.push(Trap { call, nth: 1, then: Then::Interrupt(cancel.clone()) });
        self
    }

    /// The destination cannot write files any more when the first of them are sent.
    pub fn losing_the_volume_there(mut self) -> Self {
        self.traps.push(Trap { call: "source.mapped_files", nth: 1, then: Then::RemoveVolumeThere });
        self
    }

    pub fn cut_source(self, cut: Cut) -> Self {
        Self { cuts: (Some(cut), None), ..self }
    }

    pub fn cut_destination(self, cut: Cut) -> Self {
        Self { cuts: (None, Some(cut)), ..self }
    }
}

/// How a migration went.
pub struct Ended {
    /// Absent when not even the preamble came through.
    pub source: Option<Result<Summary, Failure>>,
    pub destination: Option<Result<Outcome, Failure>>,
    pub witness: Arc<Witness>,
    /// The journals, where there are any.
    pub source_journal: Option<(Vec<Line>, JournalState)>,
    pub destination_journal: Option<(Vec<Line>, JournalState)>,
    pub told: Vec<(Role, String)>,
    pub marks: (Vec<u64>, Vec<u64>),
    pub took: Duration,
    pub volumes: (PathBuf, PathBuf),
    pub roots: (PathBuf, PathBuf),
    pub id: MigrationId,
    /// Whom both asked.
    pub shared: Option<SharedDirectory>,
    _dir: tempfile::TempDir,
}

/// Keeps what it is told, and presses Ctrl-C.
struct Notes {
    told: Arc<Mutex<Vec<(Role, String)>>>,
    me: Role,
    interrupt: Option<(Role, Phase)>,
    cancel: Cancel,
    answer: Answer,
    /// Whose answer does not come.
    silent: Mutex<Option<Sender<bool>>>,
    witness: Arc<Witness>,
    look: Option<Look>,
    roots: [PathBuf; 2],
}

impl Observer for Notes {
    fn ask(&self, question: &Question) -> Option<Receiver<bool>> {
        self.told.lock().unwrap().push((self.me, format!("question: {question}")));
        let (say, answer) = channel();
        match self.answer {
            Answer::Nobody => return None,
            Answer::Says(yes) => say.send(yes).unwrap(),
            Answer::Leaves => {}
            Answer::CalmsDown => self.witness.look().busy = false,
            Answer::Interrupts => self.cancel.raise(),
        }
        if matches!(self.answer, Answer::CalmsDown | Answer::Interrupts) {
            *self.silent.lock().unwrap() = Some(say);
        }
        Some(answer)
    }

    fn event(&self, event: &Event) {
        if let Some(look) = &self.look {
            look.0(&self.roots);
        }
        let text = match event {
            Event::Phase { phase, event, .. } => format!("{phase} {event}"),
            Event::Round(round) => format!("round {}", round.round),
            Event::Status { .. } => return,
            Event::Note { text } => format!("note: {text}"),
        };
        self.told.lock().unwrap().push((self.me, text));
        if let (Event::Phase { phase, event: "begin", .. }, Some((role, at))) = (event, self.interrupt)
            && role == self.me
            && *phase == at
        {
            self.cancel.raise();
        }
    }
}

/// In memory where that is possible: hundreds of journals are synced here.
fn stage_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()).unwrap()
}

fn host_facts(host: &str) -> HostFacts {
    HostFacts { host: host.into(), kernel: "6.1".into(), criu: 40200, cpu_flags: vec!["sse2".into()] }
}

pub fn container_facts(volume: &Path, there: &Path, memory_bytes: u64) -> Facts {
    Facts {
        engine: ENGINE,
        name: "web".into(),
        pid: 1,
        memory_bytes,
        trees: vec![Tree {
            kind: TreeKind::Volume,
            path: there.into(),
            content: volume.into(),
            single_file: false,
            read_only: false,
        }],
        network: None,
        recipe: "{}".into(),
        warnings: vec![],
    }
}

/// Plays one migration to its end.
pub fn play(play: Play) -> Ended {
    let dir = stage_dir();
    let path = |name: &str| dir.path().join(name);
    let volumes = (path("volume-here"), path("there/volume"));
    let roots = (path("root-here"), path("root-there"));
    std::fs::create_dir_all(volumes.0.join("deep/er")).unwrap();
    std::fs::write(volumes.0.join("deep/er/file"), vec![7; 70_000]).unwrap();
    std::os::unix::fs::symlink("file", volumes.0.join("deep/er/link")).unwrap();
    std::fs::write(volumes.0.join("bulk"), noise(play.bulk)).unwrap();
    if let Some(content) = play.in_the_way {
        std::fs::create_dir_all(&volumes.1).unwrap();
        std::fs::write(volumes.1.join("theirs"), content).unwrap();
    }
    std::fs::create_dir_all(&roots.1).unwrap();
    let foreign_lock = play.locked_there.then(|| lock_container(&roots.1, ENGINE, "web").unwrap().unwrap());

    let id = MigrationId::generate().unwrap();
    let job = Job::new(&roots.0, id.clone());
    let witness = Arc::new(Witness::new(volumes.clone(), job.dir.join("journal"), play.traps.clone()));
    witness.look().busy = play.busy;
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = |me, cancel: &Cancel| Notes {
        told: told.clone(),
        me,
        interrupt: play.interrupt,
        cancel: cancel.clone(),
        answer: play.answer,
        silent: Mutex::new(None),
        witness: witness.clone(),
        look: play.look.clone(),
        roots: [roots.0.clone(), roots.1.clone()],
    };
    let (source_notes, destination_notes) =
        (notes(Role::Source, &play.source_cancel), notes(Role::Destination, &play.destination_cancel));
    let host = Host {
        root: roots.1.clone(),
        engines: vec![Box::new(FakeEngine(witness.clone()))],
        facts: play.unfit.clone().map_or_else(|| Ok(host_facts("there")), Err),
        lazy: Err("there are no real tasks".into()),
        peer: Peer { name: "test:".into(), shown: "this test".into() },
        policy: play.policy.clone(),
        joins: Joins::default(),
    };
    let (one, two) = Descriptors::pair().unwrap();
    let marks: (Marks, Marks) = Default::default();
    let mut source_link = Link::new(one, play.cuts.0, marks.0.clone());
    let mut destination_link = Link::new(two, play.cuts.1, marks.1.clone());
    (source_link.peer_speaks, destination_link.peer_speaks) = (play.peers_speak, play.peers_speak);
    destination_link.stall = play.interrupt_when_full.then(|| play.source_cancel.clone());
    let begun = Instant::now();
    let (source, destination) = std::thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let wire = Wire::open(
                Box::new(destination_link),
                play.destination_cancel.clone(),
                Duration::from_secs(5),
            );
            let wire = wire.ok()?;
            if let Some(liar) = &play.liar {
                crate::hostile::liar(wire, &*liar.0);
                return None;
            }
            Some(receive(wire, &host, &destination_notes))
        });
        let wire = Wire::open(Box::new(source_link), play.source_cancel.clone(), Duration::from_secs(5));
        let source = wire.ok().map(|wire| {
            let memory_bytes = (64 << 10) + if play.busy { BUSY * 4096 } else { 0 };
            let facts = container_facts(&volumes.0, &volumes.1, memory_bytes);
            let container = Source { witness: witness.clone(), facts, since: Instant::now() };
            let criu = Criu::new(witness.clone());
            let journal = begin(&job);
            let plan = plan_of(&play);
            // what ssh would start for a further connection
            let further = || -> std::io::Result<Box<dyn Transport>> {
                let (near, far) = Descriptors::pair()?;
                scope.spawn(|| {
                    let wire = Wire::open(Box::new(far), Cancel::default(), Duration::from_secs(5));
                    let _ = wire.map(|wire| receive(wire, &host, &godwit_migration::Silent));
                });
                Ok(Box::new(near))
            };
            let reads = play.tracker.is_some_and(Tracker::reads_from_outside);
            let reader = reads.then(|| Box::new(Reader(witness.clone())) as Box<dyn PageReader>);
            let parties = Parties {
                container: Box::new(container),
                criu: &criu,
                wire,
                dial: Some(&further),
                reader,
                observer: &source_notes,
                cancel: play.source_cancel.clone(),
            };
            migrate(parties, Order { plan, job: job.clone(), journal })
        });
        (source, destination.join().unwrap())
    });
    let took = begun.elapsed();
    drop(foreign_lock);
    let read = |root: &Path| {
        let path = root.join("migrations").join(id.as_str()).join("journal");
        path.exists().then(|| journal::read(&path).unwrap())
    };
    let taken = |marks: &Marks| marks.lock().unwrap().clone();
    let told = told.lock().unwrap().clone();
    Ended {
        source,
        destination,
        source_journal: read(&roots.0),
        destination_journal: read(&roots.1),
        told,
        marks: (taken(&marks.0), taken(&marks.1)),
        took,
        witness,
        volumes,
        roots,
        id,
        shared: play.witness.clone(),
        _dir: dir,
    }
}

/// Bytes that no compression makes shorter (xorshift64).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

fn begin(job: &Job) -> Journal {
    let mut journal = Journal::create(&job.dir).unwrap();
    let planned = Wrote::Planned {
        version: journal::VERSION,
        migration: job.id.clone(),
        role: Role::Source,
        container: format!("{ENGINE}:web"),
        peer: "test://there".into(),
        godwit: "test".into(),
    };
    journal.append(planned).unwrap();
    journal
}

fn plan_of(play: &Play) -> Plan {
    Plan {
        container: format!("{ENGINE}:web"),
        destination: "there".into(),
        strategy: play.strategy,
        tracker: play.tracker,
        limits: play.limits,
        carry: Carry::default(),
        network_plan: NetworkPlan::default(),
        bandwidth: play.bandwidth,
        connections: play.connections,
        compress: Compression::None,
        restoration: Restoration::Auto,
        gentle: true,
        highest_rung: None,
        witness: play.witness.clone(),
        facts: host_facts("here"),
    }
}

impl Ended {
    /// The source's failure, where there must be one.
    pub fn failure(&self) -> &Failure {
        match &self.source {
            Some(Err(failure)) => failure,
            other => panic!("no failure at the source: {other:?}"),
        }
    }

    pub fn summary(&self) -> &Summary {
        match &self.source {
            Some(Ok(summary)) => summary,
            other => panic!("no success at the source: {other:?}\n{:?}", self.told),
        }
    }

    pub fn calls(&self) -> Vec<&'static str> {
        self.witness.look().calls.clone()
    }

    /// The phases that a side went through: `begin` and `end` of each.
    pub fn phases(&self, role: Role) -> Vec<String> {
        let is_phase = |text: &str| text.ends_with(" begin") || text.ends_with(" end");
        self.told
            .iter()
            .filter(|(who, text)| *who == role && is_phase(text))
            .map(|(_, text)| text.clone())
            .collect()
    }

    /// What must be true however a migration ended.
    pub fn assert_sound(&self, context: &str) {
        let world = self.witness.look();
        let context = format!(
            "{context}\n  source: {:?}\n  destination: {:?}\n  journals: {:?} / {:?}\n  calls: {:?}",
            self.source,
            self.destination,
            self.source_journal.as_ref().map(|journal| journal.1),
            self.destination_journal.as_ref().map(|journal| journal.1),
            world.calls
        );
        assert!(world.violations.is_empty(), "{:#?}\n{context}", world.violations);
        assert!(!(world.source_runs && world.destination_runs), "it runs on both sides\n{context}");
        assert_eq!(world.cpu_limit, None, "it is still throttled\n{context}");
        assert!(self.took < Duration::from_secs(5), "it took {:?}\n{context}", self.took);
        let source_state = self.source_journal.as_ref().map(|journal| journal.1);
        let destination_state = self.destination_journal.as_ref().map(|journal| journal.1);
        match &self.source {
            None => assert!(
                world.source_runs && source_state.is_none(),
                "touched before anybody answered\n{context}"
            ),
            Some(Ok(summary)) => {
                assert_eq!(summary.disposition, Disposition::RunningAtDestination, "{context}");
                assert!(world.destination_runs && !world.source_runs, "{context}");
                assert_eq!(source_state, Some(JournalState::Completed), "{context}");
                assert_eq!(destination_state, Some(JournalState::Completed), "{context}");
            }
            Some(Err(failure)) if failure.disposition == Disposition::InDoubt => {
                assert_eq!(failure.kind.exit_code(), 20, "{context}");
                assert!(
                    !world.source_runs && !world.source_gone,
                    "in doubt, and not frozen and whole here\n{context}"
                );
                assert!(source_state.is_some_and(JournalState::is_open), "{context}");
                let lines = &self.source_journal.as_ref().unwrap().0;
                let committed = lines.iter().any(|line| line.event == Wrote::Committed);
                let thaw_failed = failure.hints.iter().any(|hint| hint.contains("thaw its cgroup"));
                assert!(committed || thaw_failed, "in doubt before the commit\n{context}");
            }
            Some(Err(failure)) => {
                assert_eq!(failure.disposition, Disposition::RunningAtSource, "{context}");
                assert!(
                    world.source_runs && !world.destination_runs,
                    "it does not run at the source\n{context}"
                );
                assert!(!world.locked && !world.disconnected, "it runs, but cannot be reached\n{context}");
                let rolled_back = [JournalState::RolledBack, JournalState::Untold];
                assert!(source_state.is_some_and(|state| rolled_back.contains(&state)), "{context}");
            }
        }
        let images = |root: &Path| {
            self.source_journal.iter().flat_map(|(lines, _)| lines.first()).any(|line| {
            matches!(&line.event, Wrote::Planned { migration, .. } if root.join("migrations").join(migration.as_str()).join("images").exists())
        })
        };
        let open = source_state.is_some_and(JournalState::is_open);
        let doubtful = open && source_state != Some(JournalState::Untold);
        assert!(doubtful || !images(&self.roots.0), "images are left at the source\n{context}");
        match destination_state {
            None | Some(JournalState::RolledBack) => {
                assert!(
                    !world.made && world.held.is_none(),
                    "something is left at the destination\n{context}"
                );
                assert!(!images(&self.roots.1), "images are left at the destination\n{context}");
                self.assert_no_files_there(&context);
            }
            Some(JournalState::Completed) => {
                assert!(!images(&self.roots.1), "images are left there\n{context}")
            }
            Some(JournalState::InDoubt | JournalState::Waiting) => {
                assert!(world.held.is_some(), "in doubt without a held tree\n{context}");
                let outcome = self.destination.as_ref().unwrap().as_ref();
                assert!(
                    outcome.is_err_and(|failure| failure.disposition == Disposition::InDoubt),
                    "{context}"
                );
            }
            Some(state) => panic!("the destination's journal ends in {state:?}\n{context}"),
        }
    }

    fn assert_no_files_there(&self, context: &str) {
        let there = &self.volumes.1;
        let names: Vec<_> =
            std::fs::read_dir(there).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(names.is_empty() || names == ["theirs"], "{names:?} are left at the destination\n{context}");
    }

    /// The container runs at the destination with all it had.
    pub fn assert_moved(&self) {
        self.assert_sound("it should have moved");
        self.summary();
        let world = self.witness.look();
        assert_eq!(world.held.as_ref(), Some(&world.memory));
        let digest = |path: &Path| equal_digest(path).unwrap().to_string();
        assert_eq!(digest(&self.volumes.0), digest(&self.volumes.1), "the files differ");
    }
}
