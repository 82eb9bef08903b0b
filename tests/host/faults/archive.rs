//! `godwit checkpoint` dies: before the checkpoint is complete the container runs on, afterwards it is in the checkpoint.

use super::cell::{Cell, Fault};
use super::patient::Kind;
use super::{bed_with_points, runners};
use crate::bed::{Bed, SRC, Said};
use crate::container::Redis;
use crate::godwit::godwit_with;

const TO: &str = "/var/lib/checkpoints/stay";

fn checkpoint(bed: &Bed, redis: &Redis) -> Said {
    godwit_with(bed, SRC, &[], &["checkpoint", &redis.reference(), "--to", TO, "--tcp-established"])
}

/// It is killed just after its journal has this line.
fn killed_after(bed: &Bed, redis: &Redis, event: &'static str) {
    bed.sh(SRC, "rm -rf /var/lib/checkpoints; mkdir /var/lib/checkpoints");
    let cell = Cell { role: "source", event, edge: "after", fault: Fault::Kill, patient: Kind::Redis };
    cell.order(bed);
    let said = checkpoint(bed, redis);
    assert_ne!(said.code, 0, "{event} was never written: {}{}", said.out, said.err);
    assert_eq!(runners(bed), [""; 0], "{event}: {}{}", said.out, said.err);
}

#[test]
fn a_checkpoint_that_dies_before_it_is_complete_lets_the_container_run_on() {
    let Some(bed) = bed_with_points() else { return };
    let redis = Redis::create(&bed, "stay", 8);
    let digest = redis.digest(&bed);
    killed_after(&bed, &redis, "dumped");
    let said = godwit_with(&bed, SRC, &[], &["resume"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is running on this host"), "{}", said.out);
    assert_eq!(redis.digest(&bed), digest);
    redis.assert_untouched(&bed);
    assert!(!bed.holds(SRC, "ls -A /var/lib/checkpoints | grep ."), "something is left of it");
    // or whoever comes next puts it in order
    killed_after(&bed, &redis, "dumped");
    let said = checkpoint(&bed, &redis);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.err.contains("whose process died, is rolled back"), "{}", said.err);
    let said = godwit_with(&bed, SRC, &[], &["restore", TO]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(redis.digest(&bed), digest);
}

#[test]
fn a_checkpoint_that_dies_when_it_is_complete_has_the_container() {
    let Some(bed) = bed_with_points() else { return };
    let redis = Redis::create(&bed, "stay", 8);
    let digest = redis.digest(&bed);
    killed_after(&bed, &redis, "committed");
    let again = checkpoint(&bed, &redis);
    assert_ne!(again.code, 0, "{}", again.out);
    let said = godwit_with(&bed, SRC, &[], &["resume"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("runc:stay is in the checkpoint"), "{}", said.out);
    assert_eq!(runners(&bed), [""; 0]);
    let said = godwit_with(&bed, SRC, &[], &["restore", TO]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert_eq!(redis.digest(&bed), digest);
}
