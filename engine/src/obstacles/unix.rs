//! Unix sockets whose other end is not in the tree. /proc/net/unix does not tell who is connected with whom; the kernel's
//! socket diagnostics do, and ss(8) asks them.

use crate::error::EngineError;
use crate::network::Namespace;
use godwit_migration::plan::Carry;
use godwit_transfer::message::Refusal;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};

/// A socket that is connected.
#[derive(Debug, PartialEq, Eq)]
struct Connected {
    is_datagram: bool,
    name: String,
    inode: u64,
    peer: u64,
}

/// What is wrong with the unix sockets of a tree that has the sockets `own`.
///
/// # Errors
/// When the namespace cannot be entered.
pub(super) fn obstacles(
    namespace: &Namespace,
    own: &BTreeSet<u64>,
    carry: &Carry,
) -> Result<Vec<Refusal>, EngineError> {
    let list = || {
        let mut ss = Command::new("ss");
        ss.args(["-x", "-a", "-n", "-H"]).stdin(Stdio::null()).stderr(Stdio::null()).output()
    };
    let output = match namespace.run(list)? {
        Ok(output) => output,
        Err(error) => {
            tracing::info!(%error, "without ss nobody knows where unix sockets lead; CRIU will find out");
            return Ok(Vec::new());
        }
    };
    let connected = String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect::<Vec<_>>();
    Ok(judge(&connected, own, carry))
}

/// `u_str ESTAB 0 0 /run/a 1234 * 1235`: kind, state, queues, name, inode, the peer's name and inode.
fn parse(line: &str) -> Option<Connected> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [kind, _, _, _, name @ .., inode, _, peer] = words.as_slice() else { return None };
    Some(Connected {
        is_datagram: *kind == "u_dgr",
        name: name.join(" "),
        inode: inode.parse().ok()?,
        peer: peer.parse().ok().filter(|peer| *peer != 0)?,
    })
}

fn judge(connected: &[Connected], own: &BTreeSet<u64>, carry: &Carry) -> Vec<Refusal> {
    let leads_out = |socket: &&Connected| own.contains(&socket.inode) && !own.contains(&socket.peer);
    let refusal = |socket: &Connected| {
        let Connected { inode, name, .. } = socket;
        let which =
            if name == "*" { format!("socket {inode}") } else { format!("socket {inode} (`{name}`)") };
        match socket.is_datagram {
            true if carry.ext_unix_sk => None,
            true => Some(
                Refusal::new(format!("its unix datagram {which} sends to one outside of the container"))
                    .hint("add `--ext-unix-sk` if the same is there at the destination (`/dev/log`, say)"),
            ),
            // CRIU says so even if it may leave external sockets alone
            false => Some(
                Refusal::new(format!("its unix stream {which} is connected with a process outside of the container"))
                    .hint("let it close this connection: often one to the daemon of a logger, to D-Bus, or to an agent"),
            ),
        }
    };
    connected.iter().filter(leads_out).filter_map(refusal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn lines_of_ss_are_understood() {
        let socket = |is_datagram, name: &str, inode, peer| {
            Some(Connected { is_datagram, name: name.into(), inode, peer })
        };
        assert_eq!(parse("u_str ESTAB 0 0 /run/a b 12 * 13"), socket(false, "/run/a b", 12, 13));
        assert_eq!(parse("u_dgr UNCONN 0 0 * 7 * 8"), socket(true, "*", 7, 8));
        assert_eq!(parse("u_str LISTEN 0 128 /run/a 12 * 0"), None);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn only_what_leads_out_of_the_tree_is_refused() {
        let lines = [
            "u_str ESTAB 0 0 * 1 * 2",
            "u_str ESTAB 0 0 * 2 * 1",
            "u_str ESTAB 0 0 /a 3 * 90",
            "u_dgr ESTAB 0 0 * 4 * 91",
        ];
        let connected: Vec<_> = lines.iter().filter_map(|line| parse(line)).collect();
        let own = BTreeSet::from([1, 2, 3, 4]);
        let reasons = |carry: &Carry| -> Vec<String> {
            judge(&connected, &own, carry).into_iter().map(|refusal| refusal.reason).collect()
        };
        let all = reasons(&Carry::default());
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].contains("socket 3 (`/a`)") && all[1].contains("datagram socket 4"), "{all:?}");
        assert_eq!(
            reasons(&Carry { ext_unix_sk: true, ..Carry::default() }).len(),
            1,
            "a stream stays refused"
        );
    }

    #[test]
    fn own_sockets_are_seen_by_ss() {
        if Command::new("ss").arg("-V").output().is_err() {
            assert!(
                std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"),
                "this test needs ss"
            );
            eprintln!("skipped: ss is not here");
            return;
        }
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |stream: &UnixStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap();
            link.to_str()
                .unwrap()
                .trim_start_matches("socket:[")
                .trim_end_matches(']')
                .parse::<u64>()
                .unwrap()
        };
        let namespace = Namespace::open("/proc/self/ns/net").unwrap();
        let carry = Carry::default();
        let both = BTreeSet::from([inode(&one), inode(&other)]);
        // entering a namespace needs root, even one's own
        match obstacles(&namespace, &both, &carry) {
            Ok(found) => assert!(found.is_empty(), "{found:?}"),
            Err(_) => return,
        }
        assert_eq!(obstacles(&namespace, &BTreeSet::from([inode(&one)]), &carry).unwrap().len(), 1);
    }
}
