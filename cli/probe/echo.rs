//! `tcp://`: numbered messages of 16 bytes that the server sends back unchanged.
//!
//! A message is an identity of the run (8 bytes) and the number (8 bytes, big endian).

use super::protocol::{Malformed, Protocol, Reply};

const LENGTH: usize = 16;

/// The echo protocol of one run.
pub struct Echo {
    run: [u8; 8],
}

impl Echo {
    /// Messages begin with `run`, which tells an echo from anything else.
    pub fn new(run: u64) -> Self {
        Self { run: run.to_be_bytes() }
    }
}

impl Protocol for Echo {
    fn request(&mut self, n: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.run);
        out.extend_from_slice(&n.to_be_bytes());
    }

    fn reply(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), Malformed> {
        let Some((message, _)) = input.split_first_chunk::<LENGTH>() else {
            return Ok((0, None));
        };
        let (run, number) = message.split_at(8);
        match <[u8; 8]>::try_from(number) {
            Ok(number) if run == self.run => Ok((LENGTH, Some(Reply::Echo(u64::from_be_bytes(number))))),
            _ => Err(Malformed("the server does not echo what it was sent".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_its_own_and_nothing_else() {
        let mut echo = Echo::new(77);
        let mut wire = Vec::new();
        echo.request(5, &mut wire);
        assert_eq!(wire.len(), LENGTH);
        assert_eq!(echo.reply(&wire[..15]), Ok((0, None)));
        assert_eq!(echo.reply(&wire), Ok((16, Some(Reply::Echo(5)))));
        assert!(Echo::new(78).reply(&wire).is_err());
    }
}
