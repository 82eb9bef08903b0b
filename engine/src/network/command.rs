//! Running `ip` and hooks: with their input, their errors and a time limit.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{NetworkError, Result};

/// Time any single tool may take.
const TOOL_LIMIT: Duration = Duration::from_secs(20);

/// Runs `ip` with `args` in the calling thread's network namespace and returns its standard output.
pub(super) fn ip(args: &[&str]) -> Result<String> {
    run("ip", args, "", TOOL_LIMIT)
}

/// Runs `ip -j` with `args` and parses its output; nothing printed is an empty array.
pub(super) fn ip_json(args: &[&str]) -> Result<Vec<serde_json::Value>> {
    let all = [&["-j", "-d"], args].concat();
    let text = ip(&all)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).map_err(|e| NetworkError::Unreadable {
        command: format!("ip {}", all.join(" ")),
        reason: e.to_string(),
    })
}

/// Runs `lines` as one `ip -batch`; the first line that fails ends it and is named in the error.
pub(super) fn ip_batch(lines: &[String]) -> Result<()> {
    batch(&[], lines)
}

/// As [`ip_batch`], for routes: their family cannot be given by line, and `default` does not show it.
pub(super) fn ip_batch_of(v6: bool, lines: &[String]) -> Result<()> {
    batch(&[if v6 { "-6" } else { "-4" }], lines)
}

fn batch(family: &[&str], lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let input = lines.join("\n") + "\n";
    match run("ip", &[family, &["-batch", "-"]].concat(), &input, TOOL_LIMIT) {
        Ok(_) => Ok(()),
        Err(NetworkError::Command { reason, .. }) => {
            // iproute2 ends with "Command failed -:LINE".
            let failed = reason.rsplit("-:").next().and_then(|n| n.trim().parse::<usize>().ok());
            let line = failed.and_then(|n| lines.get(n.wrapping_sub(1))).map_or("-batch -", String::as_str);
            Err(NetworkError::Command { command: format!("ip {line}"), reason })
        }
        Err(other) => Err(other),
    }
}

/// Runs `program` with `args`, `input` on its standard input, and kills its process group after `limit`.
pub(super) fn run(program: &str, args: &[&str], input: &str, limit: Duration) -> Result<String> {
    let failed = |reason: String| NetworkError::Command {
        command: std::iter::once(program).chain(args.iter().copied()).collect::<Vec<_>>().join(" "),
        reason,
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut pipe) = stdin.take() {
                // A program that does not read its input is judged by its exit status alone.
                let _ = pipe.write_all(input.as_bytes());
            }
        });
        let out = scope.spawn(move || read_all(stdout.as_mut()));
        let err = scope.spawn(move || read_all(stderr.as_mut()));
        let begun = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if begun.elapsed() > limit => {
                    let _ = killpg(group, Signal::SIGKILL);
                    let _ = child.wait();
                    break Err(format!("it did not end within {} s and was killed", limit.as_secs()));
                }
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                Err(e) => break Err(e.to_string()),
            }
        };
        let stdout = out.join().unwrap_or_default();
        let stderr = err.join().unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(stdout),
            Ok(status) => Err(failed(format!("{status}: {}", stderr.trim()))),
            Err(reason) => Err(failed(reason)),
        }
    })
}

fn read_all(pipe: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
