//! Notes when this process stood still, by the clock that a checkpoint does not move: restored tasks live in a time
//! namespace that hides the outage from CLOCK_MONOTONIC, CLOCK_REALTIME does not.

use crate::sys::process::realtime_ns;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread::Scope;
use std::time::Duration;

/// Between two beats.
const BEAT: Duration = Duration::from_micros(200);
/// A gap longer than this is noted.
const LEAST_NS: u64 = 1_000_000;

/// Starts the heart, and what writes its gaps to a file, a line each: `at_ns`, the end of the gap since the epoch, and
/// `gap_us`. The heart itself never waits for the file; the file is open only while it is written.
pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, path: PathBuf) {
    let (sender, gaps) = channel::<(u64, u64)>();
    scope.spawn(move || {
        let mut last = realtime_ns();
        loop {
            std::thread::sleep(BEAT);
            let now = realtime_ns();
            if now.saturating_sub(last) > LEAST_NS && sender.send((now, now - last)).is_err() {
                return;
            }
            last = now;
        }
    });
    scope.spawn(move || {
        while let Ok(gap) = gaps.recv() {
            std::thread::sleep(Duration::from_millis(20));
            let lines: String = std::iter::once(gap)
                .chain(gaps.try_iter())
                .map(|(at, gap)| format!("{{\"at_ns\":{at},\"gap_us\":{}}}\n", gap / 1000))
                .collect();
            if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(&path) {
                let _ = file.write_all(lines.as_bytes());
            }
        }
    });
}
