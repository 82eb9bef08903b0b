//! A loss of power while a snapshot of a volume is made: what was said to be kept is kept, and what was half-way is no obstacle.

use crate::machines::{Machines, SRC, machines_with};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const VOLUME: &str = "/srv/kept";
/// Losses of power, at equal distances within the time of a snapshot.
const CUTS: u32 = 6;

/// Writes all files of the volume anew; what they hold, as one digest. Nobody brings it to the disk: that would bring the store there, too.
fn write(machines: &Machines, number: u32) -> String {
    machines.sh(
        SRC,
        &format!(
            "mkdir -p {VOLUME}; cd {VOLUME}
             for file in $(seq 60); do (echo {number}.$file; head -c 100000 /dev/urandom) > $file; done"
        ),
    );
    content(machines, VOLUME)
}

/// What the files of a directory hold, as one digest.
fn content(machines: &Machines, place: &str) -> String {
    let digest = machines.sh(SRC, &format!("cd {place}; ls | sort -n | xargs cat | sha256sum"));
    assert!(digest.len() > 64, "{digest}");
    digest
}

fn snapshot() -> String {
    format!("godwit volume snapshot {VOLUME}")
}

/// All that was said to be kept is there and right, and the store is whole.
fn assert_kept(machines: &Machines, kept: &HashMap<String, String>, context: &str) {
    machines.sh(SRC, "godwit store check");
    let listed = machines.sh(SRC, "godwit --json volume list");
    for (id, content_then) in kept {
        assert!(listed.contains(id.as_str()), "{context}: {id} is gone: {listed}");
        machines.sh(SRC, &format!("rm -rf /srv/again; godwit volume restore {id} /srv/again"));
        assert_eq!(content(machines, "/srv/again"), *content_then, "{context}: {id}");
    }
    machines.sh(SRC, "godwit store gc");
    let half = "find /var/lib/godwit/store/tmp /var/lib/godwit/store/leases /var/lib/godwit/store/damaged -type f 2> /dev/null";
    assert_eq!(machines.sh(SRC, &format!("{half}; true")), "", "{context}");
}

#[test]
#[ignore = "minutes: `scripts/test faults` runs it"]
fn what_was_kept_outlasts_the_power() {
    let Some(machines) = machines_with(&["--disks", "keep"]) else { return };
    machines.sh(SRC, &format!("rm -rf {VOLUME} /var/lib/godwit/store"));
    let mut kept = HashMap::new();
    let first = write(&machines, 1);
    let begun = Instant::now();
    kept.insert(machines.sh(SRC, &snapshot()), first);
    let whole = begun.elapsed();
    for cut in 0..CUTS {
        let acknowledged = write(&machines, 2 * cut + 2);
        kept.insert(machines.sh(SRC, &snapshot()), acknowledged);
        write(&machines, 2 * cut + 3);
        let after = whole * (2 * cut + 1) / (2 * CUTS);
        let under_way = machines.start(SRC, &snapshot());
        std::thread::sleep(after.max(Duration::from_millis(20)));
        machines.power("cut", SRC);
        drop(under_way.finish());
        machines.power("boot", SRC);
        let context = format!("power lost {after:.1?} after the beginning, of {whole:.1?}");
        eprintln!("{context}; there before: {}", kept.len());
        assert_kept(&machines, &kept, &context);
    }
}
