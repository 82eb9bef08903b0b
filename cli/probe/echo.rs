//! `tcp://` and `udp://`: numbered messages that the server sends back unchanged.
//!
//! A message is an identity of the run (8 bytes), the number (8 bytes, big endian), and a filler that follows from
//! the number, so that no byte can change or move unnoticed.

use super::protocol::{Malformed, Protocol, Reply};

/// The shortest message: identity and number, bytes.
const HEADER: usize = 16;
/// The longest that fits into one datagram: 64 KiB less the headers of IPv4 and UDP, bytes.
pub const LARGEST_DATAGRAM: usize = 65_507;

/// The echo protocol of one run.
pub struct Echo {
    run: [u8; 8],
    length: usize,
    datagrams: bool,
}

impl Echo {
    /// Messages of at least `length` bytes begin with `run`, which tells an echo from anything else. Of `datagrams`
    /// each is one message.
    pub fn new(run: u64, length: usize, datagrams: bool) -> Self {
        Self { run: run.to_be_bytes(), length: length.max(HEADER), datagrams }
    }
}

/// Eight bytes of the filler of message `n`: the finalizer of splitmix64, so that neighbours have nothing in common.
fn filler(n: u64, word: u64) -> [u8; 8] {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(word);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).to_be_bytes()
}

impl Protocol for Echo {
    fn datagram(&self) -> Option<usize> {
        self.datagrams.then_some(self.length)
    }

    fn request(&mut self, n: u64, out: &mut Vec<u8>) {
        let end = out.len() + self.length;
        out.extend_from_slice(&self.run);
        out.extend_from_slice(&n.to_be_bytes());
        for word in 0.. {
            let left = end - out.len();
            if left == 0 {
                break;
            }
            out.extend_from_slice(&filler(n, word)[..left.min(8)]);
        }
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        let Some((message, _)) = input.split_at_checked(self.length) else { return Ok((0, None)) };
        let wrong = || Malformed("the server does not echo what it was sent".into());
        let (header, rest) = message.split_first_chunk::<HEADER>().ok_or_else(wrong)?;
        let (run, number) = header.split_at(8);
        let number = <[u8; 8]>::try_from(number).map(u64::from_be_bytes).map_err(|_| wrong())?;
        let same = |(word, chunk): (usize, &[u8])| filler(number, word as u64).starts_with(chunk);
        if run != self.run || !rest.chunks(8).enumerate().all(same) {
            return Err(wrong());
        }
        Ok((self.length, Some(Reply::Echo(number))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_its_own_and_nothing_else() {
        for length in [0, 16, 37, 4096] {
            let mut echo = Echo::new(77, length, false);
            let mut wire = Vec::new();
            echo.request(5, &mut wire);
            assert_eq!(wire.len(), length.max(HEADER));
            assert_eq!(echo.reply(&wire[..wire.len() - 1]), Ok((0, None)));
            assert_eq!(echo.reply(&wire), Ok((wire.len(), Some(Reply::Echo(5)))));
            assert!(Echo::new(78, length, false).reply(&wire).is_err());
            if let Some(last) = wire.get_mut(HEADER..).and_then(|filler| filler.last_mut()) {
                *last ^= 1;
                assert!(echo.reply(&wire).is_err(), "a changed byte passes");
            }
        }
    }
}
