//! Builds the preload library of `shim/` for the processor godwit is built for, to be carried inside of godwit.
//!
//! It is made by the compiler directly: it has other needs than a crate (no standard library, no libc, no unwinding), and
//! cargo cannot embed one crate's product in another.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let source = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../shim/src");
    let library = PathBuf::from(variable("OUT_DIR")).join("godwit-shim.so");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");

    if !["x86_64", "aarch64"].contains(&variable("CARGO_CFG_TARGET_ARCH").as_str()) {
        std::fs::write(&library, []).unwrap_or_else(|e| panic!("cannot write `{}`: {e}", library.display()));
        return;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--edition", "2024", "--crate-name", "godwit_shim", "--crate-type", "cdylib"])
        .args(["--cfg", "godwit_shim", "--cap-lints", "allow", "--target", &variable("TARGET")])
        .args(["-O", "-C", "panic=abort", "-C", "strip=symbols", "-C", "target-feature=-crt-static"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .arg("-o")
        .arg(&library)
        .arg(source.join("lib.rs"));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let status = rustc.status().unwrap_or_else(|e| panic!("cannot start the compiler: {e}"));
    assert!(status.success(), "the preload library of `{}` does not compile", source.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("cargo sets `{name}`: {e}"))
}
