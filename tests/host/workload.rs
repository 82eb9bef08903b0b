//! `godwit-workload` in containers, or bare: programs that know what every page of theirs must hold.

use crate::bed::{Bed, DST, SRC, Said};
use crate::container::assert_runs_only_on;
use crate::godwit::godwit_with;
use crate::program::PROGRAM;
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};

/// One or more of them that move together. They go with this.
pub struct Workload<'a> {
    bed: &'a Bed,
    /// Its name; its files are in /srv/NAME-data.
    pub name: String,
    /// How godwit calls it.
    pub reference: String,
    /// Where it runs.
    pub host: &'static str,
    parts: usize,
    checks: usize,
}

/// Puts the program into both hosts.
pub fn push(bed: &Bed) {
    for host in [SRC, DST] {
        let place = bed.path(host, "/usr/local/bin/godwit-workload");
        std::fs::copy(&*PROGRAM, place.with_extension("new")).unwrap();
        std::fs::rename(place.with_extension("new"), place).unwrap();
    }
}

impl<'a> Workload<'a> {
    fn new(bed: &'a Bed, name: &str, reference: String, parts: usize) -> Self {
        Self { bed, name: name.into(), reference, host: SRC, parts, checks: 0 }
    }

    /// Starts a container on the source, with `options` of `testbed-container`, that runs all of `commands`: what follows
    /// `godwit-workload`. Returns when each of them is in full swing.
    #[track_caller]
    pub fn start(bed: &'a Bed, name: &str, options: &str, commands: &[String]) -> Self {
        let workload = Self::new(bed, name, format!("runc:{name}"), commands.len());
        let all: String = (0..)
            .zip(commands)
            .map(|(part, command)| {
                format!("godwit-workload {command} --dir /data/{part} --file /data/file.{part} 2> /data/error.{part} & ")
            })
            .collect();
        bed.sh(
            SRC,
            &format!("testbed-container create {name} --host-usr {options} --args sh -c '{all} wait'"),
        );
        workload.wait();
        workload
    }

    /// Starts one as a process of the source, with numbers of processes that nobody has at the destination.
    #[track_caller]
    pub fn start_bare(bed: &'a Bed, name: &str, command: &str) -> Self {
        bed.sh(SRC, "echo 60000 > /proc/sys/kernel/ns_last_pid");
        let words =
            format!("godwit-workload {command} --dir /srv/{name}-data/0 --file /srv/{name}-data/file.0");
        let script = format!(
            "mkdir /srv/{name}-data && python3 -c '
from subprocess import DEVNULL, Popen
print(Popen(\"{words}\".split(), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True, cwd=\"/\").pid)
            ' | tee /run/test.{name}.pid"
        );
        let workload = Self::new(bed, name, format!("pid:{}", bed.sh(SRC, &script)), 1);
        workload.wait();
        workload
    }

    /// Waits until all of them are in full swing.
    #[track_caller]
    fn wait(&self) {
        let (data, parts) = (format!("/srv/{}-data", self.name), self.parts);
        let script = format!(
            "for try in $(seq 1500); do
                [ $(ls {data}/*/ready 2> /dev/null | wc -l) != {parts} ] || exit 0
                sleep 0.02
            done
            cat {data}/error.*; exit 1"
        );
        self.bed.sh(SRC, &script);
    }

    /// Whether a container holds it.
    fn is_bare(&self) -> bool {
        self.reference.starts_with("pid:")
    }

    /// The words that move it, there or back.
    pub fn migration(&self, flags: &[&str]) -> Vec<String> {
        let to = if self.host == SRC { "ssh://dst" } else { "ssh://src" };
        let data = format!("/srv/{}-data", self.name);
        let files = if self.is_bare() { ["--volume", &data] } else { ["--no-copy", "/usr"] };
        // these programs leave no processor idle: at a gentle pace their rounds would take minutes
        let words =
            ["--json", "migrate", &self.reference, to, "--on-timeout", "switchover", "--pace", "full"];
        [&words[..], &files, flags].concat().into_iter().map(str::to_owned).collect()
    }

    /// Tries to move it to the other host.
    pub fn try_to_move(&self, environment: &[&str], flags: &[&str]) -> Said {
        let words = self.migration(flags);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        godwit_with(self.bed, self.host, environment, &words)
    }

    /// Moves it to the other host; the summary.
    #[track_caller]
    pub fn move_on(&mut self, environment: &[&str], flags: &[&str]) -> Value {
        let summary = self.try_to_move(environment, flags).summary();
        assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
        self.moved();
        summary
    }

    /// Notes that it was moved to the other host.
    #[track_caller]
    pub fn moved(&mut self) {
        self.host = if self.host == SRC { DST } else { SRC };
        if !self.is_bare() {
            assert_runs_only_on(self.bed, self.host, &self.name);
        }
    }

    /// Has every process compare every page; what each of them found, in lines of JSON.
    pub fn check(&mut self) -> Vec<Value> {
        self.checks += 1;
        let data = format!("/srv/{}-data", self.name);
        let parts: Vec<String> = (0..self.parts).map(|part| format!("{data}/{part}")).collect();
        let script = format!(
            "for part in {0}; do : > $part/check; done
            for part in {0}; do
                timeout 60 sh -c \"until [ -e $part/result.{1} ]; do sleep 0.02; done\" || echo '\"no answer\"'
                cat $part/result.{1}
            done; true",
            parts.join(" "),
            self.checks
        );
        self.bed.sh(self.host, &script).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts that every page of every process is right and no system call failed that should not; the pages compared. In all tests
    /// of a run together one `mremap` may be refused: the tracker cannot always register what is mapped anew before the program
    /// moves all of it (docs/memory.md), and has mended it when the program looks at its mappings.
    #[track_caller]
    pub fn assert_clean(&mut self, what: &str) -> u64 {
        let found = self.check();
        // what those said that ended before, if something was wrong
        let ended =
            format!("cat /srv/{0}-data/*/ended.* /srv/{0}-data/error.* 2> /dev/null; true", self.name);
        for process in &found {
            if is_refused_move(process) && REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("known: an mremap was refused: {what}: {process}");
                continue;
            }
            assert_eq!(
                process["pass"],
                true,
                "PROMISE BROKEN: {what}: {process}\n{}",
                self.bed.sh(self.host, &ended)
            );
        }
        found.iter().map(|process| process["pages"].as_u64().unwrap()).sum()
    }
}

/// Moves that were refused in all tests of this run.
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Nothing is wrong with a process but that one `mremap` failed with EFAULT, and what follows from that in its children.
fn is_refused_move(process: &Value) -> bool {
    let failures = process["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
    let moves = failures.iter().filter(|failure| failure["call"] == "mremap move" && failure["errno"] == 14);
    let children = failures.iter().filter(|failure| failure["call"] == "a child's memory");
    let is_right = process["bad"] == 0 && process["bad_tables"] == 0;
    let (moves, children) = (moves.count(), children.count());
    is_right && moves == 1 && moves + children == failures.len() && process["unexpected"] == failures.len()
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        let name = &self.name;
        for host in [SRC, DST] {
            let script = match self.is_bare() {
                true => format!("kill -9 $(pgrep -x godwit-workload); rm -rf /srv/{name}-data"),
                false => format!("testbed-container remove {name}; ip netns del godwit-{name}"),
            };
            self.bed.try_sh(host, &script);
        }
    }
}
