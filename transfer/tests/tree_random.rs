//! Random changes with rounds between them.

#![allow(clippy::unwrap_used)]

mod trees;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_transfer::tree::TreeOp;
use proptest::prelude::*;
use trees::{Pair, bash, can_run, noise, settle};

/// A change to one of a few paths, so that changes meet.
#[derive(Debug, Clone)]
enum Change {
    Write { at: u8, len: u32, offset: u32, seed: u8 },
    Truncate { at: u8, len: u32 },
    Dir { at: u8 },
    Symlink { at: u8, to: u8 },
    Fifo { at: u8 },
    Link { at: u8, to: u8 },
    Rename { at: u8, to: u8 },
    Remove { at: u8 },
    Mode { at: u8, mode: u16 },
    Owner { at: u8, id: u8 },
    Time { at: u8, s: u32 },
    Attribute { at: u8, value: Option<u8> },
    Acl { at: u8, id: u8 },
    Round,
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0u8..28;
    let len = prop_oneof![0u32..10, 4090u32..4100, 0u32..100_000, 8_388_600u32..8_388_620];
    prop_oneof![
        6 => (at(), len.clone(), prop_oneof![Just(0), 0u32..9_000_000], 0u8..4)
            .prop_map(|(at, len, offset, seed)| Change::Write { at, len, offset, seed }),
        2 => (at(), len).prop_map(|(at, len)| Change::Truncate { at, len }),
        5 => at().prop_map(|at| Change::Dir { at }),
        1 => (at(), at()).prop_map(|(at, to)| Change::Symlink { at, to }),
        1 => at().prop_map(|at| Change::Fifo { at }),
        4 => (at(), at()).prop_map(|(at, to)| Change::Link { at, to }),
        6 => (at(), at()).prop_map(|(at, to)| Change::Rename { at, to }),
        3 => at().prop_map(|at| Change::Remove { at }),
        1 => (at(), 0u16..0o10000).prop_map(|(at, mode)| Change::Mode { at, mode }),
        1 => (at(), 0u8..9).prop_map(|(at, id)| Change::Owner { at, id }),
        1 => (at(), any::<u32>()).prop_map(|(at, s)| Change::Time { at, s }),
        1 => (at(), prop::option::of(0u8..3)).prop_map(|(at, value)| Change::Attribute { at, value }),
        1 => (at(), 1u8..3).prop_map(|(at, id)| Change::Acl { at, id }),
        5 => Just(Change::Round),
    ]
}

/// Four names at the root, and four in each of three of them, and four in each of three of the first of those.
fn path(root: &Path, at: u8) -> PathBuf {
    let names = ["a", "a-b", "b", "c"];
    match at {
        0..4 => root.join(names[at as usize]),
        4..16 => root.join(names[(at as usize - 4) / 4]).join(names[at as usize % 4]),
        _ => root.join("a").join(names[(at as usize - 16) / 4 % 3]).join(names[at as usize % 4]),
    }
}

/// Carries out a change; one that cannot be is none.
fn carry_out(root: &Path, change: &Change) {
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
    let is_none = |path: &Path| path.symlink_metadata().is_err();
    let run = |program: &str, args: &[&str], path: &Path| {
        Command::new(program).args(args).arg(path).output().unwrap();
    };
    match *change {
        Change::Write { at, len, offset, seed } => {
            let path = path(root, at);
            if is_file(&path) || is_none(&path) {
                let opened = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
                if let Ok(mut file) = opened {
                    // Seed 0 writes zeros.
                    let bytes =
                        if seed == 0 { vec![0; len as usize] } else { noise(len as usize, seed.into()) };
                    file.seek(SeekFrom::Start(offset.into())).unwrap();
                    file.write_all(&bytes).unwrap();
                }
            }
        }
        Change::Truncate { at, len } => {
            let path = path(root, at);
            if is_file(&path) {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len.into()).unwrap();
            }
        }
        Change::Dir { at } => drop(fs::create_dir(path(root, at))),
        Change::Symlink { at, to } => drop(symlink(format!("../x{to}"), path(root, at))),
        Change::Fifo { at } => {
            let _ = nix::unistd::mkfifo(&path(root, at), nix::sys::stat::Mode::S_IRUSR);
        }
        Change::Link { at, to } => drop(fs::hard_link(path(root, to), path(root, at))),
        Change::Rename { at, to } => drop(fs::rename(path(root, at), path(root, to))),
        Change::Remove { at } => {
            let path = path(root, at);
            drop(fs::remove_file(&path));
            drop(fs::remove_dir_all(&path));
        }
        Change::Mode { at, mode } => {
            let path = path(root, at);
            if path.symlink_metadata().is_ok_and(|m| !m.is_symlink()) {
                fs::set_permissions(path, fs::Permissions::from_mode(mode.into())).unwrap();
            }
        }
        Change::Owner { at, id } => {
            let path = path(root, at);
            if path.symlink_metadata().is_ok_and(|m| !m.is_symlink()) {
                chown(path, Some(id.into()), Some((id / 2).into())).unwrap();
            }
        }
        Change::Time { at, s } => {
            run("touch", &["-h", "-c", "-d", &format!("@{s}.123456789")], &path(root, at))
        }
        Change::Attribute { at, value } => {
            let path = path(root, at);
            match value {
                Some(value) => run("setfattr", &["-h", "-n", "trusted.x", "-v", &value.to_string()], &path),
                None => run("setfattr", &["-h", "-x", "trusted.x"], &path),
            }
        }
        Change::Acl { at, id } => run("setfacl", &["-P", "-m", &format!("u:{id}:rw")], &path(root, at)),
        Change::Round => {}
    }
}

fn check(mut pair: Pair, changes: &[Change]) {
    for change in changes {
        carry_out(&pair.from(), change);
        if matches!(change, Change::Round) {
            pair.round();
            pair.assert_index("after a round");
        }
    }
    pair.round();
    pair.assert_equal("at the end");
    let (_, ops) = pair.round();
    assert!(matches!(ops[..], [TreeOp::RoundEnd { .. }]), "a quiet round emits {ops:?}");
    settle();
    pair.round();
    let (stats, _) = pair.round();
    assert_eq!((stats.files_read, stats.ops), (0, 1), "a settled tree is not read");
    let entries: u64 = bash(&pair.from(), "find . | wc -l").trim().parse().unwrap();
    assert_eq!(stats.entries, entries, "of what is gone nothing is kept");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn rounds_make_equal(changes in prop::collection::vec(change(), 1..60)) {
        if can_run() {
            check(Pair::new(), &changes);
        }
    }

    #[test]
    fn rounds_that_look_at_what_the_kernel_names_make_equal(changes in prop::collection::vec(change(), 1..60)) {
        if can_run() {
            check(Pair::watched(), &changes);
        }
    }
}
