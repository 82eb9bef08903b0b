//! A redis of podman's, with what podman keeps of it: its layer, its volumes, its log, its name.

use super::*;
use crate::engines::{assert_nothing_left, diff, difference, inspected, podman_redis};
use crate::probe::Probe;

#[test]
fn a_container_of_podman_goes_by_way_of_a_bucket_with_its_volumes_and_its_layer() {
    let Some(bed) = bed() else { return };
    let _server = serve(&bed, 400);
    let redis = podman_redis(&bed, "crun");
    let place = "s3://of-tests/containers/podman";
    let put = ["checkpoint", "podman:web", "--to", place, "--tcp-established"];
    let probe = Probe::start(&bed, &redis);
    let whole = godwit(&bed, SRC, &[&put[..], &["--leave-running"]].concat());
    let first = line(&whole, "checkpoint_put");
    probe.assert_nothing_lost();
    // all of it changes: memory, the layer, the volumes
    assert_eq!(redis.ask(&bed, "set late arrival"), "OK");
    bed.sh(SRC, "podman exec web sh -c 'echo newer > /newer; rm /new; echo later > /anonymous/file'");
    let (before, layer, data) = (inspected(&bed, SRC), diff(&bed, SRC), redis.digest(&bed));
    let last = line(&godwit(&bed, SRC, &put), "checkpoint_put");
    let sent = |line: &Value| line["sent_bytes"].as_u64().unwrap();
    assert!(sent(&last) < sent(&first), "{first} {last}");
    assert_nothing_left(&bed, SRC, "podman");
    assert_nothing_is_left(&bed);
    line(&godwit(&bed, DST, &["images", "verify", place]), "verified");

    line(&godwit(&bed, DST, &["restore", place]), "restored");
    assert_eq!(bed.sh(DST, "podman ps --format '{{.Names}} {{.State}}'"), "web running");
    assert_eq!((redis.digest(&bed), redis.ask(&bed, "get late")), (data, "arrival".into()));
    assert_eq!(difference("", &before, &inspected(&bed, DST)), [""; 0]);
    assert_eq!(diff(&bed, DST), layer);
    assert_eq!(bed.sh(DST, "podman exec web cat /newer /anonymous/file /ro/file"), "newer\nlater\nfixed");
    assert_eq!(bed.sh(DST, "podman volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
    assert_nothing_is_left(&bed);
    // it is podman's, and what redis has written since is in its volume
    assert_eq!(redis.ask(&bed, "set later 1"), "OK");
    bed.sh(DST, "podman stop -t 2 web; podman start web");
    let ready = "timeout 20 sh -c 'until redis-cli -h 10.77.0.100 ping | grep -q PONG; do sleep 0.1; done'";
    assert!(bed.holds(CLIENT, ready), "podman did not start it again");
    assert_eq!((redis.ask(&bed, "get later"), redis.ask(&bed, "get late")), ("1".into(), "arrival".into()));

    // the older one is another container than what runs here now
    let named = format!("{place}#{}", first["image"].as_str().unwrap());
    let said = godwit(&bed, DST, &["restore", &named]);
    assert_eq!(said.code, 12, "{}{}", said.out, said.err);
    bed.sh(DST, "podman rm -f -t 0 -v web; podman volume rm data; rm -r /srv/ro");
    assert_nothing_left(&bed, DST, "podman");
    line(&godwit(&bed, DST, &["restore", &named]), "restored");
    assert_eq!(bed.sh(DST, "podman exec web cat /new /anonymous/file"), "new\nkept");
    assert_eq!(redis.ask(&bed, "get late"), "");
}
