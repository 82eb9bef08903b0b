//! What a broken-off migration has left is brought to one end by another process, wherever it broke.

use crate::fake::FakeEngine;
use crate::link::Cut;
use crate::stage::{Ended, Play, play};
use godwit_checkpoint::recovery::Interrupted;
use godwit_checkpoint::resume::{Answer, End, ask, resume};
use godwit_engine::Engine;
use godwit_etcd_server::{Etcd, LossyLine};
use godwit_migration::hooks::{Hooks, Moment, Program, Target};
use godwit_migration::journal::{self, JournalState};
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, Role, Silent};
use godwit_restore::receive;
use godwit_restore::recovery::Orphan;
use godwit_transfer::{Descriptors, Wire};
use godwit_witness::{Witness, WitnessPlace};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

fn state(ended: &Ended, root: &Path) -> Option<JournalState> {
    let path = root.join("migrations").join(ended.id.as_str()).join("journal");
    path.exists().then(|| journal::read(&path).unwrap().1)
}

/// What `godwit resume` does at the source, with a destination that answers or does not.
fn resume_at_source(ended: &Ended, answers: bool, keep: Option<Role>) -> Result<End, Failure> {
    ended.witness.look().resumed = true;
    let engines = || -> Vec<Box<dyn Engine>> { vec![Box::new(FakeEngine(ended.witness.clone()))] };
    let mut here = Interrupted::adopt(&ended.roots.0, &engines(), &ended.id)?.unwrap();
    if !answers {
        let silence = Failure::new(FailureKind::Failed, "nobody answers");
        let witness = ended.shared.as_ref().map(|witness| witness as &dyn Witness);
        return resume(&mut here, Err(silence), keep, witness);
    }
    let host = ended.host_there();
    let (near, far) = Descriptors::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let wire = Wire::open(Box::new(far), Cancel::default(), PATIENCE).unwrap();
            receive(wire, &host, &Silent)
        });
        let wire = Wire::open(Box::new(near), Cancel::default(), PATIENCE).unwrap();
        let answer: Result<Answer, Failure> = ask(wire, &ended.id, "here", false)
            .map_err(|error| Failure::new(FailureKind::Failed, "cannot be asked").because_of(&error));
        let witness = ended.shared.as_ref().map(|witness| witness as &dyn Witness);
        resume(&mut here, answer, keep, witness)
    })
}

/// One end, on both sides, and nothing left over.
fn assert_settled(ended: &Ended, end: &End, context: &str) {
    let world = ended.witness.look();
    let states = (state(ended, &ended.roots.0), state(ended, &ended.roots.1));
    let context = format!("{context}: {end:?} {states:?} {:?}", world.calls);
    assert!(world.violations.is_empty(), "{:#?} {context}", world.violations);
    assert_ne!(world.source_runs, world.destination_runs, "{context}");
    assert!(states.0.is_some_and(JournalState::is_settled), "{context}");
    assert!(states.1.is_none_or(JournalState::is_settled), "{context}");
    match end.disposition {
        Disposition::RunningAtSource => {
            assert!(world.source_runs && world.held.is_none() && !world.made, "{context}");
            assert!(!world.locked && !world.disconnected, "{context}");
        }
        Disposition::RunningAtDestination => {
            assert!(world.destination_runs && world.source_gone, "{context}");
        }
        other => panic!("{other:?} {context}"),
    }
}

fn is_open(ended: &Ended) -> bool {
    [&ended.roots.0, &ended.roots.1]
        .into_iter()
        .any(|root| state(ended, root).is_some_and(|state| !state.is_settled()))
}

#[test]
fn wherever_the_link_broke_both_sides_come_to_one_end() {
    let mut resumed = 0;
    for make in [Play::stop_and_copy as fn() -> Play, Play::pre_dump, Play::checkpoint] {
        let whole = play(make());
        whole.assert_moved();
        for (side, marks) in [(Role::Source, &whole.marks.0), (Role::Destination, &whole.marks.1)] {
            for &mark in marks {
                let cut = Cut::AfterBytes(mark);
                let ended = match side {
                    Role::Source => play(make().cut_source(cut)),
                    Role::Destination => play(make().cut_destination(cut)),
                };
                if ended.source.is_none() || !is_open(&ended) {
                    continue;
                }
                resumed += 1;
                let context = format!("{side} cut after {mark}");
                let end = resume_at_source(&ended, true, None)
                    .unwrap_or_else(|error| panic!("{context}: {error:?}"));
                assert_settled(&ended, &end, &context);
                // what is over is over
                let calls = ended.calls().len();
                let again = resume_at_source(&ended, true, None).unwrap();
                assert_settled(&ended, &again, &format!("{context}, twice"));
                let more: Vec<_> = ended.calls().split_off(calls);
                assert!(
                    !more.iter().any(|call| call.ends_with(".go") || call.ends_with(".thaw")),
                    "{more:?}"
                );
            }
        }
    }
    assert!(resumed >= 6, "only {resumed} migrations were left open: this test tests nothing");
}

#[test]
fn a_word_that_may_have_arrived_is_never_taken_back_alone() {
    for cut in [Cut::Before("go"), Cut::After("go")] {
        let ended = play(Play::pre_dump().cut_source(cut));
        let failure = resume_at_source(&ended, false, None).unwrap_err();
        assert_eq!(failure.kind, FailureKind::InDoubt, "{cut:?}");
        assert!(!ended.witness.look().source_runs, "{cut:?}");
        let end = resume_at_source(&ended, true, None).unwrap();
        assert_eq!(end.disposition, Disposition::RunningAtDestination, "{cut:?}");
        assert_settled(&ended, &end, "then it answers");
    }
}

#[test]
fn a_person_decides_and_the_other_side_obeys_when_it_is_back() {
    // the word never arrived; a person takes the container back while the destination is away
    let ended = play(Play::pre_dump().cut_source(Cut::Before("go")));
    let end = resume_at_source(&ended, false, Some(Role::Source)).unwrap();
    assert!(end.by_decision && ended.witness.look().source_runs);
    assert!(ended.witness.look().held.is_some(), "nobody could tell the destination");
    assert_eq!(state(&ended, &ended.roots.0), Some(JournalState::Untold));
    // it is back, and asked once more
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_settled(&ended, &end, "back");

    // the word arrived; a person gives the container away
    let ended = play(Play::pre_dump().cut_source(Cut::After("go")));
    let end = resume_at_source(&ended, false, Some(Role::Destination)).unwrap();
    assert_settled(&ended, &end, "given away");
}

#[test]
fn a_destination_that_could_not_let_it_run_does_so_when_it_can() {
    let ended = play(Play::pre_dump().failing("destination.go", 1));
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtDestination);
    assert_settled(&ended, &end, "go fails once");
}

#[test]
fn what_could_not_be_put_back_is_put_back_when_it_can() {
    for call in ["source.unlock_network", "source.thaw", "source.reconnect"] {
        let ended = play(Play::stop_and_copy().failing("destination.restore", 1).failing(call, 1));
        ended.witness.look().violations.clear();
        let end = resume_at_source(&ended, false, None).unwrap();
        assert_eq!(end.disposition, Disposition::RunningAtSource, "{call}");
        // the destination could not be told, and is as soon as it answers
        assert_eq!(state(&ended, &ended.roots.0), Some(JournalState::Untold), "{call}");
        let end = resume_at_source(&ended, true, None).unwrap();
        assert_settled(&ended, &end, call);
    }
}

#[test]
fn a_witness_decides_where_nobody_answers() {
    let shared = tempfile::tempdir().unwrap();
    let witness: Option<WitnessPlace> = Some(format!("file:{}", shared.path().display()).parse().unwrap());
    // the word never arrived: the destination has not claimed it
    let ended = play(Play { witness: witness.clone(), ..Play::pre_dump().cut_source(Cut::Before("go")) });
    let end = resume_at_source(&ended, false, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtSource);
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_settled(&ended, &end, "the word never arrived");
    // it arrived: the destination has claimed it, and runs it
    let ended = play(Play { witness, ..Play::pre_dump().cut_source(Cut::After("go")) });
    let end = resume_at_source(&ended, false, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtDestination);
    assert_settled(&ended, &end, "the word arrived");
    // one that cannot be asked is refused before anything is touched
    let nowhere = Some("file:/proc/nowhere".parse().unwrap());
    let ended = play(Play { witness: nowhere, ..Play::pre_dump() });
    assert_eq!(ended.failure().kind, FailureKind::Refused);
    // one that cannot be asked any more, by its directory's taking nothing, lets nobody run it until the two speak with each other
    let mute = Some("file:/proc/self".parse().unwrap());
    let ended = play(Play { witness: mute, ..Play::pre_dump() });
    assert_eq!(ended.failure().kind, FailureKind::InDoubt);
    assert!(!ended.witness.look().destination_runs && !ended.witness.look().source_runs);
    assert!(resume_at_source(&ended, false, None).is_err());
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtSource);
    assert_settled(&ended, &end, "without its witness");
}

#[test]
fn a_claim_whose_answer_was_lost_stands() {
    let Some(etcd) = Etcd::start() else { return };
    let line = LossyLine::to(etcd.port()).unwrap();
    let witness = || Some(format!("etcd://127.0.0.1:{}/godwit", line.port).parse().unwrap());
    // the destination has claimed it, and does not know
    let ended = play(Play { witness: witness(), ..Play::pre_dump() });
    assert_eq!(ended.failure().kind, FailureKind::InDoubt);
    assert!(ended.witness.look().held.is_some(), "what may be its own was removed");
    // neither does the source, which reaches nobody else
    assert!(resume_at_source(&ended, false, None).is_err());
    assert!(!ended.witness.look().destination_runs && !ended.witness.look().source_runs);
    line.mend();
    // it is the destination's, which has not let it run: the source's copy may be the only one
    assert_eq!(resume_at_source(&ended, false, None).unwrap_err().kind, FailureKind::InDoubt);
    assert!(!ended.witness.look().source_gone);
    let engines: Vec<Box<dyn Engine>> = vec![Box::new(FakeEngine(ended.witness.clone()))];
    let mut there = Orphan::adopt(&ended.roots.1, &engines, &ended.id).unwrap().unwrap();
    assert_eq!(there.holder().unwrap(), Some(Role::Destination));
    there.go(Vec::new()).unwrap();
    there.complete();
    let end = resume_at_source(&ended, false, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtDestination);
    assert_settled(&ended, &end, "each asked the witness alone");
}

#[test]
fn an_etcd_that_is_away_at_the_commit_keeps_two_who_speak_with_each_other_from_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let line = LossyLine::to(etcd.port()).unwrap();
    let witness = Some(format!("etcd://127.0.0.1:{}/godwit", line.port).parse().unwrap());
    let ended = play(Play { witness, ..Play::pre_dump() });
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtSource);
    assert_settled(&ended, &end, "the destination has removed its copy");
}

/// A play whose hooks note their moments in a file beside them; none without root.
fn with_hooks(play: Play) -> Option<(Play, tempfile::TempDir)> {
    use std::os::unix::fs::PermissionsExt;
    let dir = nix::unistd::geteuid().is_root().then(|| tempfile::tempdir_in("/root").unwrap())?;
    let path = dir.path().join("hook");
    let text = format!("#!/bin/sh\necho $GODWIT_HOOK >> {}\n", dir.path().join("seen").display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let program = |at| Program { at, path: path.clone() };
    let hooks = Hooks {
        programs: Moment::OF_PROGRAMS.map(program).into(),
        resume: Some(Target::Program(path.clone())),
        ..Hooks::default()
    };
    Some((Play { hooks, ..play }, dir))
}

fn seen(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("seen")).unwrap_or_default().replace('\n', " ")
}

#[test]
fn whoever_ends_it_tells_those_who_wait_for_the_end_and_nobody_tells_it_twice() {
    let begun = "pre-copy pre-freeze post-freeze ";
    for (cut, alone, resumed) in [
        // the source itself rolls it back
        (Cut::Before("restore"), "rollback ", ""),
        // whether it runs there only the destination knows
        (Cut::Before("go"), "", "resume post-commit "),
        (Cut::After("go"), "", "resume post-commit "),
    ] {
        let Some((with_hooks, dir)) = with_hooks(Play::pre_dump().cut_source(cut)) else { return };
        let ended = play(with_hooks);
        assert!(ended.source.as_ref().is_some_and(Result::is_err), "{cut:?}");
        assert_eq!(seen(&dir), format!("{begun}{alone}"), "{cut:?}");
        for _ in 0..2 {
            resume_at_source(&ended, true, None).unwrap();
            assert_eq!(seen(&dir), format!("{begun}{alone}{resumed}"), "{cut:?}");
        }
    }
}

#[test]
fn a_rollback_is_told_when_it_runs_again() {
    let stuck = Play::pre_dump().failing("source.thaw", 1).failing("destination.restore", 1);
    let Some((with_hooks, dir)) = with_hooks(stuck) else { return };
    let ended = play(with_hooks);
    assert_eq!(ended.source.as_ref().unwrap().as_ref().unwrap_err().kind, FailureKind::InDoubt);
    assert_eq!(seen(&dir), "pre-copy pre-freeze post-freeze ", "it is frozen still");
    let end = resume_at_source(&ended, true, None).unwrap();
    assert_eq!(end.disposition, Disposition::RunningAtSource);
    assert_eq!(seen(&dir), "pre-copy pre-freeze post-freeze rollback ");
}
