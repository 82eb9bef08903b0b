use super::*;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

/// Mounting needs it; says so where there is none.
fn is_root() -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    if !is_root {
        assert!(std::env::var("GODWIT_REQUIRE").as_deref() != Ok("all"), "required: mounting needs root");
        let _ = writeln!(io::stderr(), "skipped: mounting needs root");
    }
    is_root
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(path))
}

#[test]
fn it_is_in_memory_for_root_alone_as_long_as_it_is_used() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let one = Staging::make(root.path(), 1 << 20).unwrap();
    let two = Staging::make(root.path(), 1 << 20).unwrap();
    let path = one.path();
    assert!(is_mounted(&path) && one.is_mounted_for(std::process::id() as i32).unwrap());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    std::fs::write(path.join("image"), vec![1; 1 << 20]).unwrap();
    assert!(
        std::fs::write(path.join("large"), vec![1; 1 << 27]).is_err(),
        "there is no more room than needed"
    );
    let borrower = root.path().join("migrations/id/images");
    one.lend(&borrower).unwrap();
    std::fs::create_dir_all(borrower.join("1")).unwrap();
    assert!(path.join("lent/1").is_dir());
    // others leave it alone
    clear(root.path()).unwrap();
    assert!(path.join("image").exists() && borrower.exists());
    // not even who looks into it keeps it
    let open = File::open(path.join("image")).unwrap();
    drop(one);
    assert!(!is_mounted(&path) && !path.exists() && !borrower.is_symlink() && is_mounted(&two.path()));
    assert!(!borrower.parent().unwrap().exists());
    drop((open, two));
    assert!(!place(root.path()).exists());
}

#[test]
fn what_the_dead_have_left_is_cleared() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dead = Staging::make(root.path(), 1 << 20).unwrap();
    let (path, borrower) = (dead.path(), root.path().join("migrations/id/images"));
    std::fs::create_dir_all(borrower.parent().unwrap()).unwrap();
    std::fs::write(borrower.with_file_name("journal"), "").unwrap();
    dead.lend(&borrower).unwrap();
    std::fs::write(path.join("image"), "secret").unwrap();
    // as the kernel unlocks when a process is killed
    let dead = std::mem::ManuallyDrop::new(dead);
    nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&*dead._lock)).unwrap();
    // and one that was killed before it had mounted
    std::fs::create_dir_all(place(root.path()).join("early/memory")).unwrap();
    clear(root.path()).unwrap();
    assert!(!is_mounted(&path) && !place(root.path()).exists() && !borrower.is_symlink());
    assert!(borrower.with_file_name("journal").exists(), "a journal stays");
    clear(root.path()).unwrap();
}
