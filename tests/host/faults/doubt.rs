//! The word was given, both processes are dead, and nobody can be asked: `godwit resume` says so and lets nobody run it,
//! `--keep` is a person's decision, and the other side obeys when it is back.

use super::cell::{Cell, Fault};
use super::patient::{Kind, Patient};
use super::{bed_with_points, hold, runners};
use crate::bed::{Bed, DST, SRC, Said};
use crate::container::runc_state;
use crate::godwit::{Background, godwit_with};
use crate::state::State;

/// Dead on both sides, just after the source's journal said `committed` and before `go`.
const AT: Cell =
    Cell { role: "source", event: "committed", edge: "after", fault: Fault::KillBoth, patient: Kind::Redis };

/// A container that is frozen on both hosts, which do not reach each other.
struct Doubt<'a> {
    bed: &'a Bed,
    id: String,
    /// What there was on either host before: nothing, and at the source the container.
    pristine: (State, State),
    before: State,
    patient: Patient<'a>,
}

impl<'a> Doubt<'a> {
    fn begin(bed: &'a Bed) -> Self {
        let pristine = (State::of(bed, SRC).without("/srv"), State::of(bed, DST).without("/srv"));
        let patient = Patient::begin(bed, AT.patient);
        let before = State::of(bed, SRC).without("/srv");
        AT.order(bed);
        let running = Background::migrate(bed, &[], &AT.patient.move_flags());
        assert!(hold(bed, AT.host()), "`committed` was never written: {}", running.finish().err);
        AT.strike(bed);
        running.finish();
        let id = bed.sh(SRC, "ls /var/lib/godwit/migrations");
        let doubt = Self { bed, id, pristine, before, patient };
        doubt.part();
        for host in [SRC, DST] {
            // a process that is ending still counts as one at work
            bed.sh(host, "timeout 10 sh -c 'while pgrep -x \"ssh|criu|runc\"; do sleep 0.05; done'");
            assert_eq!(bed.sh(host, "cat /sys/fs/cgroup/stay/cgroup.freeze"), "1", "{host}");
        }
        doubt
    }

    /// The source does not reach the destination.
    fn part(&self) {
        let table = "table inet parted { chain output { type filter hook output priority 0;
            tcp dport 22 reject with tcp reset; }; }";
        self.bed.sh(SRC, &format!("nft '{table}'"));
    }

    /// It does again.
    fn join(&self) {
        self.bed.sh(SRC, "nft delete table inet parted");
    }

    fn resume(&self, host: &str, more: &[&str]) -> Said {
        godwit_with(self.bed, host, &[], &[&["resume", "--timeout", "1s"], more].concat())
    }

    /// Says exit code 20, and changes nothing.
    #[track_caller]
    fn assert_in_doubt(&self, host: &str) {
        let said = self.resume(host, &[&self.id]);
        assert_eq!(said.code, 20, "{host}: {}{}", said.out, said.err);
        assert!(said.err.contains("--keep"), "{host}: what a person may do is not said: {}", said.err);
        assert_eq!(runners(self.bed), [""; 0], "{host}");
    }

    #[track_caller]
    fn assert_did(&self, said: &Said, words: &str, runs: &[&str]) {
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert!(said.out.contains(words), "{}{}", said.out, said.err);
        assert_eq!(runners(self.bed), runs, "{}{}", said.out, said.err);
    }

    /// The destination is asked for it, and lets it lie.
    #[track_caller]
    fn assert_holds_its_copy(&self) {
        assert_eq!(self.bed.sh(DST, "cat /sys/fs/cgroup/stay/cgroup.freeze"), "1");
        let said = self.resume(DST, &[&self.id]);
        assert_eq!(said.code, 20, "{}{}", said.out, said.err);
        assert_eq!(self.bed.sh(DST, "cat /sys/fs/cgroup/stay/cgroup.freeze"), "1");
    }

    /// The one host has all of it, and the other nothing; the client lost no write.
    #[track_caller]
    fn end(self, runner: &str) {
        let Self { bed, pristine, before, patient, .. } = self;
        let lost = patient.lost(runner);
        bed.end_what_is_kept();
        assert_eq!(lost, None);
        let (mine, other) = if runner == SRC { (&before, DST) } else { (&pristine.0, SRC) };
        assert!(runc_state(bed, other, "stay").is_none(), "{other} has a copy");
        assert_eq!(mine.left_over(bed, SRC), None);
        if runner == SRC {
            assert_eq!(pristine.1.left_over(bed, DST), None);
        }
        for host in [SRC, DST] {
            assert!(!bed.holds(host, "ls -d /var/lib/godwit/migrations/*/images"), "{host}");
            let again = godwit_with(bed, host, &[], &["resume"]);
            assert_eq!((again.code, again.err.trim()), (0, "nothing is to be resumed here"), "{host}");
        }
    }
}

#[test]
fn a_person_keeps_it_at_the_source_and_the_destination_obeys() {
    let Some(bed) = bed_with_points() else { return };
    let doubt = Doubt::begin(&bed);
    doubt.assert_in_doubt(SRC);
    let said = doubt.resume(SRC, &[&doubt.id, "--keep", "source"]);
    doubt.assert_did(&said, "runc:stay is running on this host, as you decided", &[SRC]);
    // nobody could tell the destination: it holds its copy, and does not let it run by itself
    doubt.assert_holds_its_copy();
    doubt.join();
    let said = doubt.resume(SRC, &[]);
    doubt.assert_did(&said, "runc:stay", &[SRC]);
    assert!(runc_state(&bed, DST, "stay").is_none(), "it did not obey");
    doubt.end(SRC);
}

#[test]
fn a_person_lets_it_run_at_the_destination_and_the_source_obeys() {
    let Some(bed) = bed_with_points() else { return };
    let doubt = Doubt::begin(&bed);
    doubt.assert_in_doubt(DST);
    let said = doubt.resume(DST, &[&doubt.id, "--keep", "destination"]);
    doubt.assert_did(&said, "runc:stay is running on this host", &[DST]);
    // the source knows nothing of it, and still lets nobody run it
    let said = doubt.resume(SRC, &[&doubt.id]);
    assert_eq!((said.code, &runners(&bed)[..]), (20, &[DST][..]), "{}", said.err);
    doubt.join();
    // it can ask now: what a person decides does not make it run twice
    let said = doubt.resume(SRC, &[&doubt.id, "--keep", "source"]);
    assert_eq!(runners(&bed), [DST], "exit {} {}{}", said.code, said.out, said.err);
    let said = doubt.resume(SRC, &[&doubt.id]);
    doubt.assert_did(&said, "runc:stay", &[DST]);
    doubt.end(DST);
}

#[test]
fn a_person_gives_it_away_at_the_source_and_the_destination_lets_it_run() {
    let Some(bed) = bed_with_points() else { return };
    let doubt = Doubt::begin(&bed);
    doubt.assert_in_doubt(SRC);
    let said = doubt.resume(SRC, &[&doubt.id, "--keep", "destination"]);
    doubt.assert_did(&said, "as you decided; nothing of it is left here", &[]);
    assert!(runc_state(&bed, SRC, "stay").is_none());
    doubt.join();
    let said = doubt.resume(SRC, &[&doubt.id]);
    doubt.assert_did(&said, "runc:stay", &[DST]);
    doubt.end(DST);
}

#[test]
fn what_was_switched_over_cannot_be_called_back() {
    let Some(bed) = bed_with_points() else { return };
    let doubt = Doubt::begin(&bed);
    let said = godwit_with(&bed, SRC, &[], &["cancel", &doubt.id]);
    assert_eq!(said.code, 20, "{}{}", said.out, said.err);
    let told = "`runc:stay` cannot be called back: switchover was granted";
    assert!(said.err.contains(told), "{}", said.err);
    assert_eq!(runners(&bed), [""; 0]);
    doubt.join();
    let said = doubt.resume(SRC, &[]);
    doubt.assert_did(&said, "runc:stay is running on ssh://dst", &[DST]);
    let said = godwit_with(&bed, SRC, &[], &["cancel", &doubt.id]);
    assert_eq!(said.code, 10, "it is over now: {}{}", said.out, said.err);
    doubt.end(DST);
}
