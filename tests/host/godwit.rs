//! godwit in a host: run to its end, or watched while it runs.

use crate::bed::{Bed, SRC, Said};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a migration may take altogether.
const LIMIT: Duration = Duration::from_secs(150);

impl Said {
    /// The lines of JSON on standard output of one type.
    pub fn lines(&self, message_type: &str) -> Vec<Value> {
        let lines = self.out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message_type"] == message_type).collect()
    }

    /// The one summary.
    #[track_caller]
    pub fn summary(&self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        let mut summaries = self.lines("summary");
        assert_eq!(summaries.len(), 1, "{}", self.out);
        summaries.remove(0)
    }

    /// The last line for people.
    pub fn last_line(&self) -> &str {
        self.err.lines().last().unwrap_or_default()
    }
}

/// Runs godwit on the source to its end.
pub fn godwit(bed: &Bed, args: &[&str]) -> Said {
    godwit_with(bed, SRC, &[], args)
}

/// Runs godwit on a host with an environment.
pub fn godwit_with(bed: &Bed, host: &str, environment: &[&str], args: &[&str]) -> Said {
    bed.run(host, &[&["env"], environment, &["godwit"], args].concat())
}

/// A program that runs in a host while the test does something else.
pub struct Background<'a> {
    bed: &'a Bed,
    host: String,
    /// In the host's pid namespace.
    pub pid: i32,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    errors: Receiver<Vec<u8>>,
}

impl<'a> Background<'a> {
    /// Starts `words` in `host`.
    pub fn start(bed: &'a Bed, host: &str, words: &[&str]) -> Self {
        let words = [&["sh", "-c", "echo $$; exec \"$@\"", "sh"], words].concat();
        let mut command = bed.command(host, &words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let (sender, errors) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = err.read(&mut piece) {
                let _ = sender.send(piece[..length].to_vec());
            }
        });
        let pid = lines.recv_timeout(Duration::from_secs(20)).unwrap().parse().unwrap();
        Self { bed, host: host.into(), pid, child, lines, seen: Vec::new(), errors }
    }

    /// Starts a migration on the source that tells its phases.
    pub fn migrate(bed: &'a Bed, environment: &[&str], args: &[&str]) -> Self {
        Self::start(bed, SRC, &[&["env"], environment, &["godwit", "--json", "migrate"], args].concat())
    }

    /// Waits until a line of its output satisfies a condition.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, condition: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(LIMIT.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    let found = condition(&line);
                    self.seen.push(line);
                    if found {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{what} did not come in time:\n{}", self.seen.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before {what}:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// Waits until a phase of the migration begins.
    #[track_caller]
    pub fn wait_for_phase(&mut self, phase: &str) {
        self.wait_for(phase, |line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["message_type"] == "phase" && line["phase"] == phase && line["event"] == "begin"
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let said = self.bed.run(&self.host, &["kill", &format!("-{signal}"), &self.pid.to_string()]);
        assert_eq!(said.code, 0, "{}", said.err);
        self.go_on();
    }

    /// What stands for it here stops itself when it was stopped.
    fn go_on(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Said {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < LIMIT, "it did not end:\n{}", self.seen.join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        };
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.seen.push(line);
        }
        // not until the end of it: the ssh of one that was killed has it too, for as long as the other side waits
        let mut errors = Vec::new();
        while let Ok(piece) = self.errors.recv_timeout(Duration::from_millis(500)) {
            errors.extend(piece);
        }
        let err = String::from_utf8_lossy(&errors).into_owned();
        Said { code: status.code().unwrap_or(-1), out: self.seen.join("\n"), err }
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // the host's own number: killing what stands for it here would leave it running there
            self.bed.run(&self.host, &["kill", "-9", &self.pid.to_string()]);
            self.go_on();
            let _ = self.child.wait();
        }
    }
}
