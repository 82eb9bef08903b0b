//! What tasks share copy-on-write, as far as the ledger can tell: the same content at the same address in several tasks.

use super::PageLedger;
use crate::ImageId;
use crate::table::{ABSENT, BLOCK_PAGES, Block, ZERO};
use std::collections::BTreeMap;

impl PageLedger {
    /// Pages of tasks that another task has, too, at the same address; each counts once for every task that has it.
    pub fn shared_between_tasks(&self) -> u64 {
        let mut blocks: BTreeMap<u64, Vec<&Block>> = BTreeMap::new();
        for (image, table) in &self.images {
            if let ImageId::Task(_) = image {
                for (number, block) in table.blocks() {
                    blocks.entry(number).or_default().push(block);
                }
            }
        }
        let mut shared = 0;
        for of_tasks in blocks.into_values().filter(|blocks| blocks.len() > 1) {
            for index in 0..BLOCK_PAGES as usize {
                let places = || of_tasks.iter().map(|block| block.get(index));
                let has_twin = |place: &u32| {
                    !matches!(*place, ABSENT | ZERO) && places().filter(|other| other == place).count() > 1
                };
                shared += places().filter(has_twin).count() as u64;
            }
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    #[test]
    fn only_the_same_content_at_the_same_address_of_tasks_counts() {
        let mut ledger = PageLedger::new(1, 100, 7);
        let mut add = |image, page: u64, byte: u8| {
            ledger
                .add(image, page * PAGE_SIZE, &[byte; PAGE_SIZE as usize], &mut |_, _| Ok::<(), ()>(()))
                .unwrap();
        };
        for task in 1..=3 {
            add(ImageId::Task(task), 1, 1);
            add(ImageId::Task(task), 2, 0);
            add(ImageId::Task(task), 3, task as u8 + 10);
            add(ImageId::Task(task), 10 + u64::from(task), 9);
        }
        add(ImageId::Shared(0), 1, 1);
        assert_eq!(ledger.shared_between_tasks(), 3);
    }
}
