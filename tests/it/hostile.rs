//! A half that lies: what is sent, promised or repeated against the rules ends in a clear failure, without a panic, and the
//! container is where it was. The bytes below the words are tried in the transfer crate's own tests.
//!
//! - `words`, `offers`, `trees`, `go`: a source that lies.
//! - `destination`: a destination that does.

pub mod destination;
mod go;
mod offers;
mod trees;
mod words;

use crate::fake::FakeEngine;
use crate::world::Witness;
use godwit_engine::Engine;
use godwit_migration::plan::{Carry, Restoration, Strategy};
use godwit_migration::{Cancel, Failure, MigrationId, Silent};
use godwit_restore::{Host, Joins, Outcome, Policy, receive};
use godwit_transfer::{
    Descriptors, HostFacts, Incoming, Message, Offer, Peer, TreeId, TreeKind, TreeOffer, Wire,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);

/// A destination, as far as it is real.
struct There {
    dir: tempfile::TempDir,
    host: Host,
    witness: Arc<Witness>,
}

fn there(policy: &str) -> There {
    let dir = tempfile::tempdir().unwrap();
    let witness = Arc::new(Witness::new(
        (dir.path().join("here"), dir.path().join("there")),
        dir.path().join("no-journal"),
        vec![],
    ));
    std::fs::create_dir_all(dir.path().join("root")).unwrap();
    let engines: Vec<Box<dyn Engine>> = vec![Box::new(FakeEngine(witness.clone()))];
    let facts = HostFacts { host: "there".into(), criu: 40200, ..HostFacts::default() };
    let policy = if policy.is_empty() { Policy::default() } else { Policy::parse(policy).unwrap() };
    let host = Host {
        root: dir.path().join("root"),
        engines,
        facts: Ok(facts),
        lazy: Err("there are no real tasks".into()),
        peer: Peer { name: "rack2".into(), shown: "rack2 (test)".into() },
        policy,
        joins: Joins::default(),
        parking: None,
        neighbours: Vec::new(),
        catalog: None,
    };
    There { dir, host, witness }
}

impl There {
    fn tree(&self, number: u16, name: &str) -> TreeOffer {
        TreeOffer {
            id: TreeId(number),
            kind: TreeKind::Volume,
            path: self.dir.path().join(name),
            single_file: false,
            read_only: false,
            bytes: 0,
            made_there: false,
        }
    }

    fn offer(&self, trees: Vec<TreeOffer>) -> Offer {
        Offer {
            migration: MigrationId::generate().unwrap(),
            engine: crate::fake::ENGINE.into(),
            name: "web".into(),
            image_id: None,
            recipe: "{}".into(),
            network: None,
            network_plan: "same".into(),
            trees,
            memory_bytes: 1 << 20,
            strategy: Strategy::StopAndCopy,
            tracker: None,
            room_pages: None,
            restoration: Restoration::Eager,
            carry: Carry::default(),
            facts: HostFacts { host: "here".into(), criu: 40200, ..HostFacts::default() },
            void: vec![],
            witness: None,
            leader: None,
            resume_hook: None,
        }
    }

    /// A source that does as `lie` says; what became of it here.
    fn hears(&self, lie: impl FnOnce(&mut Wire)) -> Result<Outcome, Failure> {
        let (near, far) = Descriptors::pair().unwrap();
        let begun = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let real = scope.spawn(|| {
                let wire = Wire::open(Box::new(far), Cancel::default(), SOON).unwrap();
                receive(wire, &self.host, &Silent)
            });
            let mut wire = Wire::open(Box::new(near), Cancel::default(), SOON).unwrap();
            lie(&mut wire);
            drop(wire);
            real.join().expect("the destination panicked")
        });
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let world = self.witness.look();
        assert!(!world.destination_runs, "it was let run: {outcome:?}");
        assert!(world.held.is_none() && !world.made, "something was left: {outcome:?}");
        outcome
    }

    /// Nothing beside what was there.
    fn assert_only(&self, names: &[&str]) {
        let mut found: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "root")
            .collect();
        found.sort();
        assert_eq!(found, names);
        for dir in std::fs::read_dir(self.host.root.join("migrations")).into_iter().flatten() {
            assert!(!dir.unwrap().path().join("images").exists(), "images are left");
        }
    }
}

fn hello(wire: &mut Wire) {
    wire.say(&Message::Hello { godwit: "0".into(), host: "here".into() }).unwrap();
    let _ = wire.hear();
}

/// As far as `prepared`.
fn prepared(wire: &mut Wire, offer: Offer) {
    wire.expect_indexes();
    hello(wire);
    wire.say(&Message::Offer(Box::new(offer))).unwrap();
    assert!(matches!(wire.hear().unwrap(), Incoming::Message(Message::Accept { .. })));
    wire.say(&Message::Prepare).unwrap();
    loop {
        match wire.hear().unwrap() {
            // of what lies there already
            Incoming::Index(..) => {}
            Incoming::Message(Message::Prepared) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Takes whatever is said, and goes along with being refused.
fn listen(wire: &mut Wire) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        match wire.hear() {
            Ok(Incoming::Message(message)) => heard.push(message.name().to_owned()),
            Ok(_) => {}
            Err(godwit_transfer::WireError::Peer(failure)) => {
                heard.push(failure.to_string());
                let _ = wire.say(&Message::Cancel { reason: "it failed there".into(), again: false });
            }
            Err(_) => return heard,
        }
        if heard.last().is_some_and(|last| last == "undone") {
            return heard;
        }
    }
}
