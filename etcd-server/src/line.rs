//! A line to an etcd that loses answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Passes connections on. Of a connection whose first request is a transaction only the request: when etcd answers it, and so has done
/// it, the line is cut.
pub struct LossyLine {
    /// Where it is reached, on loopback.
    pub port: u16,
    is_lossy: Arc<AtomicBool>,
}

impl LossyLine {
    /// A line to an etcd's port; none when this host has no more ports.
    pub fn to(etcd: u16) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = listener.local_addr().ok()?.port();
        let is_lossy = Arc::new(AtomicBool::new(true));
        let lossy = is_lossy.clone();
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let lossy = lossy.clone();
                thread::spawn(move || pass(caller, etcd, &lossy));
            }
        });
        Some(Self { port, is_lossy })
    }

    /// From now on it loses nothing.
    pub fn mend(&self) {
        self.is_lossy.store(false, Ordering::SeqCst);
    }
}

fn pass(mut caller: TcpStream, etcd: u16, is_lossy: &AtomicBool) -> std::io::Result<()> {
    let mut etcd = TcpStream::connect(("127.0.0.1", etcd))?;
    let mut first = vec![0; 4096];
    let length = caller.read(&mut first)?;
    first.truncate(length);
    let loses = is_lossy.load(Ordering::SeqCst) && first.windows(10).any(|word| word == b"/v3/kv/txn");
    etcd.write_all(&first)?;
    let (mut from, mut to) = (caller.try_clone()?, etcd.try_clone()?);
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    if loses {
        etcd.read_exact(&mut [0])?;
    } else {
        std::io::copy(&mut etcd, &mut caller)?;
    }
    etcd.shutdown(Shutdown::Both).and(caller.shutdown(Shutdown::Both))
}
