//! The one-time token by which a report is known to come from whoever was asked for it.

use std::fmt;
use std::io::Read;

/// Random bytes of a token.
const BYTES: usize = 32;

/// 256 random bits, as 64 hexadecimal digits. Nothing that is shown of it tells any of them.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Makes a new one from the kernel's random bytes.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be read.
    pub fn generate() -> std::io::Result<Self> {
        let mut random = [0u8; BYTES];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self(random.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Its text, for whoever is to give it back.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether somebody has given it back. Takes the same time wherever a guess of the right length is wrong.
    pub fn is(&self, guess: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), guess.as_bytes());
        let differs =
            ours.iter().zip(theirs).fold(0, |all, (one, other)| std::hint::black_box(all | (one ^ other)));
        ours.len() == theirs.len() && differs == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_of_it_is_it() {
        let (token, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        let text = token.reveal().to_owned();
        assert_eq!(text.len(), 64);
        assert!(token.is(&text));
        assert_ne!(text, other.reveal());
        let flipped = |at: usize| {
            let digit = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
            format!("{}{digit}{}", &text[..at], &text[at + 1..])
        };
        for wrong in
            ["", &text[1..], &text[..63], &format!("{text}0"), other.reveal(), &flipped(0), &flipped(63)]
        {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
}
