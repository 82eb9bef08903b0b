use super::*;
use crate::hooks::Moment;
use crate::throttle::LimitChange;
use proptest::prelude::*;

fn planned() -> Event {
    Event::Planned {
        version: VERSION,
        migration: "01k40000000000000000000000".parse().unwrap(),
        role: Role::Source,
        container: "runc:web".into(),
        peer: "ssh://rack2".into(),
        godwit: "test".into(),
    }
}

fn change() -> LimitChange {
    LimitChange {
        file: "/sys/fs/cgroup/web/cpu.max".into(),
        original: "max 100000".into(),
        now: "20000 100000".into(),
    }
}

fn source_path() -> Vec<Event> {
    vec![
        planned(),
        Event::Accepted,
        Event::Prepared,
        Event::Round { round: 0, wire_bytes: 1 },
        Event::Throttling(change()),
        Event::Unthrottled,
        Event::Freezing,
        Event::Frozen,
        Event::Dumped,
        Event::Restored,
        Event::Committed,
        Event::Running { pid: 7 },
        Event::Discarded,
        Event::Completed { downtime_us: Some(1), leftovers: vec![] },
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let mut all = source_path();
    all.extend([
        Event::Ready,
        Event::Restoring,
        Event::Going,
        Event::Failed { reason: "x".into() },
        Event::RolledBack,
        Event::InDoubt { reason: "y".into() },
    ]);
    proptest::sample::select(all)
}

#[test]
fn both_sides_happy_paths_are_legal() {
    let destination = vec![
        planned(),
        Event::Accepted,
        Event::Prepared,
        Event::Round { round: 0, wire_bytes: 1 },
        Event::Ready,
        Event::Restoring,
        Event::Restored,
        Event::Going,
        Event::Running { pid: 7 },
        Event::Completed { downtime_us: None, leftovers: vec![] },
    ];
    for path in [source_path(), destination] {
        let end = path.iter().try_fold(JournalState::Empty, |state, event| state.apply(event));
        assert_eq!(end, Ok(JournalState::Completed));
    }
}

#[test]
fn a_failure_at_every_step_before_commit_can_be_rolled_back_and_none_after() {
    let mut state = JournalState::Empty;
    for event in source_path() {
        state = state.apply(&event).unwrap();
        let failed = state.apply(&Event::Failed { reason: "x".into() });
        let committed =
            matches!(state, JournalState::Committed | JournalState::Running | JournalState::Completed);
        assert_eq!(failed.is_err(), committed, "{state:?}");
    }
}

#[test]
fn hooks_are_called_while_it_is_moved_put_back_and_after_it_has_gone() {
    let hooks = Event::Hooks { hooks: Box::default(), pid: 7, started: 1 };
    let calling = Event::Calling { moment: Moment::PreCopy };
    let called = Event::Called { moment: Moment::PreCopy, error: None };
    let mut state = JournalState::Empty;
    for event in source_path() {
        state = state.apply(&event).unwrap();
        assert_eq!(state.apply(&hooks).is_ok(), state == JournalState::PreCopy, "{state:?}");
        let may_call =
            matches!(state, JournalState::PreCopy | JournalState::Freezing | JournalState::Running);
        for event in [&calling, &called] {
            let next = state.apply(event);
            assert_eq!(next.is_ok(), may_call, "{state:?}");
            assert!(next.is_err() || next == Ok(state), "it tells, and changes nothing");
        }
    }
    assert_eq!(JournalState::Failed.apply(&calling), Ok(JournalState::Failed));
    assert!(JournalState::RolledBack.apply(&calling).is_err(), "what is over is over");
    let text = serde_json::to_string(&hooks).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), hooks);
    // the container stands still meanwhile
    let frozen = Event::Calling { moment: Moment::PostFreeze };
    assert!(!frozen.must_reach_the_disk() && calling.must_reach_the_disk());
}

#[test]
fn a_dead_one_s_journal_goes_on_behind_its_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(&dir.path().join("m")).unwrap();
    for event in source_path().into_iter().take(5) {
        journal.append(event).unwrap();
    }
    let path = dir.path().join("m/journal");
    let torn = std::fs::metadata(&path).unwrap().len() - 3;
    OpenOptions::new().write(true).open(&path).unwrap().set_len(torn).unwrap();
    Journal::resume(&path).unwrap().append(Event::Unthrottled).unwrap();
    let (lines, state) = read(&path).unwrap();
    assert_eq!((lines.len(), state), (5, JournalState::PreCopy));
    assert_eq!(lines[4].event, Event::Unthrottled);
}

#[test]
fn a_torn_last_line_is_left_out_and_a_damaged_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(&dir.path().join("m")).unwrap();
    for event in source_path().into_iter().take(5) {
        journal.append(event).unwrap();
    }
    let path = dir.path().join("m/journal");
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (lines, _) = read(&path).unwrap();
        assert_eq!(lines.len(), whole[..cut].iter().filter(|byte| **byte == b'\n').count());
    }
    let mut damaged = whole.clone();
    damaged[10] ^= 0x40;
    std::fs::write(&path, &damaged).unwrap();
    assert!(matches!(read(&path), Err(JournalError::Damaged { line: 1, .. })));
    assert!(Journal::create(&dir.path().join("m")).is_err(), "a journal is never overwritten");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is thrown at it: what was accepted reads back the same, in the same state.
    #[test]
    fn what_was_written_replays_to_the_same_state(events in proptest::collection::vec(any_event(), 0..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path().join("m").as_path()).unwrap();
        let accepted: Vec<Event> =
            events.into_iter().filter(|event| journal.append(event.clone()).is_ok()).collect();
        let (lines, state) = read(&dir.path().join("m/journal")).unwrap();
        prop_assert_eq!(state, journal.state());
        prop_assert_eq!(lines.into_iter().map(|line| line.event).collect::<Vec<_>>(), accepted);
    }
}
