//! Trees of one moment: what is changed while they are read, and when their writers are told to stand still, is in them.

use crate::ground::{add, assert_whole, bash, can_run, get, noise, open, rsync, scratch};
use godwit_store::{Files, Restless, StoreError, Writers};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tree with everything that the changes want.
const BEFORE: &str = "mkdir -p d/e g; echo 1 > a; ln a b; ln a d/c; echo two > d/two; ln -s a s; mkfifo p
    cp noise large; cp noise d/grows; cp noise shrinks; truncate -s 40M sparse; echo x > g/x; echo - > d-f; echo 0 > d0";

/// Each makes it another one, whichever was made before.
const CHANGES: &[&str] = &[
    "echo more >> a",
    "rm -f a",
    "mv -T d moved || mv moved d; touch moved d || true",
    "printf xyz | dd of=large bs=1 seek=9000000 conv=notrunc status=none",
    "head -c 5000000 noise >> large; cat noise >> d/grows || true",
    "truncate -s 12345 shrinks",
    "truncate -s 0 large; truncate -s 17000000 large; echo end >> large",
    "printf here | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none; fallocate -p -o 0 -l 8388608 large || true",
    "(printf insert; cat noise) > new; cat new > large; rm new",
    "chmod 600 b || true; touch -d @5 g; chown 7:8 s; setfattr -n user.x -v 1 shrinks",
    "rm -rf g; echo file > g || true; rm -f g/x",
    "rm -f s p; ln -s elsewhere s; mknod p c 1 3",
    "ln -f shrinks zz; ln -f shrinks 0; rm shrinks; cp noise shrinks",
    "mkdir -p n/n; mv b n/n/b || true; ln -f n/n/b first || true; echo in place > first",
    "rm -rf d; mkdir d; echo two > d/two; mkdir -p d/e",
    "for i in 1 2 3 4 5 6 7 8 9; do cp noise f$i; done; rm -rf large",
];

/// Writers that change the tree when they are looked at in the first rounds, and once more when they are told to stand still.
struct Scripts {
    at: PathBuf,
    meanwhile: Vec<&'static str>,
    last: &'static str,
    limit: Duration,
    stands: bool,
    went_on: u32,
    spoils: bool,
}

impl Scripts {
    fn new(at: &Path, meanwhile: &[&'static str], last: &'static str) -> Self {
        let (at, meanwhile) = (at.to_owned(), meanwhile.iter().rev().copied().collect());
        Self { at, meanwhile, last, limit: Duration::from_secs(60), stands: false, went_on: 0, spoils: false }
    }
}

impl Writers for Scripts {
    fn files(&mut self) -> Result<Files, Restless> {
        if !self.stands
            && let Some(script) = self.meanwhile.pop()
        {
            bash(&self.at, script);
        }
        Ok(Files::default())
    }

    fn stop(&mut self) -> Result<(), Restless> {
        bash(&self.at, self.last);
        self.stands = true;
        Ok(())
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn go_on(&mut self) -> Result<(), Restless> {
        self.went_on += 1;
        if self.spoils { Err("they did not stand still".into()) } else { Ok(()) }
    }
}

#[test]
fn what_is_changed_until_they_stand_still_is_in_it() {
    if !can_run(&["rsync", "setfattr", "bash"]) {
        return;
    }
    let dir = scratch();
    let store = open(dir.path());
    for (number, change) in CHANGES.iter().enumerate() {
        let last = CHANGES[(number + 7) % CHANGES.len()];
        let from = dir.path().join(format!("from-{number}"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(from.join("noise"), noise(7, (9 << 20) + 77)).unwrap();
        bash(&from, BEFORE);
        let what = format!("`{change}`, `{last}`");
        let mut writers = Scripts::new(&from, &["true", change], last);
        let mut lease = store.lease().unwrap();
        let (added, _) = lease.add_tree_of(&from, &mut writers, &mut |_| {}).expect(&what);
        assert_eq!((writers.stands, writers.went_on), (true, 1), "{what}");
        assert_eq!(
            added.manifest,
            add(&mut lease, &from),
            "{what}: a walk over what stands still finds the same"
        );
        let to = dir.path().join("to");
        get(&store, added.manifest, &to).expect(&what);
        assert_eq!(rsync(&from, &to), "", "{what}");
        std::fs::remove_dir_all(&to).unwrap();
        std::fs::remove_dir_all(&from).unwrap();
    }
    assert_whole(&store, "after all");
}

#[test]
fn they_go_on_whatever_happens() {
    if !can_run(&["bash"]) {
        return;
    }
    let dir = scratch();
    let store = open(dir.path());
    let from = dir.path().join("from");
    std::fs::create_dir_all(&from).unwrap();
    std::fs::write(from.join("noise"), noise(7, 1 << 20)).unwrap();
    let mut lease = store.lease().unwrap();
    let failed = |result: Result<_, StoreError>| matches!(result, Err(StoreError::Writers(_)));

    let mut writers = Scripts::new(&from, &[], "head -c 1000000 noise > more");
    writers.limit = Duration::ZERO;
    assert!(failed(lease.add_tree_of(&from, &mut writers, &mut |_| {})), "not for so long");
    assert_eq!(writers.went_on, 1);

    let mut writers = Scripts::new(&from, &[], "true");
    writers.spoils = true;
    assert!(failed(lease.add_tree_of(&from, &mut writers, &mut |_| {})), "not all the time");
    assert_eq!(writers.went_on, 1);

    let mut writers = Scripts::new(&from, &[], "rm -r ../from");
    // the directory is gone, of which an open descriptor still tells that it is empty
    let _ = lease.add_tree_of(&from, &mut writers, &mut |_| {});
    assert_eq!(writers.went_on, 1);
}
