//! `godwit-workload` in a container of a machine: programs that know what every page of theirs must hold.

use crate::machines::{DST, Machines, SRC};
use serde_json::Value;

/// One that can be moved there and back.
pub struct Workload<'a> {
    machines: &'a Machines,
    /// Where it runs.
    pub host: &'static str,
    checks: usize,
}

/// With what environment godwit runs on both sides: what `env` takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sides {
    /// Where the container is.
    pub here: &'static str,
    /// Where it goes.
    pub there: &'static str,
}

impl<'a> Workload<'a> {
    /// Starts a container on the source that runs `command`: what follows `godwit-workload`. Returns when it is in full swing.
    #[track_caller]
    pub fn start(machines: &'a Machines, command: &str) -> Self {
        let line = format!("godwit-workload {command} --dir /data/0 --file /data/file 2> /data/error & wait");
        machines.sh(SRC, &format!("testbed-container create vmt --host-usr --args sh -c '{line}'"));
        machines.wait_until(SRC, "test -e /srv/vmt-data/0/ready");
        Self { machines, host: SRC, checks: 0 }
    }

    fn other(&self) -> &'static str {
        if self.host == SRC { DST } else { SRC }
    }

    /// Tries to move it to the other machine: exit code, output, errors.
    pub fn try_to_move(&self, sides: Sides, flags: &str) -> (i32, String, String) {
        let Sides { here, there } = sides;
        let other = self.other();
        let script = format!(
            "env GODWIT_REMOTE_COMMAND='env {there} godwit receive --stdio' {here} godwit --json migrate runc:vmt \
             ssh://{other} --on-timeout switchover --pace full --no-copy /usr {flags}"
        );
        self.machines.run(self.host, &script)
    }

    /// Moves it to the other machine; the summary, and all that was said before it.
    #[track_caller]
    pub fn move_on(&mut self, sides: Sides, flags: &str) -> (Value, String) {
        let (code, out, err) = self.try_to_move(sides, flags);
        assert_eq!(code, 0, "{sides:?} {flags}: {out}{err}");
        let mut lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let summary = lines.rfind(|line| line["message_type"] == "summary").unwrap();
        assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
        assert_eq!(self.machines.sh(self.host, "runc list -q"), "");
        self.host = self.other();
        (summary, out)
    }

    /// Asserts that every page of every process is right and no system call failed that should not.
    #[track_caller]
    pub fn assert_clean(&mut self, what: &str) {
        self.checks += 1;
        let script = format!(
            "cd /srv/vmt-data/0; : > check; timeout 200 sh -c 'until [ -e result.{0} ]; do sleep 0.1; done'; cat result.{0}",
            self.checks
        );
        let (code, out, err) = self.machines.run(self.host, &script);
        // what those said that ended before, if something was wrong
        let ended = || self.machines.run(self.host, "cat /srv/vmt-data/0/ended.* /srv/vmt-data/error").1;
        assert_eq!(code, 0, "{what}: no answer: {err}{}", ended());
        let found: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for process in &found {
            assert_eq!(process["pass"], true, "PROMISE BROKEN: {what}: {process}\n{}", ended());
        }
        let pages: u64 = found.iter().map(|process| process["pages"].as_u64().unwrap()).sum();
        assert!(pages > 500, "{what}: only {pages} pages were compared");
    }
}

impl Drop for Workload<'_> {
    fn drop(&mut self) {
        for host in [SRC, DST] {
            self.machines.run(host, "testbed-container remove vmt; ip netns del godwit-vmt");
        }
    }
}
