//! What the destination can have of the container's files from its own store or from its neighbours need not come from here: it is
//! told what they are made of, says what it has got, and the first round is compared with that. So it is with memory, where there is
//! an earlier checkpoint of the container, and with the container's image.

use crate::files::Meter;
use crate::source::{Source, SourceError};
use godwit_migration::Phase;
use godwit_migration::quantity::{show_bytes, show_duration};
use godwit_migration::report::CooperationReport;
use godwit_store::StoreError;
use godwit_store::manifest::{Manifest, Tree};
use godwit_transfer::tree::TreeIndex;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Incoming, Message, TreeId};
use std::path::Path;
use std::time::{Duration, Instant};

/// A smaller tree is sent sooner than asked for, bytes.
const WORTH_ASKING: u64 = 1 << 20;
/// Bytes of a manifest that go in one piece.
const PIECE: usize = 1 << 20;
/// How often the destination hears that something is still done here.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

impl Source<'_> {
    /// Has the destination get what it can. Whatever it does not get is sent by the rounds.
    pub(crate) fn cooperate(&mut self) -> Result<(), SourceError> {
        if !(self.plan.cooperates && self.peer_cooperates) {
            return Ok(());
        }
        let mut told = Vec::new();
        for (tree, root, bytes) in self.files.to_be_filled(WORTH_ASKING) {
            if self.tell_contents(tree, &root, bytes)? {
                told.push(tree);
            }
        }
        self.have_gathered()?;
        for tree in told {
            let index = self.hear_index(tree)?;
            self.files.rebase(tree, index)?;
        }
        Ok(())
    }

    /// The same for the container's image, which was written into a directory; what the destination has of it then.
    pub(crate) fn cooperate_on_image(&mut self, dir: &Path, bytes: u64) -> Result<TreeIndex, SourceError> {
        let is_worth_it = self.plan.cooperates && self.peer_gathers_image && bytes >= WORTH_ASKING;
        if !is_worth_it || !self.tell_contents(TreeId::CONTAINER_IMAGE, dir, bytes)? {
            return Ok(TreeIndex::default());
        }
        self.have_gathered()?;
        self.hear_index(TreeId::CONTAINER_IMAGE)
    }

    /// Tells what a tree is made of; false when that cannot be said.
    fn tell_contents(&mut self, tree: TreeId, root: &Path, bytes: u64) -> Result<bool, SourceError> {
        let Some(manifest) = self.contents(root, bytes)? else { return Ok(false) };
        self.wire.say(&Message::Contents { tree, bytes: manifest.len() as u64 })?;
        for piece in manifest.chunks(PIECE) {
            self.wire.send_bytes(piece)?;
        }
        Ok(true)
    }

    /// Has the destination get what was told of.
    fn have_gathered(&mut self) -> Result<(), SourceError> {
        self.wire.say(&Message::Gather { source_bytes_per_s: self.plan.bandwidth })?;
        let report = self.gathered()?;
        if report.wanted_bytes > 0 {
            self.say_who_gave(&report);
        }
        self.kept_pages += report.pages;
        self.cooperation.get_or_insert_default().add(report);
        Ok(())
    }

    /// What a tree is made of, as bytes; none when that cannot be said.
    fn contents(&mut self, root: &Path, bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let mut meter =
            Meter::new(self.observer, Phase::Prepare, format!("reading {}", root.display()), bytes);
        let (mut lost, mut said, mut before) = (None, Instant::now(), 0);
        let wire = &mut self.wire;
        let listed = Tree::list(root, &mut |done| {
            meter.add(done - before);
            before = done;
            let alive = match said.elapsed() >= SIGN_OF_LIFE {
                true => {
                    said = Instant::now();
                    wire.say(&Message::Alive { done, total: bytes })
                }
                false => wire.check_cancel(),
            };
            alive.map_err(|error| {
                lost = Some(error);
                StoreError::Interrupted
            })
        });
        if let Some(error) = lost {
            return Err(error.into());
        }
        // what cannot be read fails, or is mended, when it is sent
        let encoded =
            listed.map_err(|error| error.to_string()).and_then(|tree| Manifest::Tree(tree).encode());
        Ok(encoded.map_err(|why| tracing::info!(why, "`{}` comes from this host alone", root.display())).ok())
    }

    fn gathered(&mut self) -> Result<CooperationReport, SourceError> {
        let what = format!("{} gathers what is near", self.plan.destination);
        let (mut meter, mut before) = (None, 0);
        loop {
            match self.wire.hear()? {
                Incoming::Message(Message::Alive { done, total }) => {
                    let meter = meter.get_or_insert_with(|| {
                        Meter::new(self.observer, Phase::Prepare, what.clone(), total)
                    });
                    meter.add(done.saturating_sub(before));
                    before = before.max(done);
                }
                Incoming::Message(Message::Gathered { report }) => return Ok(report),
                other => return Err(unexpected(&other, "what was gathered").into()),
            }
        }
    }

    fn say_who_gave(&self, report: &CooperationReport) {
        let mut gave = vec![format!("its own store {}", show_bytes(report.own_bytes))];
        gave.extend(report.neighbours.iter().map(|neighbour| {
            let failed = neighbour.failed.as_ref().map(|why| format!(" ({why})"));
            format!("{} {}{}", neighbour.neighbour, show_bytes(neighbour.bytes), failed.unwrap_or_default())
        }));
        if let Some(earlier) = report.earlier.as_ref().filter(|earlier| **earlier != self.name) {
            self.observer
                .note(format!("memory begins with a checkpoint of `{earlier}`, which is of the same image"));
        }
        self.observer.note(format!(
            "{} has gathered {} of {} within {}: {}",
            self.plan.destination,
            show_bytes(report.gathered_bytes()),
            show_bytes(report.wanted_bytes),
            show_duration(report.duration),
            gave.join(", ")
        ));
    }
}
