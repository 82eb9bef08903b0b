//! Hosts of either kind, namespaces or machines, as a test that runs on both sees them.

use serde_json::Value;
use std::time::{Duration, Instant};

/// Where the containers of a test come from.
pub const SRC: &str = "src";
/// Where they go.
pub const DST: &str = "dst";
/// The third place.
pub const CLIENT: &str = "client";

/// The other one.
pub fn other(host: &str) -> &'static str {
    if host == SRC { DST } else { SRC }
}

/// Where shell scripts run.
pub trait Hosts {
    /// Runs a shell script in a host: exit code, output, errors.
    fn run_script(&self, host: &str, script: &str) -> (i32, String, String);

    /// Runs a shell script in a host; its output. It must succeed.
    #[track_caller]
    fn sh(&self, host: &str, script: &str) -> String {
        let (code, out, err) = self.run_script(host, script);
        assert_eq!(code, 0, "on {host}: {script}\n{out}{err}");
        out.trim_end().to_owned()
    }
}

/// What a script finds that looks for leftovers; it has ten seconds to find nothing: what is on its way out is none.
#[track_caller]
pub fn left_over(hosts: &dyn Hosts, host: &str, script: &str) -> String {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = hosts.sh(host, script);
        if found.is_empty() || Instant::now() >= until {
            return found;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A program in the third place that works until it is told to end.
pub struct Load<'a> {
    hosts: &'a dyn Hosts,
    /// The signal that ends it.
    end: &'static str,
}

impl<'a> Load<'a> {
    /// Starts a command there.
    #[track_caller]
    pub fn start(hosts: &'a dyn Hosts, command: &str, end: &'static str) -> Self {
        hosts.sh(
            CLIENT,
            &format!("{command} > /run/test.load 2> /run/test.load-errors < /dev/null & echo $! > /run/test.load.pid"),
        );
        Self { hosts, end }
    }

    /// Tells it to end; what it has said.
    #[track_caller]
    pub fn finish(self) -> String {
        self.hosts.sh(
            CLIENT,
            &format!(
                "p=$(cat /run/test.load.pid); kill -{} $p
                 timeout 120 sh -c \"while kill -0 $p; do sleep 0.1; done\" 2> /dev/null
                 rm /run/test.load.pid; tail -n 20 /run/test.load-errors >&2; cat /run/test.load",
                self.end
            ),
        )
    }
}

/// Moves a container to the other host while it is at work, to the end; the summary.
#[track_caller]
pub fn moved(hosts: &dyn Hosts, reference: &str, from: &str) -> Value {
    // clients that leave no processor idle: at a gentle pace the first round lasts so long that its memory outgrows the room for it
    let script = format!(
        "godwit --json migrate {reference} ssh://{} --no-copy /usr --tcp-established --on-timeout switchover --pace full",
        other(from)
    );
    let (code, out, err) = hosts.run_script(from, &script);
    assert_eq!(code, 0, "{out}{err}");
    let mut lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let summary = lines.rfind(|line| line["message_type"] == "summary").expect(&out);
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    assert_eq!(summary["memory"]["restoration"], "local-lazy", "{summary}");
    eprintln!(
        "{reference} from {from}: downtime {} us, {}, {}",
        summary["downtime_us"], summary["downtime"], summary["memory"]
    );
    summary
}
