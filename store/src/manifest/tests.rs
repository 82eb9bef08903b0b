//! Manifests of any kind, there and back; and those that break a rule.

use super::*;
use godwit_transfer::tree::Xattr;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn meta() -> impl Strategy<Value = Meta> {
    let xattrs = btree_map(vec(1u8.., 1..9), vec(any::<u8>(), 0..9), 0..3);
    (any::<(u32, u32)>(), 0u32..0o10000, any::<i64>(), 0u32..1_000_000_000, xattrs).prop_map(
        |((uid, gid), mode, mtime_s, mtime_ns, xattrs)| Meta {
            uid,
            gid,
            mode,
            mtime_s,
            mtime_ns,
            xattrs: xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect(),
        },
    )
}

fn file() -> impl Strategy<Value = Node> {
    let pieces = vec((0u64..1 << 40, 1u32..1 << 18, digest()), 0..5);
    let pieces = (meta(), pieces, 0u64..1 << 40).prop_map(|(meta, pieces, tail)| {
        let pieces: Vec<Piece> =
            pieces.into_iter().map(|(gap, len, chunk)| Piece { gap, len, chunk }).collect();
        let size = pieces.iter().map(|piece| piece.gap + u64::from(piece.len)).sum::<u64>() + tail;
        Node::File { meta, size, content: Content::Pieces(pieces) }
    });
    let groups = btree_map(0u64..1 << 46, (1u64.., any::<u64>(), digest()), 0..5);
    let pages = (meta(), groups).prop_map(|(meta, groups)| {
        let group = |(number, (present, filled, chunk))| {
            let filled = filled & present;
            PageGroup { number, present, filled, chunk: Some(chunk).filter(|_| filled != 0) }
        };
        let groups: Vec<PageGroup> = groups.into_iter().map(group).collect();
        let size =
            groups.iter().map(|group| u64::from(group.present.count_ones())).sum::<u64>() * PAGE as u64;
        Node::File { meta, size, content: Content::Pages(groups) }
    });
    prop_oneof![pieces, pages]
}

fn leaf() -> impl Strategy<Value = Node> {
    prop_oneof![
        file(),
        (meta(), vec(1u8.., 1..20)).prop_map(|(meta, to)| Node::Symlink { meta, to }),
        meta().prop_map(|meta| Node::Fifo { meta }),
        (meta(), any::<bool>(), any::<(u32, u32)>()).prop_map(|(meta, block, (major, minor))| Node::Device {
            meta,
            block,
            major,
            minor
        }),
    ]
}

fn tree() -> impl Strategy<Value = Manifest> {
    let names = || btree_map("[a-c]{1,2}", leaf(), 0..4);
    (meta(), names(), btree_map("[d-f]{1,2}", (meta(), names()), 0..4), any::<bool>()).prop_map(
        |(root, leaves, directories, linked)| {
            let mut nodes = BTreeMap::from([(TreePath::root(), Node::Dir { meta: root })]);
            let at = |text: &str| TreePath::new(text.as_bytes()).unwrap();
            let first = leaves.keys().next().map(|name| at(name));
            nodes.extend(leaves.into_iter().map(|(name, node)| (at(&name), node)));
            for (name, (meta, leaves)) in directories {
                nodes.insert(at(&name), Node::Dir { meta });
                nodes.extend(leaves.into_iter().map(|(leaf, node)| (at(&format!("{name}/{leaf}")), node)));
            }
            if let Some(to) = first.filter(|_| linked) {
                nodes.insert(at("z"), Node::Link { to });
            }
            Manifest::Tree(Tree {
                entries: nodes.into_iter().map(|(path, node)| Entry { path, node }).collect(),
            })
        },
    )
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let checkpoint = (digest(), btree_map(".{0,9}", ".{0,9}", 0..4))
        .prop_map(|(tree, facts)| Manifest::Described(Described { tree, facts }));
    prop_oneof![4 => tree(), 1 => checkpoint]
}

proptest! {
    #[test]
    fn back_as_it_was(manifest in manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes), Ok(manifest));
    }

    #[test]
    fn nothing_has_two_encodings(manifest in manifest(), at: usize, value: u8) {
        let mut bytes = manifest.encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(other) = Manifest::decode(&bytes) {
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn a_cut_one_is_none(manifest in manifest(), at: usize) {
        let bytes = manifest.encode().unwrap();
        prop_assert!(Manifest::decode(&bytes[..at % bytes.len()]).is_err());
        prop_assert!(Manifest::decode(&[bytes, vec![0]].concat()).is_err());
    }
}

fn entry(path: &str, node: Node) -> Entry {
    Entry { path: TreePath::new(path.as_bytes()).unwrap(), node }
}

fn directory() -> Node {
    Node::Dir { meta: Meta::default() }
}

fn pieces(size: u64, pieces: Vec<Piece>) -> Node {
    Node::File { meta: Meta::default(), size, content: Content::Pieces(pieces) }
}

fn pages(size: u64, groups: Vec<PageGroup>) -> Node {
    Node::File { meta: Meta::default(), size, content: Content::Pages(groups) }
}

fn link(to: &str) -> Node {
    Node::Link { to: TreePath::new(to.as_bytes()).unwrap() }
}

#[test]
fn each_rule_is_kept() {
    let symlink = || Node::Symlink { meta: Meta::default(), to: b"/etc".to_vec() };
    let chunk = Digest::of(b"x");
    let piece = |gap, len| Piece { gap, len, chunk };
    let group = |number, present, filled, chunk| PageGroup { number, present, filled, chunk };
    let wrong: Vec<(&str, Vec<Entry>)> = vec![
        ("a root that is a file", vec![entry("", pieces(0, vec![]))]),
        ("two roots", vec![entry("a", pieces(0, vec![])), entry("b", pieces(0, vec![]))]),
        ("a directory without its root", vec![entry("a", directory())]),
        ("order", vec![entry("", directory()), entry("b", directory()), entry("a", directory())]),
        ("twice", vec![entry("", directory()), entry("a", directory()), entry("a", directory())]),
        ("through a link", vec![entry("", directory()), entry("a", symlink()), entry("a/b", symlink())]),
        ("no parent", vec![entry("", directory()), entry("a/b", symlink())]),
        ("link to nothing", vec![entry("", directory()), entry("a", link("b"))]),
        ("link to itself", vec![entry("", directory()), entry("a", link("a"))]),
        (
            "link to what comes later",
            vec![entry("", directory()), entry("a", link("b")), entry("b", symlink())],
        ),
        ("link to a directory", vec![entry("", directory()), entry("a", directory()), entry("b", link("a"))]),
        (
            "link to a link",
            vec![entry("", directory()), entry("a", symlink()), entry("b", link("a")), entry("c", link("b"))],
        ),
        ("beyond its end", vec![entry("", directory()), entry("a", pieces(9, vec![piece(5, 5)]))]),
        ("overflow", vec![entry("", directory()), entry("a", pieces(9, vec![piece(u64::MAX, 5)]))]),
        ("an empty piece", vec![entry("", directory()), entry("a", pieces(9, vec![piece(0, 0)]))]),
        ("a huge piece", vec![entry("", directory()), entry("a", pieces(1 << 30, vec![piece(0, 1 << 20)]))]),
        ("a huge file", vec![entry("", directory()), entry("a", pieces(1 << 63, vec![]))]),
        (
            "pages of another size",
            vec![entry("", directory()), entry("a", pages(4096, vec![group(0, 3, 0, None)]))],
        ),
        ("no pages", vec![entry("", directory()), entry("a", pages(0, vec![group(0, 0, 0, None)]))]),
        (
            "filled and absent",
            vec![entry("", directory()), entry("a", pages(4096, vec![group(0, 1, 2, Some(chunk))]))],
        ),
        (
            "filled without bytes",
            vec![entry("", directory()), entry("a", pages(4096, vec![group(0, 1, 1, None)]))],
        ),
        (
            "bytes of none",
            vec![entry("", directory()), entry("a", pages(4096, vec![group(0, 1, 0, Some(chunk))]))],
        ),
        (
            "beyond memory",
            vec![entry("", directory()), entry("a", pages(4096, vec![group(1 << 46, 1, 0, None)]))],
        ),
        ("mode", vec![entry("", Node::Dir { meta: Meta { mode: 0o10000, ..Meta::default() } })]),
        ("time", vec![entry("", Node::Dir { meta: Meta { mtime_ns: 1_000_000_000, ..Meta::default() } })]),
    ];
    for (what, entries) in wrong {
        let manifest = Manifest::Tree(Tree { entries });
        assert!(manifest.encode().is_err(), "{what}");
        assert!(Manifest::decode(&manifest.to_bytes().unwrap()).is_err(), "{what}");
    }
    let unsorted = [b"b", b"a"].map(|name| Xattr { name: name.to_vec(), value: vec![] }).to_vec();
    let meta = Meta { xattrs: unsorted, ..Meta::default() };
    assert!(Manifest::Tree(Tree { entries: vec![entry("", Node::Dir { meta })] }).encode().is_err());
}
