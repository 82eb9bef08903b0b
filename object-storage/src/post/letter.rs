//! A letter: one piece of a stream of bytes, as it lies in a place.
//!
//! `GWL` and the version, 1; flags (bit 0: the stream ends behind this one); three zero bytes; how many letters of the other side have come
//! (u64, little endian); then the bytes of the stream, none in a letter that only says that somebody is there.

/// Bytes before those of the stream.
pub(crate) const HEAD: usize = 16;
/// Most bytes of the stream in a letter.
pub(crate) const MOST: usize = 8 << 20;

const MAGIC: &[u8; 4] = b"GWL\x01";
const LAST: u8 = 1;

/// A piece of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// So many letters of the other side have come.
    pub acknowledged: u64,
    /// The stream ends behind it.
    pub is_last: bool,
    /// What it carries, [`MOST`] bytes at most.
    pub body: Vec<u8>,
}

impl Letter {
    /// As it is to lie in the place.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[if self.is_last { LAST } else { 0 }, 0, 0, 0]);
        bytes.extend_from_slice(&self.acknowledged.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Takes what lay there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(mut bytes: Vec<u8>) -> Result<Self, &'static str> {
        if bytes.len() > HEAD + MOST {
            return Err("it is longer than a letter may be");
        }
        let Some((head, _)) = bytes.split_first_chunk::<HEAD>() else {
            return Err("it is shorter than the head of a letter");
        };
        let [magic @ .., _, _, _, _, _, _, _, _, _, _, _, _] = head;
        if magic != MAGIC {
            return Err("it does not begin as a letter of this version does");
        }
        let [_, _, _, _, flags, 0, 0, 0, acknowledged @ ..] = *head else {
            return Err("it has something where nothing should be");
        };
        if flags & !LAST != 0 {
            return Err("it has flags that nobody knows");
        }
        let body = bytes.split_off(HEAD);
        Ok(Self { acknowledged: u64::from_le_bytes(acknowledged), is_last: flags & LAST != 0, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_letter_is_what_the_description_says() {
        let letter = Letter { acknowledged: 0x0102, is_last: true, body: b"bytes".to_vec() };
        assert_eq!(letter.encode(), b"GWL\x01\x01\0\0\0\x02\x01\0\0\0\0\0\0bytes");
        let longest = Letter { body: vec![7; MOST], ..Letter::default() };
        assert_eq!(Letter::decode(longest.encode()), Ok(longest.clone()));
        let longer = [longest.encode(), vec![7]].concat();
        assert!(Letter::decode(longer).is_err());
    }

    #[test]
    fn what_another_version_may_mean_is_refused() {
        let good = Letter::default().encode();
        for (at, value) in [(0, b'x'), (3, 2), (4, 2), (5, 1), (7, 1)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(Letter::decode(bytes).is_err(), "{value} at {at}");
        }
        assert!(Letter::decode(good[..HEAD - 1].to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(acknowledged: u64, is_last: bool, body: Vec<u8>) {
            let letter = Letter { acknowledged, is_last, body };
            prop_assert_eq!(Letter::decode(letter.encode()), Ok(letter));
        }

        #[test]
        fn no_bytes_make_it_panic_and_none_are_taken_for_others(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64), is_near: bool,
        ) {
            if is_near && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(MAGIC);
            }
            if let Ok(letter) = Letter::decode(bytes.clone()) {
                prop_assert_eq!(letter.encode(), bytes);
            }
        }
    }
}
