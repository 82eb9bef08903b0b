//! A stand-in for CRIU: seizes every thread of a frozen tree, thaws the cgroup, and holds the tree until it is told to end.

use crate::as_role;
use nix::sys::ptrace::{Options, interrupt, seize};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout};

/// What it does: a line makes it seize the tree, a byte makes it end with that exit code.
pub fn run(dir: &Path, pids: &[&str]) {
    let mut stdin = std::io::stdin().lock();
    println!("ready");
    stdin.read_line(&mut String::new()).unwrap();
    let threads = pids.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap());
    let threads: Vec<Pid> = threads
        .map(|entry| Pid::from_raw(entry.unwrap().file_name().to_str().unwrap().parse().unwrap()))
        .collect();
    for thread in &threads {
        seize(*thread, Options::empty()).unwrap();
        interrupt(*thread).unwrap();
    }
    crate::tree::thaw(dir);
    for thread in &threads {
        waitpid(*thread, Some(WaitPidFlag::__WALL)).unwrap();
    }
    println!("held");
    let mut code = [0];
    stdin.read_exact(&mut code).unwrap();
    std::process::exit(code[0].into());
}

pub struct StandIn {
    child: Child,
    stdout: std::cell::RefCell<BufReader<ChildStdout>>,
}

impl StandIn {
    pub fn start(dir: &Path, pids: &[i32]) -> Self {
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let mut child = as_role(&format!("criu {} {}", dir.display(), pids.join(" "))).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let criu = Self { child, stdout: stdout.into() };
        criu.hear("ready");
        criu
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn hear(&self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert_ne!(self.stdout.borrow_mut().read_line(&mut line).unwrap(), 0, "it did not say {word}");
        }
    }

    pub fn hold(&self) {
        self.child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        self.hear("held");
    }

    /// Kills it, and returns when it has ended.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end by itself.
    pub fn end(mut self, code: u8) {
        self.child.stdin.as_ref().unwrap().write_all(&[code]).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(code.into()));
    }
}
