//! The server answers, and the line fails as it is told.
#![allow(clippy::unwrap_used)]

use godwit_s3_server::{Fault, Line, Request, Server};
use std::io::{Read, Write};
use std::net::TcpStream;

/// What comes back for a PUT of so many bytes by somebody without a key; empty when the line broke.
fn answer(address: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "PUT /bucket/object HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n"
    );
    let mut answer = Vec::new();
    // who is cut off in the middle of it may hear of it while he still writes
    let _ = stream.write_all(&[head.as_bytes(), &vec![0; bytes]].concat());
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_line_carries_answers_otherwise_or_breaks_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let server = Server::start(dir.path());
    assert!(answer(&server.address, 10).starts_with("HTTP/1.1 403"), "nobody may do anything without a key");
    // the server says no before it has read all, and what it has not read ends the connection: little, so that its answer is heard
    for (fault, bytes, begins) in [
        (Fault::None, 10, "HTTP/1.1 403"),
        (Fault::Status(500), 1_000_000, "HTTP/1.1 500"),
        (Fault::Cut(200_000), 1_000_000, ""),
    ] {
        let line = Line::to(&server.address, move |_| fault);
        let said = answer(line.url.trim_start_matches("http://"), bytes);
        assert!(said.starts_with(begins) && said.is_empty() == begins.is_empty(), "{fault:?}: {said}");
        let asked = Request { method: "PUT".into(), target: "/bucket/object".into(), bytes: bytes as u64 };
        assert_eq!(line.seen(), [asked]);
    }
}
