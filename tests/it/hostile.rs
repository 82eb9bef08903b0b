//! A half that lies: what is sent, promised or repeated against the rules ends in a clear failure, without a panic, and the
//! container is where it was. The bytes below the words are tried in the transfer crate's own tests.

use crate::fake::FakeEngine;
use crate::stage::{Ended, Liar, Look, Play, play};
use crate::world::Witness;
use godwit_engine::Engine;
use godwit_migration::plan::{Carry, Restoration, Strategy};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Silent};
use godwit_restore::{Host, Joins, Outcome, Policy, receive};
use godwit_transfer::tree::{TreeOp, TreePath};
use godwit_transfer::wire::{NEWEST, OLDEST, WireError};
use godwit_transfer::{
    Descriptors, HostFacts, Incoming, Message, Offer, Peer, Refusal, TreeId, TreeKind, TreeOffer, Wire,
};
use std::path::{Path, PathBuf};
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
        }
    }

    fn offer(&self, trees: Vec<TreeOffer>) -> Offer {
        Offer {
            migration: MigrationId::generate().unwrap(),
            engine: crate::fake::ENGINE.into(),
            name: "web".into(),
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
                let _ = wire.say(&Message::Cancel { reason: "it failed there".into() });
            }
            Err(_) => return heard,
        }
        if heard.last().is_some_and(|last| last == "undone") {
            return heard;
        }
    }
}

#[test]
fn words_in_the_wrong_order_let_nothing_run() {
    let begin = || Message::RoundBegin { round: 0, last: true };
    let end = || Message::RoundEnd { round: 0, streams: 0 };
    let wrong: Vec<(&str, Vec<Message>)> = vec![
        ("go at once", vec![Message::Go]),
        ("restore at once", vec![Message::Restore]),
        ("go before restored", vec![begin(), Message::Go]),
        ("a last round without memory, then go", vec![begin(), end(), Message::Go]),
        ("done at once", vec![Message::Done]),
        ("prepare twice", vec![Message::Prepare]),
        ("a round that ends as another", vec![begin(), Message::RoundEnd { round: 7, streams: 0 }]),
        ("a round in a round", vec![begin(), begin()]),
        ("another offer", vec![Message::Prepared]),
        ("the other side's words", vec![Message::Running { pid: 1 }]),
        ("shared memory that was not offered", vec![begin(), Message::Shared { objects: vec![] }]),
    ];
    for (what, words) in wrong {
        let there = there("");
        let offer = there.offer(vec![]);
        let mut heard = Vec::new();
        let outcome = there.hears(|wire| {
            prepared(wire, offer);
            for word in &words {
                if wire.say(word).is_err() {
                    break;
                }
            }
            heard = listen(wire);
        });
        let failure = outcome.expect_err(what);
        assert_eq!(failure.kind.exit_code(), 1, "{what}: {failure:?}");
        assert_eq!(heard.last().map(String::as_str), Some("undone"), "{what}: {heard:?}");
        there.assert_only(&[]);
    }
}

#[test]
fn nothing_is_done_for_who_does_not_introduce_himself() {
    for word in [Message::Prepare, Message::Go, Message::Restore, Message::Joined] {
        let there = there("");
        let failure = there
            .hears(|wire| {
                wire.say(&word).unwrap();
                listen(wire);
            })
            .unwrap_err();
        assert!(failure.causes.iter().any(|cause| cause.contains("where hello was due")), "{failure:?}");
        assert!(!there.host.root.join("migrations").exists());
    }
    // pages, before anybody knows whose
    let there = there("");
    assert!(
        there
            .hears(|wire| {
                wire.send_pages(&[0; 64]).unwrap();
                wire.flush().unwrap();
                listen(wire);
            })
            .is_err()
    );
    // a further connection of what is not received here
    assert!(
        there
            .hears(|wire| {
                wire.say(&Message::Join { migration: MigrationId::generate().unwrap(), stream: 0 }).unwrap();
                listen(wire);
            })
            .is_err()
    );
}

#[test]
fn one_version_back_is_spoken_and_two_are_refused_in_words() {
    for scene in [Play::pre_dump(), Play::pages(3)] {
        let ended = play(Play { peers_speak: Some((OLDEST, NEWEST - 1)), ..scene });
        ended.assert_moved();
    }
    // one from the future that still speaks ours
    play(Play { peers_speak: Some((NEWEST, NEWEST + 7)), ..Play::pre_dump() }).assert_moved();
    for (oldest, newest, who) in [(1, OLDEST - 1, "older"), (NEWEST + 1, NEWEST + 2, "newer")] {
        let ended = play(Play { peers_speak: Some((oldest, newest)), ..Play::pre_dump() });
        assert!(ended.source.is_none() && ended.destination.is_none(), "{who}");
        ended.assert_sound(who);
        let error = WireError::Version { theirs_oldest: oldest, theirs_newest: newest }.to_string();
        assert!(error.contains(&format!("the godwit there is {who}")), "{error}");
    }
}

#[test]
fn an_offer_of_nonsense_is_refused_before_anything_is_touched() {
    type Spoil = fn(&mut Offer, &Path);
    let cases: [(&str, Spoil); 8] = [
        ("no engine", |offer, _| offer.engine = "warp".into()),
        ("relative", |offer, _| offer.trees[0].path = "srv".into()),
        ("upwards", |offer, dir| offer.trees[0].path = dir.join("../../etc")),
        ("everything", |offer, _| offer.trees[0].path = "/".into()),
        ("network", |offer, _| offer.network = Some("{{{{".into())),
        ("network plan", |offer, _| offer.network_plan = "bridge=a/b".into()),
        ("giant files", |offer, _| offer.trees[0].bytes = u64::MAX),
        ("giant memory", |offer, _| (offer.memory_bytes, offer.room_pages) = (u64::MAX, Some(u64::MAX))),
    ];
    for (what, spoil) in cases {
        let there = there("");
        let mut offer = there.offer(vec![there.tree(0, "volume")]);
        spoil(&mut offer, there.dir.path());
        let outcome = there.hears(|wire| {
            hello(wire);
            wire.say(&Message::Offer(Box::new(offer))).unwrap();
            listen(wire);
        });
        assert!(matches!(outcome, Ok(Outcome::Refused { .. })), "{what}: {outcome:?}");
        assert!(!there.host.root.join("migrations").exists(), "{what}");
        there.assert_only(&[]);
    }
}

#[test]
fn the_policy_decides_before_anything_is_touched_and_names_its_rule() {
    let there = there("[[allow]]\nrule = \"small\"\npeers = [\"rack2\"]\nroots = [\"/srv\"]\n");
    let offer = there.offer(vec![there.tree(0, "volume")]);
    let outcome = there.hears(|wire| {
        hello(wire);
        wire.say(&Message::Offer(Box::new(offer))).unwrap();
        listen(wire);
    });
    let Ok(Outcome::Refused { reasons }) = outcome else { panic!("{outcome:?}") };
    assert!(reasons[0].reason.contains("rule `small` allows no files in `"), "{reasons:?}");
    assert!(there.witness.look().calls.iter().all(|call| *call == "destination.usable"));
    assert!(!there.host.root.join("migrations").exists());
    // the source says so, and its exit code is that of a refusal
    let policy = Policy::parse("[[allow]]\nrule = \"ssh only\"\npeers = [\"ssh:*\"]").unwrap();
    let ended: Ended = play(Play { policy, ..Play::pre_dump() });
    ended.assert_sound("the policy says no");
    let failure = ended.failure();
    assert_eq!((failure.kind, failure.kind.exit_code()), (FailureKind::Refused, 12), "{failure:?}");
    assert!(failure.causes[0].contains("it has no rule for `test:`"), "{failure:?}");
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn link(at: &str, to: &Path) -> TreeOp {
    use std::os::unix::ffi::OsStrExt;
    TreeOp::Symlink {
        path: path(at),
        destination: to.as_os_str().as_bytes().to_vec(),
        meta: Default::default(),
    }
}

#[test]
fn what_is_written_or_undone_through_a_link_that_was_sent_first_reaches_nothing() {
    let there = there("");
    let precious = there.dir.path().join("precious");
    std::fs::create_dir_all(precious.join("sub")).unwrap();
    std::fs::write(precious.join("sub/file"), "kept").unwrap();
    // an empty directory within the place of another tree, and a place that is not there yet beneath another one
    for dir in ["volume/empty", "volume/there"] {
        std::fs::create_dir_all(there.dir.path().join(dir)).unwrap();
    }
    let trees =
        || vec![there.tree(0, "volume"), there.tree(1, "volume/empty"), there.tree(2, "volume/there/sub")];
    let through: Vec<TreeOp> = vec![
        TreeOp::Dir { path: path("empty/new") },
        TreeOp::FileBegin { path: path("empty/sub/file"), size: 1, new: true },
        TreeOp::Remove { path: path("empty/sub/file") },
        TreeOp::HardLink { path: path("stolen"), to: path("empty/sub/file") },
        TreeOp::Rename { from: path("empty/sub/file"), to: path("stolen") },
        TreeOp::Meta { path: path("empty/sub/file"), meta: Default::default() },
        TreeOp::Device {
            path: path("empty/sub/node"),
            block: true,
            major: 8,
            minor: 0,
            meta: Default::default(),
        },
    ];
    for op in through {
        let offer = there.offer(trees());
        let outcome = there.hears(|wire| {
            prepared(wire, offer);
            wire.say(&Message::RoundBegin { round: 0, last: false }).unwrap();
            for place in ["empty", "there"] {
                wire.operate(TreeId(0), &TreeOp::Remove { path: path(place) }).unwrap();
                wire.operate(TreeId(0), &link(place, &precious)).unwrap();
            }
            let _ = wire.operate(TreeId(0), &op);
            let _ = wire.flush();
            listen(wire);
        });
        let failure = outcome.unwrap_err();
        let said = failure.to_string();
        // a directory is not what a link is
        let refused =
            said.contains("through a symbolic link") || said.contains("something that is no directory");
        assert!(refused, "{op:?}: {failure:?}");
        assert_eq!(
            std::fs::read(precious.join("sub/file")).unwrap(),
            b"kept",
            "{op:?}: undone through a link"
        );
        assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 1, "{op:?}");
        assert_eq!(std::fs::read_dir(precious.join("sub")).unwrap().count(), 1, "{op:?}");
        for place in ["volume/empty", "volume/there"] {
            let place = there.dir.path().join(place);
            let _ = std::fs::remove_file(&place);
            std::fs::create_dir_all(place).unwrap();
        }
    }
}

#[test]
fn trees_that_were_not_offered_do_not_exist() {
    for tree in [TreeId(1), TreeId(0x7fff)] {
        let there = there("");
        let offer = there.offer(vec![there.tree(0, "volume")]);
        let failure = there
            .hears(|wire| {
                prepared(wire, offer);
                wire.say(&Message::RoundBegin { round: 0, last: false }).unwrap();
                let _ = wire.operate(tree, &TreeOp::Dir { path: path("new") });
                let _ = wire.flush();
                listen(wire);
            })
            .unwrap_err();
        assert!(failure.to_string().contains("that was not offered"), "{failure:?}");
        there.assert_only(&[]);
    }
}

#[test]
fn a_migration_that_was_here_does_not_come_again() {
    let there = there("");
    let offer = there.offer(vec![]);
    for time in 0..2 {
        let again = offer.clone();
        let outcome = there.hears(|wire| {
            hello(wire);
            wire.say(&Message::Offer(Box::new(again))).unwrap();
            if time == 0 {
                let _ = wire.hear();
                wire.say(&Message::Cancel { reason: "for now".into() }).unwrap();
            }
            listen(wire);
        });
        assert_eq!(outcome.is_ok(), time == 0, "{outcome:?}");
    }
}

#[test]
fn a_broken_offer_of_any_kind_is_no_panic() {
    // every member of the offer once as something else
    let there = there("");
    let whole =
        serde_json::to_value(Message::Offer(Box::new(there.offer(vec![there.tree(0, "volume")])))).unwrap();
    let members: Vec<String> = whole.as_object().unwrap().keys().cloned().collect();
    for member in members.iter().filter(|member| *member != "message") {
        for other in [serde_json::json!(null), (-1).into(), "x".into(), serde_json::json!([[[]]])] {
            let mut broken = whole.clone();
            broken[member] = other;
            let Ok(message) = serde_json::from_value::<Message>(broken) else { continue };
            let outcome = there.hears(|wire| {
                hello(wire);
                wire.say(&message).unwrap();
                if let Ok(Incoming::Message(Message::Accept { .. })) = wire.hear() {
                    wire.say(&Message::Cancel { reason: "enough".into() }).unwrap();
                }
                listen(wire);
            });
            assert!(outcome.is_err() || !matches!(outcome, Ok(Outcome::Running { .. })));
        }
    }
}

impl Ended {
    /// It runs at the source as before, which says so.
    fn assert_source_keeps_it(&self, context: &str) {
        self.assert_sound(context);
        assert_eq!(self.failure().disposition, Disposition::RunningAtSource, "{context}");
    }
}

/// A destination that lies: what the real source makes of it.
fn lied_to(answers: impl Fn(&Message) -> Vec<Message> + Send + Sync + 'static) -> Ended {
    play(Play { liar: Some(Liar(Arc::new(answers))), ..Play::stop_and_copy() })
}

fn accept() -> Message {
    Message::Accept {
        bases: vec![godwit_transfer::TreeBase::Empty],
        process_start_us: 0,
        restoration: Restoration::Eager,
        restoration_why: String::new(),
    }
}

/// What an honest destination answers, with nothing behind it.
fn honest(message: &Message) -> Vec<Message> {
    match message {
        Message::Hello { .. } => vec![Message::Hello { godwit: "0".into(), host: "liar".into() }],
        Message::Offer(_) => vec![accept()],
        Message::Prepare => vec![Message::Prepared],
        Message::RoundEnd { round: 0, .. } => vec![Message::RoundAck { round: 0 }],
        Message::RoundEnd { .. } => vec![Message::Ready { verify_us: 0 }],
        Message::Restore => vec![Message::Restored { pid: 1 }],
        Message::Go => vec![Message::Running { pid: 1 }],
        Message::Done => vec![Message::Settled { fill: None, leftovers: vec![] }],
        Message::Cancel { .. } => vec![Message::Undone { leftovers: vec![] }],
        _ => vec![],
    }
}

#[test]
fn a_destination_that_runs_ahead_of_its_answers_does_not_get_the_container() {
    let early: Vec<(&str, Message)> = vec![
        ("offer", Message::Running { pid: 1 }),
        ("offer", Message::Restored { pid: 1 }),
        ("prepare", Message::Ready { verify_us: 0 }),
        ("prepare", Message::Running { pid: 1 }),
        ("round-end", Message::Restored { pid: 1 }),
        ("round-end", Message::Running { pid: 1 }),
        ("round-end", Message::RoundAck { round: 99 }),
        ("restore", Message::Running { pid: 1 }),
        ("restore", Message::Settled { fill: None, leftovers: vec![] }),
        (
            "offer",
            Message::Accept {
                bases: vec![godwit_transfer::TreeBase::Empty; 500],
                process_start_us: u64::MAX,
                restoration: Restoration::Eager,
                restoration_why: String::new(),
            },
        ),
        ("offer", Message::Refuse { reasons: vec![Refusal::new("no")] }),
    ];
    for (at, lie) in early {
        let said = lie.clone();
        let ended =
            lied_to(move |message| if message.name() == at { vec![said.clone()] } else { honest(message) });
        let context = format!("{} for {at}", lie.name());
        ended.assert_source_keeps_it(&context);
        let code = ended.failure().kind.exit_code();
        let refused = matches!(lie, Message::Refuse { .. });
        assert_eq!(code, if refused { 12 } else { 1 }, "{context}: {:?}", ended.failure());
    }
}

#[test]
fn a_destination_that_says_running_before_go_changes_nothing_for_the_source() {
    // said together with `restored`: it is in the pipe when the source asks whether it may give its word
    let ended = lied_to(|message| match message {
        Message::Restore => vec![Message::Restored { pid: 1 }, Message::Running { pid: 1 }],
        other => honest(other),
    });
    // whoever lies about running has the container by his word: what counts is that it never runs here as well
    let world = ended.witness.look();
    assert!(!world.source_runs && !world.destination_runs, "{:?}", ended.source);
}

#[test]
fn a_destination_that_answers_everything_twice_or_never_is_no_trouble() {
    let twice =
        lied_to(|message| honest(message).into_iter().flat_map(|word| [word.clone(), word]).collect());
    twice.assert_source_keeps_it("everything twice");
    let closes = lied_to(|message| match message {
        Message::Prepare => vec![],
        other => honest(other),
    });
    closes.assert_source_keeps_it("no answer");
}

/// What is on the way to the destination, message by message.
pub fn liar(mut wire: Wire, answers: &dyn Fn(&Message) -> Vec<Message>) {
    wire.set_patience(Duration::from_secs(2));
    loop {
        match wire.hear() {
            Ok(Incoming::Message(message)) => {
                let words = answers(&message);
                if words.is_empty() && matches!(message, Message::Prepare) {
                    return;
                }
                if words.iter().any(|word| wire.say(word).is_err()) {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[test]
fn a_further_connection_must_come_from_the_same_host() {
    let joins = Joins::default();
    let (near, far) = Descriptors::pair().unwrap();
    let other = std::thread::spawn(move || Wire::open(Box::new(far), Cancel::default(), SOON).unwrap());
    let _near = Wire::open(Box::new(near), Cancel::default(), SOON).unwrap();
    let error = joins.join(other.join().unwrap(), &MigrationId::generate().unwrap(), "rack3").unwrap_err();
    assert!(error.to_string().contains("no migration"), "{error}");
}

#[test]
fn images_are_for_root_alone_while_they_lie_on_disk() {
    use std::os::unix::fs::MetadataExt;
    for scene in [Play::pre_dump(), Play::checkpoint(), Play::stop_and_copy(), Play::pages(3)] {
        let seen = Arc::new(std::sync::Mutex::new((0, Vec::new())));
        let found = seen.clone();
        let look = move |roots: &[PathBuf]| {
            let mut found = found.lock().unwrap();
            let mut todo: Vec<(PathBuf, bool)> =
                roots.iter().map(|root| (root.join("migrations"), true)).collect();
            while let Some((path, exposed)) = todo.pop() {
                let Ok(meta) = path.symlink_metadata() else { continue };
                let open = meta.mode() & 0o077 != 0 && !meta.is_symlink();
                // a directory that nobody can enter protects what is in it
                let exposed = exposed && open;
                if meta.is_dir() {
                    todo.extend(
                        std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| (e.path(), exposed)),
                    );
                } else if path.extension().is_some_and(|extension| extension == "img") {
                    found.0 += 1;
                    if exposed {
                        found.1.push(format!("{} {:o}", path.display(), meta.mode()));
                    }
                }
            }
        };
        let ended = play(Play { look: Some(Look(Arc::new(look))), ..scene });
        ended.assert_moved();
        let (images, exposed) = &*seen.lock().unwrap();
        assert!(*images > 0, "no image was ever seen");
        assert!(exposed.is_empty(), "{exposed:#?}");
    }
}
