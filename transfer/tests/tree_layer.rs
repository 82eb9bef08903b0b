//! The upper directory of a real overlay file system, brought to another one over the same lower directory: what a container
//! has changed of its image.

#![allow(clippy::unwrap_used)]

mod trees;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use godwit_transfer::tree::{Options, TreeDestination, TreeError, TreeOp, TreeSource, equal_digest};
use trees::{bash, can_run, scratch, settle};

/// What the image holds.
const IMAGE: &str = "mkdir -p etc usr/lib/kept usr/lib/again deep/er/est old/name; echo root >etc/passwd; echo x >usr/lib/kept/f
    echo x >usr/lib/again/lower; echo big >usr/big; ln -s passwd etc/link; echo d >deep/er/est/f; echo n >old/name/f
    echo 1 >hard; ln hard hard2; setfattr -n user.a -v 1 usr/big; chmod 600 usr/big; mkdir gone; echo g >gone/f; touch -d 2001-02-03 usr/big";

/// What a container does to it, and then once more.
const CASES: &[(&str, &str, &str)] = &[
    ("nothing", "true", "echo a >a"),
    (
        "new, changed and removed files",
        "echo new >new; echo more >>etc/passwd; rm usr/big; mkdir d; echo f >d/f",
        "rm new; echo again >usr/big; rm -r d; rm etc/link",
    ),
    (
        "a directory removed and made again",
        "rm -r usr/lib/again; mkdir usr/lib/again; echo only >usr/lib/again/only",
        "rm -r usr/lib/again; mkdir -p usr/lib/again/sub; echo 2 >usr/lib/again/sub/f",
    ),
    ("a directory removed", "rm -r gone deep", "mkdir gone; echo other >gone/other"),
    (
        "a directory becomes a file and a file a directory",
        "rm -r gone; echo file >gone; rm usr/big; mkdir usr/big",
        "rm gone; mkdir gone; rmdir usr/big; echo back >usr/big",
    ),
    (
        "a renamed directory",
        "mv old/name old/other; echo more >>old/other/f",
        "mv old/other new-name; rm new-name/f; echo x >new-name/x",
    ),
    (
        "metadata only",
        "chmod 640 usr/big; chown 5:6 etc/passwd; setfattr -n user.b -v 2 usr/big; touch -d 1999-01-01 etc",
        "setfattr -x user.a usr/big; chmod 700 usr/lib",
    ),
    ("hard links", "echo more >>hard; ln etc/passwd etc/passwd2", "rm hard2; ln hard h3; rm etc/passwd"),
    (
        "many whiteouts",
        "for i in 1 2 3; do echo $i >f$i; done; rm etc/passwd etc/link usr/lib/kept/f",
        "rm f1 f2; echo back >etc/passwd",
    ),
    ("devices and FIFOs", "mkfifo p; mknod c c 1 3; mknod white c 1 5", "rm p; echo x >p; rm c"),
];

/// Two overlays over one lower directory; unmounted in the end.
struct Overlays {
    dir: tempfile::TempDir,
}

impl Overlays {
    fn new(options: &str) -> Self {
        let dir = scratch();
        bash(dir.path(), &format!("mkdir lower; cd lower; {IMAGE}"));
        for side in ["a", "b"] {
            // what the destination's overlay can do does not matter
            let options = if side == "a" { options } else { "" };
            bash(
                dir.path(),
                &format!(
                    "mkdir -p {side}/upper {side}/work {side}/merged
                     mount -t overlay overlay -o lowerdir=lower,upperdir={side}/upper,workdir={side}/work{options} {side}/merged"
                ),
            );
        }
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        bash(self.dir.path(), "umount a/merged b/merged");
    }
}

fn round(source: &mut TreeSource, to: &Path) -> usize {
    let mut destination = TreeDestination::open(to).unwrap();
    let mut count = 0;
    source
        .round(&HashSet::new(), &mut |op: TreeOp| {
            count += 1;
            destination.apply(op)
        })
        .map_err(|error: godwit_transfer::tree::RoundError<TreeError>| error.to_string())
        .unwrap();
    count
}

#[test]
fn what_a_container_changed_of_its_image_is_changed_at_the_destination() {
    if !can_run() {
        return;
    }
    for options in ["", ",redirect_dir=on,metacopy=on"] {
        for (name, first, second) in CASES {
            let context = format!("{name}, options `{options}`");
            let overlays = Overlays::new(options);
            let (upper, from, to) =
                (overlays.at("a/upper"), overlays.at("a/merged"), overlays.at("b/merged"));
            let mut source = TreeSource::of_layer(&upper, &from, Options::default()).unwrap();
            for change in [first, second] {
                bash(&from, change);
                settle();
                round(&mut source, &to);
                assert_eq!(equal_digest(&from).unwrap(), equal_digest(&to).unwrap(), "{context}: {change}");
                // nothing to do is nothing but the end of the round
                assert_eq!(round(&mut source, &to), 1, "{context}: {change}");
            }
            // the other direction begins with what the first has left
            drop(source);
            assert_eq!(bash(&to, "find . | sort"), bash(&from, "find . | sort"), "{context}");
        }
    }
}

#[test]
fn the_destinations_layer_holds_no_more_than_the_sources() {
    if !can_run() {
        return;
    }
    let overlays = Overlays::new("");
    let (upper, from, to) = (overlays.at("a/upper"), overlays.at("a/merged"), overlays.at("b/merged"));
    bash(
        &from,
        "echo new >new; rm usr/big; rm -r usr/lib/again; mkdir usr/lib/again; echo 1 >usr/lib/again/1",
    );
    settle();
    round(&mut TreeSource::of_layer(&upper, &from, Options::default()).unwrap(), &to);
    let list =
        "find . -printf '%P %y\\n' | sort; getfattr -R -n trusted.overlay.opaque . 2> /dev/null | sort";
    assert_eq!(bash(&upper, list), bash(&overlays.at("b/upper"), list));
}

/// A checkpoint keeps what a layer has of its own in a directory, and the paths that it hides beside it.
#[test]
fn what_was_kept_of_a_layer_is_changed_where_it_is_restored() {
    if !can_run() {
        return;
    }
    for options in ["", ",redirect_dir=on,metacopy=on"] {
        for (name, first, second) in CASES {
            let context = format!("{name}, options `{options}`");
            let overlays = Overlays::new(options);
            let (upper, from, to) =
                (overlays.at("a/upper"), overlays.at("a/merged"), overlays.at("b/merged"));
            let kept = overlays.at("kept");
            std::fs::create_dir(&kept).unwrap();
            let mut source = TreeSource::of_layer(&upper, &from, Options::default()).unwrap();
            let mut copy = TreeDestination::open_changes(&kept).unwrap();
            for change in [first, second] {
                bash(&from, change);
                settle();
                let none = HashSet::new();
                let done = source.round(&none, &mut |op: TreeOp| copy.apply(op));
                done.map_err(|error| format!("{context}: {error}")).unwrap();
            }
            let mut source = TreeSource::of_changes(&kept, source.gone(), Options::default()).unwrap();
            round(&mut source, &to);
            assert_eq!(equal_digest(&from).unwrap(), equal_digest(&to).unwrap(), "{context}");
        }
    }
}
