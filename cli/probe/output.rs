//! Lines for people and scripts, written by a thread of their own: a terminal that is stopped must not
//! delay a request.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

enum Line {
    Progress(String),
    Json(String),
}

/// Writes lines while the probe runs; those nobody takes are dropped.
pub struct Output {
    lines: Option<SyncSender<Line>>,
    writer: Option<JoinHandle<()>>,
}

impl Output {
    /// Starts the writer.
    pub fn start() -> Self {
        let (lines, waiting) = sync_channel(64);
        let writer = thread::spawn(move || {
            let terminal = io::stderr().is_terminal();
            let mut shown = false;
            for line in waiting {
                // nobody is left to tell when these streams fail
                let _ = match line {
                    Line::Progress(line) if terminal => {
                        shown = true;
                        write!(io::stderr(), "\r\x1b[K{line}")
                    }
                    Line::Progress(line) => writeln!(io::stderr(), "{line}"),
                    Line::Json(line) => {
                        let mut stdout = io::stdout().lock();
                        writeln!(stdout, "{line}").and_then(|()| stdout.flush())
                    }
                };
            }
            if shown {
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
        });
        Self { lines: Some(lines), writer: Some(writer) }
    }

    /// Shows progress on stderr.
    pub fn progress(&self, line: String) {
        self.send(Line::Progress(line));
    }

    /// Writes a JSON line to stdout.
    pub fn json(&self, line: String) {
        self.send(Line::Json(line));
    }

    fn send(&self, line: Line) {
        if let Some(lines) = &self.lines {
            let _ = lines.try_send(line);
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
