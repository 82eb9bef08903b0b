//! A difference put back onto the earlier images gives the later ones, whatever moved, went or came.
#![allow(clippy::unwrap_used)]

use godwit_criu::images::pagemap::{PE_LAZY, PE_PRESENT, pages_name};
use godwit_criu::images::{PAGE_SIZE, PageStore, Pagemap, PagemapEntry, difference};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Page number to content.
type Memory = BTreeMap<u64, u8>;

fn page(value: u8) -> Vec<u8> {
    (0..PAGE_SIZE).map(|at| value.wrapping_mul(31).wrapping_add(at as u8)).collect()
}

fn write_images(dir: &Path, tasks: &BTreeMap<u32, Memory>) {
    fs::create_dir(dir).unwrap();
    for (task, memory) in tasks {
        let mut entries: Vec<PagemapEntry> = Vec::new();
        for number in memory.keys() {
            let (vaddr, flags) = (number * PAGE_SIZE, PE_PRESENT | if number % 7 < 4 { PE_LAZY } else { 0 });
            match entries.last_mut() {
                Some(last) if last.end() == vaddr && last.flags == flags => last.nr_pages += 1,
                _ => entries.push(PagemapEntry { vaddr, nr_pages: 1, flags }),
            }
        }
        Pagemap { pages_id: *task, entries }.write(&dir.join(format!("pagemap-{task}.img"))).unwrap();
        fs::write(
            dir.join(pages_name(*task)),
            memory.values().flat_map(|value| page(*value)).collect::<Vec<u8>>(),
        )
        .unwrap();
    }
    fs::write(dir.join("core-1.img"), b"registers").unwrap();
}

fn read_images(dir: &Path, tasks: &BTreeMap<u32, Memory>) -> BTreeMap<u32, BTreeMap<u64, Vec<u8>>> {
    let of_task = |task: &u32| {
        let map = Pagemap::read(&dir.join(format!("pagemap-{task}.img"))).unwrap();
        let bytes = fs::read(dir.join(map.pages_name())).unwrap_or_default();
        let numbers = map.entries.iter().flat_map(|entry| {
            assert!(entry.present() && !entry.in_parent());
            (0..entry.nr_pages).map(move |n| entry.vaddr / PAGE_SIZE + n)
        });
        (*task, numbers.zip(bytes.chunks(PAGE_SIZE as usize).map(<[u8]>::to_vec)).collect())
    };
    tasks.keys().map(of_task).collect()
}

/// Sends the difference as a migration does; the changed pages.
fn round_trip(earlier: &BTreeMap<u32, Memory>, later: &BTreeMap<u32, Memory>) -> u64 {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| dir.path().join(name);
    write_images(&path("earlier"), earlier);
    write_images(&path("later"), later);
    let report = difference(&path("earlier"), &path("later"), &path("difference")).unwrap();
    let mut store = PageStore::create(path("store")).unwrap();
    store.absorb(&path("earlier")).unwrap();
    store.compose(&path("difference"), &path("flat")).unwrap();
    let model = later.iter().map(|(task, memory)| {
        (*task, memory.iter().map(|(number, value)| (*number, page(*value))).collect::<BTreeMap<_, _>>())
    });
    assert_eq!(read_images(&path("flat"), later), model.collect());
    assert_eq!(fs::read(path("flat").join("core-1.img")).unwrap(), b"registers");
    report.changed_pages
}

fn task(memory: impl IntoIterator<Item = (u64, u8)>) -> BTreeMap<u32, Memory> {
    BTreeMap::from([(1, memory.into_iter().collect())])
}

#[test]
fn a_page_in_front_costs_one_page_and_not_all() {
    let heap = |from: u64| (from..3000).map(|number| (number, (number % 251) as u8));
    assert_eq!(round_trip(&task(heap(10)), &task(heap(9))), 1);
    assert_eq!(round_trip(&task(heap(9)), &task(heap(200))), 0, "what went costs nothing");
}

#[test]
fn a_task_that_is_new_is_sent_whole_and_one_that_ended_not_at_all() {
    let earlier = BTreeMap::from([(1, Memory::from([(5, 1)])), (2, Memory::from([(5, 2), (6, 3)]))]);
    let later = BTreeMap::from([(1, Memory::from([(5, 1)])), (3, Memory::from([(5, 2), (6, 3)]))]);
    assert_eq!(round_trip(&earlier, &later), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn the_later_images_come_back(
        earlier in proptest::collection::btree_map(0u64..1500, 0u8..4, 0..400),
        later in proptest::collection::btree_map(0u64..1500, 0u8..4, 0..400),
        block in 0u64..1200,
    ) {
        // a common block, so that long runs overlap
        let with_block = |memory: &Memory| {
            let mut memory = memory.clone();
            memory.extend((block..block + 700).map(|number| (number, 9)));
            BTreeMap::from([(1, memory)])
        };
        let (earlier, later) = (with_block(&earlier), with_block(&later));
        let changed = round_trip(&earlier, &later);
        let model = later[&1].iter().filter(|(number, value)| earlier[&1].get(number) != Some(value)).count();
        prop_assert_eq!(changed, model as u64);
    }
}
