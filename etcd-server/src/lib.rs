//! For tests: a real etcd (`etcd` of Debian's etcd-server) on loopback, with a directory of its own, that can be killed, stopped and
//! started again.

mod line;

pub use line::LossyLine;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long it may take until it answers.
const START: Duration = Duration::from_secs(30);

/// One that runs until this is dropped.
pub struct Etcd {
    dir: TempDir,
    /// For clients, and for other members, of which there are none.
    ports: (u16, u16),
    tls: Option<Tls>,
    child: Child,
}

/// What an etcd over TLS shows its clients, and by what it knows them: files in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Who signs for both.
    pub authority: PathBuf,
    /// etcd's own.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Etcd {
    /// Starts one; none when this host has no etcd, after saying so.
    ///
    /// # Panics
    /// When it does not start, or is missing where `GODWIT_REQUIRE` is set.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// The same over TLS, for clients with a certificate.
    ///
    /// # Panics
    /// As [`Etcd::start`].
    pub fn start_with(tls: Option<Tls>) -> Option<Self> {
        if let Err(error) = Command::new("etcd").arg("--version").stdout(Stdio::null()).status() {
            let why = format!("there is no etcd here (etcd-server): {error}");
            assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: {why}");
            skip(&why);
            return None;
        }
        // a port may be taken by another test meanwhile
        (0..3).find_map(|_| Self::try_start(tls.clone())).or_else(|| panic!("no etcd starts"))
    }

    fn try_start(tls: Option<Tls>) -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let ports = (free_port()?, free_port()?);
        let child = run(&dir, ports, tls.as_ref())?;
        let mut etcd = Self { dir, ports, tls, child };
        etcd.answers().then_some(etcd)
    }

    /// `etcd://127.0.0.1:PORT/godwit`, or `etcds`.
    pub fn place(&self) -> String {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://127.0.0.1:{}/godwit", self.port())
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.ports.0
    }

    /// It dies at once, as a host does that loses its power.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It stands still, and its connections with it.
    ///
    /// # Panics
    /// When it is gone.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on.
    ///
    /// # Panics
    /// When it is gone.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let sent = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        assert!(sent.is_ok(), "etcd is gone: {sent:?}");
    }

    /// It is started once more, with what it had.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        self.child = run(&self.dir, self.ports, self.tls.as_ref())
            .unwrap_or_else(|| panic!("etcd does not start again"));
        assert!(self.answers(), "etcd does not answer again");
    }

    /// Waits until it does; false when it is gone.
    fn answers(&mut self) -> bool {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if TcpStream::connect(("127.0.0.1", self.port())).is_ok() {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> Option<u16> {
    Some(TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port())
}

fn run(dir: &TempDir, (clients, peers): (u16, u16), tls: Option<&Tls>) -> Option<Child> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (clients, peers) = (format!("{scheme}://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    let mut command = Command::new("etcd");
    if let Some(tls) = tls {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.authority);
        command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
    }
    command
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.path().join("log")).ok()?)
        .spawn()
        .ok()
}

fn skip(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
