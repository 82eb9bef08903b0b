//! A link that is lost after the word was given, with an etcd that both hosts reach as their witness: nobody has to decide, and
//! exactly one of them runs the container. Where etcd is away, too, nobody runs it until somebody answers.

use super::cell::{Cell, Fault};
use super::patient::{Kind, Patient};
use super::{HOLD, bed_with_points, hold, runners};
use crate::bed::{Bed, DST, SRC, Said};
use crate::container::runc_state;
use crate::etcd::Etcd;
use crate::godwit::{Background, godwit_with};

const WITNESS: [&str; 3] = ["--witness", Etcd::PLACE, "--insecure"];

/// A migration that waits at a line of a journal, after the source has given its word.
struct Waiting<'a> {
    bed: &'a Bed,
    host: &'static str,
    patient: Patient<'a>,
    running: Background<'a>,
}

impl<'a> Waiting<'a> {
    fn begin(bed: &'a Bed, role: &'static str, event: &'static str) -> Self {
        let cell = Cell { role, event, edge: "after", fault: Fault::Cut, patient: Kind::Redis };
        let patient = Patient::begin(bed, Kind::Redis);
        cell.order(bed);
        let running = Background::migrate(bed, &[], &[&Kind::Redis.move_flags()[..], &WITNESS].concat());
        assert!(hold(bed, cell.host()), "`{event}` was never written: {}", running.finish().err);
        Self { bed, host: cell.host(), patient, running }
    }

    /// The link is lost, which both sides are told, and the source does not reach the destination any more.
    fn part(&self) {
        let table = "table inet parted { chain output { type filter hook output priority 0;
            tcp dport 22 reject with tcp reset; }; }";
        let gone = "timeout 20 sh -c 'while ss -Htn state established | grep -q :22; do sleep 0.02; done'";
        self.bed.sh(SRC, &format!("pkill -KILL -x ssh; {gone}; nft '{table}'"));
    }

    /// It goes on, to its end.
    #[track_caller]
    fn go_on(self) -> (Said, Ending<'a>) {
        let Self { bed, host, patient, running } = self;
        bed.sh(host, &format!("touch {HOLD}/go"));
        (running.finish(), Ending { bed, patient })
    }
}

struct Ending<'a> {
    bed: &'a Bed,
    patient: Patient<'a>,
}

impl Ending<'_> {
    fn resume(&self, host: &str) -> Said {
        // a process that is ending still counts as one at work
        self.bed.sh(host, "timeout 20 sh -c 'while pgrep -f \"[g]odwit receive\"; do sleep 0.05; done'");
        godwit_with(self.bed, host, &[], &["resume", "--timeout", "1s"])
    }

    /// One host has it, the other nothing, and no write was lost.
    #[track_caller]
    fn assert_only_on(self, runner: &str) {
        let other = if runner == SRC { DST } else { SRC };
        assert_eq!(runners(self.bed), [runner]);
        assert_eq!(self.patient.lost(runner), None);
        assert!(runc_state(self.bed, other, "stay").is_none(), "{other} has a copy");
    }
}

#[track_caller]
fn assert_stays(said: &Said) {
    assert_eq!(said.code, 1, "{}{}", said.out, said.err);
    let error = said.lines("exit_error").pop().unwrap();
    assert_eq!(error["disposition"], "running_at_source", "{error}");
}

#[test]
fn what_the_destination_has_not_claimed_goes_on_at_the_source() {
    let Some(bed) = bed_with_points() else { return };
    let Some(_etcd) = Etcd::start(&bed) else { return };
    let waiting = Waiting::begin(&bed, "source", "committed");
    waiting.part();
    let (said, ending) = waiting.go_on();
    assert_stays(&said);
    assert_eq!(runners(&bed), [SRC]);
    // the destination knows it from etcd, too
    let said = ending.resume(DST);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay stays where it was"), "{}", said.out);
    ending.assert_only_on(SRC);
}

#[test]
fn what_the_destination_has_claimed_is_given_away_by_the_source() {
    let Some(bed) = bed_with_points() else { return };
    let Some(_etcd) = Etcd::start(&bed) else { return };
    let waiting = Waiting::begin(&bed, "destination", "going");
    waiting.part();
    let (said, ending) = waiting.go_on();
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("running_at_destination"), "{}", said.out);
    // the destination has come to its end without a source
    let said = ending.resume(DST);
    assert_eq!((said.code, said.err.trim()), (0, "nothing is to be resumed here"), "{}", said.out);
    ending.assert_only_on(DST);
}

#[test]
fn without_etcd_at_the_commit_the_two_hosts_end_it_between_themselves() {
    let Some(bed) = bed_with_points() else { return };
    let Some(mut etcd) = Etcd::start(&bed) else { return };
    let waiting = Waiting::begin(&bed, "source", "committed");
    etcd.kill();
    let (said, ending) = waiting.go_on();
    assert_stays(&said);
    ending.assert_only_on(SRC);
}

#[test]
fn with_neither_link_nor_etcd_nobody_runs_it_until_etcd_is_back() {
    let Some(bed) = bed_with_points() else { return };
    let Some(mut etcd) = Etcd::start(&bed) else { return };
    let waiting = Waiting::begin(&bed, "source", "committed");
    etcd.kill();
    waiting.part();
    let (said, ending) = waiting.go_on();
    assert_eq!(said.code, 20, "{}{}", said.out, said.err);
    for host in [SRC, DST] {
        let said = ending.resume(host);
        assert_eq!(said.code, 20, "{host}: {}{}", said.out, said.err);
        assert!(said.err.contains("witness"), "{host}: {}", said.err);
    }
    assert_eq!(runners(&bed), [""; 0]);
    etcd.restart();
    // the destination does not know whether the source has given its word
    assert_eq!(ending.resume(DST).code, 20);
    // which witness it is need not be said
    let said = ending.resume(SRC);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(runners(&bed), [SRC]);
    assert_eq!(ending.resume(DST).code, 0);
    ending.assert_only_on(SRC);
}

#[test]
fn an_etcd_that_does_not_answer_is_found_out_before_anything_is_touched() {
    let Some(bed) = bed_with_points() else { return };
    let Some(mut etcd) = Etcd::start(&bed) else { return };
    let patient = Patient::begin(&bed, Kind::Redis);
    let flags = Kind::Redis.move_flags();
    let migrate = |more: &[&str]| godwit_with(&bed, SRC, &[], &[&["migrate"], &flags[..], more].concat());
    let said = migrate(&["--witness", Etcd::PLACE]);
    assert_eq!((said.code, said.err.contains("neither encrypted")), (2, true), "{}", said.err);
    // the destination does not reach it
    let rule =
        "table inet away { chain output { type filter hook output priority 0; tcp dport 2379 reject; }; }";
    bed.sh(DST, &format!("nft '{rule}'"));
    let said = migrate(&WITNESS);
    bed.sh(DST, "nft delete table inet away");
    assert_eq!((said.code, said.err.contains("cannot be asked there")), (12, true), "{}", said.err);
    etcd.kill();
    let said = migrate(&WITNESS);
    assert_eq!((said.code, said.err.contains("no etcd answers")), (13, true), "{}", said.err);
    Ending { bed: &bed, patient }.assert_only_on(SRC);
}
