//! A btrfs on a loop device, for tests that have one mounted.

use std::fs::{File, create_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program, which must succeed; what it wrote.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether there can be one here; says why not.
pub fn is_to_be_had() -> bool {
    let known = read_to_string("/proc/filesystems").unwrap().contains("\tbtrfs\n");
    if nix::unistd::geteuid().is_root() && known {
        return true;
    }
    let why = "needs root, and a kernel with btrfs";
    assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: {why}");
    eprintln!("skipped: {why}");
    false
}

/// An image of one, of so many MiB.
pub fn image(path: &Path, mib: u64) {
    File::create(path).unwrap().set_len(mib << 20).unwrap();
    run("mkfs.btrfs", &["--quiet", path.to_str().unwrap()]);
}

/// One of so many MiB, mounted at `name` in a directory, its image beside it.
pub fn mount(dir: &Path, name: &str, mib: u64) -> PathBuf {
    let (file, at) = (dir.join(format!("{name}.image")), dir.join(name));
    image(&file, mib);
    create_dir(&at).unwrap();
    run("mount", &["-o", "loop", file.to_str().unwrap(), at.to_str().unwrap()]);
    at
}
