//! How long each rung takes, by size: a table, when `GODWIT_TEST_MEASURE` gives the number of dumps for each.

use std::time::{Duration, Instant};

use godwit_criu::images::DumpStats;
use godwit_criu::pageless::Rung;

use crate::tree::{Tree, take};
use crate::{crius, dump, ladder};

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn time_by_size_and_rung() {
    let Some(times) = std::env::var("GODWIT_TEST_MEASURE").ok().and_then(|text| text.parse::<usize>().ok())
    else {
        return;
    };
    for criu in crius("time_by_size_and_rung") {
        let version = criu.version().unwrap();
        println!(
            "| criu {version} | MiB | whole call ms | request to exit ms | CRIU's frozen time ms | own pages |"
        );
        for own_mounts in [false, true] {
            for mib in [64, 512, 2048] {
                let tree = Tree::start(mib, "plain", own_mounts);
                let rungs: &[Rung] = if own_mounts { &[Rung::FakeParent] } else { &Rung::ALL };
                for rung in rungs.iter().copied().filter(|rung| own_mounts || *rung != Rung::FakeParent) {
                    let (mut calls, mut walls, mut frozen, mut pages) =
                        (Vec::new(), Vec::new(), Vec::new(), 0);
                    for number in 0..times {
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
                        frozen.push(
                            report
                                .report
                                .stats
                                .as_ref()
                                .map_or(Duration::ZERO, |s: &DumpStats| s.frozen_time),
                        );
                        pages = report.own_pages;
                        take(&tree.dir.join(&name));
                        std::fs::remove_dir_all(tree.dir.join(&name)).unwrap();
                    }
                    let ms = |time: Duration| time.as_secs_f64() * 1e3;
                    println!(
                        "| {rung} | {mib} | {:.1} | {:.1} | {:.1} | {pages} |",
                        ms(median(&mut calls)),
                        ms(median(&mut walls)),
                        ms(median(&mut frozen))
                    );
                }
            }
        }
    }
}
