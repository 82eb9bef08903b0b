//! Programs that do everything to memory of every kind, followed by soft-dirty bits: afterwards every page is right.

use crate::machines::machines;
use crate::workload::{Sides, Workload};

#[test]
#[ignore = "minutes: `scripts/test --vm` runs it"]
fn soft_dirty_bits_find_whatever_programs_do_with_memory() {
    let Some(machines) = machines() else { return };
    let cases: [(_, &[&str]); 3] = [
        ("--seed 1 --processes 3 --threads 2 --size 2 --rate 300", &["--max-rounds 4"]),
        // few kinds, and often: what is moved within memory is half of it
        (
            "--seed 2 --processes 1 --threads 2 --size 8 --rate 1000 --kinds anon,thp,heap",
            &["--max-rounds 6", "--max-rounds 2 --restore eager"],
        ),
        (
            "--seed 3 --processes 2 --threads 1 --size 4 --rate 2000",
            &["--max-rounds 4 --highest-rung page-server --compress none"],
        ),
    ];
    for (shape, moves) in cases {
        let mut workload = Workload::start(&machines, &format!("chaos {shape}"));
        for flags in moves {
            let flags = format!("--tracker soft-dirty {flags}");
            let (summary, _) = workload.move_on(Sides::default(), &flags);
            assert_eq!(summary["tracker"], "soft-dirty", "{summary}");
            workload.assert_clean(&format!("{shape} moved with {flags}: {summary}"));
        }
    }
}
