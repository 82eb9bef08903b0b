//! Giving what holds pages, and other open files, to another process of this host, which goes on with them.

use crate::sys::fdpass;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

const MARK: &[u8] = b"files";

/// Gives open files away, three at most: the memfd of a [`PageStore`](super::PageStore) among them.
///
/// # Errors
/// When nobody takes them.
pub fn give_files(files: &[BorrowedFd<'_>], to: &UnixStream) -> io::Result<()> {
    Ok(fdpass::send(to, MARK, files, true)?)
}

/// Takes what [`give_files`] sent, so many of them; a memfd is for [`PageStore::adopt`](super::PageStore::adopt).
///
/// # Errors
/// When nothing comes, or something else.
pub fn take_files(count: usize, from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut mark = [0; MARK.len()];
    let (length, files) = fdpass::receive(from, &mut mark, true)?;
    match length == MARK.len() && mark == MARK && files.len() == count {
        true => Ok(files),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "other files than were waited for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn only_what_is_waited_for_is_taken() {
        let (near, far) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        give_files(&[file.as_fd()], &near).unwrap();
        assert_eq!(take_files(1, &far).unwrap().len(), 1);
        give_files(&[file.as_fd(), file.as_fd()], &near).unwrap();
        take_files(1, &far).unwrap_err();
        fdpass::send(&near, b"other", &[file.as_fd()], true).unwrap();
        take_files(1, &far).unwrap_err();
        drop(near);
        take_files(1, &far).unwrap_err();
    }
}
