//! Network locks that a godwit or a CRIU has left when it died: what they hold back, they hold back for ever.

use crate::cure::is_criu_at_work;
use crate::network::{LockTable, Namespace, lock_tables};
use godwit_transfer::message::Refusal;

/// Those in the network namespace of the tree of process `root`, and those in the host's.
pub(super) fn obstacles(root: i32, namespace: &Namespace) -> Vec<Refusal> {
    let mut found = if namespace.is_own().unwrap_or(true) {
        Vec::new()
    } else {
        let left = left_in(namespace).into_iter();
        left.map(|table| refusal(&table, "its network namespace", &format!("nsenter -t {root} -n ")))
            .collect()
    };
    found.extend(of_host());
    found
}

/// Those in the host's own network namespace.
pub(crate) fn of_host() -> Vec<Refusal> {
    let Ok(own) = Namespace::open("/proc/thread-self/ns/net") else { return Vec::new() };
    left_in(&own).iter().map(|table| refusal(table, "the host's network namespace", "")).collect()
}

/// A kernel without nf_tables has no lock. A CRIU that is at work needs its own.
fn left_in(namespace: &Namespace) -> Vec<LockTable> {
    let mut tables = lock_tables(namespace).unwrap_or_else(|error| {
        tracing::debug!(%error, "network locks that were left cannot be looked for");
        Vec::new()
    });
    if tables.iter().any(|table| table.is_criu) && is_criu_at_work() {
        tables.retain(|table| !table.is_criu);
    }
    tables
}

/// `inside` comes before a command to run it in the namespace.
fn refusal(table: &LockTable, place: &str, inside: &str) -> Refusal {
    let LockTable { place: name, is_criu } = table;
    let who = if *is_criu { "CRIU" } else { "godwit" };
    let mend = format!("`{inside}nft delete table {name}`");
    let hint = match is_criu {
        true => mend,
        // whoever is in the middle of something has locked the container, and is heard of before
        false => {
            format!("`godwit resume` ends what was broken off and removes it; if it knows of nothing, {mend}")
        }
    };
    Refusal::new(format!("{place} is locked by the nf_tables table `{name}`, left by a {who} that died"))
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process in a network namespace of its own, which ends with this.
    struct Alone(Child);

    impl Drop for Alone {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Alone {
        fn start() -> Option<Self> {
            let has_nft = Command::new("nft").arg("--version").output().is_ok();
            if !nix::unistd::geteuid().is_root() || !has_nft {
                assert!(
                    std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"),
                    "this test needs root and nft"
                );
                eprintln!("skipped: a namespace needs root, and a lock nft");
                return None;
            }
            let mut command = Command::new("unshare");
            command.args(["--net", "sleep", "60"]).stdin(Stdio::null());
            let alone = Self(command.spawn().unwrap());
            for _ in 0..500 {
                if !alone.namespace().is_own().unwrap() {
                    return Some(alone);
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            panic!("it did not enter a namespace");
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        fn namespace(&self) -> Namespace {
            Namespace::of_pid(self.pid()).unwrap()
        }

        fn nft(&self, words: &str) {
            let command = format!("nsenter -t {} -n nft {words}", self.pid());
            assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success(), "{command}");
        }

        fn told(&self) -> Vec<Refusal> {
            let left = left_in(&self.namespace());
            let inside = format!("nsenter -t {} -n ", self.pid());
            left.iter().map(|table| refusal(table, "its network namespace", &inside)).collect()
        }
    }

    #[test]
    fn locks_that_were_left_are_named_and_mended_by_their_hints() {
        let Some(alone) = Alone::start() else { return };
        for other in ["add table inet mine", "add table ip godwit-not", "add table inet filter"] {
            alone.nft(other);
        }
        assert!(alone.told().is_empty());
        for table in ["inet CRIU-4711", "inet godwit", "arp godwit"] {
            alone.nft(&format!("add table {table}"));
        }
        let told = alone.told();
        assert_eq!(told.len(), 3, "{told:?}");
        for refusal in told {
            let hint = refusal.hint.unwrap();
            let is_criu = refusal.reason.contains("`inet CRIU-4711`, left by a CRIU");
            assert!(is_criu || refusal.reason.contains(" godwit`, left by a godwit"), "{}", refusal.reason);
            assert_eq!(hint.contains("`godwit resume`"), !is_criu, "{hint}");
            // the command is the last thing in backticks
            let command = hint.trim_end_matches('`').rsplit('`').next().unwrap();
            assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
        }
        assert!(alone.told().is_empty());
    }

    #[test]
    fn a_lock_of_godwits_own_making_is_seen() {
        use crate::network::NetworkLock;
        let Some(alone) = Alone::start() else { return };
        let lock = NetworkLock::of(&alone.namespace()).unwrap();
        lock.lock().unwrap();
        let all = obstacles(alone.pid(), &alone.namespace());
        assert!(all.iter().any(|refusal| refusal.reason.contains("`inet godwit`")), "{all:?}");
        lock.unlock().unwrap();
        assert!(alone.told().is_empty());
    }
}
