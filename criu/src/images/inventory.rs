//! The inventory: `inventory.img`, what the other images are (inventory.proto).

use std::path::Path;

use super::file::{ImageError, Kind, join_records, read_records, write_private};
use super::wire::{Fields, Malformed, put_varint};

/// Name of the inventory.
pub const INVENTORY_IMAGE: &str = "inventory.img";

/// The fields of the inventory that godwit uses; the others are left out on writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Version of the image format: 1, or 2 with the common magics.
    pub img_version: u32,
    /// Ids of the root task's namespaces and the like, by field number of `task_kobj_ids_entry`: 2 files, 5 pid ns, 6 net ns,
    /// 7 ipc ns, 8 uts ns, 9 mnt ns, 10 user ns, 11 cgroup ns, 12 time ns. 0 when absent.
    pub root_ids: [u32; 13],
    /// Uptime at the dump, microseconds. Tasks that started later reuse a pid, so no parent page is theirs.
    pub dump_uptime: Option<u64>,
    /// 1 splice, 2 read.
    pub pre_dump_mode: Option<u32>,
}

impl Inventory {
    /// Reads `dir/inventory.img`.
    pub fn read(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(INVENTORY_IMAGE);
        let records = read_records(&path, Kind::Inventory)?;
        let record = records.first().ok_or_else(|| ImageError::broken(&path, "it is empty"))?;
        parse(record).map_err(|_| ImageError::broken(&path, "its record is malformed"))
    }

    /// Writes `dir/inventory.img`: what CRIU wants of a parent directory whose pages it does not need to read.
    pub fn write(&self, dir: &Path) -> Result<(), ImageError> {
        let mut record = Vec::new();
        put_varint(&mut record, 1, self.img_version.into());
        if let Some(uptime) = self.dump_uptime {
            put_varint(&mut record, 8, uptime);
        }
        if let Some(mode) = self.pre_dump_mode {
            put_varint(&mut record, 9, mode.into());
        }
        write_private(&dir.join(INVENTORY_IMAGE), &join_records(Kind::Inventory, [record]))
    }
}

fn parse(record: &[u8]) -> Result<Inventory, Malformed> {
    let mut inventory = Inventory::default();
    for field in Fields(record) {
        let (number, value) = field?;
        match number {
            1 => inventory.img_version = value.u32()?,
            3 => {
                for id in Fields(value.bytes()?) {
                    let (number, value) = id?;
                    if let Some(slot) = inventory.root_ids.get_mut(number as usize) {
                        *slot = value.u32()?;
                    }
                }
            }
            8 => inventory.dump_uptime = Some(value.u64()?),
            9 => inventory.pre_dump_mode = Some(value.u32()?),
            _ => {}
        }
    }
    if inventory.img_version == 0 { Err(Malformed) } else { Ok(inventory) }
}

#[cfg(test)]
mod tests {
    use super::super::wire::put_bytes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let inventory = Inventory {
            img_version: 1,
            root_ids: [0; 13],
            dump_uptime: Some(1 << 40),
            pre_dump_mode: Some(1),
        };
        inventory.write(dir.path()).unwrap();
        assert_eq!(Inventory::read(dir.path()).unwrap(), inventory);
        let bytes = std::fs::read(dir.path().join(INVENTORY_IMAGE)).unwrap();
        assert_eq!(bytes[..4], 0x5831_3116u32.to_le_bytes(), "no common magic");
    }

    #[test]
    fn root_ids() {
        let (mut ids, mut record) = (Vec::new(), Vec::new());
        put_varint(&mut ids, 9, 4);
        put_varint(&mut ids, 200, 4);
        put_varint(&mut record, 1, 2);
        put_bytes(&mut record, 3, &ids);
        assert_eq!(parse(&record).unwrap().root_ids[9], 4);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
