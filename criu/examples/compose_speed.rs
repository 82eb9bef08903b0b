//! How fast a page store puts images together: `cargo run --release -p godwit-criu --example compose_speed`. Takes 3 GiB below
//! `GODWIT_TEST_DIR`, or /var/tmp.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use godwit_criu::images::pagemap::{PE_LAZY, PE_PARENT, PE_PRESENT};
use godwit_criu::images::{PAGE_SIZE, PageStore, Pagemap, PagemapEntry};
use std::fs;
use std::path::PathBuf;

fn main() {
    const PAGES: u64 = 131_072;
    let base = std::env::var_os("GODWIT_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let full = |shift: u64| {
        (0..PAGES)
            .map(|page| PagemapEntry {
                vaddr: (page + shift) * PAGE_SIZE,
                nr_pages: 1,
                flags: PE_PRESENT | PE_LAZY,
            })
            .collect::<Vec<_>>()
    };
    // Which pages the second round has anew; whether a page more is in front.
    type Dirty = fn(u64) -> bool;
    let cases: [(&str, Dirty, bool); 4] = [
        ("one in 16 written", |page| page.is_multiple_of(16), false),
        ("one in 16 written, one more in front", |page| page.is_multiple_of(16), true),
        ("every other written, one more in front", |page| page.is_multiple_of(2), true),
        ("nothing written, one more in front", |_| false, true),
    ];
    for (what, dirty, more) in cases {
        let dir = tempfile::tempdir_in(&base).unwrap();
        let (first, last) = (dir.path().join("1"), dir.path().join("2"));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&last).unwrap();
        Pagemap { pages_id: 1, entries: full(1) }.write(&first.join("pagemap-1.img")).unwrap();
        fs::write(first.join("pages-1.img"), vec![1u8; (PAGES * PAGE_SIZE) as usize]).unwrap();
        let mut entries = full(1);
        for (entry, page) in entries.iter_mut().zip(1u64..) {
            entry.flags = if dirty(page) { PE_PRESENT | PE_LAZY } else { PE_PARENT };
        }
        if more {
            entries.insert(0, PagemapEntry { vaddr: 0, nr_pages: 1, flags: PE_PRESENT });
        }
        let map = Pagemap { pages_id: 1, entries };
        map.write(&last.join("pagemap-1.img")).unwrap();
        fs::write(last.join("pages-1.img"), vec![2u8; (map.present_pages() * PAGE_SIZE) as usize]).unwrap();
        let mut store = PageStore::create(dir.path().join("store")).unwrap();
        let absorbed = store.absorb(&first).unwrap();
        let report = store.compose(&last, &dir.path().join("out")).unwrap();
        let rate = (report.pages * PAGE_SIZE) as f64 / report.wall.as_secs_f64() / 1e9;
        println!(
            "{what}: absorb {:?}, compose {:?} = {rate:.2} GB/s of image, {} of {} pages copied",
            absorbed.wall, report.wall, report.copied_pages, report.pages
        );
    }
}
