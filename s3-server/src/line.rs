//! A line to a server on which requests fail: answered by somebody else, slow, or cut off in their middle.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that go at once.
const PIECE: u64 = 64 << 10;

/// What a client has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT` and such.
    pub method: String,
    /// The path and the query.
    pub target: String,
    /// Bytes of its body.
    pub bytes: u64,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It gets there, and its answer comes back.
    None,
    /// It is answered with this status, and does not get there.
    Status(u16),
    /// The line breaks behind so many bytes of its body.
    Cut(u64),
    /// Its body needs so long for each [`PIECE`].
    Slow(Duration),
}

type Judge = dyn Fn(&Request) -> Fault + Send + Sync;

/// A line. It carries as long as the process lives.
pub struct Line {
    /// What is to be used in the place of the server: `http://127.0.0.1:PORT`.
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    busy: Arc<AtomicUsize>,
}

impl Line {
    /// To the server at `address`; `judge` is asked of each request.
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn to(address: &str, judge: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let url = format!("http://{}", listener.local_addr().expect("it has an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let busy = Arc::new(AtomicUsize::new(0));
        let (address, judge, all): (_, Arc<Judge>, _) = (address.to_owned(), Arc::new(judge), seen.clone());
        let carried = busy.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (address, judge, all) = (address.clone(), judge.clone(), all.clone());
                let busy = carried.clone();
                busy.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // a line that breaks is what it is for
                    let _ = carry(client, &address, &*judge, &all);
                    busy.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Line { url, seen, busy }
    }

    /// Whether nothing is under way on it, also nothing of a client that is dead.
    pub fn is_idle(&self) -> bool {
        self.busy.load(Ordering::SeqCst) == 0
    }

    /// What has been asked for, also what failed.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request of a client, and its answer.
fn carry(client: TcpStream, address: &str, judge: &Judge, all: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let (request, head) = read_head(&mut from)?;
    let fault = judge(&request);
    all.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let mut client = client;
    if let Fault::Status(status) = fault {
        io::copy(&mut from.take(request.bytes), &mut io::sink())?;
        let body = "<?xml version=\"1.0\"?><Error><Code>Told</Code></Error>";
        let length = body.len();
        return write!(
            client,
            "HTTP/1.1 {status} Told\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    }
    let mut server = TcpStream::connect(address)?;
    server.write_all(head.as_bytes())?;
    let mut left = request.bytes;
    while left > 0 {
        let gone = request.bytes - left;
        match fault {
            Fault::Cut(after) if gone >= after => {
                server.shutdown(Shutdown::Both)?;
                return client.shutdown(Shutdown::Both);
            }
            Fault::Slow(pause) => thread::sleep(pause),
            _ => {}
        }
        let piece = io::copy(&mut (&mut from).take(left.min(PIECE)), &mut server)?;
        if piece == 0 {
            return Ok(());
        }
        left -= piece;
    }
    io::copy(&mut server, &mut client).map(drop)
}

/// What is asked for, and its head as it goes on: the connection is for one request.
fn read_head(from: &mut impl BufRead) -> io::Result<(Request, String)> {
    let mut first = String::new();
    from.by_ref().take(PIECE).read_line(&mut first)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut head, mut bytes) = (first, 0);
    loop {
        let mut line = String::new();
        if from.by_ref().take(PIECE).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        match &*name {
            "content-length" => bytes = line[name.len() + 1..].trim().parse().map_err(io::Error::other)?,
            "connection" => continue,
            _ => {}
        }
        if line.trim().is_empty() {
            head.push_str("connection: close\r\n\r\n");
            return Ok((Request { method, target, bytes }, head));
        }
        head.push_str(&line);
    }
}
