//! The ledger at the source and the store at the destination, together: whatever happens to the memory of the source's
//! tasks, after a round the store has the same.

#![allow(clippy::unwrap_used)]

use godwit_memory::batch::{BatchBuilder, Kind, Run};
use godwit_memory::destination::{Content, PageStore, StoreError};
use godwit_memory::ledger::{LedgerError, PageLedger};
use godwit_memory::{ImageId, PAGE_SIZE, PageRun};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;

type Page = [u8; PAGE_SIZE as usize];

/// The few addresses the tests use lie at the border of two blocks, so that neighbours go over different streams.
fn address(page: u64) -> u64 {
    ((2 << 20) - 6 * PAGE_SIZE) + page * PAGE_SIZE
}

/// A page with content number `content`; 0 is all zero.
fn page(content: u8) -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    // Not at the start: a page must be looked at to its end.
    page[4095] = content;
    page[100] = content;
    page
}

#[derive(Clone, Debug)]
enum Step {
    /// These pages have these contents now, and are added.
    Write { image: u8, first: u64, contents: Vec<u8> },
    /// The source compares with what exists: only these pages still do. What is missing is added.
    Reconcile { image: u8, exist: Vec<bool> },
    /// The task is gone.
    ForgetImage { image: u8 },
    /// Batches go out before they are full.
    Flush,
    /// The round ends, with this order of the streams.
    EndRound { order: Vec<prop::sample::Index> },
    /// The link is lost after so many batches, and both sides begin anew with what is there.
    BeginAnew { arrived: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Few contents, so that pages often are equal, and zero.
    let write = (0..3u8, 0..12u64, prop::collection::vec(0..5u8, 1..6))
        .prop_map(|(image, first, contents)| Step::Write { image, first, contents });
    prop_oneof![
        8 => write,
        1 => (0..3u8, prop::collection::vec(any::<bool>(), 18)).prop_map(|(image, exist)| Step::Reconcile { image, exist }),
        1 => (0..3u8).prop_map(|image| Step::ForgetImage { image }),
        1 => Just(Step::Flush),
        1 => (0..4usize).prop_map(|arrived| Step::BeginAnew { arrived }),
        4 => prop::collection::vec(any::<prop::sample::Index>(), 1..20).prop_map(|order| Step::EndRound { order }),
    ]
}

fn image(number: u8) -> ImageId {
    match number {
        0 => ImageId::Task(1),
        1 => ImageId::Task(7),
        _ => ImageId::Shared(1),
    }
}

/// What waits on the streams.
struct Wire(Vec<VecDeque<Vec<u8>>>);

impl Wire {
    fn send(&mut self) -> impl FnMut(usize, &mut Vec<u8>) -> Result<(), Infallible> + '_ {
        |stream, batch| {
            self.0[stream].push_back(std::mem::take(batch));
            Ok(())
        }
    }

    /// Each stream in its own order, but one may be far ahead of another.
    fn deliver(&mut self, store: &PageStore, order: &[prop::sample::Index]) {
        let mut order = order.iter().cycle();
        while self.0.iter().any(|queue| !queue.is_empty()) {
            let waiting: Vec<usize> = (0..self.0.len()).filter(|&at| !self.0[at].is_empty()).collect();
            let stream = waiting[order.next().unwrap().index(waiting.len())];
            store.apply(&self.0[stream].pop_front().unwrap()).unwrap();
        }
    }
}

type Model = BTreeMap<(ImageId, u64), u8>;

fn check(store: &PageStore, ledger: &PageLedger, model: &Model) {
    let mut users = BTreeMap::new();
    let mut seen = Model::new();
    for image in store.images() {
        for (run, content) in store.runs(image, None) {
            for at in 0..run.pages {
                let address = run.start + at * PAGE_SIZE;
                let mut read = [1; PAGE_SIZE as usize];
                assert!(store.read(image, address, &mut read));
                assert_eq!(read, page(read[100]));
                match content {
                    Content::Zero => assert_eq!(read[100], 0),
                    Content::Slot(first) => {
                        assert_eq!(store.slice(first + at as u32, 1), read);
                        *users.entry(first + at as u32).or_insert(0) += 1;
                    }
                }
                assert!(ledger.contains(image, address));
                assert_eq!(seen.insert((image, address), read[100]), None, "a page in two runs");
            }
        }
    }
    assert_eq!(&seen, model);
    for (slot, count) in &users {
        assert_eq!(store.shared_by(*slot), *count);
    }
    assert_eq!(ledger.statistics().live, users.len() as u64);
    assert_eq!(store.used(), (seen.len() as u64, users.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_store_has_what_the_source_has(streams in 1..5usize, order_at_the_end in prop::collection::vec(any::<prop::sample::Index>(), 1..9), steps in prop::collection::vec(step(), 1..60)) {
        // Enough for every version of every page: never full.
        let room = 60 * 5;
        let mut store = PageStore::reserve(room).unwrap();
        let mut ledger = PageLedger::new(streams, room, 42);
        let mut wire = Wire(vec![VecDeque::new(); streams]);
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Write { image: number, first, contents } => {
                    let image = image(number);
                    let bytes: Vec<u8> = contents.iter().flat_map(|content| page(*content)).collect();
                    ledger.add(image, address(first), &bytes, &mut wire.send()).unwrap();
                    for (at, content) in contents.iter().enumerate() {
                        model.insert((image, address(first + at as u64)), *content);
                    }
                }
                Step::Reconcile { image: number, exist } => {
                    let image = image(number);
                    let existing: Vec<PageRun> = (0..18u64).filter(|at| exist[*at as usize])
                        .map(|at| PageRun { start: address(at), pages: 1 }).collect();
                    let missing = ledger.reconcile(image, &existing, &mut wire.send()).unwrap();
                    let kept: BTreeSet<u64> = existing.iter().map(|run| run.start).collect();
                    model.retain(|(of, address), _| *of != image || kept.contains(address));
                    let missing: BTreeSet<u64> = missing.iter()
                        .flat_map(|run| (run.start..run.end()).step_by(PAGE_SIZE as usize)).collect();
                    let known: BTreeSet<u64> = model.keys().filter(|(of, _)| *of == image).map(|(_, at)| *at).collect();
                    prop_assert_eq!(missing, &kept - &known);
                }
                Step::ForgetImage { image: number } => {
                    ledger.forget_image(image(number), &mut wire.send()).unwrap();
                    model.retain(|(of, _), _| *of != image(number));
                }
                Step::Flush => ledger.flush(&mut wire.send()).unwrap(),
                Step::EndRound { order } => {
                    ledger.end_round(&mut wire.send()).unwrap();
                    wire.deliver(&store, &order);
                    check(&store, &ledger, &model);
                }
                Step::BeginAnew { arrived } => {
                    for queue in &mut wire.0 {
                        for batch in queue.drain(..).take(arrived) {
                            store.apply(&batch).unwrap();
                        }
                    }
                    store = PageStore::adopt(store.file().try_clone().unwrap(), room).unwrap();
                    ledger = PageLedger::new(streams, store.room(), 43);
                    ledger.keep(store.digests(43));
                    model.clear();
                    check(&store, &ledger, &model);
                }
            }
        }
        ledger.end_round(&mut wire.send()).unwrap();
        wire.deliver(&store, &order_at_the_end);
        check(&store, &ledger, &model);
        let done = ledger.statistics();
        prop_assert_eq!(done.added, done.unchanged + done.zero + done.referenced + done.data);
    }

    #[test]
    fn whatever_a_peer_sends_the_store_survives(batches in prop::collection::vec(prop::collection::vec(
        (0..4u8, 0..40u64, 1..600u64, 0..12u32, any::<bool>()), 1..8), 1..8)) {
        let store = PageStore::reserve(8).unwrap();
        for runs in batches {
            let mut builder = BatchBuilder::default();
            for (kind, page, pages, first, far) in runs {
                let pages = if kind == 0 { pages % 4 + 1 } else { pages };
                let start = if far { (1 << 47) - PAGE_SIZE * page } else { page * PAGE_SIZE };
                let kind = match kind {
                    0 => Kind::Data { first },
                    1 => Kind::Zero,
                    2 => Kind::Reference { first },
                    _ => Kind::Forget,
                };
                let data = if kind == (Kind::Data { first }) { vec![9; (pages * PAGE_SIZE) as usize] } else { Vec::new() };
                builder.push(Run { image: ImageId::Task(1), pages: PageRun { start, pages }, kind }, &data);
            }
            let _ = store.apply(&builder.finish());
        }
        for (run, content) in store.runs(ImageId::Task(1), None) {
            if let Content::Slot(first) = content {
                prop_assert!(u64::from(first) + run.pages <= 8);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let store = PageStore::reserve(2).unwrap();
        prop_assert!(store.apply(&bytes).is_err() || bytes.len() == 16);
    }
}

fn one(kind: Kind, page: u64, pages: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    let data =
        if matches!(kind, Kind::Data { .. }) { vec![7; (pages * PAGE_SIZE) as usize] } else { Vec::new() };
    builder.push(
        Run { image: ImageId::Task(1), pages: PageRun { start: page * PAGE_SIZE, pages }, kind },
        &data,
    );
    builder.finish()
}

#[test]
fn what_the_peer_says_is_checked() {
    let store = PageStore::reserve(4).unwrap();
    assert!(matches!(
        store.apply(&one(Kind::Data { first: 3 }, 0, 2)),
        Err(StoreError::Slot { first: 3, last: 4, room: 4 })
    ));
    assert!(matches!(
        store.apply(&one(Kind::Data { first: u32::MAX }, 0, 1)),
        Err(StoreError::Slot { last: 0xffff_ffff, .. })
    ));
    assert!(matches!(
        store.apply(&one(Kind::Reference { first: 2 }, 0, 1)),
        Err(StoreError::Unwritten { slot: 2 })
    ));
    assert_eq!(store.apply(&one(Kind::Data { first: 2 }, 0, 2)).unwrap().data, 2);
    assert_eq!(store.apply(&one(Kind::Reference { first: 2 }, 5, 2)).unwrap().referenced, 2);
    assert_eq!(store.shared_by(3), 2);
    assert!(matches!(
        store.apply(&one(Kind::Zero, 0, u64::from(u32::MAX))),
        Err(StoreError::Scattered { limit: 65540 })
    ));
}

#[test]
fn a_store_that_does_not_fit_says_how_much_is_missing() {
    let error = PageStore::reserve(1 << 30).unwrap_err();
    assert!(matches!(error, StoreError::Memory { needed, .. } if needed == 1 << 42), "{error}");
}

#[test]
fn a_full_ledger_names_the_room() {
    let mut ledger = PageLedger::new(1, 2, 1);
    let mut send = |_: usize, _: &mut Vec<u8>| Ok::<(), Infallible>(());
    let three: Vec<u8> = [page(1), page(2), page(3)].concat();
    let error = ledger.add(ImageId::Task(1), 0, &three, &mut send).unwrap_err();
    assert!(matches!(error, LedgerError::Full { room: 2 }));
    assert_eq!(error.to_string(), "the destination has room for 2 pages, the containers' memory needs more");
}

#[test]
fn a_page_that_changes_keeps_its_slot_and_neighbours_stay_neighbours() {
    let store = PageStore::reserve(64).unwrap();
    let mut ledger = PageLedger::new(1, 64, 1);
    let task = ImageId::Task(3);
    let mut apply = |_: usize, batch: &mut Vec<u8>| store.apply(batch).map(drop);
    let all: Vec<u8> = (1..=32).flat_map(page).collect();
    ledger.add(task, 0, &all, &mut apply).unwrap();
    ledger.end_round(&mut apply).unwrap();
    for at in [3u64, 17, 4] {
        ledger.add(task, at * PAGE_SIZE, &page(100 + at as u8), &mut apply).unwrap();
    }
    ledger.end_round(&mut apply).unwrap();
    assert_eq!(store.runs(task, None), [(PageRun { start: 0, pages: 32 }, Content::Slot(0))]);
    assert_eq!(
        store.runs(task, Some(PAGE_SIZE..3 * PAGE_SIZE)),
        [(PageRun { start: PAGE_SIZE, pages: 2 }, Content::Slot(1))]
    );
    assert_eq!(store.slice(17, 1), page(117));
}

#[test]
fn what_an_earlier_attempt_brought_does_not_travel_again() {
    let pages = 64;
    let bytes: Vec<u8> = (1..=pages).flat_map(|content| page(content as u8)).collect();
    let store = PageStore::reserve(pages).unwrap();
    let bring = |ledger: &mut PageLedger, store: &PageStore, at: u64| {
        ledger.add::<Infallible>(image(1), address(at), &bytes, &mut |_, _| Ok(())).unwrap();
        ledger
            .end_round::<Infallible>(&mut |_, batch| {
                store.apply(batch).unwrap();
                batch.clear();
                Ok(())
            })
            .unwrap();
    };
    bring(&mut PageLedger::new(1, pages, 1), &store, 0);

    let larger = PageStore::adopt(store.file().try_clone().unwrap(), pages + 8).unwrap();
    assert_eq!(larger.room(), pages + 8);
    assert_eq!(larger.used(), (0, 0), "no page is known");
    let mut ledger = PageLedger::new(2, larger.room(), 2);
    ledger.keep(larger.digests(2));
    assert_eq!(ledger.statistics().live, 0);
    // elsewhere in the address space, and over other streams
    bring(&mut ledger, &larger, 5000);
    let done = ledger.statistics();
    assert_eq!((done.referenced, done.data, done.live), (pages, 0, pages));
    let mut read = [0; PAGE_SIZE as usize];
    assert!(larger.read(image(1), address(5000 + 40), &mut read));
    assert_eq!(read, page(41));
    // what is not wanted any more makes way: 8 + 64 slots for 64 kept and 72 new contents
    ledger.forget_image::<Infallible>(image(1), &mut |_, _| Ok(())).unwrap();
    ledger.end_round::<Infallible>(&mut |_, _| Ok(())).unwrap();
    let new: Vec<u8> = (0..72).flat_map(|content| page(100 + content)).collect();
    ledger.add::<Infallible>(image(2), address(0), &new, &mut |_, _| Ok(())).unwrap();
    assert_eq!(ledger.statistics().live, 72);
}

#[test]
fn what_a_destination_says_that_it_has_is_no_trouble_whatever_it_is() {
    let room = 8;
    let mut ledger = PageLedger::new(1, room, 1);
    let digest = |content| PageLedger::digest(&page(content), 1);
    // twice the same slot, the same content in two, and slots that do not exist
    ledger.keep([
        (3, digest(1)),
        (3, digest(1)),
        (3, digest(2)),
        (4, digest(1)),
        (8, digest(3)),
        (u32::MAX, digest(4)),
    ]);
    let bytes: Vec<u8> = (1..=8).flat_map(page).collect();
    ledger.add::<Infallible>(image(1), address(0), &bytes, &mut |_, _| Ok(())).unwrap();
    ledger.end_round::<Infallible>(&mut |_, _| Ok(())).unwrap();
    assert_eq!(ledger.statistics().live, room, "each content has a slot of its own");
}

#[test]
fn equal_pages_of_two_tasks_travel_once() {
    let store = PageStore::reserve(64).unwrap();
    let mut ledger = PageLedger::new(1, 64, 1);
    let mut bytes = 0;
    let mut apply = |_: usize, batch: &mut Vec<u8>| {
        bytes += batch.len();
        store.apply(batch).map(drop)
    };
    let all: Vec<u8> = (1..=32).flat_map(page).collect();
    for task in [1, 2] {
        ledger.add(ImageId::Task(task), 0, &all, &mut apply).unwrap();
    }
    ledger.end_round(&mut apply).unwrap();
    assert_eq!(bytes, 16 + 2 * 24 + all.len());
    assert_eq!(store.runs(ImageId::Task(1), None), store.runs(ImageId::Task(2), None));
    assert_eq!(store.shared_by(31), 2);
    let done = ledger.statistics();
    assert_eq!((done.data, done.referenced, done.live), (32, 32, 32));
}

#[test]
fn shrinking_keeps_what_is_used() {
    let mut store = PageStore::reserve(256).unwrap();
    store.apply(&one(Kind::Data { first: 100 }, 0, 2)).unwrap();
    store.shrink().unwrap();
    assert_eq!(store.slice(100, 2), [7; 2 * PAGE_SIZE as usize]);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&store.file().metadata().unwrap());
    assert_eq!(blocks, 2 * 8);
}

#[test]
fn pages_of_an_earlier_time_are_there_to_be_referred_to() {
    let store = PageStore::reserve(3).unwrap();
    let page = |byte| vec![byte; PAGE_SIZE as usize];
    let pages = [page(1), page(0), page(2), page(3), page(4)].concat();
    // zeros take no slot, and there is no room for the last one
    assert_eq!(store.preset(0, &pages).unwrap(), 3);
    assert_eq!(store.preset(3, &pages).unwrap(), 3);
    let digests: Vec<_> = [1, 2, 3].map(|byte| PageLedger::digest(&page(byte), 7)).into_iter().collect();
    assert_eq!(store.digests(7).into_iter().map(|(_, digest)| digest).collect::<Vec<_>>(), digests);
}
