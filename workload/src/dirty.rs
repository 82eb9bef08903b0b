//! A big piece of memory that is written at a rate. What must be in each page follows from the number of writes alone,
//! so that no table of it adds to what is written.

use crate::args::Args;
use crate::content::{Content, Entry, Unwritten};
use crate::heartbeat;
use crate::kind::Kind;
use crate::report::Findings;
use crate::sys::memory::{Pages, Source, WORDS};
use crate::sys::process::{self, ASKED, ENDING};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const REGION: u64 = 1;
const MIB: usize = 256;
/// Writes between two looks at whether a check is wanted.
const BATCH: u64 = 2000;

/// The memory and how often it was written.
struct Written {
    pages: Pages,
    order: Order,
    writes: u64,
}

/// The order of a pass over all pages: steps of about 0.618 of them, so that neighbours in time are far apart.
#[derive(Debug)]
struct Order {
    count: u64,
    step: u64,
    inverse: u64,
}

impl Order {
    fn of(count: usize) -> Self {
        let count = count as u64;
        let mut step = (count as f64 * 0.618_033_988_75) as u64 | 1;
        loop {
            if let Some(inverse) = inverse(step % count, count) {
                return Self { count, step: step % count, inverse };
            }
            step += 1;
        }
    }

    /// The page of a write, and which write of this page it is, from 1 on.
    fn nth(&self, write: u64) -> (usize, u64) {
        ((write % self.count * self.step % self.count) as usize, write / self.count + 1)
    }

    /// How often a page was written in the first `writes` writes.
    fn times(&self, page: usize, writes: u64) -> u64 {
        let place = page as u64 * self.inverse % self.count;
        writes / self.count + u64::from(place < writes % self.count)
    }
}

/// What `step` is multiplied by for 1, modulo `count`; there is none when they have a divisor in common.
fn inverse(step: u64, count: u64) -> Option<u64> {
    let (mut old, mut new) = ((count as i128, 0_i128), (step as i128, 1_i128));
    while new.0 != 0 {
        let quotient = old.0 / new.0;
        (old, new) = (new, (old.0 - quotient * new.0, old.1 - quotient * new.1));
    }
    (old.0 == 1).then_some(old.1.rem_euclid(count as i128) as u64)
}

impl Written {
    fn new(count: usize) -> Result<Self, String> {
        let pages = Pages::map(Source::Private, count).map_err(|failure| failure.to_string())?;
        let written = Self { order: Order::of(count), pages, writes: 0 };
        for page in 0..count {
            let content = written.content(page, 0);
            (0..WORDS).for_each(|word| written.pages.set(page, word, content.word(word)));
        }
        Ok(written)
    }

    /// What a page holds after so many writes of it.
    fn content(&self, page: usize, times: u64) -> Content {
        let filled = Entry::written(1);
        let entry = if times == 0 { filled } else { filled.poked(times as u32) };
        Content::of(REGION, page, entry, Unwritten::Zero)
    }

    /// Writes a word of the next page, and the word before it back.
    fn write(&mut self) {
        let (page, times) = self.order.nth(self.writes);
        let before = self.content(page, times - 1).unpoked();
        for (word, value) in before.into_iter().chain(self.content(page, times).poked()) {
            self.pages.set(page, word, value);
        }
        self.writes += 1;
    }

    fn verify(&self) -> Findings {
        let mut findings = Findings::default();
        for page in 0..self.pages.count() {
            findings.pages += 1;
            let content = self.content(page, self.order.times(page, self.writes));
            if let Some(word) = content.first_difference(|word| self.pages.get(page, word)) {
                let different =
                    (0..WORDS).filter(|&word| self.pages.get(page, word) != content.word(word)).count();
                let holds = format!(
                    "{different} words differ, the first at {word}: {:#x}",
                    self.pages.get(page, word)
                );
                findings.bad_page(Kind::Anon, REGION, page, self.pages.address(page), &holds);
            }
        }
        findings
    }
}

/// Whether the writer is to keep off.
static STILL: AtomicBool = AtomicBool::new(false);
static WRITES: AtomicU64 = AtomicU64::new(0);

/// `dirty`.
pub fn run(mut args: Args) -> Result<ExitCode, String> {
    let dir: std::path::PathBuf = args.need("dir")?;
    let count = args.take_or("size", 64)? * MIB;
    let rate = match args.take_or("rate", "0".to_owned())?.as_str() {
        "full" => None,
        rate => Some(rate.parse::<u64>().map_err(|error| format!("--rate `{rate}`: {error}"))?),
    };
    args.done()?;
    if count == 0 {
        return Err("--size must be at least 1".into());
    }
    std::fs::create_dir_all(&dir).map_err(|error| format!("`{}` cannot be made: {error}", dir.display()))?;
    process::listen();
    let written = Mutex::new(Written::new(count)?);
    std::thread::scope(|scope| {
        heartbeat::start(scope, dir.join("gaps"));
        scope.spawn(|| write_at(rate, &written));
        std::thread::sleep(Duration::from_millis(200));
        let lead = lead(&dir, &written);
        // the other threads end with the process
        process::exit(match lead {
            Ok(()) => 0,
            Err(_) => 2,
        })
    })
}

fn write_at(rate: Option<u64>, written: &Mutex<Written>) {
    let (mut begun, mut done) = (Instant::now(), 0_u64);
    loop {
        if STILL.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
            (begun, done) = (Instant::now(), 0);
            continue;
        }
        let due = match rate {
            None => BATCH,
            Some(rate) => (begun.elapsed().as_secs_f64() * rate as f64) as u64 - done,
        };
        // it was held up when more is due than of 20 ms; what was missed then is not made up for
        if rate.is_some_and(|rate| due > rate / 50 + 1) {
            (begun, done) = (Instant::now(), 0);
            continue;
        }
        {
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            (0..due).for_each(|_| written.write());
            WRITES.store(written.writes, Ordering::Relaxed);
        }
        done += due;
        if rate.is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits for checks, and tells what they find.
fn lead(dir: &Path, written: &Mutex<Written>) -> std::io::Result<()> {
    let (mut asked, mut number) = (0, 0);
    let put = |name: &str, line: String| {
        let part = dir.join(format!("{name}.part"));
        std::fs::write(&part, line + "\n")?;
        std::fs::rename(&part, dir.join(name))
    };
    let (address, count) = {
        let written = written.lock().unwrap_or_else(PoisonError::into_inner);
        (written.pages.address(0), written.pages.count())
    };
    let region =
        format!(r#"{{"kind":"anon","region":{REGION},"pages":{count},"address":{address},"fd":-1}}"#);
    put("ready", format!(r#"{{"pid":{},"notes":[],"regions":[{region}]}}"#, std::process::id()))?;
    while !ENDING.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5));
        let (signals, file) = (ASKED.load(Ordering::Relaxed), dir.join("check"));
        let by_file = file.exists();
        if signals == asked && !by_file {
            continue;
        }
        asked = signals;
        if by_file {
            std::fs::remove_file(&file)?;
        }
        number += 1;
        STILL.store(true, Ordering::SeqCst);
        let findings = {
            let written = written.lock().unwrap_or_else(PoisonError::into_inner);
            written.verify()
        };
        STILL.store(false, Ordering::SeqCst);
        let writes = WRITES.load(Ordering::Relaxed);
        put(&format!("result.{number}"), findings.line(0, &[("write", writes)]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_visits_every_page_once_and_neighbours_are_far_apart() {
        for count in [1, 2, 3, 256, 1000, 16384] {
            let order = Order::of(count);
            let mut times = vec![0; count];
            for write in 0..count as u64 * 2 + 1 {
                let (page, time) = order.nth(write);
                assert_eq!(order.times(page, write), time - 1, "{count}");
                times[page] += 1;
                assert_eq!(order.times(page, write + 1), times[page], "{count}");
            }
            let (page, _) = order.nth(0);
            assert!((0..count).all(|other| times[other] == if other == page { 3 } else { 2 }), "{count}");
        }
        let order = Order::of(16384);
        assert!(order.nth(0).0.abs_diff(order.nth(1).0) > 1000);
    }

    #[test]
    fn the_number_of_writes_is_the_model() {
        let mut written = Written::new(100).unwrap();
        for _ in 0..777 {
            written.write();
        }
        assert!(written.verify().is_pass());
        written.writes += 1;
        assert_eq!(written.verify().bad, 1, "a write that is not there");
        written.writes -= 1;
        let (page, _) = written.order.nth(776);
        let (word, value) = written.content(page, written.order.times(page, 777)).poked().unwrap();
        written.pages.set(page, word, !value);
        assert_eq!(written.verify().bad, 1);
    }
}
