//! The latest content of every page of a tree, gathered from pre-dump rounds as they arrive.
//!
//! A round's pages files are taken over as they are, without copying, and an extent map says for each page of each image
//! where it lies. What a later round supersedes is punched out of the older files, so the store never takes more room than
//! one full image. All that happens before the freeze. In the downtime remains [`PageStore::compose`]: CRIU wants the pages
//! of an image one after the other in one file, so
//! - when the oldest file still has its pages at their final positions (the usual case of a heap that only changes), just
//!   the others are written into it and it is renamed;
//! - else all pages are gathered into a new file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};

use super::extents::{Extents, Place, Run};
use super::file::{ImageError, create_private};
use super::flatten::{self, FlattenReport, PagesFile};
use super::pagemap::{PAGE_SIZE, Pagemap, is_pagemap_name};

/// The store. Its directory should be on the file system of the final images, or files are copied instead of renamed.
#[derive(Debug)]
pub struct PageStore {
    dir: Option<PathBuf>,
    rounds: u64,
    pub(super) files: Vec<PagesFile>,
    pub(super) images: BTreeMap<String, Extents>,
}

/// What a round brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbsorbReport {
    /// Pages the round brought.
    pub pages: u64,
    /// Older pages it made useless, whose room was given back.
    pub superseded_pages: u64,
    /// How long it took.
    pub wall: Duration,
}

impl PageStore {
    /// Makes an empty store in the new directory `dir`, mode 0700.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let dir = dir.into();
        DirBuilder::new().mode(0o700).create(&dir).map_err(ImageError::io("make", &dir))?;
        Ok(PageStore { dir: Some(dir), ..Self::in_place() })
    }

    /// A store that leaves the rounds' files where they are, and as they are.
    pub(super) fn in_place() -> Self {
        PageStore { dir: None, rounds: 0, files: Vec::new(), images: BTreeMap::new() }
    }

    /// Takes in the pages of one round. Rounds must come in their order; the round's pages files move into the store, its
    /// other files stay. After an error the store is useless.
    pub fn absorb(&mut self, round: &Path) -> Result<AbsorbReport, ImageError> {
        let started = Instant::now();
        self.rounds += 1;
        let mut report = AbsorbReport::default();
        let mut images = BTreeMap::new();
        for (name, map) in read_pagemaps(round)? {
            let pages_path = round.join(map.pages_name());
            let file = self.files.len();
            self.files.push(self.take_over(&pages_path, &map)?);
            report.pages += map.present_pages();
            let extents = resolve(&name, &map, file, self.images.get(&name))?;
            images.insert(name, extents);
        }
        // An image the round does not have belongs to a task or a segment that is gone.
        let before = std::mem::replace(&mut self.images, images);
        for (name, old) in &before {
            let none = Extents::default();
            let now = self.images.get(name).unwrap_or(&none);
            for run in old.without(now) {
                report.superseded_pages += run.pages;
                self.punch(&run);
            }
        }
        report.wall = started.elapsed();
        tracing::debug!(round = self.rounds, pages = report.pages, superseded = report.superseded_pages, wall = ?report.wall, "round absorbed");
        Ok(report)
    }

    /// Number of pages whose content the store has.
    pub fn pages(&self) -> u64 {
        self.images.values().flat_map(Extents::runs).map(|run| run.pages).sum()
    }

    /// Makes flat images of the final dump in `final_dir` in the new directory `out` (mode 0700): every page present, none in
    /// a parent, all other images hard-linked (or copied), no `parent` link. The store is used up and its directory removed.
    pub fn compose(self, final_dir: &Path, out: &Path) -> Result<FlattenReport, ImageError> {
        let dir = self.dir.clone();
        let report = flatten::compose(self, final_dir, out)?;
        if let Some(dir) = dir {
            std::fs::remove_dir_all(&dir).map_err(ImageError::io("remove", &dir))?;
        }
        Ok(report)
    }

    fn take_over(&self, pages: &Path, map: &Pagemap) -> Result<PagesFile, ImageError> {
        let Some(dir) = &self.dir else { return open_pages(pages, map, false) };
        let kept = dir.join(format!("{}-{}", self.rounds, map.pages_name()));
        if map.present_pages() == 0 {
            return Ok(PagesFile { file: create_private(&kept)?, path: kept, ours: true });
        }
        match std::fs::rename(pages, &kept) {
            Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
                let (mut from, mut to) =
                    (File::open(pages).map_err(ImageError::io("read", pages))?, create_private(&kept)?);
                std::io::copy(&mut from, &mut to).map_err(ImageError::io("write", &kept))?;
                std::fs::remove_file(pages).map_err(ImageError::io("remove", pages))?;
            }
            other => other.map_err(ImageError::io("move", pages))?,
        }
        open_pages(&kept, map, true)
    }

    /// Gives the room of a run back, where the file system can; it does no harm to keep it.
    fn punch(&self, run: &Run) {
        let Some(pages) = self.files.get(run.place.file).filter(|pages| pages.ours) else { return };
        let (Ok(offset), Ok(length)) =
            (i64::try_from(run.place.page * PAGE_SIZE), i64::try_from(run.pages * PAGE_SIZE))
        else {
            return;
        };
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Err(error) = fallocate(&pages.file, hole, offset, length) {
            tracing::debug!(%error, path = %pages.path.display(), "cannot punch a hole");
        }
    }
}

/// The pagemaps in a directory by name. Each has a pages file of its own: a shared one would be punched and renamed for
/// one image while the other still needs it.
pub(super) fn read_pagemaps(dir: &Path) -> Result<BTreeMap<String, Pagemap>, ImageError> {
    let mut maps = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
        let entry = entry.map_err(ImageError::io("list", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_pagemap_name(&name) {
            continue;
        }
        let map = Pagemap::read(&entry.path())?;
        if !ids.insert(map.pages_id) {
            return Err(ImageError::broken(&entry.path(), "another pagemap has the same pages file"));
        }
        maps.insert(name, map);
    }
    Ok(maps)
}

/// Opens the pages file of a pagemap and makes sure it is long enough.
pub(super) fn open_pages(path: &Path, map: &Pagemap, ours: bool) -> Result<PagesFile, ImageError> {
    let want = map.present_pages();
    if want == 0 && !path.exists() {
        // CRIU makes the file with the first page.
        let file = File::open("/dev/null").map_err(ImageError::io("read", Path::new("/dev/null")))?;
        return Ok(PagesFile { file, path: path.to_owned(), ours: false });
    }
    let file = File::options().read(true).write(ours).open(path).map_err(ImageError::io("read", path))?;
    let length = file.metadata().map_err(ImageError::io("read", path))?.len();
    if length / PAGE_SIZE < want {
        return Err(ImageError::broken(path, format!("{length} bytes instead of {want} pages")));
    }
    Ok(PagesFile { file, path: path.to_owned(), ours })
}

/// Where the pages of a pagemap lie: the present ones in file number `file`, the others where the round before has them.
pub(super) fn resolve(
    image: &str,
    map: &Pagemap,
    file: usize,
    before: Option<&Extents>,
) -> Result<Extents, ImageError> {
    let mut extents = Extents::default();
    let mut page = 0;
    for entry in &map.entries {
        if entry.present() {
            let place = Place { file, page };
            extents.append(Run { vaddr: entry.vaddr, pages: entry.nr_pages, lazy: entry.lazy(), place });
            page += entry.nr_pages;
        } else if entry.in_parent() {
            let missing = |vaddr| ImageError::MissingPage { image: image.to_owned(), vaddr };
            let before = before.ok_or_else(|| missing(entry.vaddr))?;
            before.resolve(entry.vaddr, entry.nr_pages, |run| extents.append(run)).map_err(missing)?;
        } else {
            // A lazy dump's page without content: its page server has it, a file cannot.
            return Err(ImageError::MissingPage { image: image.to_owned(), vaddr: entry.vaddr });
        }
    }
    Ok(extents)
}
