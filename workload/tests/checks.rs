//! The programs as they are run: they find what was changed behind their back, and nothing else.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PAGE: u64 = 4096;

/// A program that runs.
struct Run {
    child: Child,
    dir: TempDir,
    checks: u32,
}

impl Run {
    fn start(words: &str) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-workload"));
        command.args(words.split_whitespace()).arg("--dir").arg(dir.path().join("told"));
        command.stdin(Stdio::null());
        if !words.starts_with("dirty") && !words.starts_with("tree") {
            command.arg("--file").arg(dir.path().join("file"));
        }
        let run = Self { child: command.spawn().unwrap(), dir, checks: 0 };
        run.wait_for("ready");
        run
    }

    fn told(&self, name: &str) -> PathBuf {
        self.dir.path().join("told").join(name)
    }

    fn wait_for(&self, name: &str) -> Vec<Value> {
        let begun = Instant::now();
        while !self.told(name).exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no {name}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = std::fs::read_to_string(self.told(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What each process finds.
    fn check(&mut self) -> Vec<Value> {
        self.checks += 1;
        std::fs::write(self.told("check"), "").unwrap();
        self.wait_for(&format!("result.{}", self.checks))
    }

    #[track_caller]
    fn assert_clean(&mut self, processes: usize) {
        let found = self.check();
        assert_eq!(found.len(), processes, "{found:?}");
        for line in found {
            assert_eq!((&line["pass"], &line["bad"]), (&true.into(), &0.into()), "{line}");
            assert!(line["pages"].as_u64().unwrap() > 0, "{line}");
        }
    }

    /// Turns one bit over, as nobody who may look into the program would.
    fn tamper(&self, region: &Value, offset: u64) {
        let (fd, address) = (region["fd"].as_i64().unwrap(), region["address"].as_u64().unwrap());
        let path = match fd {
            -1 => format!("/proc/{}/mem", self.child.id()),
            fd => format!("/proc/{}/fd/{fd}", self.child.id()),
        };
        self.flip(&path, address + offset);
    }

    fn flip(&self, path: &str, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // SIGTERM, lest a System V segment stays; the children end with it
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

const KINDS: [&str; 15] = [
    "anon",
    "thp",
    "private-file",
    "heap",
    "brk",
    "stack",
    "guard",
    "protnone",
    "mlock",
    "writeonly",
    "shared-anon",
    "memfd",
    "memfd-unmapped",
    "sysv",
    "shared-file",
];

#[test]
fn one_bit_changed_from_outside_is_found_in_every_kind_of_memory() {
    for kind in KINDS {
        // one write a second: it does not write over what is tampered with
        let mut run = Run::start(&format!("special {kind} --rate 1"));
        run.assert_clean(1);
        let ready = run.wait_for("ready");
        let region = &ready[0]["regions"][0];
        assert_eq!(region["kind"], kind, "{ready:?}");
        run.tamper(region, 5 * PAGE + 1234);
        let found = run.check();
        assert_eq!((&found[0]["pass"], &found[0]["bad"]), (&false.into(), &1.into()), "{kind}: {found:?}");
        let bad = &found[0]["bad_pages"][0];
        assert_eq!((&bad["kind"], &bad["page"]), (&kind.into(), &5.into()), "{found:?}");
        if region["fd"] == -1 {
            let address = region["address"].as_u64().unwrap() + 5 * PAGE;
            assert_eq!(bad["address"], format!("{address:#x}"), "{found:?}");
        }
        run.tamper(region, 5 * PAGE + 1234);
        run.assert_clean(1);
        // an entry of the table that no page's number of this size reaches: only the checksum can tell
        run.flip(&format!("/proc/{}/mem", run.child.id()), region["table"].as_u64().unwrap() + 8);
        assert_eq!(run.check()[0]["bad_tables"], 1, "{kind}");
    }
}

#[test]
fn one_bit_is_found_among_pages_written_at_a_rate() {
    let mut run = Run::start("dirty --size 64 --rate 1000");
    run.assert_clean(1);
    let ready = run.wait_for("ready");
    run.tamper(&ready[0]["regions"][0], 4321 * PAGE + 7);
    let found = run.check();
    assert_eq!((&found[0]["bad"], &found[0]["bad_pages"][0]["page"]), (&1.into(), &4321.into()), "{found:?}");
}

#[test]
fn a_process_that_stood_still_tells_for_how_long() {
    let run = Run::start("dirty --size 1 --rate 100");
    let pid = run.child.id().to_string();
    let kill = |signal: &str| assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    kill("-STOP");
    std::thread::sleep(Duration::from_millis(300));
    kill("-CONT");
    std::thread::sleep(Duration::from_millis(300));
    let gaps = run.wait_for("gaps");
    let longest = gaps.iter().map(|gap| gap["gap_us"].as_u64().unwrap()).max().unwrap();
    assert!((290_000..600_000).contains(&longest), "{longest}");
}

#[test]
fn chaos_and_trees_check_clean_and_end_by_themselves() {
    for (words, processes) in
        [("chaos --threads 2 --processes 1 --seed 5", 1), ("tree --size 16 --own 2 --children 3", 4)]
    {
        let mut run = Run::start(words);
        for _ in 0..3 {
            run.assert_clean(processes);
            std::thread::sleep(Duration::from_millis(300));
        }
        assert!(Command::new("kill").arg(run.child.id().to_string()).status().unwrap().success());
        assert_eq!(run.child.wait().unwrap().code(), Some(0), "{words}");
    }
}

#[test]
fn processes_come_and_go_in_chaos() {
    let mut run = Run::start("chaos --threads 1 --processes 4 --seed 6 --size 16 --rate 2000");
    let mut seen = std::collections::BTreeSet::new();
    let begun = Instant::now();
    while seen.len() < 6 {
        assert!(begun.elapsed() < Duration::from_secs(90), "{seen:?}");
        std::thread::sleep(Duration::from_millis(300));
        for line in run.check() {
            assert_eq!(line["pass"], true, "{line}");
            seen.insert(line["pid"].as_u64().unwrap());
        }
    }
}

#[test]
fn a_child_that_is_killed_is_no_pass() {
    let mut run = Run::start("tree --size 4 --own 1 --children 2");
    let found = run.check();
    let child = found.iter().find(|line| line["process"] == 1).unwrap()["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &child]).status().unwrap().success());
    let found = run.check();
    let first = found.iter().find(|line| line["process"] == 0).unwrap();
    assert_eq!((found.len(), &first["pass"]), (2, &false.into()), "{found:?}");
    assert_eq!(first["failures"][0]["errno"], 9, "{first}");
}
