use super::*;
use crate::transport::Descriptors;
use godwit_migration::Failure;
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_millis(300);

fn pair() -> (Wire, Wire) {
    let (one, two) = Descriptors::pair().unwrap();
    let other = std::thread::spawn(|| Wire::open(Box::new(two), Cancel::default(), PATIENCE).unwrap());
    let one = Wire::open(Box::new(one), Cancel::default(), PATIENCE).unwrap();
    (one, other.join().unwrap())
}

/// A wire whose other end is raw bytes.
fn fed_with(bytes: &[u8]) -> Result<Incoming, WireError> {
    let (one, mut two) = Descriptors::pair().unwrap();
    let mut all = preamble(OLDEST, NEWEST).to_vec();
    all.extend_from_slice(bytes);
    let feeder = std::thread::spawn(move || {
        let mut rest = all.as_slice();
        while let Ok(sent @ 1..) = two.send(rest, PATIENCE) {
            rest = &rest[sent..];
        }
        // open until the other end has read: a closed end would be another error
        two
    });
    let heard = Wire::open(Box::new(one), Cancel::default(), PATIENCE).and_then(|mut wire| wire.hear());
    drop(feeder.join().unwrap());
    heard
}

#[test]
fn messages_and_bulk_arrive_in_order() {
    let (mut one, mut two) = pair();
    let frame = |byte, length| serde_bytes::ByteBuf::from(vec![byte; length]);
    let frames = vec![HeldFrames {
        interface: "eth0".into(),
        frames: vec![frame(1, 1500), frame(0, 0), frame(2, 60)],
    }];
    one.send_frames(&frames).unwrap();
    one.say(&Message::Cancel { reason: "x".repeat(100_000), again: false }).unwrap();
    assert!(matches!(two.hear().unwrap(), Incoming::Frames(got) if got == frames));
    assert!(
        matches!(two.hear().unwrap(), Incoming::Message(Message::Cancel { reason, .. }) if reason.len() == 100_000)
    );
    assert!(one.bytes_sent() < 10_000, "long bodies are compressed");
}

#[test]
fn more_frames_than_fit_into_one_message_arrive_all() {
    let (mut one, mut two) = pair();
    let frames: Vec<_> = (0..400u32).map(|n| serde_bytes::ByteBuf::from(vec![n as u8; 70_000])).collect();
    let held = vec![
        HeldFrames { interface: "eth0".into(), frames: frames.clone() },
        HeldFrames { interface: "eth1".into(), frames: frames[..3].to_vec() },
    ];
    one.set_compression(Compression::None);
    let sender = std::thread::spawn(move || {
        one.send_frames(&held).unwrap();
        one.say(&Message::Go { volumes: vec![] }).unwrap();
        one
    });
    let mut got: Vec<(String, serde_bytes::ByteBuf)> = Vec::new();
    while let Incoming::Frames(held) = two.hear().unwrap() {
        got.extend(
            held.into_iter().flat_map(|h| h.frames.into_iter().map(move |f| (h.interface.clone(), f))),
        );
    }
    let _one = sender.join().unwrap();
    let of = |interface: &str| {
        got.iter().filter(|(name, _)| name == interface).map(|(_, frame)| frame.clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("eth0"), frames);
    assert_eq!(of("eth1"), frames[..3]);
}

#[test]
fn the_peers_reason_travels_home_even_when_the_write_fails() {
    let (mut one, mut two) = pair();
    let failure = Failure::new(godwit_migration::FailureKind::Failed, "disk full");
    two.say(&Message::Failed { failure: failure.clone() }).unwrap();
    drop(two);
    let error = loop {
        match one.say(&Message::Prepare) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, WireError::Peer(reason) if *reason == failure));
}

#[test]
fn silence_and_ctrl_c_end_a_wait() {
    let (mut one, _two) = pair();
    assert!(matches!(one.hear(), Err(WireError::Silent(_))));
    one.cancel.raise();
    assert!(matches!(one.hear(), Err(WireError::Interrupted)));
    one.ignore_cancel();
    assert!(matches!(one.hear(), Err(WireError::Silent(_))));
}

#[test]
fn versions() {
    assert_eq!(common_version(&preamble(1, 9)).unwrap(), NEWEST);
    assert_eq!(common_version(&preamble(NEWEST, 9)).unwrap(), NEWEST);
    let newer = common_version(&preamble(NEWEST + 1, 9));
    assert!(matches!(newer, Err(WireError::Version { theirs_oldest, .. }) if theirs_oldest == NEWEST + 1));
    assert!(matches!(common_version(&preamble(1, OLDEST - 1)), Err(WireError::Version { .. })));
    assert!(matches!(common_version(b"SSH-2.0-OpenSSH\r"), Err(WireError::NotGodwit(_))));
}

#[test]
fn somebody_else_is_recognised_however_short_his_words() {
    for words in ["Welcome", "bash: line 1: godwit: command not found\n"] {
        let (one, mut two) = Descriptors::pair().unwrap();
        two.send(words.as_bytes(), PATIENCE).unwrap();
        let other = std::thread::spawn(move || {
            // takes our preamble, so that closing is no accident, and goes
            let _ = two.receive(&mut [0; 64], PATIENCE);
        });
        let error = Wire::open(Box::new(one), Cancel::default(), PATIENCE).map(|_| ()).unwrap_err();
        other.join().unwrap();
        assert!(error.to_string().contains(&format!("`{}", &words[..7])), "{error}");
    }
}

#[test]
fn the_bandwidth_limit_holds() {
    let (mut one, mut two) = pair();
    let reader = std::thread::spawn(move || while two.hear().is_ok() {});
    one.set_compression(Compression::None);
    let limit = Bandwidth::default();
    limit.set(1_000_000);
    one.set_bandwidth(&limit);
    let begin = Instant::now();
    let frames = vec![serde_bytes::ByteBuf::from(vec![0; 300_000])];
    one.send_frames(&[HeldFrames { interface: "eth0".into(), frames }]).unwrap();
    one.flush().unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_millis(900), "{took:?}");
    drop(one);
    reader.join().unwrap();
}

#[test]
fn an_index_comes_only_where_one_is_waited_for() {
    let empty = TreeIndex::default();
    let (mut one, mut two) = pair();
    one.send_index(TreeId(0), &empty).unwrap();
    assert!(matches!(two.hear(), Err(WireError::Malformed(why)) if why.contains("nobody waits")));
    let (mut one, mut two) = pair();
    two.expect_indexes();
    one.send_index(TreeId(3), &empty).unwrap();
    assert!(matches!(two.hear().unwrap(), Incoming::Index(TreeId(3), index) if index == empty));
    // pieces of one without end: some bytes of each, 16 MiB of memory
    let (mut one, mut two) = pair();
    two.set_patience(Duration::from_secs(20));
    let sender = std::thread::spawn(move || {
        let piece = vec![0; MAX_FRAME];
        while one.put(INDEX_CONTINUES, TreeId(0), &piece).is_ok() {}
    });
    assert!(matches!(two.hear(), Err(WireError::Malformed(_))));
    drop(two);
    sender.join().unwrap();
}

#[test]
fn impossible_frames_are_refused_before_anything_is_allocated() {
    let header = |kind: u8, flags: u8, length: u32, raw: u32| {
        let mut bytes = vec![kind, flags, 0, 0];
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&raw.to_le_bytes());
        bytes
    };
    for (name, bytes) in [
        ("too long", header(1, 0, u32::MAX, u32::MAX)),
        ("a bomb", header(1, 1, 10, u32::MAX)),
        ("unknown flag", header(1, 2, 0, 0)),
        ("lengths differ", header(1, 0, 1, 2)),
        ("unknown kind", header(77, 0, 0, 0)),
        ("not zstd", [header(2, 1, 4, 4), vec![1, 2, 3, 4]].concat()),
        ("not json", [header(1, 0, 4, 4), b"{{{{".to_vec()].concat()),
    ] {
        assert!(matches!(fed_with(&bytes), Err(WireError::Malformed(_))), "{name}: {:?}", fed_with(&bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..7) {
        let _ = fed_with(&bytes);
        let mut framed = vec![kind, 0, 0, 0];
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        framed.extend_from_slice(&bytes);
        let _ = fed_with(&framed);
    }
}

#[test]
fn a_wait_that_is_interrupted_within_a_frame_goes_on_where_it_was() {
    let (mut one, mut two) = pair();
    one.say(&Message::Cancel { reason: "x".repeat(100), again: false }).unwrap();
    one.say(&Message::Prepare).unwrap();
    // all of its header, and a little of its body
    let (mut whole, mut seen) = (Vec::new(), Vec::new());
    while whole.len() < 200 {
        let mut some = [0; 1000];
        let read = two.transport.receive(&mut some, LOOK_UP).unwrap_or(0);
        whole.extend_from_slice(&some[..read]);
        if read == 0 {
            break;
        }
    }
    for at in [5, HEADER, HEADER + 20] {
        let (mut three, four) = pair();
        let mut sending = four.transport;
        sending.send(&whole[..at], PATIENCE).unwrap();
        three.cancel.raise();
        seen.push(matches!(three.hear(), Err(WireError::Interrupted)));
        three.ignore_cancel();
        sending.send(&whole[at..], PATIENCE).unwrap();
        seen.push(matches!(three.hear(), Ok(Incoming::Message(Message::Cancel { .. }))));
        seen.push(matches!(three.hear(), Ok(Incoming::Message(Message::Prepare))));
    }
    assert_eq!(seen, [true; 9]);
}
