//! PostgreSQL under load and a Node.js server, moved there and back: many processes with shared memory, and a collected heap
//! with compiled code.

use crate::bed::{CLIENT, DST, SRC, bed};
use crate::container::assert_runs_only_on;
use crate::godwit::Background;
use crate::hosts::moved;
use crate::postgres_at_work::{SERVE, assert_begun, assert_no_transaction_is_lost};

/// Seconds that the clients work.
const LOAD: u32 = 30;

#[test]
fn postgresql_loses_no_transaction() {
    let Some(bed) = bed() else { return };
    bed.write(SRC, "/srv/pg-data/serve", SERVE);
    let create = "testbed-container create pg --host-usr --user 1000 --seccomp default";
    bed.sh(SRC, &format!("{create} --args sh /data/serve {LOAD}"));
    assert_begun(&bed, "/srv/pg-data");
    for from in [SRC, DST] {
        moved(&bed, "runc:pg", from);
        assert_runs_only_on(&bed, if from == SRC { DST } else { SRC }, "pg");
    }
    assert_no_transaction_is_lost(&bed, SRC, "/srv/pg-data", "runc exec pg", None, 1000);
}

/// Answers what a record holds; two timers never stop to replace records and to make garbage.
const SERVER: &str = r#"
const http = require('http'), crypto = require('crypto');
const content = (n, version) => crypto.createHash('sha256').update(n + ':' + version).digest('hex').repeat(20);
const records = new Map();
for (let n = 0; n < 60000; n++) records.set(n, { version: 0, text: content(n, 0) });
let next = 0;
setInterval(() => {
    for (let i = 0; i < 60; i++, next = (next + 7919) % 60000) {
        const version = records.get(next).version + 1;
        records.set(next, { version, text: content(next, version) });
    }
}, 10);
setInterval(() => { global.garbage = Array.from({ length: 20000 }, (_, i) => ({ i, text: 'x' + i })); }, 50);
http.createServer((request, response) => {
    const n = Number(request.url.slice(1)), { version, text } = records.get(n);
    response.end(JSON.stringify({ n, version, hash: crypto.createHash('sha256').update(text).digest('hex') }));
}).listen(8080, '0.0.0.0');
"#;

/// Asks it over one connection until told to end, and knows the answers.
const ASK: &str = r#"
import hashlib, http.client, json, signal, sys, time
ended = []
signal.signal(signal.SIGINT, lambda *_: ended.append(1))
server = http.client.HTTPConnection(sys.argv[1], 8080, timeout=20)
asked, longest, seen = 0, 0, {}
while not ended:
    n = asked * 104729 % 60000
    begun = time.monotonic()
    server.request("GET", f"/{n}")
    answer = json.load(server.getresponse())
    longest = max(longest, time.monotonic() - begun)
    text = hashlib.sha256(f"{n}:{answer['version']}".encode()).hexdigest() * 20
    assert answer["n"] == n and answer["hash"] == hashlib.sha256(text.encode()).hexdigest(), answer
    assert answer["version"] >= seen.get(n, 0), (answer, seen[n])
    seen[n] = answer["version"]
    asked += 1
    if asked == 1:
        print("ready", flush=True)
    time.sleep(0.001)
print(f"asked {asked} longest {longest * 1000:.0f} ms")
"#;

#[test]
fn a_node_server_answers_on() {
    let Some(bed) = bed() else { return };
    bed.write(SRC, "/srv/node-data/server.js", SERVER);
    bed.write(CLIENT, "/run/test.ask", ASK);
    bed.sh(
        SRC,
        "testbed-container create node 10.77.0.101 --host-usr --user 1000 --seccomp default --args node /data/server.js",
    );
    bed.sh(CLIENT, "timeout 60 sh -c 'until nc -z -w 1 10.77.0.101 8080; do sleep 0.1; done'");
    let mut asking = Background::start(&bed, CLIENT, &["python3", "/run/test.ask", "10.77.0.101"]);
    asking.wait_for("the first answer", |line| line == "ready");
    for from in [SRC, DST] {
        moved(&bed, "runc:node", from);
        assert_runs_only_on(&bed, if from == SRC { DST } else { SRC }, "node");
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    asking.signal("INT");
    let said = asking.finish();
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let asked: u64 =
        said.out.split_whitespace().skip_while(|word| *word != "asked").nth(1).unwrap().parse().unwrap();
    assert!(asked > 500, "{}", said.out);
    eprintln!("node: {}", said.out);
}
