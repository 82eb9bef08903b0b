//! What a run is to be, and the memory that it begins with.

use crate::args::Args;
use crate::content::Content;
use crate::kind::Kind;
use crate::operations::{Files, Worker};
use crate::random::mix;
use crate::region::Region;
use crate::sys::memory::HUGE;
use crate::sys::{Failure, file};
use crate::team::SLOTS;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Pages of a MiB.
const MIB: usize = 256;
/// Pages of the file that is read from.
const FILE_PAGES: usize = 8 * MIB;
/// Operations a second of each thread, if nothing is said.
const RATE: u64 = 20_000;

/// What the workers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Everything there is.
    Chaos,
    /// Only writing.
    Gentle,
    /// Only writing; each child begins with so many pages of its own.
    Tree {
        /// Pages.
        own: usize,
    },
}

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it tells what it found.
    pub dir: PathBuf,
    /// What all choices follow from.
    pub seed: u64,
    /// How many processes there are at most.
    pub processes: usize,
    /// Operations a second of each thread; `None` for as many as it can.
    pub rate: Option<u64>,
    /// What the workers do.
    pub load: Load,
    /// What memory there is.
    pub kinds: Vec<Kind>,
    /// What could not be had.
    pub notes: Vec<String>,
    threads: usize,
    pages: usize,
    file: Option<PathBuf>,
    direct: bool,
}

impl Settings {
    /// `chaos`.
    pub fn chaos(args: &mut Args) -> Result<Self, String> {
        let mut settings = Self::common(args, Load::Chaos, 64)?;
        settings.threads = args.take_or("threads", 2)?;
        settings.processes = args.take_or("processes", 3)?;
        let all = || Kind::ALL.map(|(_, name)| name)[..14].join(",");
        let names = args.take_or("kinds", all())?;
        settings.kinds = names.split(',').map(Kind::named).collect::<Result<_, _>>()?;
        settings.checked()
    }

    /// `special KIND`.
    pub fn special(args: &mut Args) -> Result<Self, String> {
        let name = args.words.pop().ok_or("special wants a kind of memory")?;
        let mut settings = Self::common(args, Load::Gentle, 2)?;
        settings.kinds = vec![Kind::named(&name)?];
        settings.checked()
    }

    /// `tree`.
    pub fn tree(args: &mut Args) -> Result<Self, String> {
        let own = args.take_or("own", 4)? * MIB;
        let mut settings = Self::common(args, Load::Tree { own }, 64)?;
        settings.processes = 1 + args.take_or("children", 4)?;
        settings.kinds = vec![Kind::Anon, Kind::SharedAnon];
        settings.checked()
    }

    fn common(args: &mut Args, load: Load, mib: usize) -> Result<Self, String> {
        let rate = match (args.take::<u64>("rate")?, load) {
            (Some(0), _) => None,
            (None, Load::Chaos) => Some(RATE),
            (rate, _) => rate.or(Some(2000)),
        };
        Ok(Self {
            dir: args.need("dir")?,
            seed: args.take_or("seed", 1)?,
            processes: 1,
            rate,
            load,
            kinds: Vec::new(),
            notes: Vec::new(),
            threads: 1,
            pages: args.take_or("size", mib)? * MIB,
            file: args.take("file")?,
            direct: !args.has("no-direct"),
        })
    }

    fn checked(self) -> Result<Self, String> {
        match () {
            () if self.threads == 0 || self.threads > 64 => Err("--threads must be from 1 to 64".into()),
            () if self.processes == 0 || self.processes > SLOTS => {
                Err(format!("there must be from 1 to {SLOTS} processes"))
            }
            () if self.pages < MIB => Err("--size must be at least 1".into()),
            () => Ok(self),
        }
    }

    /// Makes the memory, and fills half of it.
    pub fn workers(&mut self) -> Result<Vec<Worker>, String> {
        let files = self.files()?;
        (0..self.threads)
            .map(|thread| self.worker(thread, files).map_err(|failure| failure.to_string()))
            .collect()
    }

    fn worker(&mut self, thread: usize, files: Files) -> Result<Worker, Failure> {
        let mut regions = Vec::new();
        let mut number = thread as u64 * 1000 + 1;
        for kind in self.kinds.clone() {
            // the first worker of each process works on what they share
            if (kind.is_shared() && thread > 0)
                || (kind.wants_file() && self.file.is_none())
                || kind == Kind::Stack
            {
                continue;
            }
            let how_many = match kind {
                Kind::Anon if self.load == Load::Chaos => 2,
                Kind::Heap => 8,
                _ => 1,
            };
            for _ in 0..how_many {
                number += 1;
                match Region::new(number, kind, self.pages_of(kind), Some(files.buffered)) {
                    Ok(region) => regions.push(region),
                    // not every user may lock memory
                    Err(failure) if self.load == Load::Chaos && kind == Kind::Mlock => {
                        self.notes.push(failure.to_string());
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
        let mut worker = Worker::new(regions, mix(self.seed ^ number), files);
        for region in &mut worker.regions {
            let part = if self.load == Load::Chaos { 2 } else { 1 };
            let most = region.count() / part;
            (0..most)
                .filter(|&page| region.is_mine(page))
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|page| region.write(page))?;
        }
        Ok(worker)
    }

    fn pages_of(&self, kind: Kind) -> usize {
        let huge = HUGE / 4096;
        if let Load::Tree { .. } = self.load {
            return if kind == Kind::SharedAnon { 4 * MIB } else { self.pages };
        }
        let mine = self.pages / self.threads;
        let tenth = if self.load == Load::Chaos { (mine / 10).max(16) } else { mine };
        match kind {
            Kind::Thp => (2 * tenth).next_multiple_of(huge).max(2 * huge),
            Kind::HugeTlb => tenth.next_multiple_of(huge),
            Kind::PrivateFile | Kind::SharedFile => tenth.min(FILE_PAGES),
            Kind::Mlock => tenth.min(16),
            // each guard is two mappings more
            Kind::Guard => tenth.min(64),
            Kind::Brk => tenth.min(64),
            // bigger ones are mappings of their own
            Kind::Heap => tenth.min(24),
            Kind::Anon => 2 * tenth,
            _ => tenth,
        }
    }

    /// Opens the file, or a memfd instead.
    fn files(&mut self) -> Result<Files, String> {
        let Some(path) = &self.file else {
            self.notes.push("no --file: no O_DIRECT, no mapping of a file".into());
            let buffered = memfd_file().map_err(|failure| failure.to_string())?;
            return Ok(Files { buffered, direct: None, pages: FILE_PAGES });
        };
        write_file(path).map_err(|error| format!("`{}` cannot be written: {error}", path.display()))?;
        let say = |failure: Failure| format!("`{}` cannot be opened: {failure}", path.display());
        let buffered = file::open(path, libc::O_RDWR).map_err(say)?;
        let direct = if self.direct { file::open(path, libc::O_RDONLY | libc::O_DIRECT).ok() } else { None };
        if self.direct && direct.is_none() {
            self.notes.push("the file system has no O_DIRECT".into());
        }
        Ok(Files { buffered, direct, pages: FILE_PAGES })
    }
}

fn memfd_file() -> Result<i32, Failure> {
    let descriptor = file::memfd(FILE_PAGES)?;
    for page in 0..FILE_PAGES {
        file::write_page(descriptor, page, &Content::of_file(page).words())?;
    }
    Ok(descriptor)
}

fn write_file(path: &Path) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for page in 0..FILE_PAGES {
        for word in Content::of_file(page).words() {
            file.write_all(&word.to_ne_bytes())?;
        }
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()
}
