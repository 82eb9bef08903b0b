//! Which snapshots of a volume went before which: the rule that says whether two histories have diverged.
//!
//! Each node numbers the snapshots that it makes of a volume. What a volume or a snapshot stems from is then one number a node: as many of its
//! snapshots went before (a version vector). One history goes on from another when none of its numbers is smaller; when
//! neither does, both nodes have made something that the other has not. No clock is asked, and it does not matter which of the
//! snapshots are still there.
//!
//! A writer's numbers are one row: where a node gets content that stems from less than it has made, it writes on under another
//! name.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// Characters of a writer's id.
const ID: usize = 16;
/// More writers, or larger numbers, are refused: somebody else may have written it.
const MOST_WRITERS: usize = 128;
const MOST_MADE: u64 = 1 << 48;

/// Who numbers snapshots: a node, as far as it writes a volume without a break.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WriterId(String);

/// Said when a text is no writer's id, or no lineage.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no lineage of snapshots")]
pub struct InvalidLineage(String);

impl WriterId {
    /// A new one, of the kernel's random bytes.
    ///
    /// # Errors
    /// When `/dev/urandom` cannot be read.
    pub fn generate() -> io::Result<Self> {
        let mut random = [0u8; ID / 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self(random.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WriterId {
    type Err = InvalidLineage;

    fn from_str(text: &str) -> Result<Self, InvalidLineage> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == ID && text.bytes().all(is_hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(text))
        }
    }
}

impl TryFrom<String> for WriterId {
    type Error = InvalidLineage;

    fn try_from(text: String) -> Result<Self, InvalidLineage> {
        text.parse()
    }
}

impl From<WriterId> for String {
    fn from(writer: WriterId) -> String {
        writer.0
    }
}

/// What went before: how many snapshots of each writer. As text `WRITER=NUMBER`, separated by commas. Ordered as histories are:
/// less is what went before, and [`None`] says that they have diverged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lineage(BTreeMap<WriterId, u64>);

impl Lineage {
    /// How many snapshots of a writer went before.
    pub fn made_by(&self, writer: &WriterId) -> u64 {
        self.0.get(writer).copied().unwrap_or(0)
    }

    /// The same with one more snapshot of a writer.
    pub fn next(&self, writer: &WriterId) -> Self {
        let mut next = self.clone();
        *next.0.entry(writer.clone()).or_default() += 1;
        next
    }

    /// What goes on from both: whoever continues it knows of both, and supersedes them.
    pub fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for (writer, made) in &other.0 {
            let here = joined.0.entry(writer.clone()).or_default();
            *here = (*here).max(*made);
        }
        joined
    }

    /// Whether nothing went before.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialOrd for Lineage {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let has_all_of =
            |one: &Self, other: &Self| other.0.iter().all(|(writer, made)| one.made_by(writer) >= *made);
        match (has_all_of(self, other), has_all_of(other, self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

/// Those from which no other goes on, by their places: one, unless histories have diverged. Of equals the first counts.
pub fn ends(of: &[&Lineage]) -> Vec<usize> {
    let goes_on = |at: usize, one: &Lineage| {
        of.iter().enumerate().any(|(other_at, other)| match one.partial_cmp(other) {
            Some(Ordering::Less) => true,
            Some(Ordering::Equal) => other_at < at,
            _ => false,
        })
    };
    of.iter().enumerate().filter(|(at, one)| !goes_on(*at, one)).map(|(at, _)| at).collect()
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (writer, made)) in self.0.iter().enumerate() {
            write!(f, "{}{writer}={made}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Lineage {
    type Err = InvalidLineage;

    fn from_str(text: &str) -> Result<Self, InvalidLineage> {
        let mut found = BTreeMap::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (writer, made) = part.split_once('=').ok_or_else(|| invalid(text))?;
            let made = made.parse().ok().filter(|made| (1..=MOST_MADE).contains(made));
            let made = made.ok_or_else(|| invalid(text))?;
            if found.insert(writer.parse()?, made).is_some() || found.len() > MOST_WRITERS {
                return Err(invalid(text));
            }
        }
        Ok(Self(found))
    }
}

impl TryFrom<String> for Lineage {
    type Error = InvalidLineage;

    fn try_from(text: String) -> Result<Self, InvalidLineage> {
        text.parse()
    }
}

impl From<Lineage> for String {
    fn from(lineage: Lineage) -> String {
        lineage.to_string()
    }
}

fn invalid(text: &str) -> InvalidLineage {
    InvalidLineage(text.chars().take(80).collect())
}

#[cfg(test)]
mod tests;
