//! Checkpoints that stay on disk: written by [`write`], brought back by moving [`Archived`] to this host's destination
//! half, as if it were a container that has been frozen for a long time.
//!
//! A checkpoint is a directory (0700):
//!
//! ```text
//! checkpoint.json   what it is: format, engine, name, recipe, network, trees
//! digests.json      what each file of it was when it was written
//! images/           CRIU's
//! trees/N/          the files of tree N; one file when the tree is one file; of a layer what it has of its own
//! trees/N.gone      what a layer hides of its image
//! container-image/  the image, if it was asked for
//! ```
//!
//! One that shares content with an earlier one has less in it: [`crate::chain`].
//!
//! It is written under another name and renamed at the end: a directory of that name is complete. Or it is one file:
//! [`crate::sealed`] makes it of such a directory in memory.

pub use crate::archive_error::ArchiveError;
use crate::archive_error::io_error;
use crate::archive_journal::CheckpointJournal;
pub use crate::archived::{Archived, ArchivedImages};
use crate::chain;
pub use crate::chain::{Chain, ParentName};
use crate::copying::Copying;
use crate::digests::{self, Digests};
use crate::dumper::Dumper;
use crate::layer_file;
use crate::rollback::put_back;
use crate::sealed::{self, Recipients, SealError};
use godwit_engine::network::NetworkState;
use godwit_engine::{Facts, SourceContainer, Tree};
use godwit_migration::plan::Carry;
use godwit_migration::{Cancel, Disposition, Failure, FailureKind, MigrationId, Observer};
use godwit_transfer::message::TreeKind;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The format of `checkpoint.json`.
const VERSION: u32 = 2;
/// The format of one that has a parent: who does not know of parents must not take it for a whole one.
const WITH_PARENT: u32 = 3;
/// The oldest that is read: it has no layers, no digests, and does not say when it was made.
const OLDEST: u32 = 1;
pub(crate) const MANIFEST: &str = "checkpoint.json";
/// Longest that is read, bytes: recipes and networks are tens of KiB.
const MAX_MANIFEST: u64 = 16 << 20;
/// The directory of the image.
pub(crate) const CONTAINER_IMAGE: &str = "container-image";

/// What `checkpoint.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    godwit_checkpoint: u32,
    /// Names this checkpoint.
    #[serde(default)]
    pub(crate) id: Option<String>,
    /// The one that it shares content with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<ParentName>,
    pub(crate) engine: String,
    pub(crate) name: String,
    recipe: String,
    network: Option<NetworkState>,
    pub(crate) memory_bytes: u64,
    carry: Carry,
    pub(crate) trees: Vec<ManifestTree>,
    pub(crate) facts: godwit_transfer::HostFacts,
    /// Seconds since the epoch.
    #[serde(default)]
    pub(crate) made_unix_s: Option<u64>,
    /// Version of the engine.
    #[serde(default)]
    pub(crate) engine_version: Option<String>,
    #[serde(default)]
    pub(crate) image: Option<String>,
    /// What names that image's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_id: Option<String>,
    #[serde(default)]
    starts_slowly: bool,
}

impl Manifest {
    /// The same for a checkpoint that has all of it.
    pub(crate) fn without_parent(self) -> Self {
        Self { godwit_checkpoint: VERSION, parent: None, ..self }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ManifestTree {
    pub(crate) kind: TreeKind,
    pub(crate) path: PathBuf,
    single_file: bool,
    read_only: bool,
    #[serde(default)]
    made_there: bool,
    /// It is a layer: what it hides is beside it.
    #[serde(default)]
    is_layer: bool,
}

/// What checkpoint is wanted.
pub struct Order<'a> {
    /// The new directory, or the new file when it is sealed.
    pub to: &'a Path,
    /// How it is sealed, if it is.
    pub seal: Option<Seal<'a>>,
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// What CRIU carries.
    pub carry: Carry,
    /// What this host is like.
    pub facts: godwit_transfer::HostFacts,
    /// The image that it was made of goes along.
    pub with_image: bool,
    /// What this one has as well is not stored again.
    pub parent: Option<&'a Chain>,
}

/// How a checkpoint is sealed.
#[derive(Clone, Copy)]
pub struct Seal<'a> {
    /// Whom for.
    pub recipients: &'a Recipients,
    /// An empty directory in memory with room for all of it.
    pub staging: &'a Path,
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
    /// Bytes of either that are not stored again, since its parent has them.
    pub shared_bytes: u64,
}

/// Makes a directory, 0700.
pub(crate) fn make_private(path: &Path) -> Result<(), ArchiveError> {
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("make", path))
}

/// Writes a checkpoint of a running container to `to`, which is new. With `leave_running` the container goes on, else it
/// ends and is removed, none of it having run since the checkpoint.
///
/// # Errors
/// When it could not be written: then the container runs, and nothing of the checkpoint is left.
pub fn write(
    mut container: Box<dyn SourceContainer>,
    criu: &dyn Dumper,
    order: &Order<'_>,
    mut journal: CheckpointJournal,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(Written, Vec<String>), Failure> {
    let name = format!("{}:{}", container.facts().engine, container.facts().name);
    let partial = order.partial();
    let failed = |error: ArchiveError| {
        let kind = match error {
            ArchiveError::Interrupted | ArchiveError::Seal(SealError::Interrupted) => {
                FailureKind::Interrupted
            }
            _ => FailureKind::Failed,
        };
        let mut failure = Failure::new(kind, format!("could not checkpoint `{name}`")).because_of(&error);
        if let ArchiveError::Criu(error) = &error {
            failure.hints.extend(error.explanation().and_then(|explanation| explanation.hint.clone()));
        }
        failure
    };
    let begun = Stillness::default();
    let undo = |journal: &mut CheckpointJournal, put_back: &[String], error: ArchiveError| {
        journal.undone(&error.to_string(), put_back);
        undone(put_back, &partial, failed(error))
    };
    let mut writing =
        Writing { container: &mut *container, criu, order, journal: &mut journal, observer, cancel };
    let mut written = match writing.write(&partial, &begun) {
        Ok(written) => written,
        Err(error) => return Err(undo(&mut journal, &put_back(&mut *container), error)),
    };
    if order.leave_running {
        // it need not stand still for what is done with the checkpoint now
        let put_back = put_back(&mut *container);
        written.stopped = begun.so_far();
        match order.complete(container.facts(), journal.id(), &partial, observer, cancel) {
            Ok(shared_bytes) => written.shared_bytes = shared_bytes,
            Err(error) => return Err(undo(&mut journal, &put_back, error)),
        }
        if put_back.is_empty() {
            return Ok((written, journal.close().into_iter().collect()));
        }
        journal.undone("it was to run on", &put_back);
        return Ok((written, put_back));
    }
    match order.complete(container.facts(), journal.id(), &partial, observer, cancel) {
        Ok(shared_bytes) => written.shared_bytes = shared_bytes,
        Err(error) => return Err(undo(&mut journal, &put_back(&mut *container), error)),
    }
    if let Err(error) = journal.committed() {
        // it runs on: what is in place already holds what it will not be any more
        let _ = std::fs::remove_dir_all(order.to).or_else(|_| std::fs::remove_file(order.to));
        return Err(undo(&mut journal, &put_back(&mut *container), error.into()));
    }
    let mut leftovers: Vec<String> =
        container.disconnect().err().map(|error| error.to_string()).into_iter().collect();
    leftovers.extend(container.discard());
    leftovers.extend(journal.close());
    Ok((written, leftovers))
}

impl Order<'_> {
    /// Where it is written first.
    fn partial(&self) -> PathBuf {
        match self.seal {
            Some(seal) => seal.staging.join("checkpoint"),
            None => partial_of(self.to),
        }
    }

    /// Says what it is and what is in it, and puts it in its place. Gives the bytes that it shares with its parent.
    fn complete(
        &self,
        facts: &Facts,
        id: &MigrationId,
        partial: &Path,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<u64, ArchiveError> {
        store_manifest(&manifest(facts, self, id)?, partial)?;
        let mut shared_bytes = 0;
        if let Some(parent) = self.parent {
            observer.note(format!("comparing with {}", parent.dir().display()));
            shared_bytes = chain::thin(partial, parent, cancel)?;
        }
        digests::write(partial)?;
        match self.seal {
            Some(seal) => {
                observer.note(format!("sealing {}", self.to.display()));
                sealed::seal(partial, self.to, seal.recipients, cancel)?;
            }
            None => std::fs::rename(partial, self.to)
                .and_then(|()| sync_parent(self.to))
                .map_err(io_error("write", self.to))?,
        }
        Ok(shared_bytes)
    }
}

/// Where a checkpoint that is no file is written first.
pub(crate) fn partial_of(to: &Path) -> PathBuf {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned());
    to.with_file_name(format!(".{}.partial", name.unwrap_or_default()))
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

/// A checkpoint on its way to the disk.
struct Writing<'a> {
    container: &'a mut dyn SourceContainer,
    criu: &'a dyn Dumper,
    order: &'a Order<'a>,
    journal: &'a mut CheckpointJournal,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
}

impl Writing<'_> {
    /// All of it, into a directory that is made; the container is frozen then.
    fn write(&mut self, partial: &Path, stillness: &Stillness) -> Result<Written, ArchiveError> {
        make_private(partial)?;
        let trees_dir = partial.join(digests::TREES);
        make_private(&trees_dir)?;
        let trees = self.container.facts().trees.clone();
        let mut copies = Vec::new();
        for (number, tree) in trees.iter().enumerate() {
            copies.push(Copying::open(tree, &trees_dir.join(number.to_string()))?);
        }
        if self.order.with_image {
            let dir = partial.join(CONTAINER_IMAGE);
            make_private(&dir)?;
            self.observer.note("copying its image".into());
            self.container.bring_image("[]", &dir)?;
        }
        let mut file_bytes = 0;
        let also = self.container.mapped_files()?;
        for copy in &mut copies {
            self.observer.note(format!("copying {}", copy.tree.path.display()));
            file_bytes += copy.round(&also, self.cancel)?;
        }
        self.journal.freezing(self.container)?;
        stillness.begin();
        self.container.lock_network()?;
        self.container.freeze()?;
        let also = self.container.mapped_files()?;
        for copy in copies.iter_mut().filter(|copy| !copy.tree.read_only) {
            file_bytes += copy.round(&also, self.cancel)?;
        }
        for copy in copies.iter().filter(|copy| copy.tree.merged.is_some()) {
            layer_file::write(&copy.gone, &copy.source.gone()).map_err(io_error("write", &copy.gone))?;
        }
        let images = partial.join("images");
        let mut options = self.container.dump_options(&images, &partial.join("work"));
        options.log_level = 2;
        let dumped = self.criu.dump(options)?;
        self.container.verify_frozen()?;
        self.container.complete_images(&images)?;
        self.journal.dumped()?;
        let (stopped, memory_bytes) = (stillness.so_far(), dumped.memory_bytes);
        Ok(Written { stopped, memory_bytes, file_bytes, shared_bytes: 0 })
    }
}

fn manifest(facts: &Facts, order: &Order<'_>, id: &MigrationId) -> Result<Manifest, ArchiveError> {
    let beside = order.to.parent().unwrap_or(Path::new("/"));
    let parent = order.parent.map(|parent| parent.name_for(beside)).transpose()?;
    let tree = |tree: &Tree| ManifestTree {
        kind: tree.kind,
        path: tree.path.clone(),
        single_file: tree.single_file,
        read_only: tree.read_only,
        made_there: tree.made_there,
        is_layer: tree.merged.is_some(),
    };
    let engine = godwit_engine::by_kind(facts.engine);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(Manifest {
        godwit_checkpoint: if parent.is_some() { WITH_PARENT } else { VERSION },
        id: Some(id.to_string()),
        parent,
        engine: facts.engine.to_owned(),
        name: facts.name.clone(),
        recipe: facts.recipe.clone(),
        network: facts.network.clone(),
        memory_bytes: facts.memory_bytes,
        carry: order.carry,
        trees: facts.trees.iter().map(tree).collect(),
        facts: order.facts.clone(),
        made_unix_s: now.ok().map(|since| since.as_secs()),
        engine_version: engine.and_then(|engine| engine.usable().ok()),
        image: facts.image.clone(),
        image_id: facts.image_id.clone(),
        starts_slowly: facts.starts_slowly,
    })
}

/// Writes `checkpoint.json`, which is new.
pub(crate) fn store_manifest(manifest: &Manifest, dir: &Path) -> Result<(), ArchiveError> {
    let path = dir.join(MANIFEST);
    let text = serde_json::to_vec_pretty(manifest).map_err(|error| io_error("write", &path)(error.into()))?;
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

/// The container was let go; the unfinished checkpoint goes.
fn undone(put_back: &[String], partial: &Path, mut failure: Failure) -> Failure {
    if let Err(error) = std::fs::remove_dir_all(partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        failure = failure.because(format!("`{}` could not be removed: {error}", partial.display()));
    }
    if put_back.is_empty() {
        return failure.at(Disposition::RunningAtSource);
    }
    failure.kind = FailureKind::InDoubt;
    failure.causes.extend(put_back.iter().cloned());
    failure.hint("mend that, and `godwit resume`").at(Disposition::InDoubt)
}

/// What the checkpoint in a directory says that it is.
pub(crate) fn read_manifest(dir: &Path) -> Result<Manifest, ArchiveError> {
    let not_one = |reason: String| ArchiveError::NotOne { path: dir.to_owned(), reason };
    let mut text = Vec::new();
    std::fs::File::open(dir.join(MANIFEST))
        .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text))
        .map_err(|error| not_one(format!("`{MANIFEST}` cannot be read: {error}")))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| not_one(error.to_string()))?;
    match manifest.godwit_checkpoint {
        OLDEST..=VERSION if manifest.parent.is_none() => Ok(manifest),
        WITH_PARENT => Ok(manifest),
        other => Err(not_one(format!("format {other} is not known to this godwit"))),
    }
}

/// Reads all of a checkpoint, and looks whether it is what was written. Gives the number of digests that it has; 0 for one of an
/// older godwit.
///
/// # Errors
/// [`ArchiveError::Damaged`] with all that is missing or different; [`ArchiveError::Parent`] when that is its parent; when something
/// cannot be read.
pub fn verify(dir: &Path) -> Result<usize, ArchiveError> {
    // what says whether it has a parent may be what is damaged
    match read_manifest(dir) {
        Ok(manifest) => {
            let count = verify_stored(dir, &manifest)?;
            let of_parents = match manifest.parent {
                Some(_) => Chain::open(dir)?.verify_shared(&Cancel::default())?,
                None => 0,
            };
            Ok(count + of_parents)
        }
        Err(error) => match Digests::read(dir)?.map(|digests| digests.compare(dir)).transpose()? {
            Some(damages) if !damages.is_empty() => {
                Err(ArchiveError::Damaged { path: dir.to_owned(), damages })
            }
            _ => Err(error),
        },
    }
}

/// The same for what lies in the directory, whatever it shares.
pub(crate) fn verify_stored(dir: &Path, manifest: &Manifest) -> Result<usize, ArchiveError> {
    let damaged = |damages| Err(ArchiveError::Damaged { path: dir.to_owned(), damages });
    let Some(digests) = Digests::read(dir)? else {
        return match manifest.godwit_checkpoint > OLDEST {
            true => damaged(vec![format!("`{}` is missing", digests::FILE)]),
            false => Ok(0),
        };
    };
    let damages = digests.compare(dir)?;
    if damages.is_empty() { Ok(digests.count()) } else { damaged(damages) }
}

/// Opens a checkpoint that has no parent, or was [assembled](Chain::assemble).
///
/// # Errors
/// When there is none at `dir`, or it is not whole.
pub fn open(dir: &Path) -> Result<Archived, ArchiveError> {
    let not_one = |reason: String| ArchiveError::NotOne { path: dir.to_owned(), reason };
    let manifest = read_manifest(dir)?;
    if let Some(parent) = manifest.parent {
        let reason = "it was not made whole".to_owned();
        return Err(ArchiveError::Parent { path: dir.to_owned(), id: parent.id, reason });
    }
    let engine = godwit_engine::by_kind(&manifest.engine).map(|engine| engine.kind());
    let engine = engine.ok_or_else(|| not_one(format!("its engine `{}` is not known", manifest.engine)))?;
    let tree = |(number, tree): (usize, ManifestTree)| {
        let mut content = dir.join(digests::TREES).join(number.to_string());
        let gone = tree.is_layer.then(|| content.with_extension("gone"));
        if tree.single_file {
            content.extend(tree.path.file_name());
        }
        Tree {
            kind: tree.kind,
            path: tree.path,
            content,
            single_file: tree.single_file,
            read_only: tree.read_only,
            merged: None,
            made_there: tree.made_there,
            gone,
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
        annotations: std::collections::BTreeMap::new(),
        starts_slowly: manifest.starts_slowly,
        image: manifest.image,
        image_id: manifest.image_id,
    };
    let image = Some(dir.join(CONTAINER_IMAGE)).filter(|image| image.is_dir());
    Ok(Archived { facts, host: manifest.facts, carry: manifest.carry, images: dir.join("images"), image })
}
