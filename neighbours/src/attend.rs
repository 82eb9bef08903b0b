//! A neighbour's side: answers from the store until the visitor goes.

use crate::custody::{Custody, Keeper};
use crate::question::{Answer, Known, MOST_KNOWN, OfImage, PIECE, Question, Verdict};
use crate::stream::{Giver, StreamAnswer, StreamQuestion, StreamVerdict};
use godwit_store::manifest::Described;
use godwit_store::{Digest, Store, StoreError};
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Compression, Incoming, Message, Wire, WireError};
use serde_bytes::ByteBuf;
use std::time::{Duration, Instant};

/// How long a visitor may think between two questions.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often a visitor who waits hears that something is done.
const ALIVE: Duration = Duration::from_secs(1);

/// What a visitor got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attended {
    /// Chunks that were asked about.
    pub asked: u64,
    /// Chunks that were given.
    pub given: u64,
    /// Bytes of them, as they are stored.
    pub bytes: u64,
    /// Bytes of chunks that the visitor brought, as they are stored, and of streams.
    pub taken: u64,
}

/// Whoever brings something has offered it before.
fn opened<'a, 'b>(custody: &'a mut Result<Custody<'b>, String>) -> Result<&'a mut Custody<'b>, WireError> {
    let offered = custody.as_mut().ok().filter(|custody| custody.expects());
    offered.ok_or_else(|| WireError::Malformed("content that was not offered, or is not wanted".into()))
}

/// The checkpoints of a container that a store keeps, the newest first.
pub fn checkpoints(store: &Store, container: &str) -> Vec<Known> {
    kept(store, "container", container, "made_unix_s").iter().map(Kept::known).collect()
}

/// The checkpoints of containers of an image that a store keeps, the newest first.
pub fn of_image(store: &Store, image: &str) -> Vec<OfImage> {
    let found = kept(store, "image_id", image, "made_unix_s").into_iter();
    let named = |kept: Kept| {
        Some(OfImage { known: kept.known(), container: kept.described.facts.get("container")?.clone() })
    };
    found.filter_map(named).collect()
}

/// The snapshots of a volume, the newest first.
fn snapshots(store: &Store, volume: &str) -> Vec<Digest> {
    kept(store, "volume", volume, "made_unix_us").into_iter().map(|kept| kept.manifest).collect()
}

/// What a pin keeps.
struct Kept {
    /// The generation, and when it was made.
    when: (u64, u64),
    manifest: Digest,
    described: Described,
}

impl Kept {
    fn known(&self) -> Known {
        Known { tree: self.described.tree, made_unix_s: self.when.1 }
    }
}

/// What a store keeps of which a fact is this one, the newest first. Of a volume that has changed hands the generation counts before
/// the clock.
fn kept(store: &Store, fact: &str, value: &str, made: &str) -> Vec<Kept> {
    let pins = store.pins().unwrap_or_else(|error| {
        tracing::warn!(%error, "what the store keeps cannot be listed");
        Vec::new()
    });
    let known = |manifest| {
        let described = store.described(manifest).ok()??;
        // its content is not in the store: a file system keeps it
        if described.facts.contains_key("kept_by") || described.facts.get(fact).is_none_or(|is| is != value) {
            return None;
        }
        let number = |fact: &str| described.facts.get(fact).and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(Kept { when: (number("generation"), number(made)), manifest, described })
    };
    let mut found: Vec<Kept> = pins.iter().filter_map(|pin| known(pin.manifest)).collect();
    found.sort_by_key(|kept| std::cmp::Reverse(kept.when));
    found.truncate(MOST_KNOWN);
    found
}

/// Answers a visitor, whose first word has been heard and who may ask. `host`: this host's name. Without a store there is nothing to
/// be had; `giver` gives what a file system keeps, `keeper` takes what it brings, or it is told why nobody does.
///
/// # Errors
/// When the visitor says what cannot be, or is gone in the midst of a question. What cannot be read here is merely not there.
pub fn attend(
    wire: &mut Wire,
    store: Option<&Store>,
    host: &str,
    mut giver: Option<&mut dyn Giver>,
    keeper: Result<&mut dyn Keeper, String>,
) -> Result<Attended, WireError> {
    wire.set_patience(PATIENCE);
    // chunks are stored compressed where that helps
    wire.set_compression(Compression::None);
    wire.say(&Message::Welcome { host: host.into(), streams: true })?;
    let mut attended = Attended::default();
    let mut custody = keeper.map(Custody::new);
    loop {
        let question = match wire.hear() {
            Ok(Incoming::Bytes(bytes)) => Question::from_bytes(&bytes),
            Ok(other) => return Err(unexpected(&other, "a question")),
            Err(WireError::Closed { .. }) => return Ok(attended),
            Err(error) => return Err(error),
        };
        let answer = match question.map_err(|error| WireError::Malformed(error.to_string()))? {
            Question::Has(digests) => {
                attended.asked += digests.len() as u64;
                let store = store.or(custody.as_ref().ok().and_then(Custody::store));
                let has = |digest| store.is_some_and(|store| store.has_chunk(digest));
                Answer::has(&digests.into_iter().map(has).collect::<Vec<_>>())
            }
            Question::Give(digests) => {
                let give = |digest| match store.map(|store| store.chunk_as_stored(digest))? {
                    Ok(chunk) => Some(ByteBuf::from(chunk)),
                    Err(StoreError::Missing(_)) => None,
                    Err(error) => {
                        tracing::warn!(%error, "a chunk that was asked for cannot be given");
                        None
                    }
                };
                let chunks: Vec<Option<ByteBuf>> = digests.into_iter().map(give).collect();
                attended.given += chunks.iter().flatten().count() as u64;
                attended.bytes += chunks.iter().flatten().map(|chunk| chunk.len() as u64).sum::<u64>();
                Answer::Chunks(chunks)
            }
            Question::Checkpoints(asked) => match Question::image_meant(&asked) {
                Some(image) => Answer::OfImage(store.map(|store| of_image(store, image)).unwrap_or_default()),
                None => {
                    Answer::Checkpoints(store.map(|store| checkpoints(store, &asked)).unwrap_or_default())
                }
            },
            Question::Snapshots(volume) => {
                Answer::Snapshots(store.map(|store| snapshots(store, &volume)).unwrap_or_default())
            }
            Question::Manifest(digest, from) => Answer::Manifest(store.and_then(|store| {
                let manifest = store.manifest_bytes(digest).ok()?;
                let from = usize::try_from(from).ok()?.min(manifest.len());
                let piece = &manifest[from..manifest.len().min(from + PIECE)];
                Some((manifest.len() as u64, ByteBuf::from(piece)))
            })),
            Question::Offer(described, despite) => Answer::Offer(match &mut custody {
                Ok(custody) => custody.offered(&described, despite),
                Err(why) => Verdict::Refused(why.clone()),
            }),
            Question::Take(chunks) => {
                attended.taken += chunks.iter().map(|(_, chunk)| chunk.len() as u64).sum::<u64>();
                Answer::Taken(opened(&mut custody)?.take(&chunks))
            }
            Question::TakeTree(total, from, piece) => {
                Answer::Taken(opened(&mut custody)?.take_tree(total, from, &piece))
            }
            Question::Keep => Answer::Kept(opened(&mut custody)?.keep()),
            Question::Stream(StreamQuestion::Read(manifest)) => Answer::Stream(StreamAnswer::Read(
                giver.as_mut().ok_or_else(|| "nothing is given here".to_owned()).and_then(|giver| {
                    let mut said = Instant::now();
                    giver.read(manifest, &mut |bytes| {
                        if said.elapsed() >= ALIVE {
                            said = Instant::now();
                            // one who is gone is noticed by the answer
                            let _ = wire.send_bytes(&Answer::Stream(StreamAnswer::Reading(bytes)).to_bytes());
                        }
                    })
                }),
            )),
            Question::Stream(question) => {
                match &question {
                    // of a stream nobody has packed anything
                    StreamQuestion::Offer(_) | StreamQuestion::Give(..) => {
                        wire.set_compression(Compression::Adaptive);
                    }
                    StreamQuestion::Take(piece) => attended.taken += piece.len() as u64,
                    _ => {}
                }
                let brought = match (&mut custody, &question) {
                    (Ok(custody), question) => custody.stream(question),
                    (Err(why), StreamQuestion::Offer(_)) => {
                        Some(StreamAnswer::Offer(StreamVerdict::Refused(why.clone())))
                    }
                    (Err(_), StreamQuestion::Take(_) | StreamQuestion::Keep) => {
                        return Err(WireError::Malformed("a stream that is not wanted".into()));
                    }
                    (Err(_), _) => None,
                };
                Answer::Stream(match brought {
                    Some(answer) => answer,
                    None => question.answered_by(giver.as_deref_mut()),
                })
            }
        };
        wire.send_bytes(&answer.to_bytes())?;
    }
}
