//! How long each rung takes, by size: a table. `GODWIT_TEST_MEASURE` gives the number of dumps for each cell, and has larger
//! trees measured too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use godwit_criu::pageless::Rung;

use crate::tree::{Tree, take};
use crate::{crius, dump, ladder};

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn time_by_size_and_rung() {
    let times = std::env::var("GODWIT_TEST_MEASURE").ok().and_then(|text| text.parse::<usize>().ok());
    let sizes: &[u32] = if times.is_some() { &[64, 512, 2048] } else { &[32, 256] };
    for criu in crius("time_by_size_and_rung") {
        let version = criu.version().unwrap();
        println!(
            "| criu {version} | MiB | whole call ms | request to exit ms | CRIU's frozen time ms | own pages |"
        );
        let mut least = BTreeMap::new();
        for own_mounts in [false, true] {
            for mib in sizes {
                let tree = Tree::start(*mib, "plain", own_mounts);
                let rungs: &[Rung] = if own_mounts { &[Rung::FakeParent] } else { &Rung::ALL };
                let begun = Instant::now();
                drop(ladder(&criu, &tree, own_mounts, rungs[0]));
                println!("preparing: {:?}", begun.elapsed());
                for rung in rungs.iter().copied().filter(|rung| own_mounts || *rung != Rung::FakeParent) {
                    let (mut calls, mut walls, mut frozen, mut pages) = (vec![], vec![], vec![], 0);
                    for number in 0..times.unwrap_or(3) {
                        let mut with = ladder(&criu, &tree, own_mounts, rung);
                        let name = format!("{rung:?}-{number}");
                        with.start(&criu, &tree.options(&name)).unwrap();
                        with.snapshot(&tree.pids());
                        tree.freeze(true);
                        let begun = Instant::now();
                        let report = dump(&mut with, &criu, &tree, tree.options(&name));
                        calls.push(begun.elapsed());
                        tree.freeze(false);
                        assert_eq!(report.rung, rung, "{report:?}");
                        walls.push(report.report.wall);
                        frozen.push(report.report.stats.unwrap().frozen_time);
                        pages = report.own_pages;
                        take(&tree.dir.join(&name));
                        std::fs::remove_dir_all(tree.dir.join(&name)).unwrap();
                    }
                    let ms = |time: Duration| time.as_secs_f64() * 1e3;
                    let (call, wall) = (median(&mut calls), median(&mut walls));
                    let frozen_median = median(&mut frozen);
                    // sorted; others' work makes a dump longer, nothing makes it shorter
                    least.insert(rung, frozen[0]);
                    println!(
                        "| {rung} | {mib} | {:.1} | {:.1} | {:.1} | {pages} |",
                        ms(call),
                        ms(wall),
                        ms(frozen_median)
                    );
                }
            }
        }
        // Of the largest tree: what all this is for.
        assert!(least[&Rung::ShimWithSmaps] * 4 < least[&Rung::Plain], "{least:?}");
    }
}
