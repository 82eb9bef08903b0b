//! Ways for bytes between the two halves.
//!
//! A [`Transport`] is a pair of ordered byte streams with a time limit on each wait. Everything that the kernel shows as
//! file descriptors (TCP, unix sockets, the two ends of an ssh process, the standard streams of `receive --stdio`) is one
//! implementation, [`Descriptors`]; [`TlsStream`](crate::tls::TlsStream) is another.

use crate::address::Address;
use crate::tls::{self, Identity};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Bytes to and from the other half.
pub trait Transport: Send {
    /// Waits at most `limit` for bytes and reads some. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `TimedOut` when nothing came in time, and whatever the kernel says.
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize>;

    /// Waits at most `limit` for room and writes some. After `TimedOut` the next call begins with the same bytes.
    ///
    /// # Errors
    /// `TimedOut` when there was no room in time, and whatever the kernel says.
    fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize>;

    /// The descriptors to read from and to write to, where there are any, so that another process can go on with them.
    fn descriptors(&self) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        None
    }

    /// What carried the bytes can say why they stopped: the exit status of ssh, for instance.
    fn post_mortem(&mut self) -> Option<String> {
        None
    }
}

/// A transport over one or two file descriptors, and over the process at their other end if there is one.
pub struct Descriptors {
    input: std::fs::File,
    output: std::fs::File,
    child: Option<Child>,
}

impl Descriptors {
    /// Two descriptors, or the same twice. Both become non-blocking.
    ///
    /// # Errors
    /// When a descriptor cannot be made non-blocking.
    pub fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        for fd in [&input, &output] {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { input: input.into(), output: output.into(), child: None })
    }

    fn socket(socket: OwnedFd) -> io::Result<Self> {
        let other = socket.try_clone()?;
        Self::new(socket, other)
    }

    /// Two transports connected to each other inside of this process.
    ///
    /// # Errors
    /// When the kernel has no socket to give.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = UnixStream::pair()?;
        Ok((Self::socket(one.into())?, Self::socket(two.into())?))
    }

    /// The standard streams of this process, as `receive --stdio` uses them.
    ///
    /// # Errors
    /// When they are closed.
    pub fn stdio() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Self::new(input, output)
    }
}

pub(crate) fn wait(fd: &impl AsFd, what: PollFlags, limit: Duration) -> io::Result<()> {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), what)], limit)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl Transport for Descriptors {
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        let read = match self.input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&self.input, PollFlags::POLLIN, limit)?;
                self.input.read(buffer)
            }
            done => done,
        };
        match read {
            // a carrier that ended before it had read all that we said: its status says more
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.child.is_some() => Ok(0),
            read => read,
        }
    }

    fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize> {
        match self.output.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&self.output, PollFlags::POLLOUT, limit)?;
                self.output.write(bytes)
            }
            done => done,
        }
    }

    fn descriptors(&self) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        Some((self.input.as_fd(), self.output.as_fd()))
    }

    fn post_mortem(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        // it is on its way out when its end of the socket is closed
        for _ in 0..50 {
            if let Ok(Some(status)) = child.try_wait() {
                return (!status.success()).then(|| format!("ssh ended with {status}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // closing our end ends the far godwit, and then ssh; a stuck one must not hold us up
            let _ = nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&self.output),
                nix::sys::socket::Shutdown::Both,
            );
            std::thread::spawn(move || child.wait());
        }
    }
}

/// Connects to a destination.
///
/// `remote_command` is what ssh runs there, by default `godwit receive --stdio`. For TLS this host's key and the hosts that it
/// trusts are read from [`tls::config_dir`].
///
/// # Errors
/// When nobody answers there, or somebody else ([`tls::TlsError`] within).
pub fn connect(address: &Address, remote_command: &str) -> io::Result<Box<dyn Transport>> {
    Ok(match address {
        Address::Ssh { user, host, port } => Box::new(ssh(user.as_deref(), host, *port, remote_command)?),
        Address::Tls { .. } => Box::new(connect_tls(address, &Identity::load(&tls::config_dir())?)?),
        Address::Tcp { host, port } => Box::new(Descriptors::socket(tcp(host, *port)?.into())?),
        Address::Unix(path) => Box::new(Descriptors::socket(UnixStream::connect(path)?.into())?),
    })
}

/// Connects to a destination over TLS.
///
/// # Errors
/// As [`connect`], and when the address is one of another kind.
pub fn connect_tls(address: &Address, identity: &Identity) -> io::Result<tls::TlsStream> {
    let Address::Tls { name, host, port } = address else { return Err(io::ErrorKind::InvalidInput.into()) };
    tls::call(tcp(host, *port)?, &address.to_string(), name.as_ref().unwrap_or(host), identity)
}

fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => return tune(&stream).map(|()| stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How long a peer may leave bytes unacknowledged, in milliseconds: a host that is gone says nothing.
const UNACKNOWLEDGED_LIMIT: u32 = 15_000;
/// Seconds of silence after which the kernel asks whether the other end is still there, and between two such questions.
const KEEP_ALIVE: u32 = 5;

/// No Nagle: the small messages of the switchover must not wait for an acknowledgement.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &UNACKNOWLEDGED_LIMIT)?;
    // an end that only listens must notice, too, that nobody is there any more
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpKeepIdle, &KEEP_ALIVE)?;
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpKeepInterval, &KEEP_ALIVE)?;
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::KeepAlive, &true)?)
}

fn ssh(user: Option<&str>, host: &str, port: Option<u16>, remote_command: &str) -> io::Result<Descriptors> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("ssh");
    // nobody is there to type a password; a dead link must be noticed although ssh itself is local
    command.args(["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]);
    command.args(["-o", &format!("ConnectTimeout={}", CONNECT_LIMIT.as_secs())]);
    // what processors have instructions for comes first: ssh's own first choice is for those without
    command.args(["-o", "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com", "-o", "Compression=no"]);
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(user) = user {
        command.args(["-l", user]);
    }
    command.args(["--", host, remote_command]);
    command.stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?))).stdout(Stdio::from(OwnedFd::from(theirs)));
    // its own process group: Ctrl-C is godwit's to handle, the link must outlive it for the rollback
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child =
        command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot run ssh: {error}")))?;
    let mut transport = Descriptors::socket(ours.into())?;
    transport.child = Some(child);
    Ok(transport)
}

/// Waits for connections at an address of this host.
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a TCP port, for TLS.
    Tls(TcpListener),
    /// On a unix socket; its file is removed when the listener is dropped.
    Unix(UnixListener, PathBuf),
    /// Somewhere else, for TLS.
    Elsewhere(Box<dyn Elsewhere>),
}

/// Where callers come by that are no sockets of this host. All of them speak TLS.
pub trait Elsewhere: Send {
    /// Waits at most `limit` for the next: what carries its bytes, and where it calls from.
    ///
    /// # Errors
    /// `TimedOut` when nobody came, and whatever is wrong there.
    fn accept(&self, limit: Duration) -> io::Result<(Box<dyn tls::Carrier>, String)>;
}

/// Somebody who calls, and has not proved who it is.
pub struct Caller {
    socket: Socket,
    /// Where it calls from: for errors, and for the log.
    pub place: String,
}

enum Socket {
    Plain(Descriptors),
    Tls(Box<dyn tls::Carrier>),
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// For the policy: the name of a trusted host where TLS has proved it. Else the way, a colon and where it came from, as
    /// far as that is known: `ssh:10.0.0.1`, `tcp:10.0.0.1`, `unix:`. No host's name has a colon.
    pub name: String,
    /// For people.
    pub shown: String,
}

/// Listens on a unix socket, which is only for its owner (mode 0600). One that nobody listens on any more was left by a process
/// that was killed, and goes.
///
/// # Errors
/// When somebody listens there, something else is there, or the kernel says no.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Listener {
    /// Opens the address. A unix socket is only for its owner (mode 0600).
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let listener = match address {
            Address::Tcp { host, port } => Self::Tcp(TcpListener::bind((host.as_str(), *port))?),
            Address::Tls { host, port, .. } => Self::Tls(TcpListener::bind((host.as_str(), *port))?),
            Address::Unix(path) => {
                if let Some(dir) = path.parent() {
                    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                }
                Self::Unix(listen_at(path)?, path.clone())
            }
            Address::Ssh { .. } => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "ssh needs no listener: the source starts `godwit receive --stdio` itself",
                ));
            }
        };
        // who was there a moment ago may be gone when it is accepted
        match &listener {
            Self::Tcp(socket) | Self::Tls(socket) => socket.set_nonblocking(true)?,
            Self::Unix(socket, _) => socket.set_nonblocking(true)?,
            Self::Elsewhere(_) => {}
        }
        Ok(listener)
    }

    /// Waits at most `limit` for the next connection.
    ///
    /// # Errors
    /// `TimedOut` when nobody came, and whatever the kernel says.
    pub fn accept(&self, limit: Duration) -> io::Result<Caller> {
        match self {
            Self::Tcp(listener) | Self::Tls(listener) => {
                wait(listener, PollFlags::POLLIN, limit)?;
                let (stream, peer) = listener.accept()?;
                tune(&stream)?;
                if matches!(self, Self::Tls(_)) {
                    return Ok(Caller { socket: Socket::Tls(stream.into()), place: format!("tls://{peer}") });
                }
                let place = format!("tcp://{peer}");
                Ok(Caller { socket: Socket::Plain(Descriptors::socket(stream.into())?), place })
            }
            Self::Unix(listener, path) => {
                wait(listener, PollFlags::POLLIN, limit)?;
                let (stream, _) = listener.accept()?;
                let place = format!("unix://{}", path.display());
                Ok(Caller { socket: Socket::Plain(Descriptors::socket(stream.into())?), place })
            }
            Self::Elsewhere(callers) => {
                let (carrier, place) = callers.accept(limit)?;
                Ok(Caller { socket: Socket::Tls(carrier), place })
            }
        }
    }
}

impl Caller {
    /// Over TLS, lets it prove who it is, which takes as long as it likes up to ten seconds. `identity` is asked for only
    /// then.
    ///
    /// # Errors
    /// When it is nobody that this host trusts ([`tls::TlsError`] within), or the connection is gone.
    pub fn answer(
        self,
        identity: impl FnOnce() -> Result<Identity, tls::TlsError>,
    ) -> io::Result<(Box<dyn Transport>, Peer)> {
        match self.socket {
            Socket::Plain(transport) => {
                let way = self.place.split(':').next().unwrap_or_default();
                // an address without its port; a path says nothing about who it is
                let from = match self.place.strip_prefix("tcp://").and_then(|at| at.rsplit_once(':')) {
                    Some((address, _)) => address.trim_matches(['[', ']']),
                    None => "",
                };
                Ok((Box::new(transport), Peer { name: format!("{way}:{from}"), shown: self.place }))
            }
            Socket::Tls(socket) => {
                let (name, stream) = tls::answer(socket, &self.place, &identity()?)?;
                let shown = format!("{name} ({})", self.place);
                Ok((Box::new(stream), Peer { name, shown }))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn a_wait_has_a_limit_in_both_directions() {
        let (mut one, mut two) = Descriptors::pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(one.receive(&mut buffer, SOON).unwrap_err().kind(), io::ErrorKind::TimedOut);
        let full = loop {
            match one.send(&[7; 65536], SOON) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        assert_eq!(two.receive(&mut buffer, SOON).unwrap(), 8);
        drop(one);
        while two.receive(&mut [0; 65536], SOON).unwrap() > 0 {}
    }

    #[test]
    fn a_socket_that_a_killed_process_has_left_is_taken_over_and_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let (left, file) = (dir.path().join("left"), dir.path().join("file"));
        drop(UnixListener::bind(&left).unwrap());
        assert!(left.exists());
        let here = Listener::bind(&Address::Unix(left.clone())).unwrap();
        assert!(Listener::bind(&Address::Unix(left)).is_err(), "somebody listens there");
        std::fs::write(&file, "kept").unwrap();
        assert!(Listener::bind(&Address::Unix(file.clone())).is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kept");
        drop(here);
    }

    #[test]
    fn a_listener_takes_a_unix_connection_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("deep/socket"));
        let listener = Listener::bind(&address).unwrap();
        let mut client = connect(&address, "").unwrap();
        client.send(b"hello", SOON).unwrap();
        let caller = listener.accept(SOON).unwrap();
        let (mut server, peer) = caller.answer(|| unreachable!("no key is needed")).unwrap();
        assert_eq!(peer.name, "unix:");
        assert_eq!(listener.accept(SOON).err().unwrap().kind(), io::ErrorKind::TimedOut);
        let mut buffer = [0; 8];
        assert_eq!(server.receive(&mut buffer, SOON).unwrap(), 5);
        drop(listener);
        assert!(!dir.path().join("deep/socket").exists());
    }
}
