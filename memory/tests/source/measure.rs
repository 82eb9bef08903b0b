//! Figures, for people: `cargo test -p godwit-memory --release --test source measure -- --ignored --nocapture`.

use crate::child::{ANONYMOUS, Followed, READ, WRITE};
use godwit_memory::ImageId;
use godwit_memory::source::{Method, PageSink, RoundStats, SinkError, TreeMemory};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;

/// Looks at nothing.
#[derive(Default)]
struct Nowhere(u64);

impl PageSink for Nowhere {
    fn pages(&mut self, _: ImageId, _: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0 += bytes.len() as u64;
        Ok(())
    }
}

fn report(what: &str, stats: &RoundStats, total: Duration) {
    eprintln!(
        "{what}: {:.2} ms (attach {:.2}, maps {:.2}, scan {:.2}, read {:.2}, shared {:.2}, descriptors {:.2}), {} pages, stop {:?}",
        total.as_secs_f64() * 1e3,
        stats.seconds.attach * 1e3,
        stats.seconds.maps * 1e3,
        stats.seconds.scan * 1e3,
        stats.seconds.read * 1e3,
        stats.seconds.shared * 1e3,
        stats.seconds.descriptors * 1e3,
        stats.pages,
        stats.longest_stop,
    );
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed())
}

#[test]
#[ignore = "prints figures"]
fn measure_four_gibibytes() {
    for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE] {
        eprintln!("--- {}", if advice == libc::MADV_HUGEPAGE { "huge pages" } else { "4 KiB pages" });
        let mut shell = Followed::shell();
        let place = shell.map_alone(4 * GIB, READ | WRITE, ANONYMOUS, -1);
        shell.advise(place, 4 * GIB, advice);
        shell.fill(place, 4 * GIB, 1);
        let pids = shell.find_kin();
        let mut memory = TreeMemory::new(Method::Uffd).unwrap();
        let mut sink = Nowhere::default();
        let (stats, total) = timed(|| memory.round(&pids, &mut sink).unwrap());
        report("first round", &stats, total);
        eprintln!(
            "read {:.1} GB/s, scan {:.2} ms/GiB",
            sink.0 as f64 / stats.seconds.read / 1e9,
            stats.seconds.scan * 250.0
        );
        for _ in 0..3 {
            let (stats, total) = timed(|| memory.round(&pids, &mut sink).unwrap());
            report("idle round", &stats, total);
        }
        for page in 0..1350u64 {
            let at = place + page.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (4 * GIB / 4096) * 4096;
            shell.tell(&format!("poke {at} {page}"));
        }
        let pids = shell.freeze();
        let (stats, total) = timed(|| memory.frozen(&pids, &mut sink).unwrap());
        report("frozen, 1350 scattered pages", &stats, total);
        for _ in 0..3 {
            let (stats, total) = timed(|| memory.frozen(&pids, &mut sink).unwrap());
            report("frozen, nothing written", &stats, total);
        }
        for _ in 0..3 {
            let (images, total) = timed(|| memory.existing(&pids).unwrap());
            let runs: usize = images.iter().map(|(_, runs)| runs.len()).sum();
            eprintln!("existing: {:.2} ms, {runs} runs", total.as_secs_f64() * 1e3);
        }
        let ((), total) = timed(|| memory.release());
        eprintln!("release: {:.1} ms", total.as_secs_f64() * 1e3);
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_an_idle_tree() {
    let mut shell = Followed::shell();
    for _ in 0..16 {
        shell.fork(0, 0, 0, true);
    }
    let pids = shell.find_kin();
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    let mut sink = Nowhere::default();
    let (stats, total) = timed(|| memory.round(&pids, &mut sink).unwrap());
    report("first round of 17 processes", &stats, total);
    for _ in 0..5 {
        let (stats, total) = timed(|| memory.round(&pids, &mut sink).unwrap());
        report("idle round of 17 processes", &stats, total);
    }
    let one = [shell.pid()].into();
    let mut memory = TreeMemory::new(Method::Uffd).unwrap();
    memory.round(&one, &mut sink).unwrap();
    for _ in 0..5 {
        let (stats, total) = timed(|| memory.round(&one, &mut sink).unwrap());
        report("idle round of 1 process", &stats, total);
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_injections() {
    let mut shell = Followed::shell();
    let pids = shell.find_kin();
    let mut stops: Vec<Duration> = (0..200)
        .map(|_| {
            TreeMemory::new(Method::Uffd).unwrap().round(&pids, &mut Nowhere::default()).unwrap().longest_stop
        })
        .collect();
    stops.sort_unstable();
    eprintln!(
        "stopped for {:?} (median), {:?} (95 %), {:?} (worst of 200)",
        stops[100], stops[190], stops[199]
    );
}
