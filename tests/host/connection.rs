//! One connection of a client in the third place, which says nothing while its server is away.

use crate::bed::{Bed, CLIENT};
use crate::container::Redis;
use crate::godwit::Background;

/// Counts in redis over one connection: once, and once more after SIGINT.
const HOLD: &str = r#"
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
server = socket.create_connection((sys.argv[1], 6379), timeout=40)
def count():
    server.sendall(b"INCR held\r\n")
    return server.recv(100).decode().strip()
print(count(), flush=True)
signal.sigwait([signal.SIGINT])
print(count(), flush=True)
"#;
const PROGRAM: &str = "/run/test.hold";

/// The connection.
pub struct Held<'a> {
    client: Background<'a>,
}

impl<'a> Held<'a> {
    /// Opens it; redis has answered over it once.
    pub fn begin(bed: &'a Bed, redis: &Redis) -> Self {
        bed.write(CLIENT, PROGRAM, HOLD);
        let mut client = Background::start(bed, CLIENT, &["python3", PROGRAM, &redis.ip]);
        client.wait_for("the first answer", |line| line == ":1");
        Self { client }
    }

    /// Asserts that redis, wherever it is now, answers over it with what it knew.
    #[track_caller]
    pub fn assert_goes_on(self) {
        self.client.signal("INT");
        let said = self.client.finish();
        assert_eq!((said.code, said.out.as_str()), (0, ":1\n:2"), "PROMISE BROKEN: {}", said.err);
    }
}
