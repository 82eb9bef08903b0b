//! The conversation with CRIU, a thread of ours playing CRIU's part.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_criu::{
    CriuBinary, CriuError, DumpOptions, NotifyAnswer, RestoreOptions, Session, SessionOptions,
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use protobuf::Message;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_notify, Criu_req, Criu_req_type, Criu_resp, Criu_restore_resp,
};

const TIME: Duration = Duration::from_secs(5);

struct FakeCriu(OwnedFd);

impl FakeCriu {
    /// The next request; `None` when the other side has shut the socket.
    fn hear(&self) -> Option<Criu_req> {
        let mut packet = vec![0; 65536];
        let n = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        (n > 0).then(|| Criu_req::parse_from_bytes(&packet[..n]).unwrap())
    }

    fn say(&self, resp: &Criu_resp) {
        send(self.0.as_raw_fd(), &resp.write_to_bytes().unwrap(), MsgFlags::empty()).unwrap();
    }

    fn ask(&self, script: &str, pid: Option<i32>, fd: Option<&OwnedFd>) -> bool {
        let mut notify = Criu_notify::new();
        notify.set_script(script.into());
        notify.pid = pid;
        let mut resp = answer(Criu_req_type::NOTIFY, true);
        resp.notify = Some(notify).into();
        let bytes = resp.write_to_bytes().unwrap();
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None).unwrap();
        let reply = self.hear().unwrap();
        assert_eq!(reply.type_(), Criu_req_type::NOTIFY);
        reply.notify_success()
    }
}

fn answer(kind: Criu_req_type, success: bool) -> Criu_resp {
    let mut resp = Criu_resp::new();
    resp.set_type(kind);
    resp.set_success(success);
    resp
}

fn request(kind: Criu_req_type) -> Criu_req {
    let mut req = Criu_req::new();
    req.set_type(kind);
    req
}

fn fake<T: Send + 'static>(play: impl FnOnce(FakeCriu) -> T + Send + 'static) -> (Session, JoinHandle<T>) {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (Session::over(ours), std::thread::spawn(move || play(FakeCriu(theirs))))
}

#[test]
fn questions_are_answered_and_the_pid_is_kept() {
    let (mut session, criu) = fake(|criu| {
        assert_eq!(criu.hear().unwrap().type_(), Criu_req_type::RESTORE);
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let answers = [
            criu.ask("pre-restore", None, None),
            criu.ask("setup-namespaces", Some(77), None),
            criu.ask("orphan-pts-master", None, Some(&file)),
            criu.ask("pre-resume", None, None),
        ];
        let mut resp = answer(Criu_req_type::RESTORE, true);
        let mut restored = Criu_restore_resp::new();
        restored.set_pid(77);
        resp.restore = Some(restored).into();
        criu.say(&resp);
        answers
    });
    let mut seen = Vec::new();
    let resp = session
        .request("restore", &request(Criu_req_type::RESTORE), TIME, &mut |notify| {
            seen.push((notify.script.clone(), notify.pid, notify.fd.is_some()));
            if notify.script == "pre-resume" { NotifyAnswer::Refuse } else { NotifyAnswer::Continue }
        })
        .unwrap();
    assert_eq!(resp.restore.pid(), 77);
    assert_eq!(criu.join().unwrap(), [true, true, true, false]);
    let want = [
        ("pre-restore", None, false),
        ("setup-namespaces", Some(77), false),
        ("orphan-pts-master", Some(77), true),
        ("pre-resume", Some(77), false),
    ];
    assert_eq!(seen, want.map(|(script, pid, fd)| (script.to_owned(), pid, fd)));
    assert_eq!(session.finish().unwrap(), None);
}

#[test]
fn external_resources_travel_back() {
    let (mut session, criu) = fake(|criu| {
        criu.hear().unwrap();
        let mut notify = Criu_notify::new();
        notify.set_script("query-ext-files".into());
        let mut resp = answer(Criu_req_type::NOTIFY, true);
        resp.notify = Some(notify).into();
        criu.say(&resp);
        let reply = criu.hear().unwrap();
        criu.say(&answer(Criu_req_type::DUMP, true));
        (reply.notify_success(), reply.opts.external.clone())
    });
    session
        .request("dump", &request(Criu_req_type::DUMP), TIME, &mut |_| {
            NotifyAnswer::External(vec!["unix[5]".into()])
        })
        .unwrap();
    assert_eq!(criu.join().unwrap(), (true, vec!["unix[5]".to_owned()]));
}

#[test]
fn a_death_is_a_crash_and_silence_a_timeout() {
    let ask = |session: &mut Session, time| {
        session.request("dump", &request(Criu_req_type::DUMP), time, &mut |_| NotifyAnswer::Continue)
    };
    let (mut session, criu) = fake(|criu| {
        criu.hear().unwrap();
    });
    assert!(matches!(ask(&mut session, TIME), Err(CriuError::Crashed { operation: "dump", .. })));
    criu.join().unwrap();
    assert!(matches!(ask(&mut session, TIME), Err(CriuError::Crashed { .. })), "and stays one");

    let (mut session, criu) = fake(|criu| {
        criu.hear().unwrap();
        criu.hear().is_none()
    });
    let started = Instant::now();
    assert!(matches!(ask(&mut session, Duration::from_millis(60)), Err(CriuError::Timeout { .. })));
    assert!((60..2000).contains(&started.elapsed().as_millis()));
    assert!(criu.join().unwrap(), "the socket was shut");
}

#[test]
fn time_spent_in_answering_does_not_count() {
    let (mut session, criu) = fake(|criu| {
        criu.hear().unwrap();
        assert!(criu.ask("post-dump", None, None));
        criu.say(&answer(Criu_req_type::DUMP, true));
    });
    let slow = &mut |_: &_| {
        std::thread::sleep(Duration::from_millis(400));
        NotifyAnswer::Continue
    };
    session.request("dump", &request(Criu_req_type::DUMP), Duration::from_millis(300), slow).unwrap();
    criu.join().unwrap();
}

#[test]
fn garbage_is_not_an_answer() {
    let (mut session, criu) = fake(|criu| {
        criu.hear().unwrap();
        send(criu.0.as_raw_fd(), b"\xff\xff\xff not a message", MsgFlags::empty()).unwrap();
        criu.hear();
    });
    let result =
        session.request("dump", &request(Criu_req_type::DUMP), TIME, &mut |_| NotifyAnswer::Continue);
    assert!(matches!(result, Err(CriuError::Protocol { .. })));
    drop(session);
    criu.join().unwrap();
}

/// A script in criu's place: what the process sees of us.
fn script(dir: &std::path::Path, body: &str) -> CriuBinary {
    let path = dir.join("criu");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&path).unwrap();
    write!(file, "#!/bin/bash\n{body}\n").unwrap();
    drop(file);
    CriuBinary::at(path).unwrap()
}

#[test]
fn the_process_gets_just_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let criu = script(
        dir.path(),
        &format!(
            "{{ echo \"$@\"; umask; ls -l /proc/$$/fd; cut -d' ' -f6 /proc/$$/stat; echo $$; read -r x <&10; echo \"$x\"; }} > {} 2>&1",
            told.display()
        ),
    );
    let stray = std::fs::File::open("/etc/hostname").unwrap();
    nix::fcntl::fcntl(stray.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let passed = dir.path().join("passed");
    std::fs::write(&passed, "hello\n").unwrap();
    let fd = std::fs::File::open(&passed).unwrap().into();
    let session = Session::start(&criu, SessionOptions { pass: vec![fd], ..Default::default() }).unwrap();
    assert_eq!(session.passed(), [10]);
    let pid = session.pid().unwrap();
    assert!(session.finish().unwrap().unwrap().success());
    let text = std::fs::read_to_string(&told).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "swrk 3");
    assert_eq!(lines[1], "0077");
    assert!(text.contains("3 -> socket:[") && text.contains("10 -> "), "{text}");
    assert!(!text.contains("hostname"), "a stray descriptor: {text}");
    assert!(text.contains("0 -> /dev/null"), "{text}");
    let tail = &lines[lines.len() - 3..];
    assert_eq!(
        tail,
        [pid.to_string(), pid.to_string(), "hello".to_owned()],
        "a session leader; the passed file"
    );
    drop(stray);
}

#[test]
fn a_crash_tells_of_the_log_and_directories_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let (images, work) = (dir.path().join("a/images"), dir.path().join("a/work"));
    // It dies with the request unread, having written a log.
    let criu = script(
        dir.path(),
        &format!(
            "sleep 0.3; echo '(00.1) Error (criu/x.c:1): Connected TCP socket, consider using --tcp-established option.' > {}/dump.log",
            work.display()
        ),
    );
    let result =
        DumpOptions::new(1, &images, &work).start(&criu).unwrap().dump(&mut |_| NotifyAnswer::Continue);
    let error = result.unwrap_err();
    assert!(matches!(&error, CriuError::Crashed { operation: "dump", log: Some(_), .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("dmesg") && text.contains("TCP connections") && text.contains("dump.log"),
        "{text}"
    );
    for made in [&images, &work] {
        assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

#[test]
fn what_cannot_start_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(CriuBinary::at(dir.path().join("criu")), Err(CriuError::NotFound { .. })));
    let criu = script(dir.path(), "exit 0");
    std::fs::write(dir.path().join("criu"), "#!/nonexistent/interpreter\n").unwrap();
    let result = RestoreOptions::new(dir.path(), dir.path().join("work")).start(&criu);
    assert!(matches!(result, Err(CriuError::Spawn { .. })), "{result:?}");
    // The process would be asked to dump us.
    let criu = script(dir.path(), "sleep 1");
    let dump = DumpOptions::new(0, dir.path().join("i"), dir.path().join("w")).start(&criu).unwrap();
    assert!(matches!(dump.dump(&mut |_| NotifyAnswer::Continue), Err(CriuError::Protocol { .. })));
}
