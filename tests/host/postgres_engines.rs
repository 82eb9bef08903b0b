//! PostgreSQL as people run it with podman and docker, there and back five times while clients beside it and elsewhere work.

use crate::bed::bed;
use crate::engines;
use crate::engines_docker;
use crate::five_moves::{IP, Kept, five_moves};
use crate::hosts::{DST, SRC};
use crate::inspected::{same_with_docker, same_with_podman};
use crate::postgres_at_work::PostgreSql;

const POSTGRESQL: PostgreSql = PostgreSql { seconds: 170, scale: 5, rate: 150, least: 1000 };

#[test]
fn postgresql_of_podman_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    for host in [SRC, DST] {
        bed.sh(host, "testbed-container image");
    }
    let kept = Kept {
        engine: "podman",
        volumes: "/var/lib/containers/storage/volumes",
        options: format!("--network testbed:ip={IP},mac=02:42:0a:4d:00:64 --log-driver k8s-file"),
        limits: &[],
        same: same_with_podman,
        assert_nothing_left: |hosts, host| engines::assert_nothing_left(hosts, host, "podman"),
    };
    five_moves(&bed, &kept, &POSTGRESQL);
}

#[test]
fn postgresql_of_docker_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    engines_docker::set_up(&bed);
    let kept = Kept {
        engine: "docker",
        volumes: "/var/lib/docker/volumes",
        options: format!(
            "--network testbed --ip {IP} --mac-address 02:42:0a:4d:00:64 --health-cmd true --health-interval 1h"
        ),
        limits: &[],
        same: same_with_docker,
        assert_nothing_left: engines_docker::assert_nothing_left,
    };
    five_moves(&bed, &kept, &POSTGRESQL);
}
