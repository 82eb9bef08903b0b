//! In what two trees differ.

use godwit_store::manifest::{Entry, Node, Tree};
use godwit_transfer::tree::TreePath;
use std::cmp::Ordering;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other content, or is something else.
    Changed,
    /// Its content is the same; owner, mode, time or attributes are not.
    Described,
}

impl Change {
    /// One letter, as `diff` of container engines has: `A`, `D`, `C`; and `M` for what is only described otherwise.
    pub fn letter(self) -> char {
        match self {
            Change::Added => 'A',
            Change::Removed => 'D',
            Change::Changed => 'C',
            Change::Described => 'M',
        }
    }
}

/// What differs, in the order of paths.
pub fn difference(before: &Tree, after: &Tree) -> Vec<(TreePath, Change)> {
    let (mut old, mut new) = (before.entries.iter().peekable(), after.entries.iter().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.path.cmp(&other.path),
        };
        let one = if order == Ordering::Greater { None } else { old.next() };
        let other = if order == Ordering::Less { None } else { new.next() };
        changes.extend(match (one, other) {
            (Some(gone), None) => Some((gone.path.clone(), Change::Removed)),
            (None, Some(come)) => Some((come.path.clone(), Change::Added)),
            (Some(one), Some(other)) => change(one, other).map(|change| (other.path.clone(), change)),
            (None, None) => None,
        });
    }
}

fn change(one: &Entry, other: &Entry) -> Option<Change> {
    if one.node == other.node {
        return None;
    }
    let same = match (&one.node, &other.node) {
        (Node::Dir { .. }, Node::Dir { .. }) | (Node::Fifo { .. }, Node::Fifo { .. }) => true,
        (Node::File { size, content, .. }, Node::File { size: size_now, content: content_now, .. }) => {
            (size, content) == (size_now, content_now)
        }
        (Node::Symlink { to, .. }, Node::Symlink { to: to_now, .. }) => to == to_now,
        (
            Node::Device { block, major, minor, .. },
            Node::Device { block: block_now, major: major_now, minor: minor_now, .. },
        ) => (block, major, minor) == (block_now, major_now, minor_now),
        _ => false,
    };
    Some(if same { Change::Described } else { Change::Changed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, Node)]) -> Tree {
        let mut entries: Vec<Entry> = entries
            .iter()
            .map(|(path, node)| Entry { path: TreePath::new(path.as_bytes()).unwrap(), node: node.clone() })
            .collect();
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Tree { entries }
    }

    fn link(to: &str) -> Node {
        Node::Symlink { meta: Default::default(), to: to.into() }
    }

    #[test]
    fn what_came_went_and_changed_is_told_apart() {
        let meta = |mode| godwit_transfer::tree::Meta { mode, ..Default::default() };
        let before = tree(&[
            ("", Node::Dir { meta: meta(0o755) }),
            ("a", link("x")),
            ("b", link("x")),
            ("c", Node::Dir { meta: meta(0o755) }),
            ("e", Node::Fifo { meta: meta(0o600) }),
        ]);
        let after = tree(&[
            ("", Node::Dir { meta: meta(0o755) }),
            ("b", link("y")),
            ("c", Node::Dir { meta: meta(0o700) }),
            ("d", link("x")),
            ("e", link("x")),
        ]);
        let told: String = difference(&before, &after)
            .iter()
            .map(|(path, change)| format!("{}{path} ", change.letter()))
            .collect();
        assert_eq!(told, "Da Cb Mc Ad Ce ");
        assert_eq!(difference(&before, &before), []);
        assert_eq!(difference(&Tree::default(), &after).len(), 5);
    }
}
