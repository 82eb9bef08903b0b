//! Nasty trees: each synced into an empty directory, changed, synced again, and judged by rsync too.

#![allow(clippy::unwrap_used)]

mod trees;

use godwit_transfer::tree::{TreeOp, equal_digest};
use trees::{Pair, bash, can_run, scratch, settle};

struct Case {
    name: &'static str,
    before: &'static str,
    after: &'static str,
}

const CASES: &[Case] = &[
    Case { name: "empty", before: "true", after: "mkdir -p a/b/c; touch a/b/c/d" },
    Case {
        name: "root metadata",
        before: "chmod 1770 .; chown 5:6 .; setfattr -n user.x -v 1 .",
        after: "chmod 755 .; chown 0:0 .; setfattr -x user.x .; touch -d '2001-02-03 04:05:06.789' .",
    },
    Case {
        name: "modes and owners",
        before: "for m in 0 400 644 755 4755 2755 1777 6711; do echo $m >f$m; chown 1000:2000 f$m; chmod $m f$m; done
            mkdir d; chmod 3770 d; chown 7:8 d",
        after: "chmod 600 f4755; chown 0:0 f2755; chmod 2755 f2755; chmod 6755 d; echo more >>f6711; chmod 6711 f6711",
    },
    Case {
        name: "names of any bytes",
        before: r#"touch -- $'\xff\xfe' $'new\nline' ' ' '-rf' '*' "$(printf 'x%.0s' {1..255})"; mkdir $'d\x01' 'd d'; echo 1 >$'d\x01/\xc3'; echo 2 >'a-b'; mkdir a; echo 3 >a/b"#,
        after: r#"rm $'\xff\xfe'; mv $'d\x01' $'\x80'; echo 4 >>'a-b'; rm -r a; echo >'...'"#,
    },
    Case {
        name: "extended attributes and ACLs",
        before: "echo x >f; mkdir d; setfattr -n user.a -v 1 f; setfattr -n user.empty f; setfattr -n trusted.t -v 2 f
            setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 f
            setfattr -n user.big -v $(printf 'y%.0s' {1..3000}) d; setfacl -m u:1000:rwx,g:5:r f
            setfacl -d -m u:1001:rx d; setfacl -m u:1001:x d; touch d/inherits; mkdir d/sub",
        after: "setfattr -n user.a -v changed f; setfattr -x user.empty f; setfattr -x trusted.t f; setfacl -m u:1000:r f
            setfacl -k d; setfacl -b d/inherits; echo more >>d/sub/new; setfattr -x user.big d",
    },
    Case {
        name: "capability kept when contents change",
        before: "echo x >f; chown 1:1 f; chmod 6755 f
            setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 f",
        after: "echo yy >f; chmod 6755 f; setfattr -n security.capability -v 0x0100000200080000000000000000000000000000 f",
    },
    Case {
        name: "symbolic links",
        before: "ln -s /etc/passwd abs; ln -s ../../.. up; ln -s nowhere dangling; ln -s loop loop; mkdir d; ln -s d dir
            ln -s $'\\xff' bytes; chown -h 12:13 abs; touch -h -d '1999-01-01 00:00:00.123456789' abs
            setfattr -h -n trusted.x -v link abs",
        after: "ln -sfn elsewhere abs; rm up; ln -s up2 up; rm dir; mkdir dir; echo 1 >dir/f; chown -h 1:1 dangling
            rm loop; touch loop; setfattr -h -n trusted.y -v l bytes",
    },
    Case {
        name: "FIFOs and devices",
        before: "mkfifo p; mknod c c 1 3; mknod b b 7 4095; mknod white c 0 0; chmod 622 p; chown 3:4 c; mknod big c 4000 1048575",
        after: "rm p; mknod p c 5 5; rm c; mkfifo c; chmod 600 b; rm white; echo now a file >white; rm big; mknod big b 4000 1048575",
    },
    Case {
        name: "hard links",
        before: "echo 1 >a; ln a b; mkdir d; ln a d/c; echo 2 >x; ln x y; ln -s q s; ln s s2; mkfifo p; ln p p2; mknod w c 0 0; ln w w2",
        after: "rm b; echo 1 >b; echo more >>a; ln x z; rm x; ln d/c e; rm a; rm s; mv p q; ln w d/w3; rm w",
    },
    Case {
        name: "links that swap",
        before: "echo 1 >a; echo 2 >b; ln a a2; ln b b2",
        after: "ln -f b a2; ln -f a b2; mv a t; mv b a; mv t b",
    },
    Case {
        name: "a kind becomes another",
        before: "echo 1 >f2d; mkdir -p d2f/x/y; echo 2 >d2f/x/y/z; ln -s a l2f; echo 3 >f2l; mkdir d2l; touch d2l/1; mkfifo p2d; ln -s d2l l2d",
        after: "rm f2d; mkdir -p f2d/a/b; echo 9 >f2d/a/b/c; rm -r d2f; echo 8 >d2f; rm l2f; echo 7 >l2f; rm f2l; ln -s z f2l
            rm -r d2l; ln -s f2d d2l; rm p2d; mkdir p2d; rm l2d; mkdir l2d; touch l2d/x",
    },
    Case {
        name: "renames",
        before: "mkdir -p d/e; head -c 300000 /dev/urandom >d/e/big; head -c 100000 /dev/urandom >log; echo 1 >log.1; echo 2 >log.2
            head -c 50000 /dev/urandom >p; head -c 50000 /dev/urandom >q; mkdir dir; echo x >dir/x; head -c 9000 /dev/urandom >file",
        after: "mv d dd; mv log.2 log.3; mv log.1 log.2; mv log log.1; echo new >log; mv p t; mv q p; mv t q
            mv file t; mv dir file; mv t dir",
    },
    Case {
        name: "a directory's contents move out as it becomes a file",
        before: "mkdir -p d/e; head -c 20000 /dev/urandom >d/e/f",
        after: "mv d/e/f t; rm -r d; mv t d",
    },
    Case {
        name: "replaced by rename",
        before: "head -c 200000 /dev/urandom >conf; ln conf other",
        after: "cp conf new; echo tail >>new; mv new conf",
    },
    Case {
        name: "sizes at edges",
        before: "for n in 0 1 4095 4096 4097 8388607 8388608 8388609; do head -c $n /dev/urandom >f$n; done; cp f8388609 shrink; cp f8388609 zero; cp f1 grow",
        after: "for n in 0 1 4095 4096 4097 8388607 8388608 8388609; do echo more >>f$n; done
            truncate -s 5000 shrink; truncate -s 0 zero; truncate -s 20000000 grow; printf x | dd of=f8388609 conv=notrunc bs=1 seek=8388608 2>/dev/null",
    },
    Case {
        name: "shrinks and grows again between rounds",
        before: "head -c 20000000 /dev/urandom >a; head -c 20000000 /dev/urandom >b; head -c 9000 /dev/urandom >c",
        after: "truncate -s 5000 a; truncate -s 20000000 a; truncate -s 0 b; truncate -s 20000000 b; truncate -s 5000 c; truncate -s 9000 c",
    },
    Case {
        name: "sparse",
        before: "truncate -s 1G huge; printf x | dd of=huge conv=notrunc bs=1 seek=777777777 2>/dev/null; truncate -s 30M hole
            head -c 40M /dev/urandom >full; truncate -s 10M tail; echo data | dd of=tail conv=notrunc 2>/dev/null; truncate -s 8388608 one",
        after: "fallocate -p -o 1048576 -l 30000000 full; printf y | dd of=huge conv=notrunc bs=1 seek=1000 2>/dev/null; head -c 20M /dev/urandom >hole
            fallocate -p -o 0 -l 4096 tail; truncate -s 2G huge; truncate -s 9999999 one",
    },
    Case {
        name: "times",
        before: "touch -d '1969-12-31 12:00:00.5 UTC' a; touch -d '2038-01-20 UTC' b; mkdir d; touch d/x; touch -d '2000-01-01 00:00:00.000000001' d",
        after: "touch -d '2001-01-01' a; rm d/x; touch -d '2000-01-01 00:00:00.000000002' d; touch -h -d '2001-01-01' b",
    },
    Case {
        name: "contents changed behind the time's back",
        before: "echo aaaa >f; echo bbbb >g; touch -d '2000-01-01' f g",
        after: "echo cccc >f; touch -d '2000-01-01' f; echo dddd >t; touch -d '2000-01-01' t; mv t g",
    },
    Case {
        name: "deep",
        before: "p=; for i in $(seq 1 900); do p=${p}d$((i%10))/; done; mkdir -p $p; echo 1 >${p}f; mkdir -p keep",
        after: "mv d1/d2 keep/; rm -r d1; mkdir d1",
    },
    Case {
        name: "overlay upper directory",
        before: "mkdir -p opq red; setfattr -n trusted.overlay.opaque -v y opq; setfattr -n trusted.overlay.redirect -v /x red; mknod wh c 0 0",
        after: "setfattr -x trusted.overlay.opaque opq; rm wh",
    },
];

#[test]
fn nasty_trees() {
    if !can_run() {
        return;
    }
    for case in CASES {
        let mut pair = Pair::new();
        bash(&pair.from(), case.before);
        pair.round();
        pair.assert_equal(&format!("{}, round 0", case.name));
        bash(&pair.from(), case.after);
        pair.round();
        pair.assert_equal(&format!("{}, round 1", case.name));
        settle();
        for _ in 0..2 {
            let (stats, ops) = pair.round();
            assert!(matches!(ops[..], [TreeOp::RoundEnd { .. }]), "{}: a quiet round: {ops:?}", case.name);
            assert!(stats.files_sent == 0);
        }
        assert_eq!(pair.round().0.files_read, 0, "{}: settled files are not read again", case.name);
        // Back to an empty tree.
        bash(&pair.from(), "find . -mindepth 1 -delete");
        pair.round();
        pair.assert_equal(&format!("{}, emptied", case.name));
    }
}

/// Each tree over the remains of another, as of an earlier migration.
#[test]
fn nasty_trees_over_stale_copies() {
    if !can_run() {
        return;
    }
    for (stale, case) in CASES.iter().zip(CASES.iter().cycle().skip(1)) {
        for stale in [stale, case] {
            let mut pair = Pair::in_dir(scratch(), |to| {
                bash(to, stale.before);
                bash(to, "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\" || true");
            });
            bash(&pair.from(), case.before);
            bash(&pair.from(), case.after);
            pair.round();
            pair.assert_equal(&format!("{} over {}", case.name, stale.name));
        }
    }
}

#[test]
fn renames_move_no_data() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let case = CASES.iter().find(|case| case.name == "renames").unwrap();
    bash(&pair.from(), case.before);
    pair.round();
    settle();
    pair.round();
    bash(&pair.from(), case.after);
    let (stats, _) = pair.round();
    assert!(stats.bytes_sent < 100, "{} bytes travelled for renames", stats.bytes_sent);
    pair.assert_equal("renames");
}

#[test]
fn sparse_files_stay_sparse() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    let case = CASES.iter().find(|case| case.name == "sparse").unwrap();
    for script in [case.before, case.after] {
        bash(&pair.from(), script);
        bash(&pair.from(), "sync -f .");
        pair.round();
        pair.destination.sync().unwrap();
        for name in ["huge", "hole", "full", "tail", "one"] {
            let (from, to) = pair.blocks(name);
            // In 512-byte units; a file system may need another block of extents.
            assert!(to <= from + 16, "{name} has {to} blocks, {from} at the source");
        }
    }
}

/// Sixteen segments of four million hold something: what is zeros on both sides costs neither time nor room.
#[test]
fn enormous_sparse_files_are_cheap() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    bash(
        &pair.from(),
        "truncate -s 15T f; for i in $(seq 16); do printf $i | dd of=f conv=notrunc bs=1 seek=${i}00000000000 2>/dev/null; done",
    );
    for grown in ["true", "truncate -s 1T f", "truncate -s 15T f"] {
        bash(&pair.from(), grown);
        let (stats, ops) = pair.round();
        assert!(stats.total.as_secs() < 5 && ops.len() < 40, "{stats:?}");
        pair.assert_index(grown);
        assert_eq!(equal_digest(&pair.from()).unwrap(), equal_digest(&pair.to()).unwrap());
        bash(&pair.from(), "sync -f .");
        let (from, to) = pair.blocks("f");
        assert!(to <= from + 16, "{to} blocks, {from} at the source");
    }
}

#[test]
fn local_overlay_attributes_and_sockets_stay_behind() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    bash(
        &pair.from(),
        "mkdir d; for a in origin impure uuid opaque; do setfattr -n trusted.overlay.$a -v y d; done
        python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"",
    );
    pair.round();
    let kept = bash(&pair.to(), "getfattr -m- d; ls");
    assert!(kept.contains("trusted.overlay.opaque") && !kept.contains("origin"), "{kept}");
    assert!(!kept.contains("impure") && !kept.contains("uuid") && !kept.contains("sock"), "{kept}");
    assert!(pair.from().join("sock").exists());
}

#[test]
fn mounts_are_not_crossed() {
    if !can_run() {
        return;
    }
    let mut pair = Pair::new();
    bash(&pair.from(), "mkdir plain mnt; echo 1 >plain/f; echo 2 >mnt/hidden; mount --bind plain mnt");
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pair.round();
        bash(&pair.to(), "find mnt")
    }));
    bash(&pair.from(), "umount mnt");
    assert_eq!(found.unwrap(), "mnt\n", "a bind mount of the same file system shows as an empty directory");

    bash(
        &pair.to(),
        "mkdir -p elsewhere; echo precious >elsewhere/f; mkdir -p gone/inner; mount --bind elsewhere gone/inner",
    );
    let path = |bytes: &[u8]| godwit_transfer::tree::TreePath::new(bytes).unwrap();
    let refused = pair.destination.apply(TreeOp::Remove { path: path(b"gone") });
    let again = godwit_transfer::tree::TreeDestination::open(&pair.to())
        .unwrap()
        .apply(TreeOp::Dir { path: path(b"gone/inner/x") });
    let kept = pair.to().join("elsewhere/f").exists() && !pair.to().join("elsewhere/x").exists();
    bash(&pair.to(), "umount gone/inner");
    assert!(refused.is_err() && again.is_err() && kept, "{refused:?} {again:?}");
}
