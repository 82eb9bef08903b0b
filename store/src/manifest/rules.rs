//! What every manifest keeps to, so that nobody who reads one has to ask again.

use std::collections::HashMap;

use godwit_transfer::tree::{Meta, TreePath};

use super::{Content, Entry, GROUP_PAGES, Manifest, Node, PAGE, PageGroup, Piece, Tree};
use crate::object::MAX_CHUNK;

/// Groups that 64 bits of address have.
const GROUPS: u64 = u64::MAX / (PAGE as u64 * GROUP_PAGES) + 1;
/// Longest fact, and the most of them.
const FACT: usize = 4096;
const FACTS: usize = 64;

impl Manifest {
    /// Which rule it breaks.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Manifest::Tree(tree) => tree.check(),
            Manifest::Described(described) => {
                let long = |text: &String| text.len() > FACT;
                let is_long = described.facts.iter().any(|(name, value)| long(name) || long(value));
                if is_long || described.facts.len() > FACTS {
                    return Err("it has facts that are too long, or too many".into());
                }
                Ok(())
            }
        }
    }
}

impl Tree {
    fn check(&self) -> Result<(), String> {
        // what each path that was met is: a directory, something else, or another name
        let mut met: HashMap<&TreePath, Met> = HashMap::with_capacity(self.entries.len().min(1 << 16));
        let rooted = self.entries.first().is_some_and(|first| first.path.is_root());
        if !rooted && self.entries.len() > 1 {
            return Err("it has several entries and no root".into());
        }
        let mut last: Option<&TreePath> = None;
        for Entry { path, node } in &self.entries {
            let refuse = |why: &str| Err(format!("`{path}` {why}"));
            if last.is_some_and(|last| last >= path) {
                return refuse("is not in its place in the order of paths");
            }
            last = Some(path);
            if path.is_root() != matches!(node, Node::Dir { .. }) && (path.is_root() || !rooted) {
                return refuse("cannot be the root of a tree");
            }
            if rooted && !path.is_root() && met.get(&path.parent()) != Some(&Met::Dir) {
                return refuse("is in what is no directory");
            }
            if !rooted && path.as_bytes().contains(&b'/') {
                return refuse("is in no directory");
            }
            met.insert(path, if matches!(node, Node::Dir { .. }) { Met::Dir } else { Met::Other });
            if let Node::Link { to } = node {
                met.insert(path, Met::Link);
                if met.get(to) != Some(&Met::Other) {
                    return refuse("is another name of what is not there");
                }
            }
            node.check().or_else(refuse)?;
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Met {
    Dir,
    Other,
    Link,
}

impl Node {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Node::Dir { meta } | Node::Fifo { meta } | Node::Device { meta, .. } => check_meta(meta),
            Node::Symlink { meta, to } => {
                if to.is_empty() || to.len() > 4095 || to.contains(&0) {
                    return Err("points to what is no path");
                }
                check_meta(meta)
            }
            Node::File { meta, size, content } => {
                check_meta(meta)?;
                if *size > i64::MAX as u64 {
                    return Err("is larger than a file can be");
                }
                match content {
                    Content::Pieces(pieces) => check_pieces(pieces, *size),
                    Content::Pages(groups) => check_groups(groups, *size),
                }
            }
            Node::Link { .. } => Ok(()),
        }
    }
}

fn check_meta(meta: &Meta) -> Result<(), &'static str> {
    if meta.mode > 0o7777 || meta.mtime_ns >= 1_000_000_000 {
        return Err("has a mode or a time that there cannot be");
    }
    let name = |name: &[u8]| !name.is_empty() && name.len() <= 255 && !name.contains(&0);
    if meta.xattrs.iter().any(|xattr| !name(&xattr.name) || xattr.value.len() > 65536) {
        return Err("has an attribute that there cannot be");
    }
    if meta.xattrs.windows(2).any(|pair| pair[0].name >= pair[1].name) {
        return Err("has attributes that are not in the order of their names");
    }
    Ok(())
}

fn check_pieces(pieces: &[Piece], size: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    for piece in pieces {
        if piece.len == 0 || piece.len as usize > MAX_CHUNK {
            return Err("has a piece of a size that there cannot be");
        }
        end = end
            .checked_add(piece.gap)
            .and_then(|end| end.checked_add(piece.len.into()))
            .filter(|end| *end <= size)
            .ok_or("has a piece beyond its end")?;
    }
    Ok(())
}

fn check_groups(groups: &[PageGroup], size: u64) -> Result<(), &'static str> {
    if groups.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err("has pages that are not in the order of their addresses");
    }
    let mut pages = 0u64;
    for group in groups {
        if group.number >= GROUPS || group.present == 0 || group.filled & !group.present != 0 {
            return Err("has a group of pages that there cannot be");
        }
        if (group.filled == 0) != group.chunk.is_none() {
            return Err("has pages without bytes, or bytes without pages");
        }
        pages += u64::from(group.present.count_ones());
    }
    if pages * PAGE as u64 != size {
        return Err("has another size than its pages");
    }
    Ok(())
}
