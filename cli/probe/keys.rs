//! The names and values of the keys that the probe writes.

/// Which key request `n` writes, and what.
///
/// Key `k` is `<prefix>:<k>` and request `n` writes key `n` modulo the size of the key space. The value is
/// `<n>-<run>`, padded with `.` to the wanted size; the run tells it from values of earlier runs.
#[derive(Debug, Clone)]
pub struct KeySpace {
    prefix: String,
    run: String,
    size: u64,
    value_size: usize,
}

/// What stands in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The value of request `n`.
    Request(u64),
    /// Nothing, or a value this run did not write to that key.
    Foreign,
}

impl KeySpace {
    /// Values have at least `value_size` bytes. `size` is at least 1.
    pub fn new(prefix: String, run: String, size: u64, value_size: usize) -> Self {
        Self { prefix, run, size: size.max(1), value_size }
    }

    /// How many keys there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The least bytes of a value.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// The key that request `n` writes.
    pub fn key_of(&self, n: u64) -> u64 {
        n % self.size
    }

    /// Whether no earlier request wrote the key of `n`.
    pub fn is_first(&self, n: u64) -> bool {
        n < self.size
    }

    /// The name of a key.
    pub fn name(&self, key: u64) -> String {
        format!("{}:{key}", self.prefix)
    }

    /// Appends the value of request `n`.
    pub fn write_value(&self, n: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(format!("{n}-{}", self.run).as_bytes());
        if out.len() - start < self.value_size {
            out.resize(start + self.value_size, b'.');
        }
    }

    /// What `value`, read from `key`, is. With `any_run` a value of an earlier run counts as well.
    pub fn read_value(&self, key: u64, value: &[u8], any_run: bool) -> Stored {
        let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
        let Some(n) = std::str::from_utf8(&value[..digits]).ok().and_then(|d| d.parse::<u64>().ok()) else {
            return Stored::Foreign;
        };
        let whole = if any_run {
            value.get(digits) == Some(&b'-')
        } else {
            let mut expected = Vec::with_capacity(value.len());
            self.write_value(n, &mut expected);
            expected == value
        };
        if whole && self.key_of(n) == key { Stored::Request(n) } else { Stored::Foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recognized_by_number_run_key_and_length() {
        let keys = KeySpace::new("p".into(), "run".into(), 10, 20);
        let mut value = Vec::new();
        keys.write_value(17, &mut value);
        assert_eq!(value, b"17-run..............");
        assert_eq!(keys.name(keys.key_of(17)), "p:7");
        assert_eq!(keys.read_value(7, &value, false), Stored::Request(17));
        assert_eq!(keys.read_value(8, &value, false), Stored::Foreign);
        assert_eq!(keys.read_value(7, &value[..19], false), Stored::Foreign);
        assert_eq!(keys.read_value(7, b"17-other............", false), Stored::Foreign);
        assert_eq!(keys.read_value(7, b"17-other............", true), Stored::Request(17));
        for bad in [&b""[..], b"-", b"99999999999999999999999-run", b"\xff"] {
            assert_eq!(keys.read_value(7, bad, true), Stored::Foreign);
        }
    }
}
