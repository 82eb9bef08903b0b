//! A door in the container's network namespace, open while an application is waited for: it says there that it is ready.

use crate::http::{HttpError, Request, Until};
use crate::token::Token;
use godwit_engine::network::Namespace;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Deserialize;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a report is posted.
const PATH: &str = "/report";
/// How long one who knocks may take: others wait meanwhile.
const ONE_REPORT: Duration = Duration::from_secs(1);
/// How often the door is looked at whether it is to be closed, in milliseconds.
const LOOK_MS: u16 = 20;
/// So much of what an application says about its failure is kept, in characters.
const LONGEST_WORD: usize = 300;

/// What an application has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is ready.
    Ready,
    /// It cannot get ready, and why.
    Cannot(String),
}

#[derive(Default)]
struct Shared {
    word: Mutex<Option<Word>>,
    changed: Condvar,
    closed: AtomicBool,
}

impl Shared {
    fn word(&self) -> MutexGuard<'_, Option<Word>> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open door. Closed when this is dropped: who comes then finds nobody.
pub struct Reports {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Reports {
    /// Opens it at an address of the namespace; port 0 takes any that is free.
    ///
    /// # Errors
    /// When nobody can listen there.
    pub fn open(namespace: &Namespace, at: SocketAddr, token: Token) -> io::Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(at)).map_err(io::Error::other)??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let serve = move || serve(&listener, &token, &for_thread);
        let thread = std::thread::Builder::new().name("reports".into()).spawn(serve)?;
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Where to report: a URL.
    pub fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Waits for the word, at most so long.
    pub fn wait(&self, limit: Duration) -> Option<Word> {
        let word = self.shared.word();
        let waited = self.shared.changed.wait_timeout_while(word, limit, |word| word.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, token: &Token, shared: &Shared) {
    while !shared.closed.load(Ordering::Relaxed) {
        let mut watched = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut watched, LOOK_MS), Ok(1..)) {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => hear(stream, token, shared),
            Err(_) => std::thread::sleep(Duration::from_millis(u64::from(LOOK_MS))),
        }
    }
}

/// One who knocks is answered, and waited for until he has closed his end: a connection that is left would have to be carried.
fn hear(stream: TcpStream, token: &Token, shared: &Shared) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let Ok(handle) = stream.try_clone() else { return };
    let mut knock = Until::new(stream, Instant::now() + ONE_REPORT);
    let (status, text) = match knock.take() {
        Ok(request) => judge(&request, token, &mut shared.word()),
        Err(HttpError::Odd { status, what }) => (status, what),
        Err(HttpError::Io(_)) => return,
    };
    shared.changed.notify_all();
    knock.answer(status, text);
    let _ = handle.shutdown(Shutdown::Write);
    knock.drain();
}

/// What is reported.
#[derive(Deserialize)]
struct Report {
    token: String,
    /// Why it cannot get ready.
    #[serde(default)]
    error: Option<String>,
}

/// Takes the first word of whoever has the token, and none but that. Gives the status of the answer, and its text.
pub fn judge(request: &Request, token: &Token, word: &mut Option<Word>) -> (u16, &'static str) {
    if request.path != PATH {
        return (404, "reports go to /report");
    }
    if request.method != "POST" {
        return (405, "a report is posted");
    }
    let Ok(report) = serde_json::from_slice::<Report>(&request.body) else {
        return (400, "a report is JSON: {\"token\": \"…\"}");
    };
    if !token.is(&report.token) {
        return (403, "another token was given for this");
    }
    if word.is_some() {
        return (409, "that was reported before");
    }
    *word = Some(match report.error {
        None => Word::Ready,
        Some(why) => Word::Cannot(why.chars().filter(|c| !c.is_control()).take(LONGEST_WORD).collect()),
    });
    (200, "thank you")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn post(path: &str, body: &str) -> Request {
        Request { method: "POST".into(), path: path.into(), body: body.into() }
    }

    #[test]
    fn the_first_word_with_the_right_token_counts() {
        let (token, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        let with = |token: &str| format!("{{\"token\": \"{token}\", \"more\": 1}}");
        let right = with(token.reveal());
        let mut word = None;
        for (request, status) in [
            (post("/", &right), 404),
            (Request { method: "GET".into(), ..post(PATH, &right) }, 405),
            (post(PATH, ""), 400),
            (post(PATH, "{}"), 400),
            (post(PATH, "[1]"), 400),
            (post(PATH, "{\"token\": null}"), 400),
            (post(PATH, &with("")), 403),
            (post(PATH, &with(other.reveal())), 403),
        ] {
            assert_eq!(judge(&request, &token, &mut word).0, status, "{request:?}");
            assert_eq!(word, None);
        }
        assert_eq!(judge(&post(PATH, &right), &token, &mut word).0, 200);
        assert_eq!(word, Some(Word::Ready));
        let failed = format!("{{\"token\": \"{}\", \"error\": \"x\"}}", token.reveal());
        for (body, status) in [(&right, 409), (&failed, 409), (&with(other.reveal()), 403)] {
            assert_eq!(judge(&post(PATH, body), &token, &mut word).0, status);
            assert_eq!(word, Some(Word::Ready));
        }
        let mut word = None;
        let failed = failed.replace("\"x\"", "\"disk\\u001b full\"");
        assert_eq!(judge(&post(PATH, &failed), &token, &mut word).0, 200);
        assert_eq!(word, Some(Word::Cannot("disk full".into())));
    }

    #[test]
    fn the_door_is_open_until_it_is_dropped() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let here = Namespace::open("/proc/self/ns/net").unwrap();
        let token = Token::generate().unwrap();
        let reports = Reports::open(&here, "127.0.0.1:0".parse().unwrap(), token.clone()).unwrap();
        let address = reports.address;
        assert_eq!(reports.url(), format!("http://{address}/report"));
        let say = |token: &str| {
            let body = format!("{{\"token\":\"{token}\"}}");
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "POST /report HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        // who says nothing holds others up for a moment only
        let silent = TcpStream::connect(address).unwrap();
        assert!(say("wrong").starts_with("HTTP/1.1 403 "));
        drop(silent);
        assert_eq!(reports.wait(Duration::ZERO), None);
        assert!(say(token.reveal()).starts_with("HTTP/1.1 200 "));
        assert_eq!(reports.wait(Duration::ZERO), Some(Word::Ready));
        assert!(say(token.reveal()).starts_with("HTTP/1.1 409 "));
        drop(reports);
        assert!(TcpStream::connect(address).is_err());
    }
}
