use super::*;
use crate::{Attended, Visit, attend};
use godwit_store::manifest::Tree;
use godwit_transfer::tree::{TreeDestination, TreeOp};
use godwit_transfer::{Descriptors, Incoming, Message, Wire, WireError};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a neighbour does when it is asked for chunks.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Gives them after so many milliseconds.
    Gives(u64),
    /// Gives some, then no more.
    Dies(usize),
    /// Says nothing for so many milliseconds, then that it cannot.
    Stalls(u64),
    /// Had them when it was asked whether it has.
    Forgets,
    /// Does not even say what it has.
    IsMute,
}

struct Fake<'a> {
    name: &'static str,
    chunks: HashMap<Digest, Vec<u8>>,
    manner: Manner,
    questions: &'a AtomicUsize,
}

impl Neighbour for Fake<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn has(&mut self, digests: &[Digest]) -> Result<Vec<bool>, String> {
        match self.manner {
            Manner::IsMute => Err("mute".into()),
            _ => Ok(digests.iter().map(|digest| self.chunks.contains_key(digest)).collect()),
        }
    }

    fn checkpoints(&mut self, _: &str) -> Result<Vec<Known>, String> {
        Ok(Vec::new())
    }

    fn of_image(&mut self, _: &str) -> Result<Vec<OfImage>, String> {
        Ok(Vec::new())
    }

    fn manifest(&mut self, _: Digest) -> Result<Option<Manifest>, String> {
        Ok(None)
    }

    fn give(&mut self, digests: &[Digest]) -> Result<Vec<Option<Vec<u8>>>, String> {
        let before = self.questions.fetch_add(1, Ordering::AcqRel);
        match self.manner {
            Manner::Gives(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Manner::Dies(after) if before >= after => return Err("gone".into()),
            Manner::Stalls(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                return Err("silent".into());
            }
            Manner::Forgets => return Ok(vec![None; digests.len()]),
            Manner::Dies(_) | Manner::IsMute => {}
        }
        Ok(digests.iter().map(|digest| self.chunks.get(digest).cloned()).collect())
    }
}

fn chunks(numbers: std::ops::Range<u32>) -> Vec<(Digest, Vec<u8>)> {
    let chunk = |number: u32| number.to_le_bytes().repeat(4000);
    numbers.map(|number| (Digest::of(&chunk(number)), chunk(number))).collect()
}

fn needs(of: &[(Digest, Vec<u8>)]) -> Vec<(Digest, u64)> {
    of.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)).collect()
}

/// Gathers all, one after the other; how many came, each of them right.
fn run(
    wanted: &[(Digest, Vec<u8>)],
    neighbours: Vec<(&'static str, std::ops::Range<u32>, Manner)>,
    source_bytes_per_s: u64,
) -> (usize, CooperationReport) {
    let questions: Vec<AtomicUsize> = neighbours.iter().map(|_| AtomicUsize::new(0)).collect();
    let fakes = neighbours.into_iter().zip(&questions).map(|((name, has, manner), questions)| {
        let chunks = chunks(has).into_iter().collect();
        Box::new(Fake { name, chunks, manner, questions }) as Box<dyn Neighbour + '_>
    });
    let over = Cancel::default();
    let (came, report) = gather(
        Needs::in_order(&needs(wanted)),
        None,
        fakes.collect(),
        &over,
        source_bytes_per_s,
        &mut || Ok(()),
        |all| {
            let mut came = 0;
            for (digest, bytes) in wanted {
                if let Some(got) = all.chunk(*digest).unwrap() {
                    assert_eq!(got, *bytes);
                    came += 1;
                }
            }
            came
        },
    );
    assert!(over.is_raised());
    (came, report)
}

#[test]
fn what_is_needed_aside_comes_although_nothing_in_order_is_used() {
    let in_order = chunks(0..3000);
    // one of them is needed in both lines, and the last one nobody has
    let (both, nowhere) = (chunks(7..8), chunks(4010..4011));
    let aside = [both, chunks(4000..4010), nowhere].concat();
    let questions = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let fakes = [(0..3000, Manner::Gives(0)), (4000..4010, Manner::Gives(30))].into_iter().zip(&questions);
    let fakes = fakes.map(|((has, manner), questions)| {
        let chunks = chunks(has).into_iter().collect();
        Box::new(Fake { name: "one", chunks, manner, questions }) as Box<dyn Neighbour + '_>
    });
    let came = AtomicUsize::new(0);
    let (needs, needs_aside) = (needs(&in_order), needs(&aside));
    let take = Box::new(|bytes: &[u8]| {
        assert!(chunks(4000..4010).iter().any(|(_, right)| right == bytes));
        came.fetch_add(1, Ordering::AcqRel);
        Ok(())
    });
    let needs = Needs { in_order: &needs, aside: Some(Aside { needs: &needs_aside, take }) };
    let (used, report) = gather(needs, None, fakes.collect(), &Cancel::default(), 0, &mut || Ok(()), |all| {
        let begun = Instant::now();
        while came.load(Ordering::Acquire) < 10 {
            assert!(begun.elapsed() < Duration::from_secs(8), "it waits for what is needed in order");
            std::thread::sleep(Duration::from_millis(5));
        }
        in_order.iter().filter(|(digest, _)| all.chunk(*digest).unwrap().is_some()).count()
    });
    assert_eq!((used, came.into_inner()), (3000, 10));
    assert_eq!(report.wanted_bytes, 3011 * 16000);
    assert_eq!(report.gathered_bytes(), 3010 * 16000);
}

#[test]
fn what_is_needed_aside_ends_when_nothing_more_is_wanted() {
    let aside = chunks(0..3000);
    let questions = AtomicUsize::new(0);
    let chunks = aside.iter().cloned().collect();
    let fake = Fake { name: "slow", chunks, manner: Manner::Gives(100), questions: &questions };
    let needs_aside = needs(&aside);
    let needs =
        Needs { in_order: &[], aside: Some(Aside { needs: &needs_aside, take: Box::new(|_| Ok(())) }) };
    let begun = Instant::now();
    let mut alive = || match begun.elapsed() > Duration::from_millis(300) {
        true => Err(StoreError::Interrupted),
        false => Ok(()),
    };
    gather(needs, None, vec![Box::new(fake)], &Cancel::default(), 0, &mut alive, |_| ());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

fn gave(report: &CooperationReport, name: &str) -> (u64, Option<String>) {
    let of = report.neighbours.iter().find(|neighbour| neighbour.neighbour == name).unwrap();
    (of.bytes, of.failed.clone())
}

#[test]
fn nobody_is_waited_for_who_has_nothing() {
    let wanted = chunks(0..500);
    let (came, report) = run(&wanted, vec![], 0);
    assert_eq!((came, report.gathered_bytes(), report.wanted_bytes), (0, 0, 500 * 16000));
    let (came, _) = run(&wanted, vec![("a", 500..600, Manner::Gives(0)), ("b", 0..0, Manner::Gives(0))], 0);
    assert_eq!(came, 0);
}

#[test]
fn several_give_what_each_has_and_the_quick_one_gives_more() {
    let wanted = chunks(0..3000);
    let (came, report) =
        run(&wanted, vec![("slow", 0..2500, Manner::Gives(40)), ("quick", 500..2900, Manner::Gives(1))], 0);
    assert_eq!(came, 2900);
    assert_eq!(report.gathered_bytes(), 2900 * 16000);
    assert!(gave(&report, "quick").0 > gave(&report, "slow").0, "{report:?}");
    // what only it has
    assert!(gave(&report, "slow").0 >= 500 * 16000, "{report:?}");
}

#[test]
fn whoever_dies_or_forgets_or_is_mute_costs_nothing_that_others_have() {
    let wanted = chunks(0..2000);
    let neighbours = vec![
        ("dies", 0..2000, Manner::Dies(3)),
        ("forgets", 0..2000, Manner::Forgets),
        ("mute", 0..2000, Manner::IsMute),
        ("true", 0..1990, Manner::Gives(2)),
    ];
    let (came, report) = run(&wanted, neighbours, 0);
    assert!((1990..=2000).contains(&came), "{came}");
    assert_eq!(report.gathered_bytes(), came as u64 * 16000);
    assert_eq!(gave(&report, "dies").1.as_deref(), Some("gone"));
    assert_eq!(gave(&report, "mute"), (0, Some("mute".into())));
    assert_eq!(gave(&report, "forgets"), (0, None));
}

#[test]
fn another_is_asked_when_one_stalls() {
    let wanted = chunks(0..200);
    let begun = Instant::now();
    let neighbours = vec![("stalls", 0..200, Manner::Stalls(4000)), ("true", 0..200, Manner::Gives(50))];
    let (came, report) = run(&wanted, neighbours, 0);
    assert_eq!(came, 200);
    assert_eq!(gave(&report, "true").0, 200 * 16000);
    // the thread of the stalling one is waited for: a real one hears that it is over
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert!(report.duration < Duration::from_secs(6));
}

#[test]
fn the_source_is_preferred_when_it_is_quicker() {
    let wanted = chunks(0..4000);
    // 32 chunks of 16 kB each 400 ms: 1.3 MB/s
    let begun = Instant::now();
    let (came, report) = run(&wanted, vec![("slow", 0..4000, Manner::Gives(400))], 100_000_000);
    assert!(came < 1000, "{came}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(gave(&report, "slow").0 > 0);
}

#[test]
fn what_is_needed_twice_comes_once() {
    let mut wanted = chunks(0..50);
    wanted.extend(chunks(0..50));
    let (came, report) = run(&wanted, vec![("a", 0..50, Manner::Gives(1))], 0);
    assert_eq!((came, report.wanted_bytes, report.gathered_bytes()), (100, 50 * 16000, 50 * 16000));
}

#[test]
fn whoever_has_enough_ends_it() {
    let wanted = chunks(0..2000);
    let fake = Fake {
        name: "a",
        chunks: wanted.iter().cloned().collect(),
        manner: Manner::Gives(20),
        questions: &AtomicUsize::new(0),
    };
    let begun = Instant::now();
    let mut alive = || if begun.elapsed().as_millis() > 100 { Err(StoreError::Interrupted) } else { Ok(()) };
    let (ended, _) = gather(
        Needs::in_order(&needs(&wanted)),
        None,
        vec![Box::new(fake)],
        &Cancel::default(),
        0,
        &mut alive,
        |all| wanted.iter().try_for_each(|(digest, _)| all.chunk(*digest).map(drop)),
    );
    assert!(matches!(ended, Err(StoreError::Interrupted)));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// Fills a volume with what can be anything, and some that repeats.
fn make_volume(root: &Path) {
    std::fs::create_dir_all(root.join("deep/er")).unwrap();
    let mut random = 7u64;
    let mut bytes = Vec::new();
    for _ in 0..400_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&random.to_le_bytes());
    }
    std::fs::write(root.join("large"), &bytes).unwrap();
    std::fs::write(root.join("deep/er/again"), &bytes[..1_000_000]).unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    std::fs::hard_link(root.join("large"), root.join("deep/large")).unwrap();
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

fn equal(one: &Path, other: &Path) -> bool {
    let said = std::process::Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    said.status.success()
}

/// With real stores and the real wire: a tree comes from a neighbour's store, whatever is damaged there.
#[test]
fn a_tree_comes_over_the_wire_and_what_is_damaged_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    make_volume(&volume);
    let store = Store::open(&dir.path().join("store"), None).unwrap();
    let mut lease = store.lease().unwrap();
    let tree = Tree::list(&volume, &mut |_| Ok(())).unwrap();
    // what is listed is what would be stored
    let stored = lease.add_tree(&volume, &mut |_| {}).unwrap();
    assert_eq!(lease.put_manifest(&Manifest::Tree(tree.clone())).unwrap(), stored.manifest);
    let copy = dir.path().join("copy");
    let report = fetch(&tree, &store, &copy);
    assert!(equal(&volume, &copy));
    assert_eq!(report.neighbours[0].failed, None);
    assert_eq!(report.gathered_bytes(), report.wanted_bytes);

    // a neighbour whose checkpoint it is
    let mut lease = store.lease().unwrap();
    let facts = [("container", "runc:web"), ("image_id", "sha256:1f"), ("made_unix_s", "1790000000")];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let described = lease.describe(stored.manifest, facts).unwrap();
    lease.pin(&"checkpoint/web".parse().unwrap(), described).unwrap();
    let (ours, theirs) = Descriptors::pair().unwrap();
    let server = serve(theirs, &store);
    let mut visit = Visit::begin("there", Box::new(ours), "here", Cancel::default()).unwrap();
    assert_eq!(visit.checkpoints("runc:other").unwrap(), []);
    let known = visit.checkpoints("runc:web").unwrap();
    assert_eq!(known, [Known { tree: stored.manifest, made_unix_s: 1_790_000_000 }]);
    let of_image = vec![OfImage { container: "runc:web".into(), known: known[0].clone() }];
    assert_eq!(visit.of_image("sha256:1f").unwrap(), of_image);
    assert_eq!(visit.of_image("sha256:1").unwrap(), []);
    assert_eq!(visit.manifest(stored.manifest).unwrap(), Some(Manifest::Tree(tree.clone())));
    assert_eq!(visit.manifest(Digest::of(b"nobody")).unwrap(), None);
    drop(visit);
    server.join().unwrap().unwrap();

    // the neighbour finds out itself, and has it no more; the rest comes
    let (bad, _) = tree.needs()[3];
    let path = store.root().join("chunks").join(&bad.to_string()[..2]).join(bad.to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let other = dir.path().join("other");
    let report = fetch(&tree, &store, &other);
    assert!(!equal(&volume, &other) && report.gathered_bytes() < report.wanted_bytes);
    assert_eq!(report.neighbours[0].failed, None);
    assert_eq!(std::fs::metadata(other.join("large")).unwrap().len(), 3_200_000);
}

/// A store that gives something else than what it was asked for is found out, and asked no more.
#[test]
fn a_liar_is_asked_no_more() {
    let (ours, theirs) = Descriptors::pair().unwrap();
    let wanted = chunks(0..100);
    let server = std::thread::spawn(move || {
        let mut wire = Wire::open(Box::new(theirs), Cancel::default(), Duration::from_secs(5)).unwrap();
        wire.hear().unwrap();
        wire.say(&Message::Welcome { host: "liar".into(), streams: false }).unwrap();
        while let Ok(Incoming::Bytes(question)) = wire.hear() {
            let answer = match crate::question::Question::from_bytes(&question).unwrap() {
                crate::question::Question::Has(digests) => {
                    crate::question::Answer::has(&vec![true; digests.len()])
                }
                crate::question::Question::Give(digests) => crate::question::Answer::Chunks(
                    digests
                        .iter()
                        .map(|_| Some(object::encode(godwit_store::Kind::Chunk, b"a lie").into()))
                        .collect(),
                ),
                other => panic!("{other:?} was not to be asked"),
            };
            if wire.send_bytes(&answer.to_bytes()).is_err() {
                break;
            }
        }
    });
    let visit = Visit::begin("liar", Box::new(ours), "here", Cancel::default()).unwrap();
    let (came, report) = gather(
        Needs::in_order(&needs(&wanted)),
        None,
        vec![Box::new(visit)],
        &Cancel::default(),
        0,
        &mut || Ok(()),
        |all| wanted.iter().filter(|(digest, _)| all.chunk(*digest).unwrap().is_some()).count(),
    );
    server.join().unwrap();
    assert_eq!((came, report.gathered_bytes()), (0, 0));
    let failed = report.neighbours[0].failed.as_deref().unwrap();
    assert!(failed.contains("it gave something else for chunk"), "{failed}");
}

fn serve(theirs: Descriptors, store: &Store) -> std::thread::JoinHandle<Result<Attended, WireError>> {
    let store = store.clone();
    std::thread::spawn(move || {
        let mut wire = Wire::open(Box::new(theirs), Cancel::default(), Duration::from_secs(5)).unwrap();
        assert!(matches!(wire.hear(), Ok(Incoming::Message(Message::Visit { .. }))));
        attend(&mut wire, Some(&store), "there", None, Err("no".into()))
    })
}

fn fetch(tree: &Tree, store: &Store, to: &Path) -> CooperationReport {
    std::fs::create_dir(to).unwrap();
    let (ours, theirs) = Descriptors::pair().unwrap();
    let server = serve(theirs, store);
    let over = Cancel::default();
    let visit = Visit::begin("there", Box::new(ours), "here", over.clone()).unwrap();
    let mut destination = TreeDestination::open(to).unwrap();
    let mut emit = |step: TreeOp| Ok(destination.apply(step)?);
    let (filled, report) = gather(
        Needs::in_order(&tree.needs()),
        None,
        vec![Box::new(visit)],
        &over,
        0,
        &mut || Ok(()),
        |chunks| tree.unfold(chunks, &mut emit, &mut |_, _| {}),
    );
    filled.unwrap();
    server.join().unwrap().unwrap();
    report
}
