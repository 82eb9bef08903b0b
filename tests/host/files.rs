//! Every kind of file that a volume can hold, compared after a move by `rsync -aHAX --checksum`.

use crate::bed::{Bed, DST, SRC, bed};
use crate::container::{add_bind, assert_runs_only_on, make_bundle, run_bundle};
use crate::godwit::godwit_with;

/// Makes the volume.
const NASTY: &str = include_str!("nasty.py");

/// Runs in the container and never stops to change what it finds.
const RESTLESS: &str = include_str!("restless.py");

/// Stands for runc at the destination: when the tree is restored and held, copies the volume before it runs on.
const COPYING_RUNC: &str = "#!/bin/sh\nrunc \"$@\" || exit\ncase \" $* \" in *\" restore \"*) cp -a /srv/nasty-data /srv/held;; esac\n";

/// What rsync finds different between the source's copy and one at the destination; its verdict, and that of times in ns.
fn differences(bed: &Bed, ours: &str, theirs: &str) -> String {
    // a socket file means nothing without its listener: it does not travel; in the container's /tmp CRIU makes and removes
    // a directory when it restores
    let judge =
        "rsync -aHAX --checksum --dry-run --delete --itemize-changes --exclude='*.sock' --exclude=/tmp";
    let found = bed.sh(SRC, &format!("{judge} {ours}/ dst:{theirs}/"));
    // rsync sees whole seconds only where a side lacks the fraction: every name, kind, owner and time once more
    let list = |host: &str, root: &str| {
        bed.sh(
            host,
            &format!("cd {root} && find . ! -name '*.sock' ! -path ./tmp -printf '%p %y %U:%G %m %T@ %l %n\\n' | LC_ALL=C sort | base64 -w0"),
        )
    };
    let times = if list(SRC, ours) == list(DST, theirs) {
        ""
    } else {
        "\nnames, kinds, owners, modes, times or link counts differ"
    };
    format!("{found}{times}").trim().to_owned()
}

#[test]
fn a_nasty_volume_arrives_as_it_was_when_it_froze() {
    let Some(bed) = bed() else { return };
    let said = move_nasty(&bed, 0);
    assert!(!said.contains("the kernel told"), "a small one is walked: {said}");
}

#[test]
fn a_nasty_volume_of_many_files_is_not_walked_under_the_freeze() {
    let Some(bed) = bed() else { return };
    let said = move_nasty(&bed, 6000);
    let spared = said.split("the kernel told what is changed in large volumes: ").nth(1);
    let mut numbers = spared.unwrap_or_else(|| panic!("{said}")).split(' ');
    let (looked_at, entries) = (numbers.next().unwrap(), numbers.nth(1).unwrap());
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert!(number(entries) > 6000 && number(looked_at) < 3000, "{looked_at} of {entries}");
}

/// Moves a volume with so many files besides, while everything in it changes; what godwit said.
fn move_nasty(bed: &Bed, besides: usize) -> String {
    bed.write(SRC, "/srv/nasty.py", NASTY);
    bed.sh(SRC, "python3 /srv/nasty.py /srv/nasty-data");
    bed.sh(
        SRC,
        &format!(
            "mkdir /srv/nasty-data/besides && cd /srv/nasty-data/besides && seq {besides} | xargs -r touch"
        ),
    );
    make_bundle(bed, "nasty", &["python3", "/restless.py"], |config| {
        add_bind(config, "/srv/nasty-data", "/data", "rw");
        for kind in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][kind] = serde_json::json!(["CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
        }
    });
    bed.write(SRC, "/srv/nasty/rootfs/restless.py", RESTLESS);
    run_bundle(bed, "nasty");
    bed.write(DST, "/root/copying-runc", COPYING_RUNC);
    bed.sh(SRC, "while ! test -s /srv/nasty-data/grows; do sleep 0.1; done");

    let remote = "GODWIT_REMOTE_COMMAND=env GODWIT_RUNC=/root/copying-runc godwit receive --stdio";
    let args = ["--json", "migrate", "runc:nasty", "ssh://dst", "--max-downtime", "60s"];
    let said = godwit_with(bed, SRC, &[remote], &args);
    let summary = said.summary();
    assert_runs_only_on(bed, DST, "nasty");
    assert_eq!(differences(bed, "/srv/nasty-data", "/srv/held"), "");
    assert_eq!(differences(bed, "/srv/nasty/rootfs", "/srv/nasty/rootfs"), "");
    assert!(bed.holds(DST, "test ! -e /srv/nasty-data/dead.sock"), "a socket's file came along");
    // what it writes there shows that the judge can tell
    bed.sh(DST, "while cmp -s /srv/held/same-00 /srv/nasty-data/same-00; do sleep 0.1; done");
    assert!(differences(bed, "/srv/nasty-data", "/srv/nasty-data").contains("same-00"));
    // holes stay holes, to the block
    for name in ["sparse", "holes-only", "plain", "linked"] {
        let blocks = |host: &str| bed.sh(host, &format!("stat -c '%s %b' /srv/nasty-data/{name}"));
        assert_eq!(blocks(DST), blocks(SRC), "{name}");
    }
    // the last round read little of what lay still
    let last = summary["rounds"].as_array().unwrap().last().unwrap().clone();
    assert!(last["wire_bytes"].as_u64().unwrap() < 70 << 20, "{summary}");
    said.out
}
