//! What tests need of object storage: a real S3 server, a program of its own on loopback, and a line to it that fails as it is told.

mod authority;
mod line;

pub use authority::Authority;
pub use line::{Fault, Line, Request};

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

/// Who may speak with the server.
pub const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "a-test"), ("AWS_SECRET_ACCESS_KEY", "what-nobody-else-knows")];

/// The program: beside the test where all of the tree was built, or it is built now; `GODWIT_S3_SERVER_BIN` may name another one.
pub static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os("GODWIT_S3_SERVER_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test has a path");
    let profile = test.ancestors().nth(2).expect("a test lies in `deps` of a profile's directory");
    let program = profile.join("godwit-s3-server");
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--package", "godwit-s3-server"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let said = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo can be run");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    program
});

/// A server that runs; it ends with this.
pub struct Server {
    child: Child,
    /// Where it listens: `127.0.0.1:PORT`.
    pub address: String,
}

impl Server {
    /// Starts one for the buckets in a directory, each a directory, on loopback.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(directory: &Path) -> Server {
        Self::start_with(directory, None)
    }

    /// The same, which speaks TLS with what [`Authority::sign`] gave, in a file.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(directory: &Path, proof: Option<&Path>) -> Server {
        let mut command = Command::new(&*PROGRAM);
        command.arg(directory).arg("127.0.0.1:0").args(proof).envs(KEYS);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut url = String::new();
        let said = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut url));
        said.expect("it has an output").expect("it says its URL");
        let address = url.trim().split_once("://").expect("it says its URL").1.to_owned();
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
