//! A bare process with a network of its own, moved there and back under load.

use crate::bed::{Bed, DST, SRC, bed};
use crate::container::Redis;
use crate::godwit::godwit_with;
use crate::probe::Probe;
use serde_json::Value;

const IP: &str = "10.77.0.100";

/// A redis in the network namespace `bare` on the source, and its number, which nobody has at the destination.
fn start(bed: &Bed) -> (Redis, String) {
    let script = format!(
        "ip netns add bare
         ip link add v-bare type veth peer name eth0 netns bare
         ip -n bare link set lo up && ip -n bare address add {IP}/24 dev eth0 && ip -n bare link set eth0 up
         ip link set v-bare master br0 up
         mkdir /srv/bare-data
         echo 60000 > /proc/sys/kernel/ns_last_pid
         python3 -c 'import subprocess, sys
null = subprocess.DEVNULL
print(subprocess.Popen(sys.argv[1:], stdin=null, stdout=null, stderr=null, start_new_session=True, cwd=\"/\").pid)' \
            nsenter --net=/run/netns/bare redis-server --bind 0.0.0.0 --protected-mode no --enable-debug-command yes \
            --save '' --appendonly yes --dir /srv/bare-data | tee /run/test.bare.pid
         timeout 30 sh -c 'until redis-cli -h {IP} ping; do sleep 0.05; done' > /dev/null"
    );
    let pid = bed.sh(SRC, &script);
    (Redis { name: "bare".into(), ip: IP.into(), pid: pid.parse().unwrap() }, pid)
}

#[test]
fn a_bare_redis_in_a_network_namespace_goes_there_and_back_under_load() {
    let Some(bed) = bed() else { return };
    let (redis, pid) = start(&bed);
    redis.ask(&bed, "debug populate 4000 key 4000");
    let probe = Probe::start(&bed, &redis);
    let (mut here, mut there) = (SRC, DST);
    for number in 1..=4 {
        let (container, to) = (format!("pid:{pid}"), format!("ssh://{there}"));
        let words = ["--json", "migrate", &container, &to, "--tcp-established", "--max-downtime", "60s"];
        let words = [&words[..], &["--volume", "/srv/bare-data"]].concat();
        let summary = godwit_with(&bed, here, &[], &words).summary();
        assert_eq!(summary["leftovers"], Value::Array(vec![]), "{summary}");
        assert_eq!(summary["pid"].to_string(), pid);
        eprintln!("move {number}: downtime {} us", summary["downtime_us"]);
        bed.sh(there, &format!("echo {pid} > /run/test.bare.pid"));
        assert_eq!(bed.sh(there, "pgrep -x redis-server"), pid);
        // nothing of it is left; the namespace that somebody else made is theirs
        let left = "pgrep -x redis-server; ip -o link | grep -o 'v-bare'; ls /run/netns | grep godwit; nft list ruleset | grep godwit; true";
        assert_eq!(bed.sh(here, left), "", "move {number}");
        (here, there) = (there, here);
    }
    let report = probe.assert_nothing_lost();
    eprintln!("{} writes were acknowledged", report["writes"]["acknowledged"]);
    bed.sh(SRC, &format!("kill -9 {pid}; ip netns delete bare; ip netns delete godwit-{pid}; true"));
}
