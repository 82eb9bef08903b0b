//! docker's own interface: requests over its socket (<https://docs.docker.com/reference/api/engine>), in HTTP/1.0, whose answers
//! have no chunks and end with the connection.

use super::KIND;
use crate::error::EngineError;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time that an answer may take: docker waits for whoever works on the container.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest answer that is kept, bytes.
const LONGEST: u64 = 64 << 20;
/// docker's words for "no such thing" (HTTP status codes, RFC 9110).
const NOT_FOUND: u16 = 404;

/// docker's daemon on this host.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

/// What is sent along.
enum Body<'a> {
    None,
    Json(Vec<u8>),
    File(&'a Path),
}

/// An answer, of which the head was read.
pub(super) struct Answer {
    status: u16,
    rest: BufReader<UnixStream>,
}

impl Api {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether there may be a daemon.
    pub(super) fn is_there(&self) -> bool {
        self.socket.exists()
    }

    /// What there is at `path`; none if nothing is.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn get(&self, path: &str) -> Result<Option<Value>, EngineError> {
        let asked = format!("GET {path}");
        match self.ask(&asked, &Body::None, Some(ANSWER))? {
            answer if answer.status == NOT_FOUND => Ok(None),
            answer => answer.understood(&asked).map(Some),
        }
    }

    /// Has docker do something.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, EngineError> {
        let asked = format!("POST {path}");
        let body = body.map_or(Body::None, |body| Body::Json(body.to_string().into_bytes()));
        self.ask(&asked, &body, Some(ANSWER))?.understood(&asked)
    }

    /// Has docker do something that takes long: until `limit`, or as long as it takes.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn post_within(&self, path: &str, limit: Option<Duration>) -> Result<(), EngineError> {
        let asked = format!("POST {path}");
        self.ask(&asked, &Body::None, limit)?.understood(&asked).map(drop)
    }

    /// Removes what is at `path`; what is not there, or is being removed, is passed over.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn delete(&self, path: &str) -> Result<(), EngineError> {
        let asked = format!("DELETE {path}");
        let answer = self.ask(&asked, &Body::None, Some(ANSWER))?;
        if answer.status == NOT_FOUND {
            return Ok(());
        }
        match answer.understood(&asked) {
            Err(EngineError::Tool { what, .. }) if what.contains("is already in progress") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Reads what docker has at `path`, bytes as they come.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn download(&self, path: &str) -> Result<impl Read + Send + use<>, EngineError> {
        let asked = format!("GET {path}");
        let answer = self.ask(&asked, &Body::None, Some(ANSWER))?;
        match answer.is_well() {
            true => Ok(answer.rest),
            false => Err(answer.failure(&asked)),
        }
    }

    /// Gives docker a file.
    ///
    /// # Errors
    /// When docker cannot be asked, or says no.
    pub(super) fn upload(&self, path: &str, file: &Path) -> Result<String, EngineError> {
        let asked = format!("POST {path}");
        let answer = self.ask(&asked, &Body::File(file), None)?;
        match answer.is_well() {
            true => answer.text().map_err(|error| failed(&asked, &error)),
            false => Err(answer.failure(&asked)),
        }
    }

    fn ask(&self, asked: &str, body: &Body<'_>, limit: Option<Duration>) -> Result<Answer, EngineError> {
        self.try_to_ask(asked, body, limit).map_err(|error| failed(asked, &error))
    }

    fn try_to_ask(&self, asked: &str, body: &Body<'_>, limit: Option<Duration>) -> io::Result<Answer> {
        let mut socket = UnixStream::connect(&self.socket)?;
        socket.set_read_timeout(limit)?;
        let (kind, length, mut body): (_, _, Box<dyn Read>) = match body {
            Body::None => ("application/json", 0, Box::new(io::empty())),
            Body::Json(bytes) => ("application/json", bytes.len() as u64, Box::new(&bytes[..])),
            Body::File(path) => {
                let file = File::open(path)?;
                ("application/x-tar", file.metadata()?.len(), Box::new(file))
            }
        };
        write!(
            socket,
            "{asked} HTTP/1.0\r\nHost: {KIND}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )?;
        io::copy(&mut body, &mut socket)?;
        Answer::read(socket)
    }
}

impl Answer {
    /// Reads the head.
    fn read(socket: UnixStream) -> io::Result<Self> {
        let mut rest = BufReader::new(socket);
        let mut line = String::new();
        rest.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        while !line.trim_end().is_empty() {
            line.clear();
            rest.read_line(&mut line)?;
        }
        Ok(Self { status, rest })
    }

    fn is_well(&self) -> bool {
        (200..=304).contains(&self.status)
    }

    fn text(self) -> io::Result<String> {
        let mut bytes = Vec::new();
        match self.rest.take(LONGEST).read_to_end(&mut bytes) {
            // docker hangs up on the padding of an archive, which it does not read
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// The JSON that came, `null` if nothing did.
    fn understood(self, asked: &str) -> Result<Value, EngineError> {
        if !self.is_well() {
            return Err(self.failure(asked));
        }
        let text = self.text().map_err(|error| failed(asked, &error))?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| EngineError::Unreadable {
            path: Path::new(KIND).join(asked),
            reason: error.to_string(),
        })
    }

    /// What docker has against it.
    fn failure(self, asked: &str) -> EngineError {
        let status = self.status;
        let text = self.text().unwrap_or_default();
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = said["message"].as_str().unwrap_or(text.trim());
        EngineError::Tool { program: KIND.into(), what: format!("refused `{asked}` ({status}): {said}") }
    }
}

fn failed(asked: &str, error: &io::Error) -> EngineError {
    EngineError::Tool { program: KIND.into(), what: format!("gave no answer to `{asked}`: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixListener;

    /// What becomes of a question that is answered so, and what the daemon was sent.
    fn answered<T>(answer: &'static str, ask: impl FnOnce(&Api) -> T) -> (T, String) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut heard = BufReader::new(socket.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                heard.read_line(&mut head).unwrap();
                let last = head.lines().last().unwrap_or_default();
                length = last.strip_prefix("Content-Length: ").map_or(length, |n| n.parse().unwrap());
            }
            let mut body = vec![0; length];
            heard.read_exact(&mut body).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        let given = ask(&Api::at(dir.path().join("socket")));
        (given, daemon.join().unwrap())
    }

    #[test]
    fn a_question_its_answer_and_a_refusal() {
        let found = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"Id\": \"x\"}";
        let (found, sent) = answered(found, |api| api.post("/containers/create", Some(&json!({"a": 1}))));
        assert_eq!(found.unwrap(), json!({"Id": "x"}));
        assert!(
            sent.starts_with("POST /containers/create HTTP/1.0\r\n") && sent.ends_with("\r\n\r\n{\"a\":1}")
        );
        let none = "HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"No such container: web\"}";
        assert_eq!(answered(none, |api| api.get("/containers/web/json")).0.unwrap(), None);
        assert!(answered(none, |api| api.post("/containers/web/start", None)).0.is_err());
        answered(none, |api| api.delete("/containers/web")).0.unwrap();
        answered("HTTP/1.0 204 No Content\r\n\r\n", |api| api.delete("/containers/web")).0.unwrap();
        let no = "HTTP/1.0 409 Conflict\r\n\r\n{\"message\":\"it is in use\"}";
        let error = answered(no, |api| api.delete("/volumes/x")).0.unwrap_err().to_string();
        assert!(error.contains("409") && error.contains("it is in use"), "{error}");
        let error = Api::at("/nonexistent".into()).get("/info").unwrap_err().to_string();
        assert!(error.contains("gave no answer to `GET /info`"), "{error}");
        assert!(answered("nonsense", |api| api.get("/info")).0.is_err());
    }
}
