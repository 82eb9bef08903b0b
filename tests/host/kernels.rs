//! Hosts that lack something: what is taken instead, and that it is said.

use crate::bed::{Bed, DST, SRC, bed};
use crate::workload::{Workload, push};

const CHAOS: &str = "chaos --size 3 --processes 3 --rate 4000";
const CRIU: &str = "/usr/local/sbin/criu";

/// Moves a workload with godwit run through `here` on the source and `there` on the destination; what was said, and the
/// summary.
#[track_caller]
fn moved(bed: &Bed, name: &str, here: &str, there: &str) -> (String, serde_json::Value) {
    let mut workload = Workload::start(bed, name, "", &[format!("{CHAOS} --seed 201")]);
    let remote = format!("GODWIT_REMOTE_COMMAND=env {there} godwit receive --stdio");
    let words = workload.migration(&[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let here: Vec<&str> = here.split_whitespace().collect();
    let said = bed.run(SRC, &[&["env", &remote], &here[..], &["godwit"], &words[..]].concat());
    let summary = said.summary();
    workload.moved();
    workload.assert_clean(&summary.to_string());
    (said.out, summary)
}

#[test]
fn without_a_way_to_see_writes_or_faults_a_simpler_one_is_taken() {
    let Some(bed) = bed() else { return };
    push(&bed);
    // what CRIU found of the kernel that it has seen before
    let forget = || [SRC, DST].map(|host| bed.sh(host, "rm -f /run/criu.kdat"));
    let lacks = |what: &str| format!("godwit-workload without {what}");
    for (here, there, tracker, restoration, why) in [
        (lacks("userfaultfd"), String::new(), "hash", "local-lazy", "userfaultfd"),
        (lacks("pagemap-scan"), String::new(), "hash", "local-lazy", "PAGEMAP_SCAN"),
        (lacks("pagemap-scan userfaultfd"), lacks("userfaultfd"), "hash", "eager", "PAGEMAP_SCAN"),
    ] {
        forget();
        let (said, summary) = moved(&bed, "lacking", &here, &there);
        assert_eq!(summary["tracker"], tracker, "{here}: {summary}");
        assert_eq!(summary["memory"]["restoration"], restoration, "{there}: {summary}");
        let note = said.lines().find(|line| line.contains("strategy pre-copy, tracker")).unwrap();
        assert!(note.contains(why), "{note}");
        bed.wipe();
    }
    forget();
}

#[test]
fn a_criu_that_takes_no_library_dumps_on_a_lower_rung() {
    let Some(bed) = bed() else { return };
    push(&bed);
    let wrapper = format!(
        "#!/bin/sh\n# longer than the header of a program, so that it is not taken for one\nexec env -u LD_PRELOAD {CRIU} \"$@\"\n"
    );
    bed.write(SRC, "/usr/local/lib/wrapped/criu", &wrapper);
    // a loader ignores the wish of whoever starts a program with more rights than his own
    bed.sh(
        SRC,
        &format!("mkdir -p /usr/local/lib/privileged && cd /usr/local/lib/privileged && cp {CRIU} . && chgrp 1 criu && chmod 2755 criu"),
    );
    for (place, why) in
        [("wrapped", "is not a program but a wrapper"), ("privileged", "did not load the shim")]
    {
        let here = format!("env GODWIT_CRIU=/usr/local/lib/{place}/criu");
        let (said, summary) = moved(&bed, place, &here, "");
        assert_eq!(summary["memory"]["rung"], "fake parent", "{place}: {summary}");
        assert!(said.contains(why), "{place}: {said}");
        bed.wipe();
    }
}
