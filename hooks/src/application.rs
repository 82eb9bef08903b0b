//! The application in the container: asked to get ready, to stand still for a moment, and told that it goes on. It is called
//! from inside of its own network namespace, so that 127.0.0.1 means itself.

use crate::calls::{About, FirstProcess, Occasion};
use crate::http::{HttpError, Until};
use crate::reports::{Reports, Word};
use crate::token::Token;
use godwit_engine::network::{Namespace, NetworkError};
use godwit_migration::Cancel;
use godwit_migration::hooks::{HookUrl, Moment};
use godwit_migration::quantity::show_duration;
use serde::Serialize;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long it may take until somebody accepts a connection.
const CONNECTING: Duration = Duration::from_secs(5);
/// How long the answer to a call is waited for when the word has come already.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// How often it is looked whether the user has pressed Ctrl-C.
const LOOK: Duration = Duration::from_millis(20);

/// Why an application did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApplicationError {
    /// Its first process is gone.
    #[error("the container has ended")]
    Gone,
    /// Its network namespace.
    #[error(transparent)]
    Namespace(#[from] NetworkError),
    /// The door for its word could not be opened.
    #[error("nobody can listen at {at} in its network namespace: {source}")]
    Door {
        /// Where.
        at: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It could not be called.
    #[error("{url} cannot be called: {source}")]
    Call {
        /// Where.
        url: HookUrl,
        /// Why.
        source: HttpError,
    },
    /// It took too long to answer.
    #[error("{url} did not answer within {}", show_duration(*limit))]
    NoAnswer {
        /// Where.
        url: HookUrl,
        /// The limit.
        limit: Duration,
    },
    /// It said no.
    #[error("{url} answered with status {status}")]
    Status {
        /// Where.
        url: HookUrl,
        /// What.
        status: u16,
    },
    /// It did not report.
    #[error("{url} was called, but nobody reported within {} that the application is ready", show_duration(*limit))]
    NoWord {
        /// Where.
        url: HookUrl,
        /// The limit.
        limit: Duration,
    },
    /// It reported that it cannot.
    #[error("the application cannot get ready: {0}")]
    Cannot(String),
    /// The user has pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// What is posted: one object of JSON.
#[derive(Serialize)]
struct Notice<'a> {
    /// `shutdown`, `quiesce`, `resume` or `rollback`.
    event: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<&'a str>,
    container: &'a str,
    timeout_ms: u64,
    /// Whoever stood still and hears nothing for so long goes on by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_within_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<String>,
}

/// Where an application runs.
pub struct Application<'a> {
    about: &'a About,
    namespace: Namespace,
}

impl<'a> Application<'a> {
    /// The application of a container.
    ///
    /// # Errors
    /// When its first process is gone.
    pub fn of(about: &'a About, process: FirstProcess) -> Result<Self, ApplicationError> {
        let namespace = Namespace::of_pid(process.pid).map_err(|_| ApplicationError::Gone)?;
        // looked at when it is open: it cannot be another one's now
        if !process.is_alive() {
            return Err(ApplicationError::Gone);
        }
        Ok(Self { about, namespace })
    }

    /// Opens the door at which a report with the token is taken.
    ///
    /// # Errors
    /// When nobody can listen there.
    pub fn open_door(&self, at: SocketAddr, token: &Token) -> Result<Reports, ApplicationError> {
        let opened = Reports::open(&self.namespace, at, token.clone());
        opened.map_err(|source| ApplicationError::Door { at, source })
    }

    /// Tells it of a moment; its answer says that it has done what it is to do then.
    ///
    /// # Errors
    /// When it does not answer with a status of 200 to 299 in time.
    pub fn tell(&self, url: &HookUrl, moment: Moment, limit: Duration) -> Result<(), ApplicationError> {
        self.post(url, limit, &self.notice(moment, limit))
    }

    /// Asks it to stand still; when it hears nothing `within` this time, it is to go on by itself.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn quiesce(&self, url: &HookUrl, limit: Duration, within: Duration) -> Result<(), ApplicationError> {
        let notice = self.notice(Moment::Quiesce, limit);
        self.post(url, limit, &Notice { resume_within_ms: Some(millis(within)), ..notice })
    }

    fn post(&self, url: &HookUrl, limit: Duration, notice: &Notice) -> Result<(), ApplicationError> {
        let until = Instant::now() + limit;
        let mut line = Until::new(self.connect(url, limit)?, until);
        answered(url, limit, line.post(url, &notice.json()))
    }

    /// Asks it to get ready, and waits for its word at the door.
    ///
    /// # Errors
    /// When it cannot be called, says no, or nothing in time.
    pub fn shut_down(
        &self,
        url: &HookUrl,
        limit: Duration,
        (token, door): (&Token, &Reports),
        cancel: Option<&Cancel>,
    ) -> Result<(), ApplicationError> {
        let until = Instant::now() + limit;
        let notice = self.notice(Moment::Shutdown, limit);
        let json = Notice { token: Some(token.reveal()), report: Some(door.url()), ..notice }.json();
        let stream = self.connect(url, limit)?;
        let call = |source: io::Error| ApplicationError::Call { url: url.clone(), source: source.into() };
        let handle = stream.try_clone().map_err(call)?;
        // it may report before it answers
        let (say, answer) = channel();
        let (line, at) = (Until::new(stream, until), url.clone());
        let ask = move || {
            let mut line = line;
            let _ = say.send(line.post(&at, &json));
        };
        std::thread::Builder::new().name("shutdown hook".into()).spawn(ask).map_err(call)?;
        let word = await_word(url, (until, limit), door, &answer, cancel);
        if word.is_ok() {
            // its connection must be closed when it is dumped
            let _ = answer.recv_timeout(LAST_ANSWER.min(until.saturating_duration_since(Instant::now())));
        }
        // ends the thread, whatever it waits for
        let _ = handle.shutdown(Shutdown::Both);
        word
    }

    fn connect(&self, url: &HookUrl, limit: Duration) -> Result<TcpStream, ApplicationError> {
        let (address, limit) = (url.address(), limit.min(CONNECTING));
        let connected = self.namespace.run(|| TcpStream::connect_timeout(&address, limit))?;
        connected.map_err(|source| ApplicationError::Call { url: url.clone(), source: source.into() })
    }

    fn notice(&self, event: Moment, limit: Duration) -> Notice<'_> {
        let (migration, volume) = match &self.about.occasion {
            Occasion::Migration { id, .. } => (Some(id.as_str()), None),
            Occasion::Snapshot { volume } => (None, Some(volume.as_str())),
        };
        Notice {
            event,
            migration,
            volume,
            container: &self.about.container,
            timeout_ms: millis(limit),
            resume_within_ms: None,
            token: None,
            report: None,
        }
    }
}

impl Notice<'_> {
    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for the word, for a call that fails, for Ctrl-C, or until the time is over.
fn await_word(
    url: &HookUrl,
    (until, limit): (Instant, Duration),
    door: &Reports,
    answer: &Receiver<Result<u16, HttpError>>,
    cancel: Option<&Cancel>,
) -> Result<(), ApplicationError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match door.wait(left.min(LOOK)) {
            Some(Word::Ready) => return Ok(()),
            Some(Word::Cannot(why)) => return Err(ApplicationError::Cannot(why)),
            None => {}
        }
        if cancel.is_some_and(Cancel::is_raised) {
            return Err(ApplicationError::Interrupted);
        }
        if left.is_zero() {
            return Err(ApplicationError::NoWord { url: url.clone(), limit });
        }
        match answer.try_recv() {
            // then the word is late, too
            Ok(Err(HttpError::Io(error))) if error.kind() == ErrorKind::TimedOut => {}
            Ok(answer) => answered(url, limit, answer)?,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
    }
}

/// Whether an answer says yes.
fn answered(url: &HookUrl, limit: Duration, answer: Result<u16, HttpError>) -> Result<(), ApplicationError> {
    let url = url.clone();
    match answer {
        Ok(200..=299) => Ok(()),
        Ok(status) => Err(ApplicationError::Status { url, status }),
        Err(HttpError::Io(error)) if error.kind() == ErrorKind::TimedOut => {
            Err(ApplicationError::NoAnswer { url, limit })
        }
        Err(source) => Err(ApplicationError::Call { url, source }),
    }
}
