//! Where the last round found what: with hints of what was changed since, the next one looks at those entries only.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::beneath::Beneath;
use super::entry::{FileType, InodeKey, Stat};
use super::scan::{Found, is_gone, names_in, open_directory};
use super::watch::{Number, Told};
use super::{TreeError, TreePath};

/// Directories that are kept open while entries are looked for.
const MOST_OPEN: usize = 128;

/// Every entry of the tree.
#[derive(Default)]
pub(super) struct Atlas {
    paths: BTreeMap<TreePath, InodeKey>,
    names: HashMap<Number, Vec<TreePath>>,
}

/// What a round has to look at.
pub(super) struct Part {
    /// With an entry all other names of what it is and was, the directories above it, and, if it is or was a directory and is no
    /// longer the same, all that is and was beneath it. So nothing outside has an inode in common with it.
    pub scope: BTreeSet<TreePath>,
    /// Those of the scope that there are, in the order of their paths.
    pub found: Vec<Found>,
}

fn number(key: &InodeKey) -> Number {
    (key.dev, key.ino)
}

impl Atlas {
    pub fn of(found: &[Found]) -> Self {
        let mut atlas = Self::default();
        found.iter().for_each(|entry| atlas.insert(entry));
        atlas
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// The inode that was found at a path.
    pub fn key(&self, path: &TreePath) -> Option<InodeKey> {
        self.paths.get(path).copied()
    }

    fn insert(&mut self, entry: &Found) {
        self.paths.insert(entry.path.clone(), entry.stat.key);
        self.names.entry(number(&entry.stat.key)).or_default().push(entry.path.clone());
    }

    /// Enters what a round has found of a scope.
    pub fn update(&mut self, scope: &BTreeSet<TreePath>, found: &[Found]) {
        for path in scope {
            let Some(key) = self.paths.remove(path) else { continue };
            if let Some(names) = self.names.get_mut(&number(&key)) {
                names.retain(|name| name != path);
                if names.is_empty() {
                    self.names.remove(&number(&key));
                }
            }
        }
        found.iter().for_each(|entry| self.insert(entry));
    }

    /// Looks at what was told of, and at the files in `also`.
    pub fn part(
        &self,
        tree: &Beneath,
        told: &Told,
        also: impl Iterator<Item = Number>,
    ) -> Result<Part, TreeError> {
        let mut search = Search {
            atlas: self,
            tree,
            pending: vec![TreePath::root()],
            scope: BTreeSet::new(),
            found: Vec::new(),
            directories: HashMap::new(),
        };
        let numbers: HashSet<Number> = told.inodes.iter().copied().chain(also).collect();
        numbers.iter().for_each(|number| search.add_names(number));
        for (directory, name) in &told.names {
            if let Some(directory) = self.names.get(directory).and_then(|names| names.first()) {
                search.pending.push(directory.join(name)?);
            }
        }
        while let Some(path) = search.pending.pop() {
            search.look_at(path)?;
        }
        let Search { scope, mut found, .. } = search;
        found.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(Part { scope, found })
    }
}

struct Search<'a> {
    atlas: &'a Atlas,
    tree: &'a Beneath,
    pending: Vec<TreePath>,
    scope: BTreeSet<TreePath>,
    found: Vec<Found>,
    /// Those that entries were looked for in; none where there is no such directory.
    directories: HashMap<TreePath, Option<OwnedFd>>,
}

impl Search<'_> {
    fn add_names(&mut self, number: &Number) {
        self.pending.extend(self.atlas.names.get(number).into_iter().flatten().cloned());
    }

    fn add_all_beneath(&mut self, path: &TreePath) {
        // what is beneath sorts behind `path/`, and `path-x` between the two
        let first = path.join(b"\x01").unwrap_or_else(|_| path.clone());
        let beneath =
            self.atlas.paths.range(first..).map(|(name, _)| name).take_while(|name| name.is_beneath(path));
        self.pending.extend(beneath.cloned());
    }

    fn look_at(&mut self, path: TreePath) -> Result<(), TreeError> {
        if !self.scope.insert(path.clone()) {
            return Ok(());
        }
        self.pending.push(path.parent());
        let before = self.atlas.key(&path);
        if let Some(before) = before {
            self.add_names(&number(&before));
        }
        let stat = self.stat(&path)?.filter(|stat| !stat.mount_root || stat.file_type == FileType::Dir);
        let is_same = stat.is_some_and(|stat| Some(stat.key) == before);
        if !is_same && before.is_some() {
            self.add_all_beneath(&path);
        }
        let Some(stat) = stat else { return Ok(()) };
        if !is_same {
            self.add_names(&number(&stat.key));
            if stat.file_type == FileType::Dir && !stat.mount_root {
                self.add_entries(&path)?;
            }
        }
        self.found.push(Found { path, stat });
        Ok(())
    }

    fn stat(&mut self, path: &TreePath) -> Result<Option<Stat>, TreeError> {
        let failed = |errno| TreeError::Io { act: "look at", path: path.clone(), errno };
        let Some((parent, name)) = path.split() else {
            let mut stat = Stat::of(self.tree.root(), c"").map_err(failed)?;
            stat.mount_root = false;
            return Ok(Some(stat));
        };
        let name = CString::new(name).unwrap_or_default();
        let directory = match self.directories.get(&parent) {
            Some(open) => open,
            None => {
                if self.directories.len() >= MOST_OPEN {
                    self.directories.clear();
                }
                let open = match self.tree.entry(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                    Ok(open) => Some(open),
                    Err(errno) if is_gone(errno) => None,
                    Err(errno) => return Err(failed(errno)),
                };
                self.directories.entry(parent).or_insert(open)
            }
        };
        let Some(directory) = directory else { return Ok(None) };
        match Stat::of(directory.as_fd(), &name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn add_entries(&mut self, directory: &TreePath) -> Result<(), TreeError> {
        let Some(mut open) = open_directory(self.tree, directory)? else { return Ok(()) };
        for name in names_in(&mut open, directory)? {
            self.pending.push(directory.join(name.to_bytes())?);
        }
        Ok(())
    }
}
