//! A checkpoint that lies there, as one half of a move to this host sees it: a container that stands still.

use crate::dumper::{Circumstances, Dumped, Dumper, PagelessDumper};
use godwit_criu::{CriuError, DumpOptions};
use godwit_engine::{EngineError, Facts, SourceContainer};
use godwit_migration::ownership::Presence;
use godwit_migration::plan::Carry;
use godwit_transfer::Refusal;
use godwit_transfer::wire::HeldFrames;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A checkpoint on disk, in the shape of a container that stands still.
pub struct Archived {
    pub(crate) facts: Facts,
    /// What the host that wrote it was like.
    pub host: godwit_transfer::HostFacts,
    /// What CRIU carried.
    pub carry: Carry,
    pub(crate) images: PathBuf,
    /// The image that the container was made of, if it is in it.
    pub(crate) image: Option<PathBuf>,
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

    /// Whole, whatever the engine has of it: it takes what it lacks.
    fn bring_image(&self, _: &str, dir: &Path) -> Result<(), EngineError> {
        let Some(image) = &self.image else {
            let name = self.facts.image.clone().unwrap_or_default();
            let missing = Refusal::new(format!("the image `{name}` is not there, and not in the checkpoint"))
                .hint(format!(
                    "pull or load it: `{} pull {name}`; `godwit checkpoint --with-image` takes it along",
                    self.facts.engine
                ));
            let name = format!("{}:{}", self.facts.engine, self.facts.name);
            return Err(EngineError::Blocked { name, blockers: vec![missing] });
        };
        link_tree(image, dir).map_err(EngineError::io("link", image))
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        Ok(HashSet::new())
    }

    fn open_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
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

/// Gives the files of a directory a second name in another one, which is made; their bytes altogether. Directories in it do not
/// count.
fn link_files(from: &Path, to: &Path) -> io::Result<u64> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    let mut bytes = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let to = to.join(entry.file_name());
        // another file system takes no link
        if std::fs::hard_link(entry.path(), &to).is_err() {
            std::fs::copy(entry.path(), &to)?;
        }
        bytes += entry.metadata()?.len();
    }
    Ok(bytes)
}

/// The same with all directories below.
pub(crate) fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    link_files(from, to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            link_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

impl Dumper for ArchivedImages {
    fn dump(&self, options: DumpOptions) -> Result<Dumped, CriuError> {
        let memory_bytes = link_files(&self.images, &options.images_dir)
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
