//! A redis of podman's under load, with a volume that has a name and a changed layer.

use super::*;
use crate::engines::{assert_nothing_left, diff, difference, inspected, podman_redis};

impl<'a> Apart<'a> {
    fn begin_podman(bed: &'a Bed) -> Self {
        Self::begin_with(bed, "podman:web", |bed| podman_redis(bed, "crun"))
    }

    /// Podman has it running at the destination alone. At the source a copy of the volume with a name stays (docs/engines.md), and nothing else.
    #[track_caller]
    fn end_podman(self) {
        let bed = self.bed;
        assert_eq!(bed.sh(DST, "podman ps -a --format '{{.Names}} {{.State}}'"), "web running");
        assert_eq!(bed.sh(SRC, "podman ps -aq; podman volume ls -q"), "data");
        self.close();
        assert_nothing_left(bed, SRC, "podman");
    }
}

#[test]
fn redis_of_podman_under_load_moves_with_its_volumes_and_its_layer() {
    let Some(bed) = bed() else { return };
    let apart = Apart::begin_podman(&bed);
    let (before, layer) = (inspected(&bed, SRC), diff(&bed, SRC));
    let summary = apart.migration(&["--max-downtime", "30s"]).finish().summary();
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    assert_eq!(summary["leftovers"], serde_json::json!([]), "{summary}");
    let _ = writeln!(
        std::io::stderr(),
        "podman by way of a bucket: downtime {} ms, all of it {} ms",
        summary["downtime_us"].as_u64().unwrap() / 1000,
        summary["duration_us"].as_u64().unwrap() / 1000
    );
    assert_eq!(difference("", &before, &inspected(&bed, DST)), [""; 0]);
    assert_eq!(diff(&bed, DST), layer);
    assert_eq!(bed.sh(DST, "podman exec web cat /new /anonymous/file /ro/file"), "new\nkept\nfixed");
    assert_eq!(bed.sh(DST, "podman volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
    apart.await_nothing();
    apart.end_podman();
}

#[test]
fn a_source_of_podmans_that_is_killed_in_the_rounds_has_it_and_the_next_attempt_moves_it() {
    let Some(bed) = bed() else { return };
    let mut apart = Apart::begin_podman(&bed);
    let (before, layer) = (inspected(&bed, SRC), diff(&bed, SRC));
    let mut running = apart.migration(SLOWLY);
    running.wait_for_phase("pre-copy");
    std::thread::sleep(Duration::from_secs(2));
    running.signal("KILL");
    drop(running);
    let said = godwit(&bed, SRC, &["resume"]);
    assert!(said.out.contains("podman:web is running on this host"), "{}{}", said.out, said.err);
    assert_eq!(apart.redis.ask(&bed, "ping"), "PONG");
    apart.receiver.wait_for("the end of it there", |line| line.contains("running_at_source"));
    let said = godwit(&bed, SRC, &["resume"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(bed.sh(SRC, "podman ps --format '{{.Names}} {{.State}}'"), "web running");
    assert_eq!(bed.sh(DST, "podman ps -aq; pgrep -x redis-server; true"), "");
    assert_eq!((difference("", &before, &inspected(&bed, SRC)), diff(&bed, SRC)), (vec![], layer));
    apart.await_nothing();
    let summary = apart.migration(&["--max-downtime", "30s"]).finish().summary();
    assert_eq!(summary["disposition"], "running_at_destination", "{summary}");
    apart.await_nothing();
    apart.end_podman();
}
