//! Checkpoints that stay on disk: written by [`write`], brought back by moving [`Archived`] to this host's destination
//! half, as if it were a container that has been frozen for a long time.
//!
//! A checkpoint is a directory (0700):
//!
//! ```text
//! checkpoint.json   what it is: format, engine, name, recipe, network, trees
//! images/           CRIU's
//! trees/N/          the files of tree N; one file when the tree is one file
//! ```
//!
//! It is written under another name and renamed at the end: a directory of that name is complete.

use crate::dumper::{Circumstances, Dumped, Dumper, PagelessDumper};
use godwit_criu::{CriuError, DumpOptions};
use godwit_engine::network::NetworkState;
use godwit_engine::{EngineError, Facts, SourceContainer, Tree};
use godwit_migration::ownership::Presence;
use godwit_migration::plan::Carry;
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, Observer};
use godwit_transfer::message::TreeKind;
use godwit_transfer::tree::{Options, RoundError, TreeDestination, TreeError, TreeIndex, TreeSource};
use godwit_transfer::wire::HeldFrames;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The format of `checkpoint.json`.
const VERSION: u32 = 1;
const MANIFEST: &str = "checkpoint.json";

/// What `checkpoint.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    godwit_checkpoint: u32,
    engine: String,
    name: String,
    recipe: String,
    network: Option<NetworkState>,
    memory_bytes: u64,
    carry: Carry,
    trees: Vec<ManifestTree>,
    facts: godwit_transfer::HostFacts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ManifestTree {
    kind: TreeKind,
    path: PathBuf,
    single_file: bool,
    read_only: bool,
}

/// What checkpoint is wanted.
pub struct Order<'a> {
    /// The new directory.
    pub to: &'a Path,
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// What CRIU carries.
    pub carry: Carry,
    /// What this host is like.
    pub facts: godwit_transfer::HostFacts,
}

/// What writing a checkpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// How long the container stood still.
    #[serde(rename = "stopped_us", with = "godwit_migration::downtime::micros")]
    pub stopped: Duration,
    /// Bytes of memory in it.
    pub memory_bytes: u64,
    /// Bytes of files in it.
    pub file_bytes: u64,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The container, its runtime or the kernel.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The files.
    #[error("cannot copy `{}`", path.display())]
    Tree {
        /// Which tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The checkpoint's own files.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a checkpoint of this format.
    #[error("`{}` is not a checkpoint: {reason}", path.display())]
    NotOne {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Io { act, path, source }
}

fn make_private(path: &Path) -> Result<(), ArchiveError> {
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("make", path))
}

/// One tree on its way into the checkpoint.
struct Copying {
    tree: Tree,
    source: TreeSource,
    copy: TreeDestination,
}

impl Copying {
    fn open(tree: &Tree, into: &Path) -> Result<Self, ArchiveError> {
        make_private(into)?;
        let failed = |source| ArchiveError::Tree { path: tree.content.clone(), source };
        let source =
            TreeSource::new(&tree.content, TreeIndex::default(), Options::default()).map_err(failed)?;
        let copy = match tree.path.file_name() {
            Some(name) if tree.single_file => TreeDestination::open_file(&into.join(name)),
            _ => TreeDestination::open(into),
        };
        Ok(Self { tree: tree.clone(), source, copy: copy.map_err(failed)? })
    }

    fn round(&mut self, also: &HashSet<(u64, u64)>, cancel: &Cancel) -> Result<u64, ArchiveError> {
        let failed = |source| ArchiveError::Tree { path: self.tree.content.clone(), source };
        let copy = &mut self.copy;
        let stats = self.source.round(also, &mut |op| {
            if cancel.is_raised() { Err(ArchiveError::Interrupted) } else { copy.apply(op).map_err(failed) }
        });
        match stats {
            Ok(stats) => Ok(stats.bytes_sent),
            Err(RoundError::Tree(source)) => Err(failed(source)),
            Err(RoundError::Emit(error)) => Err(error),
        }
    }
}

/// Writes a checkpoint of a running container to the new directory `to`. With `leave_running` the container goes on,
/// else it ends and is removed, none of it having run since the checkpoint.
///
/// # Errors
/// When it could not be written: then the container runs, and nothing of the checkpoint is left.
pub fn write(
    mut container: Box<dyn SourceContainer>,
    criu: &dyn Dumper,
    order: &Order<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(Written, Vec<String>), Failure> {
    let Order { to, leave_running, .. } = *order;
    let name = format!("{}:{}", container.facts().engine, container.facts().name);
    let partial = to.with_file_name(format!(
        ".{}.partial",
        to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    ));
    let begun = Stillness::default();
    match write_partial(&mut *container, criu, order, &partial, observer, cancel, &begun) {
        Ok(mut written) => {
            if let Err(error) = std::fs::rename(&partial, to).and_then(|()| sync_parent(to)) {
                let failure = Failure::new(FailureKind::Failed, format!("cannot write `{}`", to.display()));
                return Err(go_on(&mut *container, &partial, failure.because_of(&error)));
            }
            let leftovers = if leave_running {
                let put_back = let_go(&mut *container);
                written.stopped = begun.so_far();
                put_back.err().into_iter().collect()
            } else {
                let mut leftovers = container
                    .disconnect()
                    .err()
                    .map(|error| error.to_string())
                    .into_iter()
                    .collect::<Vec<_>>();
                leftovers.extend(container.discard());
                leftovers
            };
            Ok((written, leftovers))
        }
        Err(error) => {
            let kind = match error {
                ArchiveError::Interrupted => FailureKind::Interrupted,
                _ => FailureKind::Failed,
            };
            let mut failure = Failure::new(kind, format!("could not checkpoint `{name}`")).because_of(&error);
            if let ArchiveError::Criu(error) = &error {
                failure.hints.extend(error.explanation().and_then(|explanation| explanation.hint.clone()));
            }
            Err(go_on(&mut *container, &partial, failure))
        }
    }
}

/// When the container was frozen.
#[derive(Default)]
struct Stillness(std::cell::Cell<Option<Instant>>);

impl Stillness {
    fn begin(&self) {
        self.0.set(Some(Instant::now()));
    }

    fn so_far(&self) -> Duration {
        self.0.get().map(|begun| begun.elapsed()).unwrap_or_default()
    }
}

fn write_partial(
    container: &mut dyn SourceContainer,
    criu: &dyn Dumper,
    order: &Order<'_>,
    partial: &Path,
    observer: &dyn Observer,
    cancel: &Cancel,
    stillness: &Stillness,
) -> Result<Written, ArchiveError> {
    make_private(partial)?;
    let trees_dir = partial.join("trees");
    make_private(&trees_dir)?;
    let trees = container.facts().trees.clone();
    let mut copies = Vec::new();
    for (number, tree) in trees.iter().enumerate() {
        copies.push(Copying::open(tree, &trees_dir.join(number.to_string()))?);
    }
    let mut file_bytes = 0;
    let also = container.mapped_files()?;
    for copy in &mut copies {
        observer.note(format!("copying {}", copy.tree.path.display()));
        file_bytes += copy.round(&also, cancel)?;
    }
    stillness.begin();
    container.lock_network()?;
    container.freeze()?;
    let also = container.mapped_files()?;
    for copy in copies.iter_mut().filter(|copy| !copy.tree.read_only) {
        file_bytes += copy.round(&also, cancel)?;
    }
    let images = partial.join("images");
    let mut options = container.dump_options(&images, &partial.join("work"));
    options.log_level = 2;
    let dumped = criu.dump(options)?;
    container.verify_frozen()?;
    container.complete_images(&images)?;
    write_manifest(container.facts(), order, partial)?;
    Ok(Written { stopped: stillness.so_far(), memory_bytes: dumped.memory_bytes, file_bytes })
}

fn write_manifest(facts: &Facts, order: &Order<'_>, dir: &Path) -> Result<(), ArchiveError> {
    let tree = |tree: &Tree| ManifestTree {
        kind: tree.kind,
        path: tree.path.clone(),
        single_file: tree.single_file,
        read_only: tree.read_only,
    };
    let manifest = Manifest {
        godwit_checkpoint: VERSION,
        engine: facts.engine.to_owned(),
        name: facts.name.clone(),
        recipe: facts.recipe.clone(),
        network: facts.network.clone(),
        memory_bytes: facts.memory_bytes,
        carry: order.carry,
        trees: facts.trees.iter().map(tree).collect(),
        facts: order.facts.clone(),
    };
    let path = dir.join(MANIFEST);
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|error| io_error("write", &path)(error.into()))?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| {
        io::Write::write_all(&mut file, &text)?;
        file.sync_all()
    })
    .map_err(io_error("write", &path))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

fn let_go(container: &mut dyn SourceContainer) -> Result<(), String> {
    let results =
        [container.reconnect(), container.unlock_network(), container.thaw(), container.leave_as_found()];
    let errors: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Undoes: the container goes on, the unfinished checkpoint goes.
fn go_on(container: &mut dyn SourceContainer, partial: &Path, mut failure: Failure) -> Failure {
    let put_back = let_go(container);
    if let Err(error) = std::fs::remove_dir_all(partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        failure = failure.because(format!("`{}` could not be removed: {error}", partial.display()));
    }
    match put_back {
        Ok(()) => failure.at(Disposition::RunningAtSource),
        Err(why) => {
            failure.kind = FailureKind::InDoubt;
            failure.because(why).at(Disposition::InDoubt)
        }
    }
}

/// A checkpoint on disk, in the shape of a container that stands still.
pub struct Archived {
    facts: Facts,
    /// What the host that wrote it was like.
    pub host: godwit_transfer::HostFacts,
    /// What CRIU carried.
    pub carry: Carry,
    images: PathBuf,
}

/// Opens a checkpoint.
///
/// # Errors
/// When there is none at `dir`, or it is not whole.
pub fn open(dir: &Path) -> Result<Archived, ArchiveError> {
    let path = dir.join(MANIFEST);
    let not_one = |reason: String| ArchiveError::NotOne { path: dir.to_owned(), reason };
    let text =
        std::fs::read(&path).map_err(|error| not_one(format!("`{MANIFEST}` cannot be read: {error}")))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| not_one(error.to_string()))?;
    if manifest.godwit_checkpoint != VERSION {
        return Err(not_one(format!("format {} is not known to this godwit", manifest.godwit_checkpoint)));
    }
    let engine = godwit_engine::by_kind(&manifest.engine).map(|engine| engine.kind());
    let engine = engine.ok_or_else(|| not_one(format!("its engine `{}` is not known", manifest.engine)))?;
    let tree = |(number, tree): (usize, ManifestTree)| {
        let mut content = dir.join("trees").join(number.to_string());
        if tree.single_file {
            content.extend(tree.path.file_name());
        }
        Tree {
            kind: tree.kind,
            path: tree.path,
            content,
            single_file: tree.single_file,
            read_only: tree.read_only,
        }
    };
    let facts = Facts {
        engine,
        name: manifest.name,
        pid: 0,
        memory_bytes: manifest.memory_bytes,
        trees: manifest.trees.into_iter().enumerate().map(tree).collect(),
        network: manifest.network,
        recipe: manifest.recipe,
        warnings: vec![],
    };
    Ok(Archived { facts, host: manifest.facts, carry: manifest.carry, images: dir.join("images") })
}

impl Archived {
    /// Its images as a dump that is quick: they are linked, not written.
    pub fn dumper(&self) -> ArchivedImages {
        ArchivedImages { images: self.images.clone() }
    }
}

/// Stands still already, and goes on standing still.
impl SourceContainer for Archived {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError> {
        Ok(BTreeSet::new())
    }

    fn has_own_mounts(&self) -> bool {
        true
    }

    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions {
        DumpOptions::new(0, images, work)
    }

    fn complete_images(&self, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        Ok(HashSet::new())
    }

    fn remains(&mut self) -> Result<String, EngineError> {
        Ok("{}".into())
    }

    fn presence(&self) -> Presence {
        Presence::Frozen
    }

    fn lock_network(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn unlock_network(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn verify_frozen(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn take_frames(&mut self) -> Vec<HeldFrames> {
        Vec::new()
    }

    fn disconnect(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn leave_as_found(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn discard(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// The images of a checkpoint, where a dump would be.
pub struct ArchivedImages {
    images: PathBuf,
}

impl Dumper for ArchivedImages {
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        let link = || -> io::Result<u64> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&options.images_dir)?;
            let mut bytes = 0;
            for entry in std::fs::read_dir(&self.images)? {
                let entry = entry?;
                let to = options.images_dir.join(entry.file_name());
                // another file system takes no link
                if std::fs::hard_link(entry.path(), &to).is_err() {
                    std::fs::copy(entry.path(), &to)?;
                }
                bytes += entry.metadata()?.len();
            }
            Ok(bytes)
        };
        let memory_bytes = link()
            .map_err(|source| CriuError::Io { what: format!("link `{}`", self.images.display()), source })?;
        Ok(Dumped { frozen: Duration::ZERO, memory_bytes })
    }

    fn pre_dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        self.dump(options)
    }

    /// What lies in a checkpoint has its pages with it.
    fn pageless(&self, _: &Path, _: Circumstances) -> Result<Box<dyn PagelessDumper>, CriuError> {
        let detail = "a checkpoint is not dumped again".to_owned();
        Err(CriuError::Protocol { operation: "dump without pages", detail })
    }
}
