//! Connections over TLS on loopback: who is let in, what is said to those that are not, and what the bytes may suffer.
#![allow(clippy::unwrap_used)]

use godwit_migration::Cancel;
use godwit_transfer::tls::{self, Fingerprint, Identity, TlsError, TlsStream};
use godwit_transfer::{Compression, Descriptors, Incoming, Message, Transport, Wire, WireError};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);

/// A host: its key, in a directory of its own.
struct Host {
    dir: tempfile::TempDir,
    name: &'static str,
}

impl Host {
    fn new(name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Identity::create(dir.path(), name).unwrap();
        Self { dir, name }
    }

    fn identity(&self) -> Identity {
        Identity::load(self.dir.path()).unwrap()
    }

    fn key(&self) -> Fingerprint {
        self.identity().fingerprint
    }

    fn trust(&self, other: &Host) -> &Self {
        let mut peers = self.identity().peers;
        peers.trust(other.name, other.key()).unwrap();
        peers.save(self.dir.path()).unwrap();
        self
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// `src` calls `expected`, and `dst` answers.
fn meet(src: &Host, dst: &Host, expected: &str) -> (io::Result<TlsStream>, io::Result<(String, TlsStream)>) {
    let (near, far) = sockets();
    let (ours, theirs) = (src.identity(), dst.identity());
    let answering = thread::spawn(move || tls::answer(far, "tls://caller", &theirs));
    let called = tls::call(near, &format!("tls://{expected}:7700"), expected, &ours);
    (called, answering.join().unwrap())
}

fn friends() -> (Host, Host) {
    let (src, dst) = (Host::new("src"), Host::new("dst"));
    src.trust(&dst);
    dst.trust(&src);
    (src, dst)
}

fn connected() -> (TlsStream, TlsStream) {
    let (src, dst) = friends();
    let (near, far) = meet(&src, &dst, "dst");
    (near.unwrap(), far.unwrap().1)
}

fn known(error: &io::Error) -> &TlsError {
    TlsError::within(error).unwrap_or_else(|| panic!("{error}"))
}

/// The first word that the other side has for us, however the connection is doing.
fn first_word(mut stream: TlsStream) -> io::Error {
    stream.receive(&mut [0; 16], SOON).unwrap_err()
}

#[test]
fn friends_meet_and_know_each_other() {
    let (src, dst) = friends();
    let (near, far) = meet(&src, &dst, "dst");
    let (mut near, (name, mut far)) = (near.unwrap(), far.unwrap());
    assert_eq!((name.as_str(), far.fingerprint(), near.fingerprint()), ("src", src.key(), dst.key()));
    near.send(b"hello", SOON).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(far.receive(&mut buffer, SOON).unwrap(), 5);
    drop(far);
    assert_eq!(near.receive(&mut buffer, SOON).unwrap(), 0, "an announced end is an end");
}

#[test]
fn a_stranger_is_turned_away_and_both_sides_say_how_to_change_that() {
    let (src, dst) = (Host::new("src"), Host::new("dst"));
    // neither knows the other: the caller sees it first
    let (near, far) = meet(&src, &dst, "dst");
    let error = near.unwrap_err();
    assert!(
        matches!(known(&error), TlsError::Unknown { theirs, ours, .. } if (*theirs, *ours) == (dst.key(), src.key()))
    );
    for part in [dst.key().to_string(), src.key().to_string()] {
        assert!(error.to_string().contains(&part), "{error}");
    }
    let hint = known(&error).hint().unwrap();
    assert!(hint.contains(&format!("`godwit keys trust dst {}`", dst.key())), "{hint}");
    assert!(far.unwrap_err().to_string().contains("does not trust this host"));
    // the caller trusts; the other side does not
    src.trust(&dst);
    let (near, far) = meet(&src, &dst, "dst");
    let far = far.unwrap_err();
    assert!(matches!(known(&far), TlsError::Unknown { theirs, .. } if *theirs == src.key()), "{far}");
    let error = first_word(near.unwrap());
    let hint = known(&error).hint().unwrap();
    assert!(matches!(known(&error), TlsError::NotTrusted { .. }), "{error}");
    assert!(
        hint.contains(&format!("run there: `godwit keys trust {} {}`", src.identity().name, src.key())),
        "{hint}"
    );
}

#[test]
fn whoever_writes_first_learns_of_a_refusal_too() {
    let (src, dst) = (Host::new("src"), Host::new("dst"));
    src.trust(&dst);
    let (near, _far) = meet(&src, &dst, "dst");
    let error = Wire::open(Box::new(near.unwrap()), Cancel::default(), SOON).err().unwrap();
    assert!(matches!(TlsError::within(&error), Some(TlsError::NotTrusted { .. })), "{error:?}");
}

#[test]
fn another_trusted_host_is_not_the_one_that_was_called() {
    let (src, dst, other) = (Host::new("src"), Host::new("dst"), Host::new("other"));
    src.trust(&dst).trust(&other);
    let (near, _) = meet(&src, &dst, "other");
    let error = near.unwrap_err();
    assert!(matches!(known(&error), TlsError::Another { is, .. } if is == "dst"), "{error}");
    let (near, _) = meet(&src, &dst, "10.0.0.2");
    let error = near.unwrap_err();
    assert!(known(&error).hint().unwrap().contains("write `tls://dst@10.0.0.2:7700`"), "{error}");
}

#[test]
fn a_host_with_a_new_key_is_not_the_one_that_was_trusted() {
    let (src, dst) = (Host::new("src"), Host::new("dst"));
    let before = Host::new("dst");
    src.trust(&before);
    let (near, _) = meet(&src, &dst, "dst");
    let error = near.unwrap_err();
    assert!(
        matches!(known(&error), TlsError::Changed { trusted, .. } if *trusted == before.key()),
        "{error}"
    );
    assert!(known(&error).hint().unwrap().contains("godwit keys forget dst"));
}

#[test]
fn a_certificate_is_worth_nothing_without_its_key() {
    // somebody who saw the certificate of a trusted host shows it, with a key of his own
    let (src, dst, thief) = (Host::new("src"), Host::new("dst"), Host::new("thief"));
    src.trust(&dst);
    dst.trust(&src);
    std::fs::copy(src.dir.path().join("host.pem"), thief.dir.path().join("host.pem")).unwrap();
    thief.trust(&dst);
    let (near, far) = meet(&thief, &dst, "dst");
    assert!(far.is_err(), "the thief was let in");
    // it may fail at its own end already, since key and certificate do not fit
    if let Ok(near) = near {
        first_word(near);
    }
}

/// What a client of another making gets from a host: a certificate or none, these versions.
fn with_openssl(dst: &Host, args: &[&str]) -> Option<(String, io::Result<(String, TlsStream)>)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let identity = dst.identity();
    let answering =
        thread::spawn(move || tls::answer(listener.accept().unwrap().0, "tls://caller", &identity));
    let output = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-alpn", "godwit"])
        .args(args)
        .stdin(std::process::Stdio::null())
        .output();
    // whoever waits for a connection shall have one, whatever became of openssl
    drop(TcpStream::connect(("127.0.0.1", port)));
    let Ok(output) = output else {
        let _ = answering.join();
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: openssl");
        let _ = writeln!(io::stderr(), "skipped: openssl cannot be run");
        return None;
    };
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Some((said, answering.join().unwrap()))
}

#[test]
fn older_versions_and_callers_without_a_certificate_are_turned_away() {
    let (src, dst) = friends();
    let file = |name: &str| src.dir.path().join(name).to_str().unwrap().to_owned();
    let (key, pem) = (file("openssl.key"), file("openssl.pem"));
    let script = format!(
        "openssl req -x509 -newkey ed25519 -nodes -subj /CN=x -keyout {key} -out {pem} 2> /dev/null && \
         openssl x509 -in {pem} -noout -pubkey | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1"
    );
    let made = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let made = format!("sha256:{}", String::from_utf8(made.stdout).unwrap().trim());
    let Some((said, far)) = with_openssl(&dst, &["-tls1_2"]) else { return };
    assert!(far.is_err() && said.contains("alert"), "{said}");
    let Some((_, far)) = with_openssl(&dst, &[]) else { return };
    assert!(matches!(known(&far.unwrap_err()), TlsError::Nobody(_)));
    // the same key by its other name: a fingerprint is what openssl says it is
    let mut peers = dst.identity().peers;
    peers.trust("other-tool", made.parse().unwrap()).unwrap();
    peers.save(dst.dir.path()).unwrap();
    let Some((said, far)) = with_openssl(&dst, &["-cert", &pem, "-key", &key]) else { return };
    assert_eq!(far.map(|(name, _)| name).unwrap(), "other-tool", "{said}");
    assert!(said.contains("TLSv1.3"), "{said}");
}

#[test]
fn whoever_does_not_speak_tls_is_turned_away_in_time() {
    let (_, dst) = friends();
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"godwit\r\n\x02\0\x02\0\0\0\0\0", &[0xff; 70_000]] {
        let (mut near, far) = sockets();
        let identity = dst.identity();
        let answering = thread::spawn(move || tls::answer(far, "tls://caller", &identity));
        let _ = near.write_all(words);
        drop(near);
        assert!(answering.join().unwrap().is_err());
    }
}

/// A way between two ends that does to the ciphertext what it is told.
fn meddle(harm: impl Fn(usize, &mut Vec<u8>) + Send + 'static) -> (TlsStream, TlsStream) {
    let (src, dst) = friends();
    let (near, mut near_end) = sockets();
    let (mut far_end, far) = sockets();
    let (mut back_from, mut back_to) = (far_end.try_clone().unwrap(), near_end.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(std::net::Shutdown::Write);
    });
    thread::spawn(move || {
        // record by record: type, version, length (RFC 8446, 5.1)
        let mut header = [0; 5];
        let mut number = 0;
        while near_end.read_exact(&mut header).is_ok() {
            let mut record = header.to_vec();
            record.resize(5 + usize::from(u16::from_be_bytes([header[3], header[4]])), 0);
            if near_end.read_exact(&mut record[5..]).is_err() {
                break;
            }
            harm(number, &mut record);
            number += 1;
            if far_end.write_all(&record).is_err() {
                break;
            }
        }
        let _ = far_end.shutdown(std::net::Shutdown::Write);
    });
    let theirs = dst.identity();
    let answering = thread::spawn(move || tls::answer(far, "tls://caller", &theirs));
    let near = tls::call(near, "tls://dst:7700", "dst", &src.identity()).unwrap();
    (near, answering.join().unwrap().unwrap().1)
}

/// Records of the handshake that a client sends: hello, change cipher spec, certificate with all that follows it.
const HANDSHAKE: usize = 4;

#[test]
fn a_record_that_is_changed_repeated_left_out_or_cut_ends_the_connection() {
    let kept = std::sync::Mutex::new(Vec::new());
    type Harm = Box<dyn Fn(usize, &mut Vec<u8>) + Send>;
    let cases: [(&str, Harm); 4] = [
        (
            "changed",
            Box::new(|number, record| {
                if number > HANDSHAKE {
                    *record.last_mut().unwrap() ^= 1
                }
            }),
        ),
        (
            "repeated",
            Box::new(|number, record| {
                if number > HANDSHAKE {
                    record.extend(record.clone())
                }
            }),
        ),
        (
            "left out",
            Box::new(move |number, record| {
                if number == HANDSHAKE + 1 {
                    *kept.lock().unwrap() = std::mem::take(record);
                }
            }),
        ),
        (
            "cut short",
            Box::new(|number, record| {
                if number > HANDSHAKE {
                    record.truncate(record.len() / 2)
                }
            }),
        ),
    ];
    for (what, harm) in cases {
        let (mut near, mut far) = meddle(harm);
        for _ in 0..8 {
            let _ = near.send(&[7; 1000], SOON);
        }
        drop(near);
        let mut got = 0;
        let mut buffer = [0; 4096];
        let error = loop {
            match far.receive(&mut buffer, SOON) {
                Ok(0) => panic!("{what}: the end looked as it should"),
                Ok(read) => {
                    assert!(buffer[..read].iter().all(|byte| *byte == 7), "{what}");
                    got += read;
                }
                Err(error) => break error,
            }
        };
        assert!(got < 8000, "{what}: all of it arrived");
        assert!(
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            "{what}: {error:?}"
        );
    }
}

#[test]
fn waits_have_limits_and_nothing_is_lost_or_sent_twice_by_them() {
    let (mut near, mut far) = connected();
    let mut buffer = vec![0; 1 << 20];
    let begun = Instant::now();
    let error = far.receive(&mut buffer, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(1));
    // each byte says where it is
    let bytes: Vec<u8> = (0..24u32 << 20).map(|at| (at % 251) as u8).collect();
    let expected = bytes.clone();
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        thread::sleep(Duration::from_millis(300));
        loop {
            match far.receive(&mut buffer, SOON).unwrap() {
                0 => return got,
                read => got.extend_from_slice(&buffer[..read]),
            }
        }
    });
    let (mut at, mut late) = (0, 0);
    while at < bytes.len() {
        // not always as much as before: a limit on bandwidth does that
        let end = bytes.len().min(at + if late % 2 == 0 { 1 << 20 } else { 1000 });
        match near.send(&bytes[at..end], Duration::from_millis(10)) {
            Ok(sent) => at += sent,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                late += 1;
            }
        }
    }
    drop(near);
    assert!(late > 0, "nothing was ever full");
    assert!(reading.join().unwrap() == expected);
}

#[test]
fn what_could_not_leave_goes_while_an_answer_is_waited_for() {
    let (mut near, mut far) = connected();
    let full = loop {
        match near.send(&[1; 1 << 18], Duration::from_millis(20)) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::TimedOut);
    let far = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut got = 0;
        // until nothing more comes: all that was accepted, and the piece that was late
        while let Ok(read) = far.receive(&mut buffer, Duration::from_millis(500)) {
            got += read;
        }
        far.send(b"answer", SOON).unwrap();
        (got, far)
    });
    let mut buffer = [0; 16];
    assert_eq!(near.receive(&mut buffer, SOON).unwrap(), 6);
    assert_eq!(far.join().unwrap().0 % (1 << 18), 0);
}

#[test]
fn a_wire_over_tls_carries_messages_both_ways_and_says_why_it_ends() {
    let (near, far) = connected();
    let other = thread::spawn(move || Wire::open(Box::new(far), Cancel::default(), SOON).unwrap());
    let mut near = Wire::open(Box::new(near), Cancel::default(), SOON).unwrap();
    let mut far = other.join().unwrap();
    near.say(&Message::Prepare).unwrap();
    assert!(matches!(far.hear().unwrap(), Incoming::Message(Message::Prepare)));
    far.say(&Message::Prepared).unwrap();
    assert!(matches!(near.hear().unwrap(), Incoming::Message(Message::Prepared)));
    near.send_pages(&vec![5; 3 << 20]).unwrap();
    near.say(&Message::Go { volumes: vec![] }).unwrap();
    assert!(matches!(far.hear().unwrap(), Incoming::Pages(pages) if pages.len() == 3 << 20));
    assert!(matches!(far.hear().unwrap(), Incoming::Message(Message::Go { .. })));
    drop(near);
    assert!(matches!(far.hear(), Err(WireError::Closed { .. })));
}

#[test]
fn keys_are_secrets() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new("src");
    let key = host.dir.path().join("host.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Identity::create(host.dir.path(), "src"), Err(TlsError::KeyExists(_))));
    let text = std::fs::read_to_string(&key).unwrap();
    let secret: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!format!("{:?}", host.identity()).contains(&secret[20..40]));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Identity::load(host.dir.path()), Err(TlsError::Exposed { mode: 0o640, .. })));
    let nowhere = tempfile::tempdir().unwrap();
    let error = Identity::load(nowhere.path()).unwrap_err();
    assert!(matches!(error, TlsError::NoKey(_)) && error.hint().unwrap().contains("godwit keys new"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "nonsense").unwrap();
    assert!(matches!(Identity::load(host.dir.path()), Err(TlsError::Content { .. })));
}

/// Pages that no compression is tried on, as they go over a further connection; GiB/s.
fn throughput(near: Box<dyn Transport>, far: Box<dyn Transport>, bytes: usize) -> f64 {
    let other = thread::spawn(move || {
        let mut far = Wire::open(far, Cancel::default(), SOON).unwrap();
        while !matches!(far.hear().unwrap(), Incoming::Message(_)) {}
        far
    });
    let mut near = Wire::open(near, Cancel::default(), SOON).unwrap();
    near.set_compression(Compression::None);
    let batch = vec![7; 1 << 20];
    let begun = Instant::now();
    for _ in 0..bytes / batch.len() {
        near.send_pages(&batch).unwrap();
    }
    near.say(&Message::Go { volumes: vec![] }).unwrap();
    drop(other.join().unwrap());
    bytes as f64 / begun.elapsed().as_secs_f64() / (1u64 << 30) as f64
}

fn plain(socket: TcpStream) -> Box<dyn Transport> {
    let other = socket.try_clone().unwrap();
    Box::new(Descriptors::new(socket.into(), other.into()).unwrap())
}

/// `cargo test --release --test tls throughput -- --ignored --nocapture`
#[test]
#[ignore = "measures; says nothing about right and wrong"]
fn throughput_beside_plain_tcp() {
    let (mut plains, mut tlses) = (vec![], vec![]);
    for _ in 0..9 {
        let (near, far) = sockets();
        plains.push(throughput(plain(near), plain(far), 2 << 30));
        let (near, far) = connected();
        tlses.push(throughput(Box::new(near), Box::new(far), 2 << 30));
    }
    for of in [&mut plains, &mut tlses] {
        of.sort_by(f64::total_cmp);
    }
    let (plain, tls) = (plains[4], tlses[4]);
    writeln!(
        io::stderr(),
        "plain {plain:.2} GiB/s ({:.2} to {:.2}), tls {tls:.2} GiB/s ({:.2} to {:.2}): {:.0} %",
        plains[0],
        plains[8],
        tlses[0],
        tlses[8],
        100.0 * tls / plain
    )
    .unwrap();
}
