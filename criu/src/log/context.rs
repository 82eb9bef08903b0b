//! Where CRIU was in its work when it failed: most of its errors do not say which process and which descriptor they are
//! about, but the lines before do. They are in logs of dumps at the level of a migration, not in those of restores.

use std::collections::HashMap;

/// What the lines so far tell.
#[derive(Debug, Default, Clone)]
pub(super) struct Context {
    pid: Option<String>,
    program: Option<String>,
    fd: Option<String>,
    /// Sockets of the internet families by inode: address, port and state.
    sockets: HashMap<String, String>,
}

impl Context {
    /// Takes in a line that is no error.
    pub(super) fn learn(&mut self, line: &str) {
        // cr-dump.c
        if let Some((_, rest)) = line.split_once("Dumping task (pid: ") {
            (self.pid, self.fd) = (word(rest), None);
            self.program = rest.split_once("comm: ").map(|(_, name)| name.trim_end_matches(')').to_owned());
        // files.c: `PID fdinfo FD: pos: …`
        } else if let Some((before, rest)) = line.split_once(" fdinfo ") {
            self.pid = before.rsplit([' ', '\t']).next().and_then(word).or(self.pid.take());
            self.fd = word(rest);
        } else if line.contains("-------") {
            self.fd = None;
        // sk-inet.c, show_one_inet()
        } else if let Some((inode, socket)) = inet_socket(line) {
            self.sockets.insert(inode, socket);
        }
    }

    /// Adds what a failure does not say itself. `line` is the whole line of the error.
    pub(super) fn complete(&self, line: &str, place: &mut Vec<(&'static str, String)>) {
        let socket = place.iter().find(|(name, _)| *name == "socket").map(|(_, inode)| inode.clone());
        if let Some(socket) = socket.and_then(|inode| self.sockets.get(&inode)) {
            place.push(("address", socket.clone()));
        }
        let mut add = |name: &'static str, value: Option<&String>| {
            if let Some(value) = value.filter(|_| !place.iter().any(|(have, _)| *have == name)) {
                place.push((name, value.clone()));
            }
        };
        match pid_of_line(line) {
            // a restore has no other context
            Some(pid) => add("pid", Some(&pid)),
            None => {
                add("pid", self.pid.as_ref());
                add("program", self.program.as_ref());
                add("fd", self.fd.as_ref());
            }
        }
    }
}

/// The leading number.
fn word(text: &str) -> Option<String> {
    let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// `(00.012345)     31: Error (…): …`: on restore, the task's pid in its own namespace.
fn pid_of_line(line: &str) -> Option<String> {
    let (before, _) = line.split_once(": Error (")?;
    word(before.rsplit(')').next()?)
}

/// `Collected: ino     0x1c family PF_INET type SOCK_STREAM port 6379 state TCP_LISTEN src_addr 10.0.0.1`
fn inet_socket(line: &str) -> Option<(String, String)> {
    let (_, rest) = line.split_once("ino ")?;
    let mut words = rest.split_whitespace();
    let inode = words.next()?.trim_start_matches("0x").to_owned();
    let words: Vec<&str> = words.collect();
    let after = |name: &str| Some(*words.get(words.iter().position(|word| *word == name)? + 1)?);
    Some((inode, format!("{} port {} ({})", after("src_addr")?, after("port")?, after("state")?)))
}
