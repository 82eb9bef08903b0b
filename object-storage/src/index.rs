//! An index says what an image is and in which packs its chunks are. It is written last: an image is complete when its index is there.
//!
//! `GWI` and the version, 1; then, compressed by zstd, what [`Index`] declares in postcard's format. Or all of that encrypted.
//! It is named by the digest of the image's manifest.

use std::collections::HashSet;
use std::io::Read;

use godwit_checkpoint::sealed::{Identities, Recipients, are_sealed};
use godwit_store::manifest::{Described, Tree};
use godwit_store::{Digest, Manifest};
use serde::{Deserialize, Serialize};

use crate::PlaceError;
use crate::pack::{self, PackEntry};

const MAGIC: [u8; 4] = *b"GWI\x01";
/// Most bytes of an index as it is: what a manifest may have, and the names of as many chunks.
const MOST: u64 = 1 << 30;
/// It is written once and read seldom.
const LEVEL: i32 = 3;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container, as `godwit checkpoint` writes it.
    Checkpoint,
    /// A volume.
    Snapshot,
}

impl Kind {
    /// Where in a place the indexes of such images are.
    pub const fn directory(self) -> &'static str {
        match self {
            Kind::Checkpoint => "checkpoints",
            Kind::Snapshot => "snapshots",
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Checkpoint => "checkpoint",
            Kind::Snapshot => "snapshot",
        }
    }
}

/// The secret keys that there are.
#[derive(Clone, Copy)]
pub struct Keys<'a>(pub Option<&'a Identities>);

impl Keys<'_> {
    /// What was sealed, as it is; what was not is left as it is.
    pub(crate) fn open(self, object: &str, bytes: Vec<u8>) -> Result<Vec<u8>, PlaceError> {
        if !are_sealed(&bytes) {
            return Ok(bytes);
        }
        let identities = self.0.ok_or_else(|| PlaceError::Sealed(object.to_owned()))?;
        match identities.open_bytes(&bytes) {
            Ok(plain) => plain.ok_or_else(|| PlaceError::NotForUs(object.to_owned())),
            Err(error) => Err(PlaceError::Damaged { object: object.to_owned(), why: error.to_string() }),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(with = "serde_bytes")]
    described: Vec<u8>,
    #[serde(with = "serde_bytes")]
    tree: Vec<u8>,
    packs: Vec<PackEntry>,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The digest of the image's manifest.
    pub manifest: Digest,
    /// What is known of it.
    pub described: Described,
    /// The tree.
    pub tree: Tree,
    /// Where its chunks are.
    pub packs: Vec<PackEntry>,
}

impl Index {
    /// The bytes of an index, as they are to lie in the place.
    ///
    /// # Errors
    /// When it is larger than an index may be, or cannot be encrypted.
    pub fn encode(&self, recipients: Option<&Recipients>) -> Result<Vec<u8>, PlaceError> {
        let unfit = |why: String| PlaceError::Unusable(format!("the index cannot be written: {why}"));
        let written = Written {
            described: Manifest::Described(self.described.clone()).encode().map_err(unfit)?,
            tree: Manifest::Tree(self.tree.clone()).encode().map_err(unfit)?,
            packs: self.packs.clone(),
        };
        let plain = postcard::to_stdvec(&written).map_err(|error| unfit(error.to_string()))?;
        if plain.len() as u64 > MOST {
            return Err(unfit(format!("it would have more than {MOST} bytes")));
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(zstd::bulk::compress(&plain, LEVEL).map_err(|error| unfit(error.to_string()))?);
        pack::seal(recipients, bytes)
    }

    /// Takes bytes that were read from `object` as the index of the image `manifest`.
    ///
    /// # Errors
    /// When they are encrypted and no key opens them, or are not what was written.
    pub fn decode(
        object: &str,
        manifest: Digest,
        bytes: Vec<u8>,
        keys: Keys<'_>,
    ) -> Result<Index, PlaceError> {
        let damaged = |why: String| PlaceError::Damaged { object: object.to_owned(), why };
        let bytes = keys.open(object, bytes)?;
        let body = bytes
            .strip_prefix(&MAGIC)
            .ok_or_else(|| damaged("it does not begin as an index of this version does".into()))?;
        let mut plain = Vec::new();
        zstd::stream::read::Decoder::with_buffer(body)
            .and_then(|decoder| decoder.take(MOST + 1).read_to_end(&mut plain))
            .map_err(|error| damaged(error.to_string()))?;
        let written: Written = postcard::from_bytes(&plain).map_err(|error| damaged(error.to_string()))?;
        let not_its_name = || damaged("it does not hold what its name says".into());
        if Digest::of(&written.described) != manifest {
            return Err(not_its_name());
        }
        let Manifest::Described(described) = Manifest::decode(&written.described).map_err(damaged)? else {
            return Err(not_its_name());
        };
        if Digest::of(&written.tree) != described.tree {
            return Err(not_its_name());
        }
        let Manifest::Tree(tree) = Manifest::decode(&written.tree).map_err(damaged)? else {
            return Err(not_its_name());
        };
        let index = Index { manifest, described, tree, packs: written.packs };
        index.check().map_err(damaged)?;
        Ok(index)
    }

    /// Whether each chunk that the tree needs is in a pack, and no pack is larger than one may be.
    fn check(&self) -> Result<(), String> {
        if let Some(pack) = self.packs.iter().find(|pack| pack.bytes > pack::MOST) {
            return Err(format!("pack {} is said to have {} bytes", pack.name, pack.bytes));
        }
        let packed: HashSet<Digest> =
            self.packs.iter().flat_map(|pack| &pack.chunks).map(|(digest, _)| *digest).collect();
        match self.tree.needs().iter().find(|(digest, _)| !packed.contains(digest)) {
            Some((digest, _)) => Err(format!("chunk {digest} is in no pack")),
            None => Ok(()),
        }
    }

    /// Something that is known of it.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.described.facts.get(name).map(String::as_str)
    }
}
