//! Compression of frames: zstd at a fixed level, or at the level that gets the most across.
//!
//! A connection compresses and sends in turn, so a byte costs `1/c + r/l` seconds (`c` the speed of compression in bytes a
//! second, `r` the compressed share, `l` the speed of the link) and `1/l` as it is. Compression is worth it where
//! `(1 - r)/l > 1/c`, and a higher level where compressing is a small part of the time.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// Bodies shorter than this are not worth compressing.
const WORTH_COMPRESSING: usize = 256;
/// Levels that the adaptive way uses.
const LEVELS: [i32; 4] = [1, 3, 5, 8];
/// Frames that go out as they are before compression is tried again.
const SKIP: u32 = 16;
/// How much the latest measurement weighs.
const NEWS: f64 = 0.3;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As link and processor have it.
    #[default]
    Adaptive,
    /// zstd at this level, 1 to 19.
    Zstd(i32),
    /// None.
    None,
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("`{text}` is not `auto`, `none`, `zstd` or `zstd:LEVEL` with a level from 1 to 19");
        match text.split_once(':') {
            None if text == "auto" => Ok(Compression::Adaptive),
            None if text == "none" => Ok(Compression::None),
            None if text == "zstd" => Ok(Compression::Zstd(1)),
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ 1..=19) => Ok(Compression::Zstd(level)),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }
}

/// Compresses the frames of one connection.
pub(crate) struct Compressor {
    choice: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// Index in [`LEVELS`].
    level: usize,
    level_set: i32,
    skip: u32,
    /// Bytes a second, as seen of late; 0 when nothing was seen.
    link: f64,
    hurried: bool,
}

impl Compressor {
    pub(crate) fn new(choice: Compression) -> Self {
        Self { choice, zstd: None, level: 0, level_set: 0, skip: 0, link: 0.0, hurried: false }
    }

    /// Under the freeze time counts for more than bytes: the quickest level at most.
    pub(crate) fn hurry(&mut self) {
        self.hurried = true;
        self.level = 0;
    }

    /// The frame's bytes in fewer, if that is worth it.
    pub(crate) fn pack(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        if body.len() < WORTH_COMPRESSING {
            return None;
        }
        match self.choice {
            Compression::None => None,
            Compression::Zstd(level) => self.compress(body, level),
            Compression::Adaptive if self.skip > 0 => {
                self.skip -= 1;
                None
            }
            Compression::Adaptive => {
                let begun = Instant::now();
                let packed = self.compress(body, LEVELS[self.level]);
                self.learn(body.len(), packed.as_ref().map_or(body.len(), Vec::len), begun.elapsed());
                packed
            }
        }
    }

    fn compress(&mut self, body: &[u8], level: i32) -> Option<Vec<u8>> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(level).ok();
            self.level_set = level;
        }
        let zstd = self.zstd.as_mut()?;
        if self.level_set != level {
            zstd.set_compression_level(level).ok()?;
            self.level_set = level;
        }
        zstd.compress(body).ok().filter(|packed| packed.len() < body.len())
    }

    /// Seconds a byte, as in the module's head.
    fn learn(&mut self, raw: usize, packed: usize, took: Duration) {
        if self.link == 0.0 || raw < 1 << 12 {
            return;
        }
        let share = packed as f64 / raw as f64;
        let compressing = took.as_secs_f64() / raw as f64;
        let sending = share / self.link;
        if (1.0 - share) / self.link <= compressing {
            self.skip = SKIP;
            self.level = 0;
        } else if compressing < sending / 4.0 && !self.hurried {
            self.level = (self.level + 1).min(LEVELS.len() - 1);
        } else if compressing > sending {
            self.level = self.level.saturating_sub(1);
        }
    }

    /// So many bytes left in so much time, waits included.
    pub(crate) fn sent(&mut self, bytes: usize, took: Duration) {
        if bytes < 1 << 14 {
            return;
        }
        let speed = bytes as f64 / took.as_secs_f64().max(1e-7);
        self.link = if self.link == 0.0 { speed } else { self.link * (1.0 - NEWS) + speed * NEWS };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        (0..200_000u32)
            .flat_map(|n| format!("line {} of many\n", n % 977).into_bytes())
            .take(1 << 20)
            .collect()
    }

    fn noise() -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..1 << 20).map(|_| next()).collect()
    }

    fn settle(link: f64, body: &[u8]) -> (Compressor, usize) {
        let mut compressor = Compressor::new(Compression::Adaptive);
        let mut packed = 0;
        for _ in 0..40 {
            compressor.sent(1 << 20, Duration::from_secs_f64((1 << 20) as f64 / link));
            packed += usize::from(compressor.pack(body).is_some());
        }
        (compressor, packed)
    }

    #[test]
    fn a_slow_link_gets_higher_levels_and_a_fast_one_gets_bytes_as_they_are() {
        // so slow that zstd on a busy machine is still far ahead of it
        let (slow, packed) = settle(1e4, &text());
        assert!(slow.level > 0 && packed == 40, "level {} packed {packed}", slow.level);
        let (_, packed) = settle(1e12, &text());
        assert!(packed <= 4, "{packed} frames compressed for a link that is faster than zstd");
    }

    #[test]
    fn noise_is_soon_left_alone_and_tried_again() {
        let mut compressor = Compressor::new(Compression::Adaptive);
        compressor.sent(1 << 20, Duration::from_millis(10));
        assert!(compressor.pack(&noise()).is_none());
        assert_eq!(compressor.skip, SKIP);
        for _ in 0..SKIP {
            assert!(compressor.pack(&text()).is_none());
        }
        assert!(compressor.pack(&text()).is_some(), "tried again");
    }

    #[test]
    fn choices_are_read() {
        assert_eq!("auto".parse(), Ok(Compression::Adaptive));
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(1)));
        assert_eq!("zstd:19".parse(), Ok(Compression::Zstd(19)));
        assert_eq!("none".parse(), Ok(Compression::None));
        for text in ["zstd:0", "zstd:20", "zstd:", "lz4", "auto:1"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
