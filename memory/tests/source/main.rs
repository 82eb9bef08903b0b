//! The source half against processes of its own: each test starts this program again as the process to follow.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod chaos;
mod child;
mod injection;
mod measure;
mod mirror;
mod reading;
mod rules;
mod shared;
mod shell;
mod soft_dirty;
mod special;
mod storm;
mod sys;

/// Not a test: what the other tests follow.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    match std::env::var("GODWIT_SOURCE_CHILD").as_deref() {
        Ok("shell") => shell::serve(),
        Ok(storm) if storm.starts_with("storm ") => storm::rage(&storm["storm ".len()..]),
        _ => {}
    }
}

/// Whether a test can run here. Says why not, and fails where everything is required.
fn possible(possible: bool, why: &str) -> bool {
    if !possible {
        assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "cannot run: {why}");
        eprintln!("skipped: {why}");
    }
    possible
}

/// Where files can be made, on a real disk: in a test host as it says, here below the build.
fn directory() -> std::path::PathBuf {
    std::env::var_os("GODWIT_TEST_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), Into::into)
}

/// Whether tracking by userfaultfd can be tested here.
fn tracks() -> bool {
    let probe = godwit_memory::source::Method::Uffd.probe();
    possible(nix::unistd::geteuid().is_root(), "needs root")
        && possible(probe.is_ok(), &format!("tracking by userfaultfd: {probe:?}"))
}
