//! What TLS is spoken over.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

/// A socket that carries bytes to somebody who has not proved who it is.
pub trait Carrier: Read + Write + AsFd + Send {
    /// Whether reads and writes wait.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;

    /// Ends one direction, or both.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;

    /// What is behind the socket can say why it carries no more.
    fn post_mortem(&self) -> Option<String> {
        None
    }
}

impl Carrier for TcpStream {
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

impl From<TcpStream> for Box<dyn Carrier> {
    fn from(socket: TcpStream) -> Self {
        Box::new(socket)
    }
}
