//! `godwit-workload` in containers: programs that know what every page of theirs must hold.

use crate::bed::{Bed, DST, SRC};
use crate::container::assert_runs_only_on;
use crate::godwit::godwit_with;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A container with one or more of them. It goes with this.
pub struct Workload<'a> {
    bed: &'a Bed,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub host: &'static str,
    parts: usize,
    checks: usize,
}

/// The program as it is in this tree; `GODWIT_WORKLOAD_BIN` may name one that is built already.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os("GODWIT_WORKLOAD_BIN") {
        return path.into();
    }
    let repository = env!("CARGO_MANIFEST_DIR");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--package", "godwit-workload"]).current_dir(repository);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let directory = Path::new(env!("CARGO_BIN_EXE_godwit")).ancestors().nth(2).unwrap();
    directory.join("release/godwit-workload")
});

/// Puts the program into both hosts.
pub fn push(bed: &Bed) {
    for host in [SRC, DST] {
        let place = bed.path(host, "/usr/local/bin/godwit-workload");
        std::fs::copy(&*PROGRAM, place.with_extension("new")).unwrap();
        std::fs::rename(place.with_extension("new"), place).unwrap();
    }
}

impl<'a> Workload<'a> {
    /// Starts a container on the source, with `options` of `testbed-container`, that runs all of `commands`: what follows
    /// `godwit-workload`. Returns when each of them is in full swing, or why one is not.
    pub fn try_start(bed: &'a Bed, name: &str, options: &str, commands: &[String]) -> Result<Self, String> {
        let workload =
            Self { bed, name: name.into(), host: SRC, parts: commands.len(), checks: 0 };
        let all: String = (0..)
            .zip(commands)
            .map(|(part, command)| {
                format!("godwit-workload {command} --dir /data/{part} --file /data/file.{part} 2> /data/error.{part} & ")
            })
            .collect();
        let create = format!("testbed-container create {name} --host-usr {options} --args sh -c '{all} wait'");
        let said = bed.try_sh(SRC, &create);
        if said.code != 0 {
            return Err(said.err);
        }
        let wait = format!(
            "for try in $(seq 1500); do
                [ $(ls /srv/{name}-data/*/ready 2> /dev/null | wc -l) != {} ] || exit 0
                runc state {name} 2> /dev/null | grep -q running || break
                sleep 0.02
            done
            cat /srv/{name}-data/error.*; exit 1",
            commands.len()
        );
        let said = bed.try_sh(SRC, &wait);
        if said.code == 0 { Ok(workload) } else { Err(said.out.trim().to_owned()) }
    }

    /// The same where it must succeed.
    #[track_caller]
    pub fn start(bed: &'a Bed, name: &str, options: &str, commands: &[String]) -> Self {
        Self::try_start(bed, name, options, commands).unwrap_or_else(|why| panic!("{commands:?}: {why}"))
    }

    /// The words that move it, there or back.
    pub fn migration<'w>(&self, reference: &'w str, flags: &[&'w str]) -> Vec<&'w str> {
        let to = if self.host == SRC { "ssh://dst" } else { "ssh://src" };
        [&["--json", "migrate", reference, to, "--no-copy", "/usr", "--on-timeout", "switchover"][..], flags].concat()
    }

    /// Moves it to the other host; the summary.
    #[track_caller]
    pub fn move_on(&mut self, environment: &[&str], flags: &[&str]) -> Value {
        let reference = format!("runc:{}", self.name);
        let said = godwit_with(self.bed, self.host, environment, &self.migration(&reference, flags));
        let summary = said.summary();
        assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
        self.moved();
        summary
    }

    /// Notes that it was moved to the other host.
    #[track_caller]
    pub fn moved(&mut self) {
        self.host = if self.host == SRC { DST } else { SRC };
        assert_runs_only_on(self.bed, self.host, &self.name);
    }

    /// Has every process compare every page; what each of them found, in lines of JSON by part.
    pub fn check(&mut self) -> Vec<Vec<Value>> {
        self.checks += 1;
        let data = format!("/srv/{}-data", self.name);
        let results: Vec<String> =
            (0..self.parts).map(|part| format!("{data}/{part}/result.{}", self.checks)).collect();
        let script = format!(
            "for part in $(seq 0 {}); do : > {data}/$part/check; done
            for result in {}; do
                timeout 60 sh -c \"until [ -e $result ]; do sleep 0.02; done\" || echo '\"no answer\"' > $result
            done",
            self.parts - 1,
            results.join(" ")
        );
        self.bed.sh(self.host, &script);
        let read = |path: &String| {
            let text = self.bed.sh(self.host, &format!("cat {path}"));
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        results.iter().map(read).collect()
    }

    /// Asserts that every page of every process is right and no system call failed that should not; the pages compared.
    #[track_caller]
    pub fn assert_clean(&mut self, what: &str) -> u64 {
        let found = self.check();
        for process in found.iter().flatten() {
            assert_eq!(process["pass"], true, "{what}: {process}");
        }
        found.iter().flatten().map(|process| process["pages"].as_u64().unwrap()).sum()
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        for host in [SRC, DST] {
            self.bed.try_sh(host, &format!("testbed-container remove {}", self.name));
        }
    }
}
