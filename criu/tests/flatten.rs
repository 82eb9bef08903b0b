//! Flat images against a model: which page has which content.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use godwit_criu::images::pagemap::{PE_LAZY, PE_PARENT, PE_PRESENT, pages_name};
use godwit_criu::images::{
    FlattenReport, ImageError, PAGE_SIZE, PageStore, Pagemap, PagemapEntry, chain_of, flatten,
};
use proptest::prelude::*;

/// Page number to content.
type Memory = BTreeMap<u64, u64>;
/// Image name to its memory.
type Tree = BTreeMap<String, Memory>;

/// Pages 0 to 999 of the model are at low addresses, the others far up.
fn address(page: u64) -> u64 {
    if page < 1000 { (page + 16) * PAGE_SIZE } else { 0x7fff_0000_0000 + page * PAGE_SIZE }
}

fn lazy(page: u64) -> u32 {
    if page % 300 < 250 { PE_LAZY } else { 0 }
}

fn content(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat((PAGE_SIZE / 8) as usize)
}

/// Writes the images of `now` as CRIU would with `before` as parent.
fn write_round(dir: &Path, before: Option<&Tree>, now: &Tree) {
    fs::create_dir(dir).unwrap();
    for (i, (name, memory)) in now.iter().enumerate() {
        let pages_id = i as u32 + 1;
        let (mut entries, mut pages) = (Vec::<PagemapEntry>::new(), Vec::new());
        for (&page, &value) in memory {
            let old = before.and_then(|tree| tree.get(name)).and_then(|memory| memory.get(&page));
            let flags = if old == Some(&value) { PE_PARENT } else { PE_PRESENT | lazy(page) };
            if flags & PE_PRESENT != 0 {
                pages.extend(content(value));
            }
            match entries.last_mut() {
                Some(last) if last.end() == address(page) && last.flags == flags => last.nr_pages += 1,
                _ => entries.push(PagemapEntry { vaddr: address(page), nr_pages: 1, flags }),
            }
        }
        Pagemap { pages_id, entries }.write(&dir.join(name)).unwrap();
        if !pages.is_empty() {
            fs::write(dir.join(pages_name(pages_id)), pages).unwrap();
        }
    }
    fs::write(dir.join("core-1.img"), b"registers").unwrap();
    if before.is_some() {
        let name = dir.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap();
        std::os::unix::fs::symlink(format!("../{}", name - 1), dir.join("parent")).unwrap();
    }
}

/// Reads flat images back into a model, checking what CRIU will rely on.
fn read_flat(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    assert!(fs::symlink_metadata(dir.join("parent")).is_err());
    assert_eq!(fs::read(dir.join("core-1.img")).unwrap(), b"registers");
    assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("pagemap-") {
            continue;
        }
        let map = Pagemap::read(&dir.join(&name)).unwrap();
        let pages = fs::read(dir.join(map.pages_name())).unwrap();
        assert_eq!(pages.len() as u64, map.present_pages() * PAGE_SIZE, "exactly its pages");
        let mut rest = &pages[..];
        let memory = tree.entry(name).or_default();
        for entry in &map.entries {
            assert!(entry.present() && !entry.in_parent());
            for i in 0..entry.nr_pages {
                let vaddr = entry.vaddr + i * PAGE_SIZE;
                let page = if vaddr < address(1000) {
                    vaddr / PAGE_SIZE - 16
                } else {
                    (vaddr - 0x7fff_0000_0000) / PAGE_SIZE
                };
                assert_eq!(entry.flags & PE_LAZY, lazy(page), "page {page}");
                let (this, tail) = rest.split_at(PAGE_SIZE as usize);
                let value = u64::from_le_bytes(this[..8].try_into().unwrap());
                assert_eq!(this, content(value), "a whole page");
                memory.insert(page, value);
                rest = tail;
            }
        }
    }
    tree
}

/// Builds the chain, flattens it in both ways, and compares with its last state.
fn check(states: &[Tree]) -> (FlattenReport, FlattenReport) {
    let dir = tempfile::tempdir().unwrap();
    let chain: Vec<PathBuf> = (0..states.len()).map(|i| dir.path().join(i.to_string())).collect();
    for (i, state) in states.iter().enumerate() {
        write_round(&chain[i], i.checked_sub(1).map(|before| &states[before]), state);
    }
    assert_eq!(chain_of(chain.last().unwrap()).unwrap().len(), chain.len());
    let before = contents(dir.path());
    let at_once = flatten(&chain, &dir.path().join("flat")).unwrap();
    assert_eq!(&read_flat(&dir.path().join("flat")), states.last().unwrap());
    fs::remove_dir_all(dir.path().join("flat")).unwrap();
    assert_eq!(contents(dir.path()), before, "the chain stays as it is");

    let mut store = PageStore::create(dir.path().join("store")).unwrap();
    for (round, state) in chain.iter().zip(states).take(states.len() - 1) {
        store.absorb(round).unwrap();
        assert_eq!(store.pages(), state.values().map(|memory| memory.len() as u64).sum::<u64>());
    }
    let by_rounds = store.compose(chain.last().unwrap(), &dir.path().join("composed")).unwrap();
    assert_eq!(&read_flat(&dir.path().join("composed")), states.last().unwrap());
    assert!(!dir.path().join("store").exists());
    assert_eq!(by_rounds.pages, at_once.pages);
    (at_once, by_rounds)
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        for file in fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                all.insert(file.path(), fs::read(file.path()).unwrap());
            }
        }
    }
    all
}

#[derive(Debug, Clone)]
enum Change {
    Write { image: usize, from: u64, pages: u64 },
    Unmap { image: usize, from: u64, pages: u64 },
    End { image: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let place =
        || (0usize..3, prop_oneof![0u64..60, 1000u64..1060], prop_oneof![4 => 1u64..6, 1 => 30u64..300]);
    prop_oneof![
        6 => place().prop_map(|(image, from, pages)| Change::Write { image, from, pages }),
        2 => place().prop_map(|(image, from, pages)| Change::Unmap { image, from, pages }),
        1 => (0usize..3).prop_map(|image| Change::End { image }),
    ]
}

const IMAGES: [&str; 3] = ["pagemap-1.img", "pagemap-23.img", "pagemap-shmem-4.img"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn flat_images_hold_the_last_state(rounds in proptest::collection::vec(proptest::collection::vec(change(), 0..6), 1..6)) {
        let mut tree = Tree::from(IMAGES.map(|name| (name.to_owned(), Memory::new())));
        let mut value = 0;
        let mut states = Vec::new();
        for changes in rounds {
            for change in changes {
                match change {
                    Change::Write { image, from, pages } => for page in from..from + pages {
                        value += 1;
                        tree.entry(IMAGES[image].to_owned()).or_default().insert(page, value);
                    },
                    Change::Unmap { image, from, pages } => if let Some(memory) = tree.get_mut(IMAGES[image]) {
                        memory.retain(|page, _| !(from..from + pages).contains(page));
                    },
                    Change::End { image } => { tree.remove(IMAGES[image]); }
                }
            }
            states.push(tree.clone());
        }
        check(&states);
    }
}

fn tree_of(memory: Memory) -> Tree {
    Tree::from([("pagemap-1.img".to_owned(), memory)])
}

#[test]
fn a_heap_that_only_changes_is_completed_in_place() {
    let first: Memory = (0..900).map(|page| (page, page + 1)).collect();
    let (mut second, mut third) = (first.clone(), first.clone());
    for page in 100..140 {
        second.insert(page, 5000 + page);
        third.insert(page, 5000 + page);
    }
    third.insert(7, 9000);
    third.retain(|page, _| *page < 880);
    let (at_once, by_rounds) = check(&[tree_of(first), tree_of(second), tree_of(third)]);
    assert_eq!((at_once.pages, at_once.copied_pages), (880, 880), "the chain's files are not ours to change");
    assert_eq!((by_rounds.pages, by_rounds.copied_pages), (880, 41));
}

#[test]
fn a_page_more_in_front_moves_all() {
    let first: Memory = (1..900).map(|page| (page, page)).collect();
    let mut second = first.clone();
    second.insert(0, 77);
    let (_, by_rounds) = check(&[tree_of(first), tree_of(second)]);
    assert_eq!((by_rounds.pages, by_rounds.copied_pages), (900, 900));
}

#[test]
fn no_rounds_before() {
    check(&[tree_of((0..10).map(|page| (page, page)).collect())]);
}

#[test]
fn broken_chains_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let full = tree_of((0..10).map(|page| (page, page)).collect());
    write_round(&path("1"), None, &tree_of((0..5).map(|page| (page, page)).collect()));
    // Says that pages 0 to 9 are in the parent, whereas 5 to 9 are not.
    write_round(&path("2"), Some(&full), &full);
    match flatten(&[path("1"), path("2")], &path("out")) {
        Err(ImageError::MissingPage { image, vaddr }) => {
            assert_eq!((image.as_str(), vaddr), ("pagemap-1.img", address(5)));
        }
        other => panic!("{other:?}"),
    }
    // A pages file that is too short.
    fs::write(path("1").join("pages-1.img"), vec![0; 4 * PAGE_SIZE as usize]).unwrap();
    assert!(matches!(flatten(&[path("1")], &path("out2")), Err(ImageError::Broken { .. })));
    // Two pagemaps with one pages file.
    fs::copy(path("2").join("pagemap-1.img"), path("2").join("pagemap-2.img")).unwrap();
    assert!(matches!(flatten(&[path("2")], &path("out3")), Err(ImageError::Broken { .. })));
    // An existing directory, no directory at all, a circle of links.
    assert!(flatten(&[path("1")], &path("out")).is_err());
    assert!(flatten(&[], &path("out4")).is_err());
    fs::remove_file(path("2").join("parent")).unwrap();
    std::os::unix::fs::symlink("../2", path("2").join("parent")).unwrap();
    assert!(chain_of(&path("2")).is_err());
    fs::remove_file(path("2").join("parent")).unwrap();
    std::os::unix::fs::symlink("/etc", path("2").join("parent")).unwrap();
    assert!(chain_of(&path("2")).is_err());
}
