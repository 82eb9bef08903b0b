//! The stream of a snapshot, as btrfs-send(8) writes it.

use crate::VolumeError;
use crate::moment::MomentError;
use crate::moment::btrfs::NAME;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Whoever waits for a piece gets what there is after this time.
const SOON: Duration = Duration::from_secs(1);

/// A stream that is being written. Dropped, it ends.
#[derive(Debug)]
pub struct Sending {
    child: Child,
    stream: ChildStdout,
}

impl Sending {
    pub(crate) fn begin(of: &Path, parent: Option<&Path>) -> Result<Self, VolumeError> {
        let mut command = Command::new(NAME);
        command.args(["send", "--quiet"]);
        if let Some(parent) = parent {
            command.arg("-p").arg(parent);
        }
        command.arg(of).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| MomentError::Start { program: NAME, source })?;
        let stream = child.stdout.take().ok_or_else(|| VolumeError::Stream("it has no end".into()))?;
        Ok(Self { child, stream })
    }

    /// The next piece, of `most` bytes at most; none when that was all.
    ///
    /// # Errors
    /// What btrfs said.
    pub fn piece(&mut self, most: usize) -> Result<Option<Vec<u8>>, VolumeError> {
        let (mut piece, begun) = (vec![0; most], Instant::now());
        let mut filled = 0;
        while filled < most && (filled == 0 || begun.elapsed() < SOON) {
            let read = self.stream.read(&mut piece[filled..]);
            match read.map_err(|error| VolumeError::Stream(format!("the stream cannot be read: {error}")))? {
                0 if filled == 0 => return self.ended().map(|()| None),
                0 => break,
                read => filled += read,
            }
        }
        piece.truncate(filled);
        Ok(Some(piece))
    }

    fn ended(&mut self) -> Result<(), VolumeError> {
        said(&mut self.child, "btrfs send")
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a program that writes no more than a few words to standard error.
///
/// # Errors
/// What it said, when it failed.
pub(super) fn said(child: &mut Child, command: &str) -> Result<(), VolumeError> {
    let mut said = String::new();
    if let Some(mut errors) = child.stderr.take() {
        let _ = errors.read_to_string(&mut said);
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let said = said.trim().lines().last().map_or(status.to_string(), str::to_owned);
            Err(MomentError::Failed { command: command.into(), said }.into())
        }
        Err(error) => Err(VolumeError::Stream(format!("`{command}`: {error}"))),
    }
}
