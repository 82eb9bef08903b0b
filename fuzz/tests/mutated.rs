//! The seeds, changed at random for a while: what a fuzzer does, without one. `GODWIT_FUZZ_SECONDS` says for how long in all.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use godwit_fuzz::TARGETS;
use std::path::Path;
use std::time::{Duration, Instant};

/// Unless the environment says otherwise.
const SECONDS: u64 = 30;
const LONGEST: usize = 1 << 16;

/// Random numbers as of xorshift64*: one run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Numbers that lengths and counts go wrong with.
const EDGES: [u64; 9] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            2 => bytes.truncate(at),
            3 => {
                let length = random.below(8) + 1;
                let number = EDGES[random.below(EDGES.len())].to_le_bytes();
                for (offset, byte) in number[..length].iter().enumerate() {
                    if let Some(place) = bytes.get_mut(at + offset) {
                        *place = *byte;
                    }
                }
            }
            4 => {
                let end = at + random.below(bytes.len() - at.min(bytes.len()) + 1).min(64);
                let piece = bytes[at..end.min(bytes.len())].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(LONGEST);
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn no_decoder_panics_whatever_it_is_given() {
    let seconds = std::env::var("GODWIT_FUZZ_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let each = Duration::from_secs(seconds) / TARGETS.len() as u32;
    for (name, decode) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| decode(seed));
        let (mut random, mut count, begun) = (Random(0x676f_6477_6974), 0u64, Instant::now());
        while begun.elapsed() < each {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            mutate(&mut bytes, &seeds[random.below(seeds.len())], &mut random);
            let caught = std::panic::catch_unwind(|| decode(&bytes));
            if caught.is_err() {
                let kept = std::env::temp_dir().join(format!("godwit-fuzz-{name}"));
                std::fs::write(&kept, &bytes).unwrap();
                panic!("PROMISE BROKEN: `{name}` panics at what is in `{}`", kept.display());
            }
            count += 1;
        }
        println!("{name}: {count} inputs");
        assert!(count > 100, "{name}: only {count} inputs within {each:?}");
    }
}
