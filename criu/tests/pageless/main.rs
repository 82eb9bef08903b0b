//! Dumps without pages, with real CRIUs, as root, in a test host: `GODWIT_REQUIRE=all` makes it an error when there is none.
//!
//! `GODWIT_TEST_CRIUS` names the CRIUs, separated by colons (default: `/usr/sbin/criu:/usr/local/sbin/criu`), `GODWIT_TEST_DIR`
//! the place of images (default `/var/tmp`).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod codec;
mod falls;
mod measure;
mod rungs;
mod tree;

use std::path::Path;

use godwit_criu::pageless::{Ladder, PagelessReport, Rung};
use godwit_criu::{CriuBinary, DumpOptions, NotifyAnswer, binary};

/// The CRIUs, or the reason to skip said aloud.
fn crius(test: &str) -> Vec<CriuBinary> {
    let names = std::env::var("GODWIT_TEST_CRIUS").unwrap_or("/usr/sbin/criu:/usr/local/sbin/criu".into());
    let crius: Vec<CriuBinary> = names.split(':').filter_map(|path| CriuBinary::at(path).ok()).collect();
    let python = std::process::Command::new("python3").arg("--version").output().is_ok();
    let why = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if crius.is_empty() {
        "no criu"
    } else if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "no cgroup v2"
    } else if !python {
        "no python3"
    } else {
        return crius;
    };
    skip(test, why);
    Vec::new()
}

fn skip(test: &str, why: &str) {
    assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "{test} cannot run: {why}");
    println!("SKIPPED {test}: {why}");
}

/// Dumps and checks that the tree is still frozen.
fn dump(ladder: &mut Ladder, criu: &CriuBinary, tree: &tree::Tree, options: DumpOptions) -> PagelessReport {
    let result = ladder.dump(criu, options, &mut |_| NotifyAnswer::Continue);
    let report = result.unwrap_or_else(|error| panic!("{error}"));
    assert!(tree.frozen(), "left as it was");
    report
}

/// A ladder that begins with just this rung.
fn ladder(criu: &CriuBinary, tree: &tree::Tree, own_mounts: bool, rung: Rung) -> Ladder {
    let ladder = Ladder::prepare(criu, &tree.dir.join("ladder"), own_mounts, Some(rung), false).unwrap();
    assert_eq!(ladder.rung(), rung, "{:?}", ladder.missing());
    ladder
}

/// The rung below those of the library for a tree in our mount namespace.
fn below_the_library() -> Rung {
    if binary::soft_dirty_works().unwrap() { Rung::FakeParent } else { Rung::PageServer }
}
