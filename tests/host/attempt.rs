//! An attempt to move a redis under load that comes to nothing: what it is tried with, and what must be true after it.

use crate::bed::{Bed, DST, SRC, Said};
use crate::container::Redis;
use crate::godwit::{Background, godwit_with};
use crate::probe::Probe;
use crate::state::State;
use std::time::Duration;

/// A redis under load, and what there was before the attempt to move it.
pub struct Attempt<'a> {
    pub bed: &'a Bed,
    pub redis: Redis,
    pub before: State,
    pub there: State,
    pub probe: Probe<'a>,
}

/// All that every attempt has in common.
pub const MOVE: &[&str] = &["runc:stay", "ssh://dst", "--tcp-established"];
/// Whatever it takes.
pub const ANY_DOWNTIME: &[&str] = &["--max-downtime", "60s"];
/// Round 0 takes long then: what redis holds does not shrink to nothing, and the rest waits.
pub const SLOWLY: &[&str] = &["--max-downtime", "60s", "--compress", "none", "--bandwidth", "2MiB/s"];

impl<'a> Attempt<'a> {
    /// A redis on the source, and a client.
    pub fn begin(bed: &'a Bed) -> Self {
        let redis = Redis::create(bed, "stay", 16);
        let (before, there) = (State::of(bed, SRC).without("/srv"), State::of(bed, DST));
        let probe = Probe::start(bed, &redis);
        Self { bed, redis, before, there, probe }
    }

    /// Asserts that it runs here as if nothing had been tried.
    #[track_caller]
    pub fn assert_stayed(self, said: &Said, code: i32) {
        self.assert_runs_here(said, code);
        self.there.assert_unchanged(self.bed, DST);
        self.end();
    }

    /// Asserts the exit code, what was said, and that it runs here as the same processes as ever.
    #[track_caller]
    pub fn assert_runs_here(&self, said: &Said, code: i32) {
        assert_eq!(said.code, code, "{}{}", said.out, said.err);
        if said.out.starts_with('{') {
            let errors = said.lines("exit_error");
            assert_eq!(errors.len(), 1, "{}", said.out);
            assert_eq!(
                (&errors[0]["code"], &errors[0]["disposition"]),
                (&code.into(), &"running_at_source".into())
            );
        } else {
            assert_eq!(said.last_line(), "runc:stay is running on this host", "{}", said.err);
        }
        self.redis.assert_untouched(self.bed);
    }

    /// The client saw nothing but a pause, the source is as it was, and the journal knows.
    #[track_caller]
    pub fn end(self) {
        std::thread::sleep(Duration::from_millis(300));
        self.probe.assert_nothing_lost();
        self.before.assert_unchanged_without(self.bed, SRC, "/srv");
        let last = self.bed.sh(SRC, "tail -qn 2 /var/lib/godwit/migrations/*/journal");
        assert!(last.contains(r#""event":"rolled-back""#), "{last}");
    }
}

/// One attempt, unless more were asked for.
fn once(more: &[&str]) -> &'static [&'static str] {
    if more.contains(&"--retries") { &[] } else { &["--retries", "0"] }
}

/// Tries it on the source to its end.
pub fn migrate(bed: &Bed, environment: &[&str], more: &[&str]) -> Said {
    godwit_with(bed, SRC, environment, &[&["migrate"], MOVE, once(more), more].concat())
}

/// Begins to try it.
pub fn begin_migrate<'a>(bed: &'a Bed, environment: &[&str], more: &[&str]) -> Background<'a> {
    Background::migrate(bed, environment, &[MOVE, once(more), more].concat())
}

/// Whether the images have come; godwit starts runc before.
const IMAGES_ARE_THERE: &str = "ls /var/lib/godwit/migrations/*/images/*/core-1.img > /dev/null 2>&1";

/// Puts a script in the place of runc at the destination; gives the environment that makes godwit use it there. Begun early
/// it fails: what is done `at_restore` comes when the images are there.
pub fn runc_there(bed: &Bed, at_restore: &str) -> String {
    runtime_there(bed, "runc", at_restore)
}

/// The same for runc or crun.
pub fn runtime_there(bed: &Bed, runtime: &str, at_restore: &str) -> String {
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" restore \"*) {IMAGES_ARE_THERE} || exit 1; {at_restore};; esac\nexec {runtime} \"$@\"\n"
    );
    bed.write(DST, "/root/test-runtime", &script);
    let variable = format!("GODWIT_{}", runtime.to_uppercase());
    format!("GODWIT_REMOTE_COMMAND=env {variable}=/root/test-runtime godwit receive --stdio")
}

/// An attempt under the freeze: the destination's runc takes so many seconds before it restores.
pub fn frozen(bed: &Bed, seconds: u32) -> Background<'_> {
    let there = runc_there(bed, &format!("sleep {seconds}"));
    let mut running = begin_migrate(bed, &[&there], ANY_DOWNTIME);
    running.wait_for_phase("restore");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bed.sh(SRC, "cat /sys/fs/cgroup/stay/cgroup.freeze"), "1", "it is frozen now");
    running
}
