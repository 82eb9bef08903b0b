//! Progress on standard error, or events as JSON lines on standard output.

use crate::args::{Global, Progress};
use crate::draw::Draw;
use godwit_migration::Observer;
use godwit_migration::observer::Event;
use godwit_migration::phase::Phase;
use godwit_migration::quantity::{show_bytes, show_duration, show_rate};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Shows what happens.
pub struct Show<'a> {
    draw: &'a Draw,
    json: bool,
    plain: bool,
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
        Self { draw, json: global.json, plain: !silent && !lively && !global.json, bar }
    }

    /// Ends the redrawn line.
    pub fn done(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        if self.plain {
            self.draw.talk(text);
        } else {
            self.bar.println(text);
        }
    }
}

impl Observer for Show<'_> {
    fn event(&self, event: &Event) {
        if self.json {
            self.draw.json_line(event);
            return;
        }
        match event {
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
