//! The first phase: what is offered, and what speaks against it.

use crate::cooperation::has_other_sources;
use crate::destination::{Destination, PATIENCE};
use crate::error::DestinationError;
use crate::images::IncomingImages;
use crate::job::{Job, make_private};
use crate::parked::Claim;
use crate::policy::Wish;
use crate::preflight;
use crate::recovery;
use crate::trees::{Trees, look_at};
use godwit_engine::Shipment;
use godwit_engine::network::{NetworkPlan, NetworkState};
use godwit_migration::Role;
use godwit_migration::journal::{self, Journal};
use godwit_migration::lock::lock_container;
use godwit_migration::observer::micros;
use godwit_migration::plan::{Restoration, Strategy};
use godwit_transfer::stale::StaleCopies;
use godwit_transfer::wire::unexpected;
use godwit_transfer::{Incoming, Message, Offer, Refusal};
use std::time::{Duration, Instant};

impl Destination<'_> {
    /// Hello, Offer; Accept or Refuse.
    pub(crate) fn negotiate(&mut self) -> Result<(), DestinationError> {
        self.wire.set_patience(PATIENCE);
        match self.hear()? {
            Incoming::Message(Message::Hello { .. }) => {}
            Incoming::Message(Message::Join { migration, stream }) => {
                return Err(DestinationError::Further { migration, stream });
            }
            other => return Err(unexpected(&other, "hello").into()),
        }
        let host = self.host.facts.as_ref().map(|facts| facts.host.clone()).unwrap_or_default();
        self.wire.say(&Message::Hello { godwit: env!("CARGO_PKG_VERSION").into(), host })?;
        let offer = match self.hear()? {
            Incoming::Message(Message::Offer(offer)) => *offer,
            Incoming::Message(Message::Resume { migration, forget }) => {
                return Err(DestinationError::Resumed { migration, forget });
            }
            other => return Err(unexpected(&other, "an offer").into()),
        };
        let name = format!("{}:{}", offer.engine, offer.name);
        recovery::settle_earlier(&self.host.root, &self.host.engines, &name, &offer.void)
            .map_err(DestinationError::Locked)?;
        if self.host.parking.is_some() {
            self.claim = Claim::make(&self.host.root, &name, &self.host.peer.name);
        }
        let (engine, shipment, process_start) = match self.examine(&offer) {
            Ok(found) => found,
            Err(reasons) => {
                self.wire.say(&Message::Refuse { reasons: reasons.clone() })?;
                return Err(DestinationError::Refused(reasons));
            }
        };
        self.accept(offer, engine, shipment, process_start)
    }

    /// All that speaks against the offer, or the engine and the shipment for it. Nothing is touched.
    fn examine(&self, offer: &Offer) -> Result<(usize, Shipment, Duration), Vec<Refusal>> {
        let facts = self.host.facts.as_ref().map_err(|reason| vec![reason.clone()])?;
        let Some(engine) = self.host.engines.iter().position(|engine| engine.kind() == offer.engine) else {
            return Err(vec![Refusal::new(format!("this godwit knows no engine `{}`", offer.engine))]);
        };
        let asked = Instant::now();
        let usable = self.host.engines[engine].usable();
        let process_start = asked.elapsed();
        if let Err(error) = usable {
            return Err(vec![
                Refusal::new(format!(
                    "the container runtime `{}` cannot be used there: {error}",
                    offer.engine
                ))
                .hint(format!("install {} there", offer.engine)),
            ]);
        }
        let network = offer.network.as_deref().map(serde_json::from_str::<NetworkState>).transpose();
        let network = network
            .map_err(|error| vec![Refusal::new(format!("its network cannot be understood: {error}"))])?;
        let network_plan: NetworkPlan =
            offer.network_plan.parse().map_err(|error| vec![Refusal::new(format!("{error}"))])?;
        let shipment = Shipment {
            name: offer.name.clone(),
            recipe: offer.recipe.clone(),
            network,
            network_plan,
            trees: offer.trees.iter().filter(|tree| !tree.made_there).map(|tree| tree.path.clone()).collect(),
            carry: offer.carry,
            restart: offer.strategy == Strategy::Restart,
            job: journal::dir_of(&self.host.root, &offer.migration),
            leader: offer.leader.as_ref().map(|leader| journal::dir_of(&self.host.root, leader)),
        };
        self.allowed(offer, &shipment, engine).map_err(|refusal| vec![refusal])?;
        recovery::examine_witness(offer.witness.as_deref(), &offer.migration)
            .map_err(|refusal| vec![refusal])?;
        let mut reasons = preflight::examine(offer, facts, &self.host.root, self.kept_bytes());
        let lazy = self.host.lazy.clone().and_then(|()| self.host.engines[engine].can_fill_later(&shipment));
        if let (Restoration::LocalLazy, Err(why)) = (offer.restoration, lazy) {
            let refusal = Refusal::new(format!("memory cannot be filled on demand there: {why}"));
            reasons.push(refusal.hint("use `--restore eager` or `--restore auto`"));
        }
        reasons.extend(self.host.engines[engine].examine(&shipment));
        if reasons.is_empty() { Ok((engine, shipment, process_start)) } else { Err(reasons) }
    }

    /// What the policy says.
    fn allowed(&self, offer: &Offer, shipment: &Shipment, engine: usize) -> Result<(), Refusal> {
        let mut places = shipment.trees.clone();
        places.extend(self.host.engines[engine].places(shipment));
        let room = offer.room_pages.unwrap_or(0).saturating_mul(godwit_memory::PAGE_SIZE);
        let hook = match &shipment.network_plan {
            NetworkPlan::Hook(path) => Some(path.as_path()),
            _ => None,
        };
        self.host.policy.examine(&Wish {
            peer: &self.host.peer.name,
            container: &format!("{}:{}", offer.engine, offer.name),
            places: &places,
            memory: offer.memory_bytes.max(room),
            hook,
        })
    }

    fn accept(
        &mut self,
        offer: Offer,
        engine: usize,
        shipment: Shipment,
        process_start: Duration,
    ) -> Result<(), DestinationError> {
        let name = format!("{}:{}", offer.engine, offer.name);
        let lock = lock_container(&self.host.root, &offer.engine, &offer.name).map_err(|source| {
            DestinationError::Io { act: "lock", path: self.host.root.join("locks"), source }
        })?;
        let Some(lock) = lock else {
            return Err(DestinationError::Locked(format!(
                "another migration of `{name}` is under way there"
            )));
        };
        let copies = StaleCopies::below(&self.host.root);
        let mut bases = Vec::new();
        let mut indexes = Vec::new();
        for tree in &offer.trees {
            let (base, index) = look_at(tree, &copies, &name, self.claim.as_ref())?;
            bases.push(base);
            indexes.extend(index.map(|index| (tree.id, index)));
        }
        let dir = shipment.job.clone();
        let mut journal = Journal::create(&dir)?;
        journal.append(journal::Event::Planned {
            version: journal::VERSION,
            migration: offer.migration.clone(),
            role: Role::Destination,
            container: name.clone(),
            peer: format!("{} ({})", self.host.peer.shown, offer.facts.host),
            godwit: env!("CARGO_PKG_VERSION").into(),
        })?;
        make_private(&dir.join("images"))?;
        let images = IncomingImages::new(&dir, offer.tracker)?;
        let (restoration, restoration_why) = self.restoration_of(&offer, engine, &shipment);
        let lacks_image = self.host.engines[engine].lacks_image(&shipment)?;
        self.claim_pages = self.kept_bytes() / godwit_memory::PAGE_SIZE;
        let accept = Message::Accept {
            lacks_image,
            cooperates: has_other_sources(self.host),
            gathers_image: has_other_sources(self.host),
            bases: bases.clone(),
            process_start_us: micros(process_start),
            restoration,
            restoration_why,
            kept_pages: self.claim_pages,
        };
        // from here on whatever happens is undone, and the journal says so
        let job = self.job.insert(Job {
            images,
            pages: None,
            restoration,
            trees: Trees::default(),
            container: None,
            remains: None,
            _lock: lock,
            offer,
            name,
            dir,
            bases,
            shipment,
            engine,
            journal,
        });
        self.wire.say(&accept)?;
        for (tree, index) in indexes {
            self.wire.send_index(tree, &index)?;
        }
        Ok(job.journal.append(journal::Event::Accepted)?)
    }

    /// Pages of an earlier attempt.
    fn kept_bytes(&self) -> u64 {
        self.claim.as_ref().map_or(0, Claim::page_bytes)
    }

    /// How the container will get its memory here, and why not otherwise.
    fn restoration_of(&self, offer: &Offer, engine: usize, shipment: &Shipment) -> (Restoration, String) {
        let can = self.host.lazy.clone().and_then(|()| self.host.engines[engine].can_fill_later(shipment));
        match (offer.restoration, offer.room_pages, can) {
            (Restoration::Eager, ..) => (Restoration::Eager, "asked for".into()),
            (_, None, _) => (Restoration::Eager, "memory travels in CRIU's images".into()),
            (_, Some(_), Ok(())) => (Restoration::LocalLazy, String::new()),
            (_, Some(_), Err(why)) => (Restoration::Eager, why),
        }
    }
}
