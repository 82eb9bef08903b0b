//! A real etcd on the client's host, which both others reach.

use crate::bed::{Bed, CLIENT, skip};
use crate::godwit::Background;
use std::process::Command;

const START: &str = "exec /usr/local/bin/etcd --data-dir /srv/etcd --log-level error \
    --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://client:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380";

/// One that runs until this is dropped.
pub struct Etcd<'a> {
    bed: &'a Bed,
    server: Option<Background<'a>>,
}

impl<'a> Etcd<'a> {
    /// Where it is, for both hosts.
    pub const PLACE: &'static str = "etcd://client:2379/godwit";

    /// Starts one that is empty; none when this machine has no etcd, after saying so.
    pub fn start(bed: &'a Bed) -> Option<Self> {
        let found = Command::new("sh").args(["-c", "command -v etcd"]).output().unwrap();
        let program = String::from_utf8(found.stdout).unwrap();
        if program.trim().is_empty() {
            skip("there is no etcd (etcd-server) on this machine");
            return None;
        }
        let place = bed.path(CLIENT, "/usr/local/bin/etcd");
        std::fs::copy(program.trim(), place.with_extension("new")).unwrap();
        std::fs::rename(place.with_extension("new"), place).unwrap();
        bed.sh(CLIENT, "rm -rf /srv/etcd");
        let mut etcd = Self { bed, server: None };
        etcd.restart();
        Some(etcd)
    }

    /// It dies at once.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal("KILL");
            server.finish();
        }
    }

    /// It is started again, with what it had.
    pub fn restart(&mut self) {
        self.kill();
        self.server = Some(Background::start(self.bed, CLIENT, &["sh", "-c", START]));
        self.bed
            .sh(CLIENT, "timeout 30 sh -c 'until ss -Hltn sport = :2379 | grep -q .; do sleep 0.05; done'");
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        self.kill();
        self.bed.try_sh(CLIENT, "rm -rf /srv/etcd");
    }
}
