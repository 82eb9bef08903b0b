//! `godwit-workload`, which the test hosts get.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The program as it is in this tree; `GODWIT_WORKLOAD_BIN` may name one that is built already.
pub static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os("GODWIT_WORKLOAD_BIN") {
        return path.into();
    }
    let repository = env!("CARGO_MANIFEST_DIR");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--workspace", "--bins"]).current_dir(repository);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let directory = Path::new(env!("CARGO_BIN_EXE_godwit")).ancestors().nth(2).unwrap();
    directory.join("release/godwit-workload")
});
