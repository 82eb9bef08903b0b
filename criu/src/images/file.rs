//! Image files as sequences of records, and the directories they are in.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::wire::Malformed;

/// The link in an images directory to its parent's.
pub const PARENT_LINK: &str = "parent";

const COMMON_MAGIC: u32 = 0x5456_4319;
const SERVICE_MAGIC: u32 = 0x5510_5940;
/// Longest image with records that is read, bytes: a pagemap of 40 million single pages.
const MAX_IMAGE: u64 = 1 << 30;

/// The kinds of images that are read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `inventory.img`; has no common magic.
    Inventory,
    /// `pstree.img`.
    Pstree,
    /// `pagemap-*.img`.
    Pagemap,
    /// `mm-*.img`.
    Mm,
    /// `core-*.img`.
    Core,
    /// `ids-*.img`.
    Ids,
    /// `files.img`.
    Files,
    /// `fdinfo-*.img`.
    FdInfo,
    /// `mountpoints-*.img`.
    Mounts,
    /// `stats-dump`, `stats-restore`; a service file.
    Stats,
}

impl Kind {
    fn magics(self) -> (Option<u32>, u32) {
        match self {
            Kind::Inventory => (None, 0x5831_3116),
            Kind::Pstree => (Some(COMMON_MAGIC), 0x5027_3030),
            Kind::Pagemap => (Some(COMMON_MAGIC), 0x5608_4025),
            Kind::Mm => (Some(COMMON_MAGIC), 0x5749_2820),
            Kind::Core => (Some(COMMON_MAGIC), 0x5505_3847),
            Kind::Ids => (Some(COMMON_MAGIC), 0x5443_2030),
            Kind::Files => (Some(COMMON_MAGIC), 0x5630_3138),
            Kind::FdInfo => (Some(COMMON_MAGIC), 0x5621_3732),
            Kind::Mounts => (Some(COMMON_MAGIC), 0x5556_3928),
            Kind::Stats => (Some(SERVICE_MAGIC), 0x5709_3306),
        }
    }
}

/// An image that cannot be read, or does not hold together.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation failed.
    #[error("cannot {what} `{path}`: {source}")]
    Io {
        /// `read`, `write`, ...
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not what such an image holds.
    #[error("image `{path}` is broken: {reason}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A page is said to be in the parent, and is not there.
    #[error("page {vaddr:#x} of `{image}` is in no image of the chain")]
    MissingPage {
        /// Name of the pagemap image.
        image: String,
        /// Address of the page.
        vaddr: u64,
    },
}

impl ImageError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| ImageError::Io { what, path, source }
    }

    pub(crate) fn broken(path: &Path, reason: impl Into<String>) -> Self {
        ImageError::Broken { path: path.to_owned(), reason: reason.into() }
    }
}

/// Reads the records of an image of this kind.
pub(crate) fn read_records(path: &Path, kind: Kind) -> Result<Vec<Vec<u8>>, ImageError> {
    let length = std::fs::metadata(path).map_err(ImageError::io("read", path))?.len();
    if length > MAX_IMAGE {
        return Err(ImageError::broken(path, format!("{length} bytes long")));
    }
    let bytes = std::fs::read(path).map_err(ImageError::io("read", path))?;
    let records = split_records(&bytes, kind).map_err(|reason| ImageError::broken(path, reason))?;
    Ok(records.into_iter().map(<[u8]>::to_vec).collect())
}

/// Splits the bytes of an image of this kind into its records.
pub(crate) fn split_records(bytes: &[u8], kind: Kind) -> Result<Vec<&[u8]>, &'static str> {
    let mut rest = bytes;
    let mut word = |what: &'static str| {
        let (head, tail) = rest.split_first_chunk::<4>().ok_or(what)?;
        rest = tail;
        Ok::<u32, &'static str>(u32::from_le_bytes(*head))
    };
    let (common, own) = kind.magics();
    let mut magic = word("shorter than its magic")?;
    if common == Some(magic) {
        magic = word("shorter than its magic")?;
    }
    if magic != own {
        return Err("another kind of file");
    }
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_first_chunk::<4>().ok_or("ends inside a record's size")?;
        let size = usize::try_from(u32::from_le_bytes(*head)).map_err(|_| "ends inside a record")?;
        let (record, tail) = tail.split_at_checked(size).ok_or("ends inside a record")?;
        records.push(record);
        rest = tail;
    }
    Ok(records)
}

/// The bytes of an image of this kind with these records.
pub(crate) fn join_records<R: AsRef<[u8]>>(kind: Kind, records: impl IntoIterator<Item = R>) -> Vec<u8> {
    let (common, own) = kind.magics();
    let mut out = Vec::new();
    out.extend(common.into_iter().flat_map(u32::to_le_bytes));
    out.extend(own.to_le_bytes());
    for record in records {
        let record = record.as_ref();
        out.extend(u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(record);
    }
    out
}

/// Writes a new file of mode 0600; an existing one is replaced, not written through.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    create_private(path)?.write_all(bytes).map_err(ImageError::io("write", path))
}

/// Makes a new empty file of mode 0600, readable and writable; an existing one is unlinked first.
pub(crate) fn create_private(path: &Path) -> Result<std::fs::File, ImageError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(ImageError::io("replace", path)(e)),
        _ => {}
    }
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(ImageError::io("make", path))
}

/// The directory `dir`'s `parent` link leads to; `None` when it has none.
pub fn parent_of(dir: &Path) -> Result<Option<PathBuf>, ImageError> {
    let link = dir.join(PARENT_LINK);
    match std::fs::read_link(&link) {
        Ok(to) if to.is_absolute() => Err(ImageError::broken(&link, "it is not relative")),
        Ok(to) => Ok(Some(dir.join(to))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ImageError::io("read", &link)(e)),
    }
}

impl From<Malformed> for &'static str {
    fn from(_: Malformed) -> Self {
        "a record is malformed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 5] = [Kind::Inventory, Kind::Pstree, Kind::Pagemap, Kind::Mm, Kind::Stats];

    proptest! {
        #[test]
        fn records_survive(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)) {
            for kind in KINDS {
                let bytes = join_records(kind, &records);
                let read = split_records(&bytes, kind).unwrap();
                prop_assert_eq!(&read, &records.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
        }

        #[test]
        fn cut_files_are_broken_or_shorter(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..10), cut in any::<prop::sample::Index>()) {
            let bytes = join_records(Kind::Pagemap, &records);
            let cut = cut.index(bytes.len());
            if let Ok(read) = split_records(&bytes[..cut], Kind::Pagemap) {
                prop_assert!(read.len() < records.len());
            }
        }
    }

    #[test]
    fn another_kind_is_refused() {
        let bytes = join_records(Kind::Pstree, [b"x"]);
        assert!(split_records(&bytes, Kind::Pagemap).is_err());
        assert!(split_records(&[], Kind::Stats).is_err());
        // The size of a record larger than the file.
        let mut lies = join_records(Kind::Inventory, [b"abc"]);
        lies[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(split_records(&lies, Kind::Inventory).is_err());
    }
}
