//! Starting, telling and freezing the processes that are followed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that is followed. It and its children are killed at the end.
pub struct Followed {
    pub child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub kin: BTreeSet<i32>,
}

pub const READ: u64 = libc::PROT_READ as u64;
pub const WRITE: u64 = libc::PROT_WRITE as u64;
pub const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
pub const SHARED: u64 = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
pub const FIXED: u64 = libc::MAP_FIXED as u64;

impl Followed {
    pub fn start(role: &str) -> Self {
        Self::start_as(role, |_| {})
    }

    pub fn start_as(role: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("GODWIT_SOURCE_CHILD", role).stdin(Stdio::piped()).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let kin = BTreeSet::from([child.id() as i32]);
        Self { child, input, output, kin }
    }

    pub fn shell() -> Self {
        Self::shell_as(|_| {})
    }

    pub fn shell_as(change: impl FnOnce(&mut Command)) -> Self {
        let mut shell = Self::start_as("shell", change);
        shell.answer();
        // The runtime has come to rest once it answers a command.
        shell.tell("loops");
        shell
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next answer.
    pub fn answer(&mut self) -> i64 {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the followed process ended");
            // The test harness of the process writes to the same pipe, without a line end at times.
            if let Some((_, answer)) = line.trim().split_once('@') {
                return answer.parse().unwrap();
            }
        }
    }

    pub fn tell(&mut self, command: &str) -> i64 {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.answer()
    }

    pub fn syscall(&mut self, number: i64, arguments: &[u64]) -> i64 {
        let arguments: Vec<String> = arguments.iter().map(u64::to_string).collect();
        self.tell(&format!("syscall {number} {}", arguments.join(" ")))
    }

    /// A new mapping; anywhere if the address is 0.
    pub fn map(&mut self, address: u64, bytes: u64, protection: u64, flags: u64, fd: i64) -> u64 {
        let arguments = [address, bytes, protection, flags, fd as u64, 0];
        let result = self.syscall(libc::SYS_mmap, &arguments);
        assert!(result > 0, "mmap: {}", std::io::Error::from_raw_os_error(-result as i32));
        result as u64
    }

    /// A new mapping with neighbours that nobody can merge with it.
    pub fn map_alone(&mut self, bytes: u64, protection: u64, flags: u64, fd: i64) -> u64 {
        let around = self.map(0, bytes + (4 << 20), 0, ANONYMOUS, -1);
        let address = (around + (2 << 20)).next_multiple_of(2 << 20);
        self.map(address, bytes, protection, flags | FIXED, fd)
    }

    pub fn fill(&mut self, address: u64, bytes: u64, seed: u64) {
        self.tell(&format!("fill {address} {bytes} {seed}"));
    }

    pub fn advise(&mut self, address: u64, bytes: u64, advice: i32) -> i64 {
        self.syscall(libc::SYS_madvise, &[address, bytes, advice as u64])
    }

    pub fn memfd(&mut self) -> i64 {
        // The name is wherever there is a zero byte: the arguments of the program will do.
        let name = self.map(0, 4096, READ, ANONYMOUS, -1);
        let fd = self.syscall(libc::SYS_memfd_create, &[name, 0]);
        self.syscall(libc::SYS_munmap, &[name, 4096]);
        fd
    }

    /// A child that fills a range, and stays or ends.
    pub fn fork(&mut self, address: u64, bytes: u64, seed: u64, stays: bool) -> i32 {
        let pid = self.tell(&format!("fork {address} {bytes} {seed} {}", u64::from(stays))) as i32;
        if stays {
            self.kin.insert(pid);
        } else {
            self.syscall(libc::SYS_wait4, &[pid as u64, 0, 0, 0]);
        }
        pid
    }

    /// Executes the same program anew, as the same process.
    pub fn exec(&mut self) {
        writeln!(self.input.as_mut().unwrap(), "exec").unwrap();
        self.answer();
    }

    /// All processes there are of it, found by asking who the children are.
    pub fn find_kin(&mut self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        let mut todo = vec![self.pid()];
        while let Some(pid) = todo.pop() {
            found.insert(pid);
            for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                todo.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
        // Those that are gone are forgotten: their numbers may be a stranger's by now.
        self.kin.clone_from(&found);
        found
    }

    /// Stops all processes of it; those that appear meanwhile too.
    pub fn freeze(&mut self) -> BTreeSet<i32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < deadline, "could not stop the followed processes");
            let pids = self.find_kin();
            for &pid in &pids {
                kill(pid, libc::SIGSTOP);
            }
            if pids.iter().all(|&pid| is_stopped(pid)) && self.find_kin() == pids {
                return pids;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn thaw(&mut self) {
        for pid in self.find_kin() {
            kill(pid, libc::SIGCONT);
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Stopped first, so that nobody forks a child that we do not find.
        let mut stopped = BTreeSet::new();
        loop {
            let found = self.find_kin();
            if found == stopped {
                break;
            }
            for &pid in found.difference(&stopped) {
                kill(pid, libc::SIGSTOP);
            }
            std::thread::sleep(Duration::from_millis(1));
            stopped = found;
        }
        for pid in stopped {
            kill(pid, libc::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

pub fn kill(pid: i32, signal: i32) {
    let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// Whether all threads of a process are stopped, or it has ended.
fn is_stopped(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        state.is_none_or(|state| "TtZX".contains(state))
    })
}
