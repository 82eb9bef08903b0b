//! The probe against servers that misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use super::control::{Command, Commander, Control};
use super::report::Report;
use super::{ProbeArgs, StoppedBy, measure};

/// Signals reach every listener of the process, so only one test at a time may listen.
static LISTENING: Mutex<()> = Mutex::new(());

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    probe: ProbeArgs,
}

fn args(line: &str) -> ProbeArgs {
    Line::try_parse_from(std::iter::once("probe").chain(line.split(' '))).map(|line| line.probe).unwrap()
}

fn probe(line: &str) -> Report {
    let (_commander, commands, wake) = Commander::pair().unwrap();
    measure(&args(line), true, &commands, &wake).unwrap()
}

/// Serves every connection in its own thread with `serve`, which also gets the number of the connection.
fn server(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream, number));
        }
    });
    address
}

type Store = Arc<Mutex<HashMap<String, String>>>;

fn bulk(value: Option<&String>) -> String {
    value.map_or("$-1\r\n".into(), |value| format!("${}\r\n{value}\r\n", value.len()))
}

/// A small redis. `before(connection, request)` runs before each write; false closes the connection.
fn redis(store: &Store, before: impl Fn(usize, usize) -> bool + Send + Sync + 'static) -> String {
    let store = Arc::clone(store);
    server(move |stream, connection| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        for request in 0.. {
            let Some(words) = read_command(&mut reader) else { return };
            if words[0] != "MGET" && !before(connection, request) {
                return;
            }
            let mut store = store.lock().unwrap();
            let reply = match words[0].as_str() {
                "SET" => {
                    store.insert(words[1].clone(), words[2].clone());
                    "+OK\r\n".to_owned()
                }
                "GETSET" => bulk(store.insert(words[1].clone(), words[2].clone()).as_ref()),
                "INCR" => {
                    let value = store.get(&words[1]).map_or(0, |v| v.parse::<i64>().unwrap()) + 1;
                    store.insert(words[1].clone(), value.to_string());
                    format!(":{value}\r\n")
                }
                "MGET" => {
                    let values: String = words[1..].iter().map(|key| bulk(store.get(key))).collect();
                    format!("*{}\r\n{values}", words.len() - 1)
                }
                _ => "-ERR unknown command\r\n".to_owned(),
            };
            drop(store);
            if writer.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn read_command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut number = |sign: char| {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let count = line.trim_end().strip_prefix(sign)?.parse::<usize>().ok()?;
        if sign == '*' {
            return Some((count, String::new()));
        }
        let mut word = vec![0; count + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(count);
        Some((count, String::from_utf8(word).ok()?))
    };
    let (words, _) = number('*')?;
    (0..words).map(|_| number('$').map(|(_, word)| word)).collect()
}

fn echo(stream: TcpStream, mut change: impl FnMut(usize, &mut [u8; 16])) {
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let mut message = [0; 16];
    for number in 0.. {
        if reader.read_exact(&mut message).is_err() {
            return;
        }
        change(number, &mut message);
        if writer.write_all(&message).is_err() {
            return;
        }
    }
}

#[test]
fn a_stall_is_measured_and_nothing_is_lost() {
    let stall = Duration::from_millis(300);
    let address = redis(&Store::default(), move |_, request| {
        if request == 200 {
            thread::sleep(stall);
        }
        true
    });
    // by count: how many go within a time depends on what else this machine does
    let report = probe(&format!("redis://{address} --interval 1ms --count 1000"));
    let gap = report.max_gap_us.unwrap();
    assert!((299_000..900_000).contains(&gap), "{report:?}");
    assert!(report.gaps[1].duration_us < 290_000, "one stall, one large gap: {report:?}");
    assert!(!report.gaps[0].open);
    // open loop: requests went out during the stall and their latency shows it
    assert_eq!((report.sent, report.answered, report.skipped), (1000, 1000, 0), "{report:?}");
    assert!(report.latency_us.unwrap().p99 > 150_000, "{report:?}");
    let writes = report.writes.clone().unwrap();
    assert_eq!((writes.acknowledged, writes.found, writes.lost, writes.unverified), (1000, 1000, 0, 0));
    assert_eq!((report.errors, report.exit_code()), (0, 0));
}

#[test]
fn a_dropped_connection_is_established_again() {
    let address = redis(&Store::default(), |connection, request| (connection, request) != (0, 100));
    let report = probe(&format!("redis://{address} --interval 1ms --duration 400ms"));
    assert_eq!((report.reconnects, report.connections_lost), (1, 1), "{report:?}");
    assert!(report.unanswered >= 1 && report.answered > 200, "{report:?}");
    assert_eq!(report.sent, report.answered + report.unanswered);
    assert_eq!(report.writes.as_ref().unwrap().lost, 0);
    assert_eq!(report.exit_code(), 0);
}

#[test]
fn a_forgotten_write_is_lost() {
    let store = Store::default();
    let forgetful = Arc::clone(&store);
    let address = redis(&store, move |_, request| {
        if request == 90 {
            forgetful.lock().unwrap().remove("p:42");
        }
        true
    });
    let report = probe(&format!("redis://{address} --interval 1ms --count 100 --key-prefix p"));
    let writes = report.writes.clone().unwrap();
    assert_eq!((writes.acknowledged, writes.found, writes.lost), (100, 99, 1));
    assert_eq!((writes.lost_examples[0].key.as_str(), writes.lost_examples[0].acknowledged), ("p:42", 42));
    assert_eq!((report.sent, report.exit_code()), (100, 1));

    let again = probe(&format!("redis://{address} --verify-only 100 --key-prefix p"));
    let writes = again.writes.clone().unwrap();
    assert_eq!((writes.found, writes.lost, again.stopped_by), (99, 1, StoppedBy::VerifyOnly));
    assert_eq!((again.sent, again.exit_code()), (0, 1));
}

#[test]
fn a_rollback_is_seen_although_the_keys_wrap() {
    let store = Store::default();
    let (live, saved) = (Arc::clone(&store), Store::default());
    let address = redis(&store, move |_, request| {
        // restored from a state that is 20 acknowledged writes old
        match request {
            50 => saved.lock().unwrap().clone_from(&live.lock().unwrap()),
            70 => live.lock().unwrap().clone_from(&saved.lock().unwrap()),
            _ => {}
        }
        true
    });
    let report = probe(&format!("redis://{address} --interval 1ms --count 200 --key-space 30"));
    let writes = report.writes.unwrap();
    assert_eq!((writes.acknowledged, writes.found, writes.lost, writes.unverified), (200, 180, 20, 0));
}

#[test]
fn a_counter_that_goes_back_is_a_sequence_error() {
    let store = Store::default();
    let live = Arc::clone(&store);
    let address = redis(&store, move |_, request| {
        if request == 50 {
            live.lock().unwrap().insert("p:counter:0".into(), "45".into());
        }
        true
    });
    let report = probe(&format!("redis://{address} --interval 1ms --count 100 --key-prefix p --incr"));
    let writes = report.writes.clone().unwrap();
    assert_eq!((report.sequence_errors, writes.acknowledged, writes.found, writes.lost), (1, 100, 95, 5));
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn a_server_that_never_answers_does_not_hang_the_probe() {
    let address = server(|stream, _| {
        thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    let began = Instant::now();
    let report = probe(&format!("redis://{address} --duration 300ms --drain-timeout 200ms"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((report.answered, report.unanswered, report.exit_code()), (0, report.sent, 1));
    assert!(report.sent > 200);
    // a silent connection is given up and made anew
    let report =
        probe(&format!("tcp://{address} --duration 500ms --drain-timeout 100ms --reply-timeout 100ms"));
    assert!((2..=5).contains(&report.reconnects), "{report:?}");
}

#[test]
fn a_server_that_falls_silent_leaves_an_open_gap() {
    let address = redis(&Store::default(), |_, request| {
        if request == 100 {
            thread::sleep(Duration::from_secs(60));
        }
        true
    });
    let report = probe(&format!("redis://{address} --duration 1s --drain-timeout 100ms"));
    assert!(report.gaps[0].open && report.gaps[0].duration_us > 500_000, "{report:?}");
    // the 100 acknowledged writes are readable over another connection of this server
    assert_eq!(report.writes.unwrap().found, 100);
}

#[test]
fn nobody_listening_ends_within_its_limit() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let report = probe(&format!("tcp://127.0.0.1:{port} --reply-timeout 300ms"));
    assert_eq!((report.stopped_by, report.sent, report.exit_code()), (StoppedBy::NeverConnected, 0, 1));
    assert!((3..60).contains(&report.connect_failures), "back-off: {report:?}");
}

#[test]
fn echoes_out_of_sequence_are_detected() {
    let address = server(|stream, _| {
        echo(stream, |number, message| match number {
            // 20 is passed over, 50 is sent twice
            20 => message[8..].copy_from_slice(&21_u64.to_be_bytes()),
            51 => message[8..].copy_from_slice(&50_u64.to_be_bytes()),
            _ => {}
        });
    });
    let report = probe(&format!("tcp://{address} --interval 5ms --count 60"));
    assert!(report.sequence_errors >= 1, "{report:?}");
    assert_eq!(report.exit_code(), 0);

    let address = server(|stream, _| echo(stream, |_, _| {}));
    let report = probe(&format!("tcp://{address} --rate 2000/s --count 500"));
    assert_eq!((report.sequence_errors, report.errors, report.answered), (0, 0, 500), "{report:?}");

    let address = server(|stream, number| echo(stream, move |n, m| m[0] ^= u8::from(number == 0 && n == 10)));
    let report = probe(&format!("tcp://{address} --interval 1ms --count 200"));
    assert_eq!((report.connections_lost, report.reconnects), (1, 1), "{report:?}");
}

#[test]
fn connections_take_turns() {
    let address = redis(&Store::default(), |_, _| true);
    let report =
        probe(&format!("redis://{address} --interval 1ms --count 300 --connections 3 --key-space 50"));
    let writes = report.writes.unwrap();
    assert_eq!((writes.acknowledged, writes.found, report.errors), (300, 300, 0));
}

#[test]
fn http_statuses_are_counted_one_request_at_a_time() {
    let address = server(|stream, _| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        for request in 0.. {
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|length| length > 2) {}
            if line.is_empty() {
                return;
            }
            assert!(line.starts_with("GET /health?x HTTP/1.1\r\n") && line.matches("GET").count() == 1);
            let reply = match request % 10 {
                3 => "HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\n\r\nno".to_owned(),
                9 => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody".to_owned(),
                _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_owned(),
            };
            writer.write_all(reply.as_bytes()).unwrap();
            if request % 10 == 9 {
                return;
            }
        }
    });
    let report = probe(&format!("http://{address}/health?x --interval 5ms --count 60"));
    let (good, bad) = (report.http_status[&200], report.http_status[&503]);
    assert!(good >= 40 && bad >= 4, "{report:?}");
    assert_eq!(
        (report.answered, report.error_replies, report.connections_lost),
        (good, bad, 0),
        "{report:?}"
    );
    assert!(report.reconnects >= 4, "{report:?}");
}

#[test]
fn the_control_socket_tells_each_gap_and_stops() {
    let _alone = LISTENING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let address = redis(&Store::default(), |_, request| {
        if request == 200 || request == 600 {
            thread::sleep(Duration::from_millis(if request == 200 { 150 } else { 80 }));
        }
        true
    });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let ready = dir.path().join("ready");
    let (commander, commands, wake) = Commander::pair().unwrap();
    let control = Control::start(commander, Some(&socket)).unwrap();
    let args = args(&format!("redis://{address} --interval 1ms --ready-file {}", ready.display()));
    let running = thread::spawn(move || measure(&args, true, &commands, &wake).unwrap());

    let began = Instant::now();
    while !ready.exists() {
        assert!(began.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(5));
    }
    let mut client = BufReader::new(UnixStream::connect(&socket).unwrap());
    thread::sleep(Duration::from_millis(450));
    let first = ask(&mut client, "status");
    assert_eq!(first["max_gap_us"], ask(&mut client, "gap")["max_gap_us"], "status does not reset");
    thread::sleep(Duration::from_millis(450));
    let second = ask(&mut client, "gap");
    let third = ask(&mut client, "gap");
    let gap = |line: &serde_json::Value| line["max_gap_us"].as_u64().unwrap_or(0);
    assert!((149_000..250_000).contains(&gap(&first)), "{first}");
    assert!((79_000..140_000).contains(&gap(&second)), "{second}");
    assert!(gap(&third) < 60_000, "{third}");
    assert_eq!(first["message_type"], "gap");
    assert_eq!(second["reconnects"], 0);
    assert_eq!(ask(&mut client, "nonsense")["message_type"], "error");
    assert_eq!(ask(&mut client, "stop")["message_type"], "stopping");
    let report = running.join().unwrap();
    assert_eq!((report.stopped_by, report.exit_code()), (StoppedBy::Control, 0));
    assert_eq!(report.writes.unwrap().found, report.answered);
    drop(control);
    assert!(!Path::new(&socket).exists());
}

fn ask(client: &mut BufReader<UnixStream>, question: &str) -> serde_json::Value {
    client.get_mut().write_all(format!("{question}\n").as_bytes()).unwrap();
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn sigusr1_and_sigint_reach_the_probe() {
    let _alone = LISTENING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    use nix::sys::signal::{Signal, raise};
    let (commander, commands, _wake) = Commander::pair().unwrap();
    let _control = Control::start(commander, None).unwrap();
    raise(Signal::SIGUSR1).unwrap();
    let limit = Duration::from_secs(5);
    assert!(matches!(commands.recv_timeout(limit), Ok(Command::Gap { reset: true, .. })));
    raise(Signal::SIGINT).unwrap();
    assert!(matches!(commands.recv_timeout(limit), Ok(Command::Stop(StoppedBy::Signal))));
}

#[test]
fn options_that_do_not_go_together_are_usage_errors() {
    let (_commander, commands, wake) = Commander::pair().unwrap();
    let error = measure(&args("tcp://127.0.0.1:1 --incr"), true, &commands, &wake).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let refused = Line::try_parse_from(["probe", "tcp://h:1", "--duration", "soon"]).err().unwrap();
    assert!(refused.to_string().contains("`soon`"), "{refused}");
}

#[test]
fn waiting_costs_no_processor_time() {
    use nix::time::{ClockId, clock_gettime};
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    // the first connection answers and then falls silent, the second is closed at once
    let address = server(|stream, number| {
        if number == 0 {
            echo(stream, |request, _| thread::sleep(Duration::from_secs(if request == 50 { 60 } else { 0 })));
        }
    });
    let before = used();
    let report = probe(&format!(
        "tcp://{address} --interval 10ms --duration 1500ms --drain-timeout 700ms --connections 2"
    ));
    let used = used() - before;
    assert!(report.answered > 40 && report.unanswered > 10, "{report:?}");
    assert!(used < Duration::from_millis(400), "{used:?} of processor time in 2.2 s");
}

#[test]
fn datagrams_that_are_late_or_lost_are_told_apart() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        let mut late = None;
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            assert_eq!(length, 1000);
            let number = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
            match number {
                7 => {}
                20 => late = Some(bytes),
                _ => drop(socket.send_to(&bytes[..length], from)),
            }
            if let Some(late) = late.take_if(|_| number == 23) {
                socket.send_to(&late[..length], from).unwrap();
            }
        }
    });
    let report = probe(&format!("udp://{address} --interval 2ms --count 50 --value-size 1000"));
    assert_eq!((report.sent, report.answered, report.unanswered), (50, 49, 1), "{report:?}");
    assert_eq!((report.sequence_errors, report.reconnects, report.connections_lost), (1, 0, 0), "{report:?}");
}
