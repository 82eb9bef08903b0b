//! A link that breaks where a test wants it to.

use godwit_migration::Cancel;
use godwit_transfer::{Descriptors, Transport};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where the link breaks, for both sides at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// After this side has sent so many bytes.
    AfterBytes(u64),
    /// Instead of sending this message.
    Before(&'static str),
    /// When this message has been sent.
    After(&'static str),
}

/// Something that goes out in the place of a message.
#[derive(Clone, Debug)]
pub struct Instead {
    /// The message's name.
    pub message: &'static str,
    /// What goes out the first time that it is said.
    pub bytes: Vec<u8>,
    /// Whether that came.
    pub said: Arc<AtomicBool>,
}

/// How many bytes a side had sent each time the link took some.
pub type Marks = Arc<Mutex<Vec<u64>>>;

/// One side's end of the link.
pub struct Link {
    inner: Option<Descriptors>,
    cut: Option<Cut>,
    sent: u64,
    marks: Marks,
    received: u64,
    /// When the first bulk has come this side stops reading, until the other has noticed and this Ctrl-C was seen.
    pub stall: Option<Cancel>,
    /// What is said instead of something else, once.
    pub instead: Option<Instead>,
    /// The versions that the other side's preamble is made to offer.
    pub peer_speaks: Option<(u16, u16)>,
}

impl Link {
    pub fn new(inner: Descriptors, cut: Option<Cut>, marks: Marks) -> Self {
        Self {
            inner: Some(inner),
            cut,
            sent: 0,
            marks,
            received: 0,
            stall: None,
            instead: None,
            peer_speaks: None,
        }
    }
}

/// Messages go out one at a time and, as this tier asks for, not compressed.
fn says(bytes: &[u8], message: &str) -> bool {
    let wanted = format!("{{\"message\":\"{message}\"");
    bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
}

impl Transport for Link {
    fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        if self.received > 100_000
            && let Some(cancel) = self.stall.take()
        {
            std::thread::sleep(Duration::from_millis(50));
            cancel.raise();
            std::thread::sleep(Duration::from_millis(300));
        }
        let read = self.inner.as_mut().map_or(Ok(0), |inner| inner.receive(buffer, limit))?;
        if let Some((oldest, newest)) = self.peer_speaks.filter(|_| self.received == 0 && read >= 16) {
            buffer[8..10].copy_from_slice(&oldest.to_le_bytes());
            buffer[10..12].copy_from_slice(&newest.to_le_bytes());
        }
        self.received += read as u64;
        Ok(read)
    }

    fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<usize> {
        if let Some(instead) = self.instead.take_if(|instead| says(bytes, instead.message)) {
            let mut rest = &instead.bytes[..];
            let inner = self.inner.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            while !rest.is_empty() {
                rest = &rest[inner.send(rest, limit)?..];
            }
            instead.said.store(true, Ordering::Relaxed);
            return Ok(bytes.len());
        }
        let room = match self.cut {
            Some(Cut::AfterBytes(limit)) => limit.saturating_sub(self.sent).min(bytes.len() as u64) as usize,
            Some(Cut::Before(message)) if says(bytes, message) => 0,
            _ => bytes.len(),
        };
        if room == 0 {
            self.inner = None;
        }
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let sent = inner.send(&bytes[..room], limit)?;
        self.sent += sent as u64;
        self.marks.lock().unwrap().push(self.sent);
        if matches!(self.cut, Some(Cut::After(message)) if says(&bytes[..sent], message)) {
            self.inner = None;
        }
        Ok(sent)
    }
}
