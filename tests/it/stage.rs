//! One migration between two halves in this process, and what must be true of it however it ends.
//!
//! - `script`: how it is to go.
//! - `ended`: how it went.

mod ended;
mod script;

pub use ended::Ended;
pub use script::{Answer, Liar, Look, Play};

use crate::fake::{Criu, ENGINE, FakeEngine, Reader, Source};
use crate::link::{Link, Marks};
use crate::world::{BUSY, Witness};
use godwit_checkpoint::PageReader;
use godwit_checkpoint::{Job, Order, Parties, Plan, migrate};
use godwit_engine::container::{Facts, Tree};
use godwit_engine::network::NetworkPlan;
use godwit_migration::journal::{self, Event as Wrote, Journal};
use godwit_migration::lock::lock_container;
use godwit_migration::observer::{Event, Question};
use godwit_migration::plan::{Carry, Restoration, Tracker};
use godwit_migration::{Cancel, MigrationId, Observer, Phase, Role, Silent};
use godwit_restore::{Host, Joins, receive};
use godwit_transfer::{Compression, Descriptors, HostFacts, Peer, Transport, TreeKind, Wire};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
            Answer::Leaves | Answer::Sleeps => {}
            Answer::CalmsDown => self.witness.look().busy = false,
            Answer::Interrupts => self.cancel.raise(),
        }
        if matches!(self.answer, Answer::CalmsDown | Answer::Interrupts | Answer::Sleeps) {
            *self.silent.lock().unwrap() = Some(say);
        }
        Some(answer)
    }

    fn patience(&self) -> Duration {
        if matches!(self.answer, Answer::Sleeps) { Duration::from_millis(1200) } else { Silent.patience() }
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
            merged: None,
            made_there: false,
            gone: None,
        }],
        network: None,
        recipe: "{}".into(),
        warnings: vec![],
        starts_slowly: false,
        annotations: Default::default(),
        image: None,
        image_id: None,
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
        parking: None,
        neighbours: Vec::new(),
        catalog: None,
    };
    let (one, two) = Descriptors::pair().unwrap();
    let marks: (Marks, Marks) = Default::default();
    let mut source_link = Link::new(one, play.cuts.0, marks.0.clone());
    let mut destination_link = Link::new(two, play.cuts.1, marks.1.clone());
    (source_link.peer_speaks, destination_link.peer_speaks) = (play.peers_speak, play.peers_speak);
    source_link.instead = play.instead.clone();
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
                crate::hostile::destination::liar(wire, &*liar.0);
                return None;
            }
            Some(receive(wire, &host, &destination_notes))
        });
        let wire = Wire::open(Box::new(source_link), play.source_cancel.clone(), Duration::from_secs(5));
        let source = wire.ok().map(|wire| {
            let memory_bytes = (64 << 10) + if play.busy { BUSY * 4096 } else { 0 };
            let mut facts = container_facts(&volumes.0, &volumes.1, memory_bytes);
            facts.trees[0].made_there = play.made_there;
            let container = Source { witness: witness.clone(), facts, since: Instant::now() };
            let criu = Criu::new(witness.clone());
            let journal = begin(&job);
            let plan = plan_of(&play);
            // what ssh would start for a further connection
            let further = || -> std::io::Result<Box<dyn Transport>> {
                let (near, far) = Descriptors::pair()?;
                scope.spawn(|| {
                    let wire = Wire::open(Box::new(far), Cancel::default(), Duration::from_secs(5));
                    let _ = wire.map(|wire| receive(wire, &host, &Silent));
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
            migrate(parties, Order { plan, job: job.clone(), journal, member: None })
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
        outgrown: 0,
        cooperates: false,
        watches_files: false,
        compress: Compression::None,
        restoration: Restoration::Auto,
        gentle: true,
        highest_rung: None,
        witness: play.witness.clone(),
        hooks: play.hooks.clone(),
        facts: host_facts("here"),
        parting: Default::default(),
    }
}
