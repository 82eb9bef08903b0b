//! Which chunks are wanted, each once, and in which order.

use godwit_store::{Digest, Store};
use std::collections::HashMap;
use std::time::Instant;

/// A chunk that somebody may have.
pub(super) struct Item {
    /// Its place in the order.
    pub at: usize,
    pub bytes: u64,
    /// How often it is needed yet.
    pub uses: u32,
    /// A bit for each neighbour that has it.
    pub holders: u64,
    /// A bit for each neighbour that was asked for it and has not answered.
    pub asked: u64,
    pub asked_at: Instant,
    pub content: Option<Vec<u8>>,
    /// It was used, and is there for later.
    pub is_kept: bool,
    /// Nobody needs to be asked for it.
    pub is_settled: bool,
}

/// Which chunks somebody is to be asked for.
#[derive(Default)]
pub(super) struct Lists {
    pub order: Vec<Digest>,
    pub items: HashMap<Digest, Item>,
    pub wanted_bytes: u64,
}

impl Lists {
    /// Lines these up; those that the own store has, which nobody else needs to be asked for.
    pub fn line_up<'a>(
        &mut self,
        needs: impl IntoIterator<Item = &'a (Digest, u64)>,
        own: Option<&Store>,
    ) -> HashMap<Digest, u64> {
        let mut counted = HashMap::new();
        for (digest, bytes) in needs {
            if counted.contains_key(digest) {
                continue;
            }
            if let Some(item) = self.items.get_mut(digest) {
                item.uses += 1;
                continue;
            }
            self.wanted_bytes += bytes;
            if own.is_some_and(|own| own.has_chunk(*digest)) {
                counted.insert(*digest, *bytes);
                continue;
            }
            let item = Item {
                at: self.order.len(),
                bytes: *bytes,
                uses: 1,
                holders: 0,
                asked: 0,
                asked_at: Instant::now(),
                content: None,
                is_kept: false,
                is_settled: false,
            };
            self.items.insert(*digest, item);
            self.order.push(*digest);
        }
        counted
    }
}
