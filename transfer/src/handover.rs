//! Giving a connection to another process of this host: over ssh every connection starts a process of its own, but one
//! process receives the container.

use crate::sys;
use crate::transport::{Descriptors, Transport};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Gives both descriptors of a connection away over a unix socket, with a number that says which it is, and waits until
/// the receiver has done with it.
///
/// # Errors
/// Whatever the kernel says, or when the transport is not made of descriptors.
pub fn give(transport: &dyn Transport, number: u16, to: &mut UnixStream) -> io::Result<()> {
    let Some((input, output)) = transport.descriptors() else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this connection cannot be given away"));
    };
    sys::send_descriptors(to, &number.to_le_bytes(), [input, output])?;
    // the receiver's end closes when it has done: whoever carries the bytes ends with this process
    let mut rest = [0; 1];
    to.flush()?;
    let _ = to.read(&mut rest)?;
    Ok(())
}

/// Takes what [`give`] sent.
///
/// # Errors
/// Whatever the kernel says, or when no connection comes.
pub fn take(from: &UnixStream) -> io::Result<(u16, Descriptors)> {
    let mut number = [0; 2];
    let [input, output] = sys::receive_descriptors(from, &mut number)?;
    Ok((u16::from_le_bytes(number), Descriptors::new(input, output)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_connection_that_was_given_away_works_on() {
        let (mut far, near) = Descriptors::pair().unwrap();
        let (mut giver, taker) = UnixStream::pair().unwrap();
        let given = std::thread::spawn(move || give(&near, 7, &mut giver).unwrap());
        let (number, mut taken) = take(&taker).unwrap();
        assert_eq!(number, 7);
        let limit = Duration::from_secs(1);
        far.send(b"hello", limit).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(taken.receive(&mut buffer, limit).unwrap(), 5);
        taken.send(b"you", limit).unwrap();
        assert_eq!(far.receive(&mut buffer, limit).unwrap(), 3);
        assert!(!given.is_finished(), "the giver stays while the connection is used");
        drop((taken, taker));
        given.join().unwrap();
    }
}
