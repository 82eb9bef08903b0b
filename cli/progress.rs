//! Progress on standard error, or events as JSON lines on standard output.

use crate::args::{Global, Progress};
use crate::draw::Draw;
use godwit_migration::Observer;
use godwit_migration::observer::{Event, Question};
use godwit_migration::phase::Phase;
use godwit_migration::quantity::{show_bytes, show_duration, show_rate};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use std::io::{BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Shows what happens.
pub struct Show<'a> {
    draw: &'a Draw,
    json: bool,
    plain: bool,
    /// Somebody sits at a terminal.
    can_ask: bool,
    /// A question has taken the terminal: rounds go on in silence.
    asked: AtomicBool,
    /// The cursor stands behind it.
    behind: AtomicBool,
    bar: ProgressBar,
}

impl<'a> Show<'a> {
    /// As the flags say.
    pub fn new(global: &Global, draw: &'a Draw) -> Self {
        let terminal = std::io::stderr().is_terminal() && global.verbose == 0;
        let silent = global.quiet || global.progress == Progress::None;
        let lively = !silent && global.progress == Progress::Auto && terminal && !global.json;
        let target = if lively { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:<14} {msg:<48} {bar:20} {bytes}") {
            bar.set_style(style);
        }
        let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self {
            draw,
            json: global.json,
            plain: !silent && !lively && !global.json,
            can_ask: can_ask && !global.json && !global.quiet,
            asked: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            bar,
        }
    }

    /// Whether somebody can be asked without being told to.
    pub fn can_ask(&self) -> bool {
        self.can_ask
    }

    /// Ends the redrawn line.
    pub fn done(&self) {
        if self.behind.swap(false, Ordering::Relaxed) {
            self.draw.talk("");
        }
        self.bar.finish_and_clear();
    }

    /// What happens to one of several containers.
    pub fn event_of(&self, container: &str, event: &Event) {
        if self.json {
            let mut line = serde_json::to_value(event).unwrap_or_default();
            if let Some(object) = line.as_object_mut() {
                object.insert("container".into(), container.into());
            }
            self.draw.json_line(&line);
            return;
        }
        match event {
            Event::Note { text } => self.line(&format!("{container}: {text}")),
            Event::Round(_) => {
                self.line(&format!("{container}:"));
                self.event(event);
            }
            event => self.event(event),
        }
    }

    fn line(&self, text: &str) {
        if self.behind.swap(false, Ordering::Relaxed) {
            self.draw.talk("");
        }
        if self.plain || self.asked.load(Ordering::Relaxed) {
            self.draw.talk(text);
        } else {
            self.bar.println(text);
        }
    }
}

impl Observer for Show<'_> {
    fn ask(&self, question: &Question) -> Option<Receiver<bool>> {
        self.asked.store(true, Ordering::Relaxed);
        self.behind.store(true, Ordering::Relaxed);
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
        let mut terminal = std::io::stderr().lock();
        write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush()).ok()?;
        let (say, answer) = channel();
        // ends with the process if no answer comes
        std::thread::spawn(move || {
            // in the background of a shell, reading is an error rather than a stop
            let background = SigSet::from(Signal::SIGTTIN);
            let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&background), None);
            let mut line = String::new();
            // the end of input is no answer: `say` is dropped
            if matches!(std::io::stdin().lock().read_line(&mut line), Ok(length) if length > 0) {
                let yes = matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes");
                let _ = say.send(yes);
            }
        });
        Some(answer)
    }

    fn event(&self, event: &Event) {
        if self.json {
            self.draw.json_line(event);
            return;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        match event {
            Event::Round(_) | Event::Status { .. } if asked => {}
            Event::Phase { phase, event: "begin", .. } => {
                self.bar.set_prefix(phase.to_string());
                self.bar.set_message("");
                self.bar.set_length(0);
                self.bar.set_position(0);
            }
            Event::Phase { phase, duration_us: Some(took), .. }
                if matches!(phase, Phase::Negotiate | Phase::Prepare) =>
            {
                self.line(&format!(
                    "{:<14} {}",
                    phase.to_string(),
                    show_duration(Duration::from_micros(*took))
                ));
            }
            Event::Phase { .. } => {}
            Event::Status { what, bytes_done, bytes_total, bandwidth_bytes_per_s, .. } => {
                self.bar.set_length((*bytes_total).max(*bytes_done));
                self.bar.set_position(*bytes_done);
                self.bar.set_message(format!("{what}  {}", show_rate(*bandwidth_bytes_per_s as f64)));
            }
            Event::Round(round) => self.line(&format!(
                "{:<14} memory {}, files {}, on the wire {}, {}",
                format!("pre-copy {}", round.round),
                show_bytes(round.memory_bytes),
                show_bytes(round.file_bytes),
                show_bytes(round.wire_bytes),
                show_duration(round.duration)
            )),
            Event::Note { text } => self.line(text),
        }
    }
}
