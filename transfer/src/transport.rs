//! Ways for bytes between the two halves.
//!
//! A [`Transport`] is a pair of ordered byte streams with a time limit on each wait. Everything that the kernel shows as
//! file descriptors (TCP, unix sockets, the two ends of an ssh process, the standard streams of `receive --stdio`) is one
//! implementation, [`Descriptors`]; TLS is to join as another.

use crate::address::Address;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
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

    /// Waits at most `limit` for room and writes some.
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

fn wait(fd: &impl AsFd, what: PollFlags, limit: Duration) -> io::Result<()> {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), what)], limit)? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl Transport for Descriptors {
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        match self.input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&self.input, PollFlags::POLLIN, limit)?;
                self.input.read(buffer)
            }
            done => done,
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
/// `remote_command` is what ssh runs there, by default `godwit receive --stdio`.
///
/// # Errors
/// When nobody answers there.
pub fn connect(address: &Address, remote_command: &str) -> io::Result<Box<dyn Transport>> {
    Ok(Box::new(match address {
        Address::Ssh { user, host, port } => ssh(user.as_deref(), host, *port, remote_command)?,
        Address::Tcp { host, port } => tcp(host, *port)?,
        Address::Unix(path) => Descriptors::socket(UnixStream::connect(path)?.into())?,
    }))
}

fn tcp(host: &str, port: u16) -> io::Result<Descriptors> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => return tune(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How long a peer may leave bytes unacknowledged, in milliseconds: a host that is gone says nothing.
const UNACKNOWLEDGED_LIMIT: u32 = 15_000;

/// No Nagle: the small messages of the switchover must not wait for an acknowledgement.
fn tune(stream: TcpStream) -> io::Result<Descriptors> {
    stream.set_nodelay(true)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::TcpUserTimeout, &UNACKNOWLEDGED_LIMIT)?;
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
    Descriptors::socket(stream.into())
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

/// Waits for one connection at an address of this host.
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a unix socket; its file is removed when the listener is dropped.
    Unix(UnixListener, std::path::PathBuf),
}

impl Listener {
    /// Opens the address. A unix socket is only for its owner (mode 0600).
    ///
    /// # Errors
    /// When the address is taken or not of this host; `ssh://` cannot be listened on.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => Ok(Self::Tcp(TcpListener::bind((host.as_str(), *port))?)),
            Address::Unix(path) => {
                if let Some(dir) = path.parent() {
                    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener, path.clone()))
            }
            Address::Ssh { .. } => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "ssh needs no listener: the source starts `godwit receive --stdio` itself",
            )),
        }
    }

    /// Waits for the next connection; says who it is.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn accept(&self) -> io::Result<(Box<dyn Transport>, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Box::new(tune(stream)?), format!("tcp://{peer}")))
            }
            Self::Unix(listener, path) => {
                let (stream, _) = listener.accept()?;
                Ok((Box::new(Descriptors::socket(stream.into())?), format!("unix://{}", path.display())))
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
    fn a_listener_takes_a_unix_connection_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("deep/socket"));
        let listener = Listener::bind(&address).unwrap();
        let mut client = connect(&address, "").unwrap();
        client.send(b"hello", SOON).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.receive(&mut buffer, SOON).unwrap(), 5);
        drop(listener);
        assert!(!dir.path().join("deep/socket").exists());
    }
}
