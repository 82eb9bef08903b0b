//! Containers to move: redis with an address and a volume, and small ones of one's own making.

use crate::bed::{Bed, CLIENT, DST, SRC};
use serde_json::Value;

/// What an idle container runs. Not `sleep 9999`: CRIU interrupts that call, and `sleep` ends then.
pub const IDLE: &[&str] = &["tail", "-f", "/dev/null"];

/// A redis in a runc container, made by `testbed-container` on the source.
pub struct Redis {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its first process, as the source counts.
    pub pid: i64,
}

impl Redis {
    /// Makes one with `mib` MiB of data.
    pub fn create(bed: &Bed, name: &str, mib: u32) -> Self {
        Self::create_on(bed, SRC, name, "10.77.0.100", mib)
    }

    /// Makes one on a host with an address.
    pub fn create_on(bed: &Bed, host: &str, name: &str, ip: &str, mib: u32) -> Self {
        let line = bed.sh(host, &format!("testbed-container create {name} {ip} --ram {mib}"));
        let made: Value = serde_json::from_str(&line).unwrap();
        Self { name: name.into(), ip: ip.into(), pid: made["pid"].as_i64().unwrap() }
    }

    /// Its name for godwit.
    pub fn reference(&self) -> String {
        format!("runc:{}", self.name)
    }

    /// Asks it something from the third place.
    pub fn ask(&self, bed: &Bed, words: &str) -> String {
        bed.sh(CLIENT, &format!("timeout 10 redis-cli -h {} {words}", self.ip))
    }

    /// A digest of all that it holds.
    pub fn digest(&self, bed: &Bed) -> String {
        let digest = self.ask(bed, "debug digest");
        assert_eq!(digest.len(), 40, "{digest}");
        digest
    }

    /// Asserts that it runs and answers, as the same processes as ever.
    #[track_caller]
    pub fn assert_untouched(&self, bed: &Bed) {
        assert_eq!(self.ask(bed, "ping"), "PONG");
        let state = runc_state(bed, SRC, &self.name).expect("runc knows it");
        assert_eq!((&state["status"], &state["pid"]), (&Value::from("running"), &Value::from(self.pid)));
        assert_eq!(bed.sh(SRC, &format!("cat /sys/fs/cgroup/{}/cgroup.freeze", self.name)), "0");
    }
}

/// What runc on a host says of a container.
pub fn runc_state(bed: &Bed, host: &str, name: &str) -> Option<Value> {
    let said = bed.try_sh(host, &format!("runc state {name}"));
    (said.code == 0).then(|| serde_json::from_str(&said.out).unwrap())
}

/// Makes the bundle /srv/NAME on the source, with a network namespace of its own and nothing in it.
/// `edit` gets config.json.
pub fn make_bundle(bed: &Bed, name: &str, args: &[&str], edit: impl FnOnce(&mut Value)) {
    bed.sh(
        SRC,
        &format!("mkdir /srv/{name} && cp -a /usr/share/godwit-testbed/bundle/rootfs /srv/{name} && runc spec --bundle /srv/{name}"),
    );
    let path = bed.path(SRC, &format!("/srv/{name}/config.json"));
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["root"]["readonly"] = false.into();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = args.into();
    edit(&mut config);
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Adds a bind mount to a config.json.
pub fn add_bind(config: &mut Value, source: &str, destination: &str, mode: &str) {
    let bind = serde_json::json!({
        "source": source, "destination": destination, "type": "bind", "options": ["rbind", mode] });
    config["mounts"].as_array_mut().unwrap().push(bind);
}

/// Runs a bundle on the source.
#[track_caller]
pub fn run_bundle(bed: &Bed, name: &str) {
    let run =
        format!("runc --log /srv/{name}.log run -d --bundle /srv/{name} {name} < /dev/null > /dev/null 2>&1");
    let said = bed.try_sh(SRC, &run);
    assert_eq!(said.code, 0, "{}", bed.sh(SRC, &format!("cat /srv/{name}.log")));
}

/// Asserts that a container runs on `here`, and that nothing of it runs on the other host.
#[track_caller]
pub fn assert_runs_only_on(bed: &Bed, here: &str, name: &str) {
    let state = runc_state(bed, here, name).unwrap_or_else(|| panic!("{here} has no `{name}`"));
    assert_eq!(state["status"], "running");
    let there = if here == SRC { DST } else { SRC };
    assert!(runc_state(bed, there, name).is_none(), "PROMISE BROKEN: {there} has `{name}`, too");
}
