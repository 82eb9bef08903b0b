//! Sockets that CRIU has put into repair mode (`TCP_REPAIR`, the kernel's tcp.h; CRIU's libsoccr) and did not take out of it,
//! because it died. What is sent into such a socket never leaves, and what comes is an error to its program.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use crate::sys;

/// `TCP_REPAIR_OFF_NO_WP`: out of repair mode, without a window probe, which would tell the peer of a container that stands still.
const OFF_SILENTLY: i32 = -1;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Sockets that were in repair mode and are not any more.
    pub sockets: usize,
    /// Sockets that still are.
    pub failed: usize,
}

/// Takes all sockets of the processes out of repair mode. They may be frozen. Idempotent; who has ended is left out.
pub fn end_repair(pids: &BTreeSet<i32>) -> Repaired {
    let mut repaired = Repaired::default();
    for pid in pids {
        let Ok(process) = sys::open_process(*pid) else { continue };
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten().filter(|entry| is_socket(&entry.path())) {
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(Ok(socket)) = number.map(|number| sys::take_descriptor(process.as_fd(), number)) else {
                continue;
            };
            if sys::socket_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR) != Ok(1) {
                continue;
            }
            match end_repair_of(&socket) {
                Ok(()) => repaired.sockets += 1,
                Err(error) => {
                    tracing::warn!(pid, %error, "a connection cannot be taken out of repair mode");
                    repaired.failed += 1;
                }
            }
        }
    }
    repaired
}

fn end_repair_of(socket: &impl AsFd) -> Result<(), Errno> {
    let socket = socket.as_fd();
    sys::set_socket_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, OFF_SILENTLY)?;
    // the mode has overwritten this one for good. Servers set it, and their connections have it from them; without it a
    // server that starts again would find its port taken
    sys::set_socket_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

fn is_socket(descriptor: &Path) -> bool {
    std::fs::read_link(descriptor).is_ok_and(|link| link.as_os_str().to_string_lossy().starts_with("socket:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_in_repair_speaks_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let repair = |on| sys::set_socket_option(near.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, on);
        if let Err(error) = repair(1) {
            assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "needs CAP_NET_ADMIN");
            eprintln!("skipped: needs CAP_NET_ADMIN: {error}");
            return;
        }
        let own = [std::process::id().cast_signed()].into();
        // other tests of this process have no sockets in repair
        assert_eq!(end_repair(&own), Repaired { sockets: 1, failed: 0 });
        assert_eq!(end_repair(&own), Repaired::default());
        near.write_all(b"yes").unwrap();
        let mut said = [0; 3];
        far.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        far.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"yes");
    }
}
