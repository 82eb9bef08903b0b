//! One round: walk, compare, emit.
//!
//! The order of a round: look at what changed; bring into safety the inodes that would lose their last name; take away
//! what is in the way or gone; make, link and fill; directories' metadata last, deepest first, since all before moves
//! their times.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::os::fd::AsFd;
use std::time::Instant;

use super::atlas::{Atlas, Part};
use super::entry::{FileType, InodeKey, read_link, read_xattrs};
use super::index::NodeId;
use super::plan::{Seen, assign, bare_kind, now};
use super::scan::{Found, is_gone, scan};
use super::source::{RoundError, RoundStats, TreeSource};
use super::{Kind, Meta, TreeError, TreeOp, TreePath};

/// A round under way.
pub(super) struct Round<'a, E> {
    pub source: &'a mut TreeSource,
    also: &'a HashSet<(u64, u64)>,
    emit: &'a mut dyn FnMut(TreeOp) -> Result<(), E>,
    pub stats: RoundStats,
    /// Directories of the destination that got, lost or changed an entry.
    touched: HashSet<TreePath>,
    /// The names, at the destination, of nodes that shall get another one.
    holders: HashMap<NodeId, BTreeSet<TreePath>>,
    /// Names that exist only within the round.
    stash: HashSet<TreePath>,
    /// What was looked at; none when that is all.
    scope: Option<BTreeSet<TreePath>>,
}

type Inodes = HashMap<InodeKey, Seen>;

impl<'a, E> Round<'a, E> {
    pub fn new(
        source: &'a mut TreeSource,
        also: &'a HashSet<(u64, u64)>,
        emit: &'a mut dyn FnMut(TreeOp) -> Result<(), E>,
        number: u32,
    ) -> Self {
        let stats = RoundStats { round: number, ..RoundStats::default() };
        Round {
            source,
            also,
            emit,
            stats,
            touched: HashSet::new(),
            holders: HashMap::new(),
            stash: HashSet::new(),
            scope: None,
        }
    }

    /// `part`: what is to be looked at, if it is not all.
    pub fn run(mut self, part: Option<Part>) -> Result<RoundStats, RoundError<E>> {
        let begin = Instant::now();
        let mut found = match (&mut self.source.layer, part) {
            (None, Some(part)) => {
                self.scope = Some(part.scope);
                part.found
            }
            (None, None) => {
                let to_clear = mem::take(&mut self.source.to_clear);
                self.clear(to_clear)?;
                scan(&self.source.tree)?
            }
            (Some(layer), _) => {
                let changes = layer.scan(&self.source.tree)?;
                self.clear(changes.to_clear)?;
                changes.found
            }
        };
        let root_only = self.source.options.root_only;
        found
            .retain(|entry| entry.stat.file_type != FileType::Socket && (!root_only || entry.path.is_root()));
        self.stats.walk = begin.elapsed();
        let mut inodes = self.observe(&mut found)?;
        self.stats.looked_at = found.len() as u64;
        assign(&found, &mut inodes, &self.source.index);
        self.rescue(&found, &inodes)?;
        self.remove(&found, &inodes)?;
        for entry in &found {
            if entry.stat.file_type == FileType::Dir {
                self.make_directory(&entry.path)?;
            } else if let Some(inode) = inodes.get_mut(&entry.stat.key) {
                self.place(&entry.path, inode)?;
            }
        }
        self.finish_directories(&found, &inodes)?;
        self.remember(&found, inodes);
        self.emit(TreeOp::RoundEnd { round: self.stats.round })?;
        Ok(self.stats)
    }

    /// Keeps what the next round begins with.
    fn remember(&mut self, found: &[Found], inodes: Inodes) {
        let source = &mut *self.source;
        let unfinished = |inode: &&Seen| !inode.done && inode.stat.file_type != FileType::Dir;
        source
            .unfinished
            .extend(inodes.values().filter(unfinished).map(|inode| (inode.stat.key.dev, inode.stat.key.ino)));
        match (&self.scope, &mut source.atlas) {
            (Some(scope), Some(atlas)) => {
                atlas.update(scope, found);
                source.seen.extend(inodes);
                self.stats.entries = atlas.len() as u64;
            }
            _ => {
                source.seen = inodes;
                source.atlas = source.is_watched().then(|| Atlas::of(found));
                self.stats.entries = found.len() as u64;
            }
        }
    }

    /// What was seen in the last round of all that is looked at in this one.
    fn seen_before(&mut self, found: &[Found]) -> Inodes {
        let (Some(scope), Some(atlas)) = (&self.scope, &self.source.atlas) else {
            self.source.unfinished.clear();
            return mem::take(&mut self.source.seen);
        };
        let keys =
            scope.iter().filter_map(|path| atlas.key(path)).chain(found.iter().map(|entry| entry.stat.key));
        let mut before = Inodes::new();
        for key in keys {
            before.extend(self.source.seen.remove_entry(&key));
            self.source.unfinished.remove(&(key.dev, key.ino));
        }
        before
    }

    /// The destination's names of all that is looked at, in their order.
    fn names(&self) -> Box<dyn Iterator<Item = (&TreePath, &NodeId)> + '_> {
        let all = &self.source.index.names;
        match &self.scope {
            None => Box::new(all.iter()),
            Some(scope) => Box::new(scope.iter().filter_map(|path| all.get_key_value(path))),
        }
    }

    pub fn emit(&mut self, op: TreeOp) -> Result<(), RoundError<E>> {
        self.stats.ops += 1;
        self.stats.bytes_sent += op.weight() as u64;
        (self.emit)(op).map_err(RoundError::Emit)
    }

    /// Takes away what a layer hides, or replaces by something else, of the layers below and of itself as it was.
    fn clear(&mut self, paths: Vec<TreePath>) -> Result<(), RoundError<E>> {
        for path in paths {
            self.emit(TreeOp::Remove { path: path.clone() })?;
            self.source.index.remove(&path);
            self.touched.insert(path.parent());
        }
        Ok(())
    }

    /// Looks at every inode that is new or has changed, save at files, which are read when their turn comes. Drops from
    /// `found` what is no longer there.
    fn observe(&mut self, found: &mut Vec<Found>) -> Result<Inodes, TreeError> {
        let mut before = self.seen_before(found);
        let mut inodes = Inodes::with_capacity(found.len());
        let mut gone: HashSet<TreePath> = HashSet::new();
        let mut failure = None;
        found.retain(|entry| {
            if failure.is_some() || (!gone.is_empty() && gone.contains(&entry.path.parent())) {
                gone.insert(entry.path.clone());
                return false;
            }
            if inodes.contains_key(&entry.stat.key) {
                return true;
            }
            match self.observe_one(entry, before.remove(&entry.stat.key)) {
                Ok(Some(inode)) => {
                    inodes.insert(entry.stat.key, inode);
                    true
                }
                Ok(None) => {
                    gone.insert(entry.path.clone());
                    false
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        });
        failure.map_or(Ok(inodes), Err)
    }

    fn observe_one(&self, entry: &Found, before: Option<Seen>) -> Result<Option<Seen>, TreeError> {
        let Found { path, stat } = entry;
        let id = before.as_ref().and_then(|seen| seen.id);
        if let Some(seen) = before
            && seen.settled
            && seen.done
            && seen.stat == *stat
        {
            return Ok(Some(Seen { known: true, done: false, ..seen }));
        }
        let mut kind = bare_kind(stat);
        let unread =
            |kind, meta| Seen { stat: *stat, settled: false, meta, kind, id, known: false, done: false };
        if stat.file_type == FileType::File || stat.mount_root {
            return Ok(Some(unread(kind, stat.meta(Vec::new()))));
        }
        let read_at = now();
        let (handle, stat) = match self.source.tree.handle(path) {
            Ok((_, now)) if now.key != stat.key || now.file_type != stat.file_type => return Ok(None),
            Ok(open) => open,
            Err(errno) if is_gone(errno) => return Ok(None),
            Err(errno) => return Err(TreeError::Io { act: "open", path: path.clone(), errno }),
        };
        let xattrs =
            read_xattrs(handle.as_fd()).map_err(TreeError::io("read the extended attributes of", path))?;
        if let Kind::Symlink(destination) = &mut kind {
            *destination = read_link(handle.as_fd()).map_err(TreeError::io("read the link", path))?;
        }
        let settled = stat.is_settled(read_at, self.source.options.racy_ms);
        Ok(Some(Seen { stat, settled, meta: stat.meta(xattrs), kind, id, known: false, done: false }))
    }

    /// Gives a node that would lose all its names, but is wanted elsewhere, a name of passage.
    fn rescue(&mut self, found: &[Found], inodes: &Inodes) -> Result<(), RoundError<E>> {
        let wanted = |entry: &Found| inodes.get(&entry.stat.key).and_then(|inode| inode.id);
        let displaced: HashSet<NodeId> = found
            .iter()
            .filter_map(|entry| wanted(entry).filter(|&id| self.source.index.id(&entry.path) != Some(id)))
            .collect();
        if displaced.is_empty() {
            return Ok(());
        }
        let names = self.names().filter(|(_, id)| displaced.contains(id));
        let names: Vec<(TreePath, NodeId)> = names.map(|(name, id)| (name.clone(), *id)).collect();
        for (name, id) in names {
            self.holders.entry(id).or_default().insert(name);
        }
        let stays = |name: &TreePath, id| {
            let at = found.binary_search_by(|entry| entry.path.cmp(name));
            at.is_ok_and(|at| wanted(&found[at]) == Some(id))
        };
        let in_danger: Vec<(NodeId, TreePath)> = self
            .holders
            .iter()
            .filter(|(id, names)| !names.iter().any(|name| stays(name, **id)))
            .filter_map(|(id, names)| Some((*id, names.first()?.clone())))
            .collect();
        let mut number = 0;
        for (id, from) in in_danger {
            let to = loop {
                let name = TreePath::new(format!(".godwit-{number}").as_bytes()).map_err(TreeError::from)?;
                number += 1;
                let free = found.binary_search_by(|entry| entry.path.cmp(&name)).is_err();
                if free && self.source.index.id(&name).is_none() {
                    break name;
                }
            };
            self.stash.insert(to.clone());
            self.rename(from, to, id)?;
        }
        Ok(())
    }

    fn rename(&mut self, from: TreePath, to: TreePath, id: NodeId) -> Result<(), RoundError<E>> {
        self.emit(TreeOp::Rename { from: from.clone(), to: to.clone() })?;
        // The new name first: a node without one would be forgotten.
        self.source.index.link(to.clone(), id);
        self.source.index.unlink(&from);
        if let Some(names) = self.holders.get_mut(&id) {
            names.remove(&from);
            names.insert(to.clone());
        }
        self.touched.insert(from.parent());
        self.touched.insert(to.parent());
        Ok(())
    }

    /// Takes away what is gone at the source or is in the way of something else.
    fn remove(&mut self, found: &[Found], inodes: &Inodes) -> Result<(), RoundError<E>> {
        let index = &self.source.index;
        let mut doomed = Vec::new();
        let mut going: HashSet<&TreePath> = HashSet::new();
        let mut rest = found;
        for (name, id) in self.names().filter(|(name, _)| !name.is_root() && !self.stash.contains(*name)) {
            while rest.first().is_some_and(|entry| entry.path < *name) {
                rest = &rest[1..];
            }
            let entry = rest.first().filter(|entry| entry.path == *name);
            let stays = entry.is_some_and(|entry| match entry.stat.file_type {
                FileType::Dir => index.is_dir(name),
                _ => inodes.get(&entry.stat.key).is_some_and(|inode| inode.id == Some(*id)),
            });
            if !going.is_empty() && going.contains(&name.parent()) {
                going.insert(name);
            } else if !stays {
                going.insert(name);
                doomed.push(name.clone());
            }
        }
        for path in doomed {
            self.emit(TreeOp::Remove { path: path.clone() })?;
            for (name, id) in self.source.index.remove(&path) {
                if let Some(names) = self.holders.get_mut(&id) {
                    names.remove(&name);
                }
            }
            self.touched.insert(path.parent());
        }
        Ok(())
    }

    fn new_id(&mut self) -> NodeId {
        self.source.next_id += 1;
        self.source.next_id - 1
    }

    /// Enters a new node in the index.
    pub fn add(&mut self, path: &TreePath, kind: Kind, meta: Meta) -> NodeId {
        let id = self.new_id();
        self.source.index.insert(path.clone(), id, kind, meta);
        self.touched.insert(path.parent());
        id
    }

    fn make_directory(&mut self, path: &TreePath) -> Result<(), RoundError<E>> {
        if self.source.index.is_dir(path) {
            return Ok(());
        }
        if !path.is_root() {
            self.emit(TreeOp::Dir { path: path.clone() })?;
        }
        self.add(path, Kind::Dir, Meta::default());
        self.touched.insert(path.clone());
        Ok(())
    }

    /// Brings one name of an inode that is no directory to the destination, and the inode with its first name.
    fn place(&mut self, path: &TreePath, inode: &mut Seen) -> Result<(), RoundError<E>> {
        if let Some(id) = inode.id {
            if self.source.index.id(path).is_none() {
                self.give_name(path, id)?;
            }
            if !inode.done {
                self.refresh(path, inode, id)?;
            }
            return Ok(());
        }
        let (at, meta) = (path.clone(), inode.meta.clone());
        let op = match &inode.kind {
            Kind::File(_) => {
                inode.id = self.send_file(path, inode, None)?;
                if let Some(id) = inode.id {
                    self.holders.entry(id).or_default().insert(at);
                }
                return Ok(());
            }
            Kind::Symlink(to) => TreeOp::Symlink { path: at, destination: to.clone(), meta },
            Kind::Fifo => TreeOp::Fifo { path: at, meta },
            &Kind::Device { block, major, minor } => TreeOp::Device { path: at, block, major, minor, meta },
            Kind::Dir | Kind::Socket => return Ok(()),
        };
        self.emit(op)?;
        let id = self.add(path, inode.kind.clone(), inode.meta.clone());
        self.holders.entry(id).or_default().insert(path.clone());
        inode.id = Some(id);
        inode.done = true;
        Ok(())
    }

    fn give_name(&mut self, path: &TreePath, id: NodeId) -> Result<(), RoundError<E>> {
        let Some(holder) = self.holders.get(&id).and_then(|names| names.first()).cloned() else {
            return Err(TreeError::Refused { path: path.clone(), why: "the index lost its inode" }.into());
        };
        if self.stash.remove(&holder) {
            return self.rename(holder, path.clone(), id);
        }
        self.emit(TreeOp::HardLink { path: path.clone(), to: holder })?;
        self.source.index.link(path.clone(), id);
        self.holders.entry(id).or_default().insert(path.clone());
        self.touched.insert(path.parent());
        Ok(())
    }

    /// Brings what an inode that the destination has holds now.
    fn refresh(&mut self, path: &TreePath, inode: &mut Seen, id: NodeId) -> Result<(), RoundError<E>> {
        if matches!(inode.kind, Kind::File(_)) {
            let key = inode.stat.key;
            if !inode.known || self.also.contains(&(key.dev, key.ino)) {
                self.send_file(path, inode, Some(id))?;
                return Ok(());
            }
        }
        self.set_meta(path, id, &inode.meta, false)?;
        inode.done = true;
        Ok(())
    }

    /// Emits metadata when the index has others, or when told to.
    pub fn set_meta(
        &mut self,
        path: &TreePath,
        id: NodeId,
        meta: &Meta,
        anyway: bool,
    ) -> Result<(), RoundError<E>> {
        let Some(node) = self.source.index.nodes.get_mut(&id) else { return Ok(()) };
        if !anyway && node.meta == *meta {
            return Ok(());
        }
        node.meta = meta.clone();
        self.emit(TreeOp::Meta { path: path.clone(), meta: meta.clone() })
    }

    fn finish_directories(&mut self, found: &[Found], inodes: &Inodes) -> Result<(), RoundError<E>> {
        for entry in found.iter().rev().filter(|entry| entry.stat.file_type == FileType::Dir) {
            let id = self.source.index.id(&entry.path);
            if let (Some(id), Some(inode)) = (id, inodes.get(&entry.stat.key)) {
                let anyway = self.touched.contains(&entry.path);
                self.set_meta(&entry.path, id, &inode.meta, anyway)?;
            }
        }
        Ok(())
    }
}
