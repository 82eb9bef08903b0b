//! A TLS connection as a [`Transport`].

use super::pinning::{self, Pinned};
use super::{Carrier, Fingerprint, Identity, TlsError};
use crate::transport::{Transport, wait};
use nix::poll::PollFlags;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConnection, Connection, Error, ServerConnection};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a handshake may take altogether: whoever stops in the midst of it must not hold anybody up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last words, an alert or the end, may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Plaintext that is encrypted before any of it is sent, bytes: some records at once save system calls.
const PIECE: usize = 256 << 10;
/// Bytes that are read from the socket at once: rustls itself asks for 4 KiB at a time.
const READ_AHEAD: usize = 256 << 10;

/// An authenticated, encrypted connection.
pub struct TlsStream {
    socket: Box<dyn Carrier>,
    session: Connection,
    /// What came and was not looked at yet.
    ahead: Box<[u8]>,
    ahead_at: usize,
    ahead_end: usize,
    ended: bool,
    /// Plaintext that was taken over already although its ciphertext did not leave in time: who tries again with the same
    /// bytes, as [`Transport::send`] wants it, must not send them twice.
    owed: usize,
    about: About,
}

/// For errors.
struct About {
    place: String,
    /// This host's name and key.
    name: String,
    ours: Fingerprint,
    theirs: Fingerprint,
    /// This side called.
    calling: bool,
}

impl std::fmt::Debug for TlsStream {
    /// No secrets, and no data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("place", &self.about.place).finish_non_exhaustive()
    }
}

/// Calls `expected`, a host that must be trusted, over a connection to it. `place` is for errors.
///
/// # Errors
/// [`TlsError`] (within) when it is somebody else, and whatever the kernel says.
pub fn call(
    socket: impl Into<Box<dyn Carrier>>,
    place: &str,
    expected: &str,
    identity: &Identity,
) -> io::Result<TlsStream> {
    let protocol = |error: Error| TlsError::Protocol { place: place.into(), why: error.to_string() };
    let (config, pinned) = pinning::client(identity, expected).map_err(protocol)?;
    // no names are looked at
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let session = ClientConnection::new(Arc::new(config), name).map_err(protocol)?;
    shake(socket.into(), session.into(), place, identity, &pinned, Some(expected))
}

/// Answers whoever calls, if it is trusted: its name and the connection. `place` is for errors.
///
/// # Errors
/// [`TlsError`] (within) when it is not, and whatever the kernel says.
pub fn answer(
    socket: impl Into<Box<dyn Carrier>>,
    place: &str,
    identity: &Identity,
) -> io::Result<(String, TlsStream)> {
    let protocol = |error: Error| TlsError::Protocol { place: place.into(), why: error.to_string() };
    let (config, pinned) = pinning::server(identity).map_err(protocol)?;
    let session = ServerConnection::new(Arc::new(config)).map_err(protocol)?;
    let stream = shake(socket.into(), session.into(), place, identity, &pinned, None)?;
    let theirs = stream.about.theirs;
    let name = identity.peers.name_of(theirs).map(str::to_owned);
    Ok((name.ok_or_else(|| TlsError::Nobody(place.into()))?, stream))
}

/// The handshake.
fn shake(
    mut socket: Box<dyn Carrier>,
    mut session: Connection,
    place: &str,
    identity: &Identity,
    pinned: &Pinned,
    expected: Option<&str>,
) -> io::Result<TlsStream> {
    socket.set_nonblocking(true)?;
    let until = Instant::now() + HANDSHAKE;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    while session.is_handshaking() || session.wants_write() {
        if session.wants_write() {
            match session.write_tls(&mut socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&socket, PollFlags::POLLOUT, left()?)?
                }
                done => drop(done?),
            }
            continue;
        }
        match session.read_tls(&mut socket) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&socket, PollFlags::POLLIN, left()?)?;
                continue;
            }
            Err(error) => return Err(error),
        }
        if let Err(error) = session.process_new_packets() {
            part(&mut socket, &mut session);
            return Err(refusal(&error, place, identity, pinned, expected).into());
        }
    }
    let theirs = *pinned.shown.get().ok_or_else(|| TlsError::Nobody(place.into()))?;
    session.set_buffer_limit(None);
    Ok(TlsStream {
        socket,
        session,
        ahead: vec![0; READ_AHEAD].into(),
        ahead_at: 0,
        ahead_end: 0,
        ended: false,
        owed: 0,
        about: About {
            place: place.into(),
            name: identity.name.clone(),
            ours: identity.fingerprint,
            theirs,
            calling: expected.is_some(),
        },
    })
}

/// Tells the other side why, and waits until it has heard: closing at once, with something unread, would take the words back.
fn part(socket: &mut Box<dyn Carrier>, session: &mut Connection) {
    let until = Instant::now() + LAST_WORDS;
    while session.wants_write() && session.write_tls(socket).is_ok() {}
    let _ = socket.shutdown(Shutdown::Write);
    let mut unheard = [0; 4096];
    loop {
        match socket.read(&mut unheard) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || wait(socket, PollFlags::POLLIN, left).is_err() {
            return;
        }
    }
}

/// What a failed handshake means.
fn refusal(
    error: &Error,
    place: &str,
    identity: &Identity,
    pinned: &Pinned,
    expected: Option<&str>,
) -> TlsError {
    let place = place.to_owned();
    let not_ours = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
    match (error, pinned.shown.get().copied()) {
        (error, Some(theirs)) if *error == not_ours => {
            let is = identity.peers.name_of(theirs);
            let ours = identity.fingerprint;
            let Some(expected) = expected else {
                return TlsError::Unknown { place, name: "NAME".into(), theirs, ours };
            };
            match (identity.peers.key_of(expected), is) {
                (_, Some(is)) => {
                    TlsError::Another { place, expected: expected.into(), is: is.into(), theirs }
                }
                (Some(trusted), None) => {
                    TlsError::Changed { place, expected: expected.into(), trusted, theirs }
                }
                (None, None) => TlsError::Unknown { place, name: expected.into(), theirs, ours },
            }
        }
        (Error::NoCertificatesPresented, _) => TlsError::Nobody(place),
        (Error::AlertReceived(AlertDescription::AccessDenied), _) => TlsError::Protocol {
            place,
            why: format!("it does not trust this host, whose key is {}", identity.fingerprint),
        },
        (error, _) => TlsError::Protocol { place, why: error.to_string() },
    }
}

impl TlsStream {
    /// The key of who is at the other end.
    pub fn fingerprint(&self) -> Fingerprint {
        self.about.theirs
    }

    fn protocol(&self, error: &Error) -> io::Error {
        let About { place, name, ours, theirs, calling } = &self.about;
        match error {
            // the other side looks at our certificate when our handshake is over already
            Error::AlertReceived(AlertDescription::AccessDenied) if *calling => TlsError::NotTrusted {
                place: place.clone(),
                name: name.clone(),
                theirs: *theirs,
                ours: *ours,
            },
            error => TlsError::Protocol { place: place.clone(), why: error.to_string() },
        }
        .into()
    }

    /// Takes plaintext that is there, as much as fits.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match self.session.reader().read(&mut buffer[filled..]) {
                Ok(0) if filled < buffer.len() => self.ended = true,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // a kernel's end of the stream that no TLS record announced: somebody may have cut it short
                Err(_) if filled > 0 => return Ok(filled),
                Err(error) => return Err(error),
            }
            if self.ended || filled == buffer.len() || self.ahead_at == self.ahead_end {
                return Ok(filled);
            }
            self.decrypt()?;
        }
    }

    /// Gives some of what came to the session.
    fn decrypt(&mut self) -> io::Result<()> {
        let mut rest = &self.ahead[self.ahead_at..self.ahead_end];
        self.ahead_at += self.session.read_tls(&mut rest)?;
        match self.session.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = self.protocol(&error);
                self.ahead_at = self.ahead_end;
                part(&mut self.socket, &mut self.session);
                Err(error)
            }
        }
    }

    /// Sends ciphertext that waits, without waiting.
    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Why the other side does not listen any more: it may have said so before it closed.
    fn last_words(&mut self, error: io::Error) -> io::Error {
        let gone = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        if !gone {
            return error;
        }
        let mut nothing = [0; 1];
        match self.receive(&mut nothing, LAST_WORDS) {
            Err(said) if TlsError::within(&said).is_some() => said,
            _ => error,
        }
    }
}

impl Transport for TlsStream {
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let until = Instant::now() + limit;
        loop {
            match self.take(buffer)? {
                0 if !self.ended => {}
                read => return Ok(read),
            }
            // what could not leave before may be what the other side waits for
            let blocked = match self.push() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => PollFlags::POLLOUT,
                // it may have closed with good reason, and said so
                _ => PollFlags::empty(),
            };
            match self.socket.read(&mut self.ahead) {
                // the session, too, must learn of the end: only it knows whether it came too early
                Ok(0) => drop(self.session.read_tls(&mut io::empty())?),
                Ok(read) => (self.ahead_at, self.ahead_end) = (0, read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait(&self.socket, PollFlags::POLLIN | blocked, left)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize> {
        let until = Instant::now() + limit;
        if self.owed == 0 {
            let piece = &bytes[..bytes.len().min(PIECE)];
            self.owed = self.session.writer().write(piece)?;
        }
        loop {
            match self.push() {
                Ok(()) => {
                    let sent = self.owed.min(bytes.len());
                    self.owed -= sent;
                    return Ok(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait(&self.socket, PollFlags::POLLOUT, left)?;
                }
                Err(error) => return Err(self.last_words(error)),
            }
        }
    }

    fn post_mortem(&mut self) -> Option<String> {
        self.socket.post_mortem()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // an end that is announced is no accident to the other side
        self.session.send_close_notify();
        let until = Instant::now() + LAST_WORDS;
        while let Err(error) = self.push() {
            let left = until.saturating_duration_since(Instant::now());
            let blocked = error.kind() == io::ErrorKind::WouldBlock && !left.is_zero();
            if !blocked || wait(&self.socket, PollFlags::POLLOUT, left).is_err() {
                return;
            }
        }
    }
}
