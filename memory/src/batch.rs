//! The wire form of written pages: what goes into which slot of the [`PageStore`](crate::destination::PageStore), and which
//! page is where.
//!
//! ```text
//! header  16 bytes   version u8, three zero bytes, runs u32, pages of data u32, zero u32
//! data    4096 bytes for each page of the Data runs, in their order
//! runs    24 bytes each: address u64, pages u32, image u32, slot u32, kind u8, image kind u8, zero u16
//! ```
//! All little endian. The runs come last so that a batch is built in one buffer while its number of runs is still unknown.
//! They are carried out in their order.

use crate::{ImageId, PAGE_SIZE, PageRun};

/// First byte of every batch.
const VERSION: u8 = 1;
const HEADER: usize = 16;
const RUN: usize = 24;
/// A longer batch is refused, in bytes: half of what one frame of the wire can carry.
pub const MAX_BATCH: usize = 8 << 20;
/// Addresses end here: user space with five levels of page tables.
const ADDRESS_END: u64 = 1 << 56;

/// Where the content of a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The batch has it; it goes into the slots from this one on.
    Data {
        /// Slot of the first page.
        first: u32,
    },
    /// All zero.
    Zero,
    /// It is in the slots from this one on, sent before: on the same stream, or in an earlier round.
    Reference {
        /// Slot of the first page.
        first: u32,
    },
    /// The pages exist no more.
    Forget,
}

/// Consecutive pages of one image with consecutive content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose pages.
    pub image: ImageId,
    /// Which pages; at most `u32::MAX`.
    pub pages: PageRun,
    /// Their content.
    pub kind: Kind,
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Another version of the form.
    #[error("version {0} of the page batch is not known")]
    Version(u8),
    /// The length does not fit what the header says, or is beyond [`MAX_BATCH`].
    #[error("a page batch of {got} bytes, {wanted} expected")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes the header speaks of.
        wanted: u64,
    },
    /// A run that cannot be.
    #[error("run {0} of a page batch is malformed")]
    Run(usize),
    /// The data runs have more or fewer pages than there is data.
    #[error("the runs of a page batch want {wanted} pages of data, it has {got}")]
    Data {
        /// Pages of data there are.
        got: u64,
        /// Pages the runs want.
        wanted: u64,
    },
}

/// A checked batch; borrows the bytes it was decoded from.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    runs: &'a [u8],
    data: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks every length, kind and address; slots are for the store to check.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let Some((header, body)) = bytes.split_at_checked(HEADER) else {
            return Err(BatchError::Length { got: bytes.len(), wanted: HEADER as u64 });
        };
        if header[0] != VERSION || header[1..4] != [0; 3] || header[12..] != [0; 4] {
            return Err(BatchError::Version(header[0]));
        }
        let (runs, pages) = (u64::from(u32_at(header, 4)), u64::from(u32_at(header, 8)));
        let wanted = HEADER as u64 + pages * PAGE_SIZE + runs * RUN as u64;
        if wanted != bytes.len() as u64 || bytes.len() > MAX_BATCH {
            return Err(BatchError::Length { got: bytes.len(), wanted });
        }
        let (data, runs) = body.split_at((pages * PAGE_SIZE) as usize);
        let mut wanted = 0;
        for (number, bytes) in runs.chunks_exact(RUN).enumerate() {
            let run = decode_run(bytes).ok_or(BatchError::Run(number))?;
            if matches!(run.kind, Kind::Data { .. }) {
                wanted += run.pages.pages;
            }
        }
        match wanted == pages {
            true => Ok(Self { runs, data }),
            false => Err(BatchError::Data { got: pages, wanted }),
        }
    }

    /// The runs in order, each with its data (empty unless it is a data run).
    pub fn runs(&self) -> impl Iterator<Item = (Run, &'a [u8])> + use<'a> {
        let mut rest = self.data;
        self.runs.chunks_exact(RUN).filter_map(decode_run).map(move |run| {
            let bytes = match run.kind {
                Kind::Data { .. } => (run.pages.pages * PAGE_SIZE) as usize,
                _ => 0,
            };
            let (data, behind) = rest.split_at(bytes);
            rest = behind;
            (run, data)
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn decode_run(bytes: &[u8]) -> Option<Run> {
    let start = u64::from_le_bytes(*bytes.first_chunk()?);
    let (pages, number, slot) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
    let image = match bytes[21] {
        0 => ImageId::Task(number),
        1 => ImageId::Shared(number),
        _ => return None,
    };
    let kind = match (bytes[20], slot) {
        (0, first) => Kind::Data { first },
        (1, 0) => Kind::Zero,
        (2, first) => Kind::Reference { first },
        (3, 0) => Kind::Forget,
        _ => return None,
    };
    let pages = PageRun { start, pages: u64::from(pages) };
    let possible = pages.pages > 0
        && start.is_multiple_of(PAGE_SIZE)
        && start < ADDRESS_END
        && pages.end() <= ADDRESS_END
        && bytes[22..24] == [0; 2];
    possible.then_some(Run { image, pages, kind })
}

/// A batch being put together.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

impl BatchBuilder {
    /// Nothing in it yet.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Its length by now, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len().max(HEADER) + self.runs.len() * RUN
    }

    /// Bytes of data in it.
    pub fn data_len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER)
    }

    /// Adds pages, to the last run if they continue it. `data` is their content if they are a data run, otherwise empty.
    /// The caller keeps to whole pages and below [`MAX_BATCH`].
    pub fn push(&mut self, run: Run, data: &[u8]) {
        self.bytes.resize(self.bytes.len().max(HEADER), 0);
        self.bytes.extend_from_slice(data);
        match self.runs.last_mut() {
            Some(last) if continues(last, &run) => last.pages.pages += run.pages.pages,
            _ => self.runs.push(run),
        }
    }

    /// The finished batch; the builder is as good as new with [`BatchBuilder::reuse`].
    pub fn finish(mut self) -> Vec<u8> {
        self.seal();
        self.bytes
    }

    /// Completes the batch in the builder's own buffer, which may be taken or swapped for another.
    pub(crate) fn seal(&mut self) -> &mut Vec<u8> {
        self.bytes.resize(self.bytes.len().max(HEADER), 0);
        let pages = ((self.bytes.len() - HEADER) as u64 / PAGE_SIZE) as u32;
        self.bytes[0] = VERSION;
        self.bytes[4..8].copy_from_slice(&(self.runs.len() as u32).to_le_bytes());
        self.bytes[8..12].copy_from_slice(&pages.to_le_bytes());
        for run in self.runs.drain(..) {
            let (image, number) = match run.image {
                ImageId::Task(number) => (0, number),
                ImageId::Shared(number) => (1, number),
            };
            let (kind, slot) = match run.kind {
                Kind::Data { first } => (0, first),
                Kind::Zero => (1, 0),
                Kind::Reference { first } => (2, first),
                Kind::Forget => (3, 0),
            };
            self.bytes.extend_from_slice(&run.pages.start.to_le_bytes());
            for word in [run.pages.pages as u32, number, slot] {
                self.bytes.extend_from_slice(&word.to_le_bytes());
            }
            self.bytes.extend_from_slice(&[kind, image, 0, 0]);
        }
        &mut self.bytes
    }

    /// Makes it empty after [`BatchBuilder::seal`]; the buffer stays.
    pub(crate) fn reuse(&mut self) {
        self.bytes.clear();
        self.runs.clear();
    }
}

/// Whether `run` goes on where `last` ends, in address and in content.
fn continues(last: &Run, run: &Run) -> bool {
    let behind = |first: u32| u64::from(first) + last.pages.pages;
    last.image == run.image
        && last.pages.end() == run.pages.start
        && last.pages.pages + run.pages.pages <= u64::from(u32::MAX)
        && match (last.kind, run.kind) {
            (Kind::Data { first }, Kind::Data { first: next })
            | (Kind::Reference { first }, Kind::Reference { first: next }) => {
                behind(first) == u64::from(next)
            }
            (Kind::Zero, Kind::Zero) | (Kind::Forget, Kind::Forget) => true,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_run() -> impl Strategy<Value = Run> {
        let image = prop_oneof![any::<u32>().prop_map(ImageId::Task), any::<u32>().prop_map(ImageId::Shared)];
        let kind = prop_oneof![
            any::<u32>().prop_map(|first| Kind::Data { first }),
            Just(Kind::Zero),
            any::<u32>().prop_map(|first| Kind::Reference { first }),
            Just(Kind::Forget),
        ];
        (image, 0..1u64 << 43, 1..5u64, kind).prop_map(|(image, page, pages, kind)| Run {
            image,
            pages: PageRun { start: page * PAGE_SIZE, pages },
            kind,
        })
    }

    fn encode(runs: &[Run]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut builder = BatchBuilder::default();
        let mut contents = Vec::new();
        for (number, run) in runs.iter().enumerate() {
            let data = match run.kind {
                Kind::Data { .. } => vec![number as u8; (run.pages.pages * PAGE_SIZE) as usize],
                _ => Vec::new(),
            };
            builder.push(*run, &data);
            contents.push(data);
        }
        let len = builder.len();
        let bytes = builder.finish();
        assert_eq!(bytes.len(), len.max(HEADER));
        (bytes, contents)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn what_is_encoded_is_decoded(runs in prop::collection::vec(any_run(), 0..20)) {
            let (bytes, contents) = encode(&runs);
            let decoded: Vec<_> = Batch::decode(&bytes).unwrap().runs().collect();
            // Neighbours may have been joined: compare page by page.
            let flat = |runs: &mut dyn Iterator<Item = (Run, Vec<u8>)>| {
                let mut pages = Vec::new();
                for (run, data) in runs {
                    for page in 0..run.pages.pages {
                        let kind = match run.kind {
                            Kind::Data { first } => (0, first.wrapping_add(page as u32)),
                            Kind::Zero => (1, 0),
                            Kind::Reference { first } => (2, first.wrapping_add(page as u32)),
                            Kind::Forget => (3, 0),
                        };
                        let at = (page * PAGE_SIZE) as usize;
                        pages.push((run.image, run.pages.start + page * PAGE_SIZE, kind, data.get(at..at + 4096).map(<[u8]>::to_vec)));
                    }
                }
                pages
            };
            prop_assert_eq!(
                flat(&mut decoded.into_iter().map(|(run, data)| (run, data.to_vec()))),
                flat(&mut runs.iter().copied().zip(contents))
            );
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = Batch::decode(&bytes) {
                batch.runs().for_each(drop);
            }
        }

        #[test]
        fn a_damaged_batch_is_refused_or_still_whole(
            runs in prop::collection::vec(any_run(), 1..6), at in any::<prop::sample::Index>(), bit in 0..8u32, cut in any::<prop::sample::Index>()
        ) {
            let (mut bytes, _) = encode(&runs);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(batch) = Batch::decode(&bytes) {
                batch.runs().for_each(drop);
            }
            bytes[at] ^= 1 << bit;
            let shorter = cut.index(bytes.len());
            prop_assert!(Batch::decode(&bytes[..shorter]).is_err());
        }
    }

    #[test]
    fn consecutive_pages_become_one_run() {
        let run = |page: u64, kind| Run {
            image: ImageId::Task(1),
            pages: PageRun { start: page * PAGE_SIZE, pages: 1 },
            kind,
        };
        let (bytes, _) = encode(&[
            run(0, Kind::Data { first: 5 }),
            run(1, Kind::Data { first: 6 }),
            run(2, Kind::Data { first: 8 }),
            run(3, Kind::Zero),
            run(4, Kind::Zero),
        ]);
        let pages: Vec<_> = Batch::decode(&bytes).unwrap().runs().map(|(run, _)| run.pages.pages).collect();
        assert_eq!(pages, [2, 1, 2]);
    }

    #[test]
    fn refuses_what_cannot_be() {
        let whole = encode(&[Run {
            image: ImageId::Task(1),
            pages: PageRun { start: 0, pages: 1 },
            kind: Kind::Zero,
        }])
        .0;
        let changed = |at: usize, to: u8| {
            let mut bytes = whole.clone();
            bytes[at] = to;
            Batch::decode(&bytes).map(drop)
        };
        assert_eq!(changed(0, 2), Err(BatchError::Version(2)));
        assert_eq!(changed(16, 1), Err(BatchError::Run(0)), "an address within a page");
        assert_eq!(changed(23, 1), Err(BatchError::Run(0)), "an address beyond user space");
        assert_eq!(changed(24, 0), Err(BatchError::Run(0)), "no pages");
        assert_eq!(changed(36, 9), Err(BatchError::Run(0)), "an unknown kind");
        assert_eq!(changed(37, 2), Err(BatchError::Run(0)), "an unknown kind of image");
        assert_eq!(changed(36, 0), Err(BatchError::Data { got: 0, wanted: 1 }));
        assert!(matches!(changed(4, 2), Err(BatchError::Length { .. })));
    }
}
