//! How fast the ledger and the store are. Measurements, not checks: `cargo test --release -- --ignored --nocapture`.

#![allow(clippy::unwrap_used)]

use godwit_memory::destination::PageStore;
use godwit_memory::ledger::PageLedger;
use godwit_memory::{ImageId, PAGE_SIZE};
use std::convert::Infallible;
use std::time::Instant;

/// Pages that differ from each other and are not zero.
fn memory(pages: u64, seed: u64) -> Vec<u8> {
    let mut word = seed | 1;
    let mut bytes = Vec::with_capacity((pages * PAGE_SIZE) as usize);
    for _ in 0..pages * PAGE_SIZE / 8 {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    const PAGES: u64 = 64 << 10;
    let bytes = memory(PAGES, 5);
    let other = memory(PAGES, 77);
    let gib = |bytes: u64, start: Instant| bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    let len = bytes.len() as u64;
    let mut batches = Vec::new();
    let mut ledger = PageLedger::new(1, 4 * PAGES, 9);
    let mut discard = |_: usize, _: &mut Vec<u8>| Ok::<(), Infallible>(());
    let mut run = |what: &str, image, bytes: &[u8], ledger: &mut PageLedger| {
        let start = Instant::now();
        for (at, chunk) in bytes.chunks(1 << 20).enumerate() {
            ledger.add(image, (at as u64) << 20, chunk, &mut discard).unwrap();
        }
        ledger.end_round(&mut discard).unwrap();
        println!("ledger, {what}: {:.2} GB/s", gib(len, start));
    };
    run("new", ImageId::Task(1), &bytes, &mut ledger);
    run("unchanged", ImageId::Task(1), &bytes, &mut ledger);
    run("known from another task", ImageId::Task(2), &bytes, &mut ledger);
    run("changed, in new slots", ImageId::Task(1), &other, &mut ledger);
    run(
        "changed, in place",
        ImageId::Task(1),
        &bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>(),
        &mut ledger,
    );
    run("zero", ImageId::Task(3), &vec![0; len as usize], &mut ledger);
    let start = Instant::now();
    for page in 0..PAGES {
        // A scattered page at a time.
        let page = page * 7919 % PAGES;
        let at = (page * PAGE_SIZE) as usize;
        ledger.add(ImageId::Task(2), page * PAGE_SIZE, &bytes[at..at + 4096], &mut discard).unwrap();
    }
    println!("ledger, scattered unchanged pages: {:.2} GB/s", gib(len, start));
    let start = Instant::now();
    let existing = [godwit_memory::PageRun { start: 0, pages: PAGES }];
    ledger.reconcile(ImageId::Task(1), &existing, &mut discard).unwrap();
    println!("ledger, reconcile: {:.3} ms for {} MiB", start.elapsed().as_secs_f64() * 1e3, len >> 20);

    let mut ledger = PageLedger::new(1, PAGES, 9);
    let mut keep = |_: usize, batch: &mut Vec<u8>| {
        batches.push(std::mem::take(batch));
        Ok::<(), Infallible>(())
    };
    ledger.add(ImageId::Task(1), 0, &bytes, &mut keep).unwrap();
    ledger.end_round(&mut keep).unwrap();
    let start = Instant::now();
    let store = PageStore::reserve(PAGES).unwrap();
    println!("store, reserve: {:.0} ms for {} MiB", start.elapsed().as_secs_f64() * 1e3, len >> 20);
    for round in ["first", "second"] {
        let start = Instant::now();
        for batch in &batches {
            store.apply(batch).unwrap();
        }
        println!("store, apply, {round} time: {:.2} GB/s", gib(len, start));
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in batches.chunks(batches.len().div_ceil(2)) {
            scope.spawn(|| part.iter().for_each(|batch| assert!(store.apply(batch).is_ok())));
        }
    });
    println!("store, apply, two threads: {:.2} GB/s", gib(len, start));
    let start = Instant::now();
    let runs = store.runs(ImageId::Task(1), None).len();
    println!(
        "store, runs: {:.3} ms for {} MiB ({runs} runs)",
        start.elapsed().as_secs_f64() * 1e3,
        len >> 20
    );
}
