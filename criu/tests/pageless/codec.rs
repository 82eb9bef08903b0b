//! Our image codec against CRIU's own: pycriu, as it is installed beside each CRIU.

use std::fs;
use std::path::Path;
use std::process::Command;

use godwit_criu::images::{Inventory, Pagemap, PagemapEntry, read_tasks, stats};
use godwit_criu::pageless::{PagemapName, Rung, read_mappings, take_pages};
use godwit_criu::{CriuBinary, Version};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;

use crate::tree::Tree;
use crate::{crius, dump, ladder, skip};

/// A CRIU and where its library is: `PREFIX/sbin/criu` and `PREFIX/lib/python3/dist-packages`.
fn crius_with_library(test: &str) -> Vec<(CriuBinary, String)> {
    let found: Vec<_> = crius(test)
        .into_iter()
        .filter_map(|criu| {
            let library = criu.path().parent()?.parent()?.join("lib/python3/dist-packages");
            library.join("pycriu").exists().then(|| (criu, library.display().to_string()))
        })
        .collect();
    if found.is_empty() {
        skip(test, "no python3-pycriu beside a criu");
    }
    found
}

/// The images in the directories as pycriu understands them: file name and records.
fn decode(library: &str, directories: &[&Path]) -> Vec<(String, Vec<Value>)> {
    let output = Command::new("python3")
        .args(["-W", "ignore", "-c", include_str!("decode.py")])
        .args(directories)
        .env("PYTHONPATH", format!("{library}:/usr/lib/python3/dist-packages"))
        .env("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut images = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        images.push((value[1].as_str().unwrap().to_owned(), value[2]["entries"].as_array().unwrap().clone()));
    }
    assert!(!images.is_empty());
    images
}

/// A number, which pycriu writes as text where it is one that people like to read in hexadecimal.
fn number(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap(),
        Value::Bool(truth) => u64::from(*truth),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => text.parse().unwrap_or_else(|_| panic!("{text}")),
        },
        other => panic!("{other}"),
    }
}

fn optional(value: &Value) -> Option<u64> {
    (!value.is_null()).then(|| number(value))
}

fn pagemap_of(records: &[Value]) -> Pagemap {
    let entries = records[1..].iter().map(|entry| {
        let compat = number(if entry["compat_nr_pages"].is_null() {
            &entry["nr_pages"]
        } else {
            &entry["compat_nr_pages"]
        });
        PagemapEntry {
            vaddr: number(&entry["vaddr"]),
            nr_pages: optional(&entry["nr_pages"]).unwrap_or(compat),
            flags: optional(&entry["flags"]).unwrap() as u32,
        }
    });
    Pagemap { pages_id: number(&records[0]["pages_id"]) as u32, entries: entries.collect() }
}

/// Compares every image in the directory that we read.
fn assert_agree(library: &str, images: &Path, work: &Path) {
    let mut kinds = std::collections::BTreeSet::new();
    for (name, records) in decode(library, &[images, work]) {
        let path = images.join(&name);
        kinds.insert(name.split(['-', '.']).next().unwrap().to_owned());
        if name.starts_with("pagemap-") {
            assert_eq!(Pagemap::read(&path).unwrap(), pagemap_of(&records), "{name}");
            assert!(PagemapName::of_file(&name).is_some());
        } else if name.starts_with("mm-") {
            let ours = read_mappings(&path).unwrap();
            let theirs: Vec<_> = records[0]["vmas"].as_array().unwrap().iter().collect();
            let theirs: Vec<_> = theirs.iter().filter(|vma| number(&vma["status"]) & 1 << 16 == 0).collect();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                let theirs = ["start", "end", "prot", "flags", "status"].map(|field| number(&theirs[field]));
                assert_eq!([ours.start, ours.end, ours.prot, ours.flags, ours.status], theirs, "{name}");
            }
        } else if name == "inventory.img" {
            let ours = Inventory::read(images).unwrap();
            assert_eq!(u64::from(ours.img_version), number(&records[0]["img_version"]));
            assert_eq!(ours.dump_uptime, optional(&records[0]["dump_uptime"]));
            assert_eq!(ours.pre_dump_mode.map(u64::from), optional(&records[0]["pre_dump_mode"]));
            let ids =
                ["files_id", "pid_ns_id", "net_ns_id", "ipc_ns_id", "uts_ns_id", "mnt_ns_id", "user_ns_id"];
            for (field, id) in ids.iter().zip([2, 5, 6, 7, 8, 9, 10]) {
                let theirs = optional(&records[0]["root_ids"][field]).unwrap_or(0);
                assert_eq!(u64::from(ours.root_ids[id]), theirs, "{field}");
            }
        } else if name == "pstree.img" {
            let ours = read_tasks(images).unwrap();
            assert_eq!(ours.len(), records.len());
            for (ours, theirs) in ours.iter().zip(&records) {
                let theirs_of = |field: &str| number(&theirs[field]) as u32;
                assert_eq!(
                    [ours.pid, ours.ppid, ours.pgid, ours.sid],
                    ["pid", "ppid", "pgid", "sid"].map(theirs_of)
                );
                let threads: Vec<u32> =
                    theirs["threads"].as_array().unwrap().iter().map(|t| number(t) as u32).collect();
                assert_eq!(ours.threads, threads);
            }
        } else if name == "stats-dump" {
            let ours = stats::read_dump(work).unwrap().unwrap();
            let theirs = |field: &str| optional(&records[0]["dump"][field]).unwrap_or(0);
            let micros = [ours.freezing_time, ours.frozen_time, ours.memdump_time, ours.memwrite_time]
                .map(|t| t.as_micros() as u64);
            assert_eq!(micros, ["freezing_time", "frozen_time", "memdump_time", "memwrite_time"].map(theirs));
            assert_eq!(
                [ours.pages_scanned, ours.pages_skipped_parent, ours.pages_written, ours.pages_lazy],
                ["pages_scanned", "pages_skipped_parent", "pages_written", "pages_lazy"].map(theirs)
            );
            assert_eq!(
                [ours.shpages_scanned, ours.shpages_skipped_parent, ours.shpages_written],
                ["shpages_scanned", "shpages_skipped_parent", "shpages_written"].map(theirs)
            );
        }
    }
    let all = ["inventory", "mm", "pagemap", "pstree", "stats"].map(str::to_owned);
    assert!(all.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
}

#[test]
fn real_images_read_alike() {
    for (criu, library) in crius_with_library("real_images_read_alike") {
        let guards = criu.version().unwrap() >= Version { major: 4, minor: 2, sublevel: 0 };
        let tree = Tree::start(8, if guards { "guarded" } else { "tree" }, true);
        for rung in [Rung::Plain, Rung::ShimWithSmaps, Rung::FakeParent, Rung::PageServer] {
            let mut with = ladder(&criu, &tree, true, rung);
            with.snapshot(&tree.pids());
            tree.freeze(true);
            let name = format!("{rung:?}");
            dump(&mut with, &criu, &tree, tree.options(&name));
            tree.freeze(false);
            let images = tree.dir.join(&name);
            assert_agree(&library, &images, &tree.work());
            // And what we make of them.
            take_pages::<godwit_criu::images::ImageError>(&images, &mut |_, _, _| Ok(())).unwrap();
            assert_agree(&library, &images, &tree.work());
        }
    }
}

#[test]
fn what_we_write_is_read_by_criu() {
    const IMAGES: usize = 60;
    for (criu, library) in crius_with_library("what_we_write_is_read_by_criu") {
        let knows_new_field = criu.version().unwrap() >= Version { major: 4, minor: 2, sublevel: 0 };
        let dir = tempfile::tempdir().unwrap();
        let mut runner = TestRunner::default();
        let entries = proptest::collection::vec((0u64..9, 1u64..1 << 31, 0usize..4), 0..40);
        let mut written = Vec::new();
        for id in 0..IMAGES {
            let mut at = 0;
            let gaps = entries.new_tree(&mut runner).unwrap().current();
            let entries = gaps.into_iter().map(|(gap, nr_pages, kind)| {
                let entry = PagemapEntry { vaddr: at + gap * 4096, nr_pages, flags: [4, 1, 6, 2][kind] };
                at = entry.end();
                entry
            });
            let map = Pagemap { pages_id: id as u32 + 1, entries: entries.collect() };
            map.write(&dir.path().join(format!("pagemap-{id}.img"))).unwrap();
            written.push(map);
        }
        let inventory = Inventory {
            img_version: 2,
            dump_uptime: Some(any::<u64>().new_tree(&mut runner).unwrap().current()),
            pre_dump_mode: Some(1),
            ..Default::default()
        };
        inventory.write(dir.path()).unwrap();
        let decoded = decode(&library, &[dir.path()]);
        assert_eq!(decoded.len(), IMAGES + 1);
        for (name, records) in decoded {
            match PagemapName::of_file(&name) {
                Some(PagemapName::Task(id)) => {
                    assert_eq!(pagemap_of(&records), written[id as usize], "{name}");
                    for record in &records[1..] {
                        // Both counts, so that every version finds its own.
                        assert_eq!(record["compat_nr_pages"].is_null(), !knows_new_field, "{record}");
                    }
                }
                _ => {
                    assert_eq!(name, "inventory.img");
                    assert_eq!(number(&records[0]["dump_uptime"]), inventory.dump_uptime.unwrap());
                    assert_eq!(number(&records[0]["img_version"]), 2);
                }
            }
        }
        // What CRIU's library writes again of it is the same to us.
        let again = tempfile::tempdir().unwrap();
        let copy = "import pycriu, os, sys\nfor n in os.listdir(sys.argv[1]):\n pycriu.images.dump(pycriu.images.load(open(os.path.join(sys.argv[1], n), 'rb'), pretty=False), open(os.path.join(sys.argv[2], n), 'wb'))";
        let status = Command::new("python3")
            .args(["-W", "ignore", "-c", copy])
            .args([dir.path(), again.path()])
            .env("PYTHONPATH", format!("{library}:/usr/lib/python3/dist-packages"))
            .env("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
            .status()
            .unwrap();
        assert!(status.success());
        for (id, map) in written.iter().enumerate() {
            assert_eq!(Pagemap::read(&again.path().join(format!("pagemap-{id}.img"))).unwrap(), *map);
        }
        assert_eq!(Inventory::read(again.path()).unwrap(), inventory);
        assert_eq!(fs::read_dir(again.path()).unwrap().count(), IMAGES + 1);
    }
}
