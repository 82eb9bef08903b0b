//! What the server acknowledged, and whether it still has it.

use serde::Serialize;

use super::keys::{KeySpace, Stored};

/// How many lost writes are described.
const EXAMPLES: usize = 10;

/// The account of acknowledged writes. Every one is found, lost or could not be verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WriteCounts {
    /// Writes the server acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that were there when they were overwritten, or at the end.
    pub found: u64,
    /// Acknowledged writes that were gone.
    pub lost: u64,
    /// Acknowledged writes that could not be read back.
    pub unverified: u64,
    /// The first lost writes.
    pub lost_examples: Vec<LostWrite>,
}

/// An acknowledged write that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostWrite {
    /// The key.
    pub key: String,
    /// The acknowledged request, or the acknowledged value of a counter.
    pub acknowledged: i64,
    /// What stood there instead, shortened; nothing when the key was absent.
    pub found: Option<String>,
}

/// Remembers what was acknowledged.
#[derive(Debug)]
pub enum Ledger {
    /// The protocol acknowledges no writes.
    None,
    /// Numbered values.
    Keys(KeyLedger),
    /// One counter for each connection.
    Counters(CounterLedger),
}

impl Ledger {
    /// The account so far; what was not yet read back counts as unverified.
    pub fn counts(&self) -> Option<WriteCounts> {
        let mut counts = match self {
            Self::None => return None,
            Self::Keys(keys) => keys.counts.clone(),
            Self::Counters(counters) => counters.counts.clone(),
        };
        counts.unverified = counts.acknowledged.saturating_sub(counts.found + counts.lost);
        Some(counts)
    }

    /// Up to `limit` entries to read back at or after entry `from`, as (entry, name of its key).
    pub fn to_verify(&self, from: usize, limit: usize) -> Vec<(usize, String)> {
        match self {
            Self::None => Vec::new(),
            Self::Keys(keys) => (from..keys.last.len())
                .filter(|&key| keys.last[key] != 0)
                .take(limit)
                .map(|key| (key, keys.space.name(key as u64)))
                .collect(),
            Self::Counters(counters) => (from..counters.counters.len())
                .filter(|&index| counters.counters[index].pending > 0)
                .take(limit)
                .map(|index| (index, counters.name(index)))
                .collect(),
        }
    }

    /// An entry was read back.
    pub fn verify(&mut self, entry: usize, value: Option<&[u8]>) {
        match self {
            Self::None => {}
            Self::Keys(keys) => keys.verify(entry, value),
            Self::Counters(counters) => counters.verify(entry, value),
        }
    }
}

/// The last acknowledged request of every key.
#[derive(Debug)]
pub struct KeyLedger {
    space: KeySpace,
    any_run: bool,
    /// For each key the last acknowledged request plus one, 0 for none.
    last: Vec<u64>,
    counts: WriteCounts,
}

impl KeyLedger {
    /// Nothing is acknowledged yet.
    pub fn new(space: KeySpace) -> Self {
        let size = usize::try_from(space.size()).unwrap_or(usize::MAX);
        Self { space, any_run: false, last: vec![0; size], counts: WriteCounts::default() }
    }

    /// As if an earlier run had written `acknowledged` requests and only the last of each key remained to verify.
    pub fn of_earlier_run(space: KeySpace, acknowledged: u64) -> Self {
        let first = acknowledged.saturating_sub(space.size());
        let mut ledger = Self { any_run: true, ..Self::new(space) };
        for n in first..acknowledged {
            ledger.remember(n);
        }
        ledger
    }

    fn remember(&mut self, n: u64) {
        self.counts.acknowledged += 1;
        let key = self.space.key_of(n) as usize;
        if let Some(last) = self.last.get_mut(key) {
            *last = n.saturating_add(1);
        }
    }

    /// Request `n` was acknowledged; `previous` is what it replaced, when the reply said so.
    pub fn acknowledge(&mut self, n: u64, previous: Option<Option<&[u8]>>) {
        if let Some(previous) = previous {
            self.verify(self.space.key_of(n) as usize, previous);
        }
        self.remember(n);
    }

    fn verify(&mut self, key: usize, value: Option<&[u8]>) {
        let Some(last) = self.last.get_mut(key).map(std::mem::take).filter(|&last| last != 0) else { return };
        let acknowledged = last - 1;
        let stored = value.map(|value| self.space.read_value(key as u64, value, self.any_run));
        // a larger number is a later write whose acknowledgement never arrived
        if matches!(stored, Some(Stored::Request(n)) if n >= acknowledged) {
            self.counts.found += 1;
            return;
        }
        let name = self.space.name(key as u64);
        lose(&mut self.counts, 1, name, i64::try_from(acknowledged).unwrap_or(i64::MAX), value);
    }
}

/// The last acknowledged value of every counter.
#[derive(Debug)]
pub struct CounterLedger {
    prefix: String,
    counters: Vec<Counter>,
    counts: WriteCounts,
}

#[derive(Debug, Default, Clone)]
struct Counter {
    last: Option<i64>,
    /// Acknowledged increments that no later value has confirmed.
    pending: u64,
    /// Requests without an answer since `last`: each may or may not have counted.
    unanswered: u64,
}

impl CounterLedger {
    /// `connections` counters named `<prefix>:counter:<connection>`.
    pub fn new(prefix: String, connections: usize) -> Self {
        Self { prefix, counters: vec![Counter::default(); connections], counts: WriteCounts::default() }
    }

    /// The key of a counter.
    pub fn name(&self, index: usize) -> String {
        format!("{}:counter:{index}", self.prefix)
    }

    /// An increment was answered with `value`. Returns false when that value is out of sequence.
    pub fn acknowledge(&mut self, index: usize, value: i64) -> bool {
        let name = self.name(index);
        let Some(counter) = self.counters.get_mut(index) else { return true };
        let in_sequence = match counter.last {
            None => true,
            Some(last) => {
                let step = i128::from(value) - i128::from(last);
                let most = 1 + i128::from(counter.unanswered);
                if step < 1 {
                    // the counter went back: all increments above the new value are gone
                    let gone = u64::try_from(1 - step).unwrap_or(u64::MAX).min(counter.pending);
                    counter.pending -= gone;
                    let found = (value.saturating_sub(1)).to_string();
                    lose(&mut self.counts, gone, name, last, Some(found.as_bytes()));
                }
                (1..=most).contains(&step)
            }
        };
        counter.last = Some(value);
        counter.unanswered = 0;
        counter.pending += 1;
        self.counts.acknowledged += 1;
        in_sequence
    }

    /// `requests` of a connection will never be answered.
    pub fn unanswered(&mut self, index: usize, requests: u64) {
        if let Some(counter) = self.counters.get_mut(index) {
            counter.unanswered += requests;
        }
    }

    fn verify(&mut self, index: usize, value: Option<&[u8]>) {
        let name = self.name(index);
        let Some(counter) = self.counters.get_mut(index) else { return };
        let Some(last) = counter.last else { return };
        let now = value.and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
        let pending = std::mem::take(&mut counter.pending);
        let gone = match now {
            None => pending,
            Some(now) => u64::try_from(i128::from(last) - i128::from(now)).unwrap_or(0).min(pending),
        };
        self.counts.found += pending - gone;
        if gone > 0 {
            lose(&mut self.counts, gone, name, last, value);
        }
    }
}

fn lose(counts: &mut WriteCounts, writes: u64, key: String, acknowledged: i64, found: Option<&[u8]>) {
    counts.lost += writes;
    if counts.lost_examples.len() < EXAMPLES {
        let found = found.map(|value| value[..value.len().min(64)].escape_ascii().to_string());
        counts.lost_examples.push(LostWrite { key, acknowledged, found });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ledger: &Ledger) -> (u64, u64, u64, u64) {
        let counts = ledger.counts().unwrap();
        (counts.acknowledged, counts.found, counts.lost, counts.unverified)
    }

    #[test]
    fn every_acknowledged_write_is_found_or_lost_once() {
        let mut ledger = KeyLedger::new(KeySpace::new("p".into(), "r".into(), 2, 0));
        ledger.acknowledge(0, None);
        ledger.acknowledge(1, None);
        // the key wraps and shows its write
        ledger.acknowledge(2, Some(Some(b"0-r")));
        // a rolled back server shows an older write
        ledger.acknowledge(3, Some(None));
        ledger.acknowledge(4, Some(Some(b"0-r")));
        let mut ledger = Ledger::Keys(ledger);
        assert_eq!(counts(&ledger), (5, 1, 2, 2));
        assert_eq!(ledger.to_verify(0, 10), [(0, "p:0".to_owned()), (1, "p:1".to_owned())]);
        ledger.verify(0, Some(b"6-r"));
        ledger.verify(1, Some(b"1-r"));
        assert_eq!(counts(&ledger), (5, 2, 3, 0));
        let examples = ledger.counts().unwrap().lost_examples;
        assert_eq!(examples[2], LostWrite { key: "p:1".into(), acknowledged: 3, found: Some("1-r".into()) });
    }

    #[test]
    fn a_counter_that_goes_back_lost_increments() {
        let mut counters = CounterLedger::new("p".into(), 1);
        for value in 1..=10 {
            assert!(counters.acknowledge(0, value));
        }
        counters.unanswered(0, 2);
        assert!(counters.acknowledge(0, 13));
        assert!(!counters.acknowledge(0, 15), "one increment that nobody sent");
        // restored from a state with 12: the next increment shows 13, so 13, 14 and 15 are gone
        assert!(!counters.acknowledge(0, 13));
        let mut ledger = Ledger::Counters(counters);
        ledger.verify(0, Some(b"13"));
        // 10 + 13 + 15 + 13 were acknowledged; the last going back took 2 of those (13 and 15), and one unsent
        let (acknowledged, found, lost, unverified) = counts(&ledger);
        assert_eq!((acknowledged, unverified), (13, 0));
        assert_eq!(found + lost, 13);
        assert_eq!(lost, 3);
    }

    #[test]
    fn a_counter_that_is_gone_at_the_end_lost_everything() {
        let mut counters = CounterLedger::new("p".into(), 1);
        counters.acknowledge(0, 1);
        counters.acknowledge(0, 2);
        let mut ledger = Ledger::Counters(counters);
        ledger.verify(0, None);
        assert_eq!(counts(&ledger), (2, 0, 2, 0));
    }
}
