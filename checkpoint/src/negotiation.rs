//! The first phase: what is offered, and what the destination says to it.

use crate::files::FilesError;
use crate::group::Member;
use crate::recovery;
use crate::source::{PATIENCE, Source, SourceError};
use godwit_engine::Tree;
use godwit_migration::hooks::Target;
use godwit_migration::plan::Strategy;
use godwit_migration::{Failure, FailureKind, journal};
use godwit_transfer::tree::{TreeIndex, equal_digest};
use godwit_transfer::wire::{ENGINE_PLACES, GROUPS, RESUME_HOOKS, unexpected};
use godwit_transfer::{Incoming, Message, Offer, Refusal, TreeBase, TreeId, TreeOffer, WireError};
use std::path::Path;
use std::time::Duration;

impl Source<'_> {
    /// Hello, Offer; Accept or Refuse.
    pub(crate) fn negotiate(&mut self) -> Result<(), SourceError> {
        self.wire.set_patience(PATIENCE);
        self.wire.set_compression(self.plan.compress);
        self.wire.set_bandwidth(&self.bandwidth);
        self.wire.say(&Message::Hello {
            godwit: env!("CARGO_PKG_VERSION").into(),
            host: self.plan.facts.host.clone(),
        })?;
        self.wire.expect("hello", |message| match message {
            Message::Hello { .. } => Ok(()),
            other => Err(other),
        })?;
        let offer = self.offer()?;
        if offer.trees.iter().any(|tree| tree.made_there) && self.wire.version() < ENGINE_PLACES {
            return Err(self.refused(vec![
                Refusal::new(format!("its godwit is too old for containers of {}", offer.engine))
                    .hint("bring the godwit there up to date"),
            ]));
        }
        if offer.resume_hook.is_some() && self.wire.version() < RESUME_HOOKS {
            return Err(self.refused(vec![
                Refusal::new("its godwit is too old to tell the application that it goes on")
                    .hint("bring the godwit there up to date, or add `--resume-hook none`"),
            ]));
        }
        if offer.strategy == Strategy::Restart && self.wire.version() < ENGINE_PLACES {
            return Err(self.refused(vec![
                Refusal::new("its godwit is too old for `--strategy restart`")
                    .hint("bring the godwit there up to date"),
            ]));
        }
        if offer.leader.is_some() && self.wire.version() < GROUPS {
            return Err(self.refused(vec![
                Refusal::new("its godwit is too old for pods of several containers")
                    .hint("bring the godwit there up to date"),
            ]));
        }
        self.offered = offer.trees.clone();
        self.wire.expect_indexes();
        self.wire.say(&Message::Offer(Box::new(offer)))?;
        let bases = match self.wire.hear()? {
            Incoming::Message(Message::Accept {
                bases,
                process_start_us,
                restoration,
                restoration_why,
                kept_pages,
                lacks_image,
                cooperates,
                gathers_image,
            }) => {
                self.peer_cooperates = cooperates;
                self.peer_gathers_image = gathers_image;
                self.lacks_image = lacks_image;
                self.kept_pages = kept_pages;
                self.process_start = Duration::from_micros(process_start_us);
                self.restoration = (restoration, restoration_why);
                bases
            }
            Incoming::Message(Message::Refuse { reasons }) => return Err(self.refused(reasons)),
            other => return Err(unexpected(&other, "accept or refuse").into()),
        };
        if bases.len() != self.offered.len() {
            return Err(WireError::Malformed("an accept for another offer".into()).into());
        }
        let trees = self.container.facts().trees.clone();
        for ((offer, tree), base) in self.offered.clone().into_iter().zip(trees).zip(bases) {
            self.take_base(offer, &tree, base)?;
        }
        self.journal.append(journal::Event::Accepted)?;
        Ok(())
    }

    fn offer(&self) -> Result<Offer, SourceError> {
        let facts = self.container.facts();
        let tree = |(number, tree): (usize, &godwit_engine::Tree)| TreeOffer {
            id: TreeId(number as u16),
            kind: tree.kind,
            path: tree.path.clone(),
            single_file: tree.single_file,
            read_only: tree.read_only,
            bytes: if self.is_skipped(&tree.path) { 0 } else { crate::files::size_of(&tree.content) },
            made_there: tree.made_there,
        };
        let network = facts.network.as_ref().map(serde_json::to_string).transpose();
        Ok(Offer {
            migration: self.job.id.clone(),
            engine: facts.engine.into(),
            name: facts.name.clone(),
            image_id: facts.image_id.clone(),
            recipe: facts.recipe.clone(),
            network: network.map_err(|error| WireError::Malformed(error.to_string()))?,
            network_plan: self.plan.network_plan.to_string(),
            trees: facts.trees.iter().enumerate().map(tree).collect(),
            memory_bytes: facts.memory_bytes,
            strategy: self.plan.strategy,
            tracker: self.plan.tracker,
            room_pages: self.reader.is_some().then(|| self.room_pages()),
            restoration: self.plan.restoration,
            carry: self.plan.carry,
            facts: self.plan.facts.clone(),
            void: recovery::void(&self.job.root, &self.name),
            witness: self.plan.witness.as_ref().map(ToString::to_string),
            leader: self.member.as_ref().and_then(Member::follows).cloned(),
            resume_hook: match &self.plan.hooks.resume {
                Some(Target::Url(url)) => Some(url.clone()),
                _ => None,
            },
        })
    }

    /// Whether what is in a tree does not move.
    fn is_skipped(&self, path: &Path) -> bool {
        self.plan.parting.skipped.iter().any(|skipped| skipped == path)
    }

    pub(crate) fn refused(&mut self, reasons: Vec<Refusal>) -> SourceError {
        self.was_refused = true;
        let message = format!("{} cannot receive `{}`", self.plan.destination, self.name);
        let mut failure = Failure::new(FailureKind::Refused, message);
        for refusal in reasons {
            failure = failure.because(refusal.reason);
            if let Some(hint) = refusal.hint {
                failure = failure.hint(hint);
            }
        }
        SourceError::Failure(Box::new(failure))
    }

    /// What lies at a tree's place over there decides whether it may be written to, and what the first round is
    /// compared with.
    fn take_base(&mut self, offer: TreeOffer, tree: &Tree, base: TreeBase) -> Result<(), SourceError> {
        let content = &tree.content;
        if self.is_skipped(&offer.path) {
            match base {
                // a volume that is made has the owner and mode that it has here
                TreeBase::Empty if !offer.made_there => self.files.add_root(offer, tree)?,
                TreeBase::Empty => {}
                // what lies there stays as it is
                TreeBase::Stale | TreeBase::Foreign { .. } => drop(self.hear_index(offer.id)?),
            }
            return Ok(());
        }
        let index = match base {
            TreeBase::Empty => TreeIndex::default(),
            TreeBase::Stale => self.hear_index(offer.id)?,
            TreeBase::Foreign { digest } => {
                let ours = equal_digest(content)
                    .map_err(|source| FilesError::Tree { path: content.display().to_string(), source })?;
                if ours.to_string() != digest {
                    return Err(self.foreign(&offer));
                }
                // all the same: what differs from now on is sent against what we know to be there
                self.hear_index(offer.id)?
            }
        };
        Ok(self.files.add(offer, tree, index)?)
    }

    fn foreign(&self, tree: &TreeOffer) -> SourceError {
        let path = tree.path.display();
        SourceError::Failure(Box::new(
            Failure::new(
                FailureKind::Refused,
                format!("{} cannot receive `{}`", self.plan.destination, self.name),
            )
            .because(format!("`{path}` exists there with other content"))
            .hint(format!(
                "move `{path}` out of the way there, or add `--no-copy {path}` if what lies there is right"
            )),
        ))
    }

    pub(crate) fn hear_index(&mut self, tree: TreeId) -> Result<TreeIndex, SourceError> {
        match self.wire.hear()? {
            Incoming::Index(of, index) if of == tree => Ok(index),
            other => Err(unexpected(&other, "the index of a tree").into()),
        }
    }
}
