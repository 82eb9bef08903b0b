//! What every engine does at the destination: network made early, tree held, go.

use crate::container::Shipment;
use crate::error::EngineError;
use crate::freezer::{FreezeState, Freezer, process_tree, remove_cgroup};
use crate::network::{
    Frame, FramesByLink, Gate, Namespace, NetworkPlan, NetworkRecord, NetworkState, RebuiltNetwork,
};
use godwit_guardian::Guardian;
use godwit_migration::ownership::Presence;
use godwit_transfer::message::Refusal;
use godwit_transfer::wire::HeldFrames;
use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

/// The part of an arriving container that does not depend on its engine.
#[derive(Default)]
pub(crate) struct Arrival {
    network: Option<(RebuiltNetwork, Gate)>,
    held: Option<Freezer>,
    /// Of a network that could not be opened again: there is something to remove at most.
    remains: Option<NetworkRecord>,
    guardian: OnceCell<Arc<Guardian>>,
}

/// Whether it names an entry of a directory, and nothing else.
fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(['/', '\0'])
        && !name.starts_with('-')
}

impl Arrival {
    /// What stands in the way of its network here; touches nothing.
    pub(crate) fn examine(shipment: &Shipment, namespace: Option<&str>) -> Vec<Refusal> {
        // it becomes a file's name, and is the peer's text
        if let Some(name) = namespace.filter(|name| !is_plain_name(name)) {
            return vec![Refusal::new(format!(
                "`{}` is no name for a network namespace",
                name.escape_debug()
            ))];
        }
        let (Some(state), Some(name)) = (&shipment.network, namespace) else { return Vec::new() };
        let mut reasons = Vec::new();
        if Namespace::path_of(name).exists() {
            reasons.push(
                Refusal::new(format!("a network namespace `{name}` exists there already"))
                    .hint(format!("remove what is left of it: `ip netns delete {name}`")),
            );
        }
        if let Err(error) = state.check(&shipment.network_plan) {
            reasons.push(Refusal::new(error.to_string()));
        }
        let wanted: Vec<&str> = match &shipment.network_plan {
            NetworkPlan::Bridge(name) => vec![name],
            NetworkPlan::Same => {
                state.links.iter().filter_map(|link| link.peer.as_ref()?.bridge.as_deref()).collect()
            }
            NetworkPlan::Hook(path) if !path.exists() => {
                reasons.push(Refusal::new(format!(
                    "the network hook `{}` does not exist there",
                    path.display()
                )));
                vec![]
            }
            _ => vec![],
        };
        for bridge in wanted {
            if !Path::new("/sys/class/net").join(bridge).join("bridge").exists() {
                reasons.push(
                    Refusal::new(format!("there is no bridge `{bridge}` for its network"))
                        .hint("make one, or name another with `--network-plan bridge=NAME`"),
                );
            }
        }
        reasons
    }

    /// Makes the container's network, complete but unreachable and locked.
    pub(crate) fn make_network(
        &mut self,
        shipment: &Shipment,
        namespace: Option<&str>,
    ) -> Result<(), EngineError> {
        let (Some(state), Some(name)) = (&shipment.network, namespace) else { return Ok(()) };
        let network = state.rebuild(name, &shipment.network_plan)?;
        let host_links: Vec<String> = network.host_links().iter().map(|link| link.name.clone()).collect();
        let gate = Gate::of(network.namespace(), &host_links);
        match gate.and_then(|mut gate| gate.close().map(|()| gate)) {
            Ok(gate) => self.network = Some((network, gate)),
            Err(error) => {
                network.remove()?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Takes over the network that an engine has made in the namespace at `path`: unreachable and locked from then on.
    pub(crate) fn adopt_network(&mut self, wanted: &NetworkState, path: &Path) -> Result<(), EngineError> {
        let network = RebuiltNetwork::adopt(wanted, path)?;
        let host_links: Vec<String> = network.host_links().iter().map(|link| link.name.clone()).collect();
        let mut gate = Gate::of(network.namespace(), &host_links)?;
        gate.close()?;
        self.network = Some((network, gate));
        Ok(())
    }

    /// Who holds the tree if CRIU is killed while it restores; started when first asked for.
    pub(crate) fn guardian(&self) -> Arc<Guardian> {
        self.guardian.get_or_init(crate::guardian::start).clone()
    }

    /// Removes what a CRIU that was killed, or could not clear up itself, has left on this host, with its directory `work`.
    pub(crate) fn sweep(&self, work: &Path) {
        if let Some(guardian) = self.guardian.get() {
            crate::cure::sweep(work, guardian.since());
        }
    }

    /// What the network will be, as far as it is known before it is made; enough to remove it.
    pub(crate) fn plan(shipment: &Shipment, namespace: Option<&str>) -> Option<NetworkRecord> {
        Some(NetworkRecord {
            namespace: namespace?.to_owned(),
            plan: shipment.network_plan.clone(),
            state: shipment.network.clone()?,
            host_links: Vec::new(),
        })
    }

    /// What was made, for another process.
    pub(crate) fn record(&self) -> Option<NetworkRecord> {
        self.network.as_ref().map(|(network, _)| network.record().clone())
    }

    /// What another process has made, or what is left of it.
    pub(crate) fn reopen(record: Option<NetworkRecord>) -> Self {
        let Some(record) = record else { return Self::default() };
        let opened = RebuiltNetwork::open(record.clone()).and_then(|network| {
            let links: Vec<String> = network.host_links().iter().map(|link| link.name.clone()).collect();
            let gate = Gate::of(network.namespace(), &links)?;
            Ok((network, gate))
        });
        match opened {
            Ok(network) => Self { network: Some(network), ..Self::default() },
            Err(error) => {
                tracing::debug!(%error, "its network is not there any more");
                Self { remains: Some(record), ..Self::default() }
            }
        }
    }

    /// Whether its network is as it was made, or it needs none.
    pub(crate) fn is_whole(&self) -> bool {
        self.remains.is_none()
    }

    /// The namespace that was made.
    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.network.as_ref().map(|(network, _)| network.namespace())
    }

    /// The tree of this first process was restored, and is held in its cgroup.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn hold(&mut self, pid: i32) -> Result<(), EngineError> {
        let freezer = Freezer::of_pid(pid)?;
        freezer.verify_held(&process_tree(pid))?;
        if let Err(error) = freezer.forget_keeper() {
            tracing::debug!(%error, "it goes with the scope");
        }
        self.held(freezer);
        Ok(())
    }

    /// The tree is held in this cgroup.
    pub(crate) fn held(&mut self, freezer: Freezer) {
        self.held = Some(freezer);
    }

    /// What there is of the tree whose first process is `pid`.
    pub(crate) fn presence(&self, pid: i32) -> Presence {
        let Some(freezer) = &self.held else { return Presence::Gone };
        match freezer.verify_held(&process_tree(pid)) {
            Ok(()) if self.is_whole() => Presence::Frozen,
            Err(_) if freezer.state().is_ok_and(|state| state == FreezeState::Thawed) => Presence::Running,
            _ => Presence::Gone,
        }
    }

    /// Whether there is a held tree.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Lets it run. The order is measured: what the segment sends here once it was told is kept, not dropped; the first
    /// answer finds an open way, and nobody overtakes who waited.
    pub(crate) fn go(&mut self, frames: &[HeldFrames]) -> Result<(), EngineError> {
        let held = self.held.as_ref().ok_or_else(|| EngineError::NotHeld("nothing was restored".into()))?;
        if !self.is_whole() {
            return Err(EngineError::NotHeld("its network is gone".into()));
        }
        let Some((network, gate)) = &mut self.network else { return Ok(held.thaw()?) };
        network.connect()?;
        gate.capture()?;
        network.announce()?;
        gate.begin_to_open(by_link(network, frames))?;
        held.thaw()?;
        Ok(gate.open()?)
    }

    /// Opens the network, with nothing in it yet that could answer.
    pub(crate) fn connect(&mut self) -> Result<(), EngineError> {
        if !self.is_whole() {
            return Err(EngineError::NotHeld("its network is gone".into()));
        }
        let Some((network, gate)) = &mut self.network else { return Ok(()) };
        network.connect()?;
        network.announce()?;
        Ok(gate.open()?)
    }

    /// Announces again: one lost frame must not leave a neighbour with the old place for minutes.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        let announced = self.network.as_ref().map(|(network, _)| network.announce());
        announced.and_then(Result::err).map(|error| format!("announcement: {error}")).into_iter().collect()
    }

    /// Kills the held tree, none of which has run.
    pub(crate) fn kill_held(&mut self) -> Result<(), EngineError> {
        match self.held.take() {
            Some(freezer) => Ok(freezer.kill_frozen()?),
            None => Ok(()),
        }
    }

    /// Removes the cgroup of a restore that failed, with what is still in it: CRIU may stand there, frozen with the tasks that it
    /// had begun. None of them runs.
    pub(crate) fn clear_cgroup(&self, cgroup: &Path) -> Result<(), EngineError> {
        Freezer::at(cgroup)?.kill_frozen()?;
        Ok(remove_cgroup(cgroup)?)
    }

    /// Removes the network that was made.
    pub(crate) fn remove_network(&mut self) -> Result<(), EngineError> {
        let record = self.network.take().map(|(network, _)| network.record().clone());
        match record.or(self.remains.take()) {
            Some(record) => Ok(record.remove()?),
            None => Ok(()),
        }
    }
}

/// The frames that came from the source, by this host's side of the link they belong to.
fn by_link(network: &RebuiltNetwork, frames: &[HeldFrames]) -> FramesByLink {
    let mut sorted = FramesByLink::new();
    for kept in frames {
        let Some(link) = network.host_links().iter().find(|link| link.inside == kept.interface) else {
            // what cannot be replayed the peers send again by themselves
            tracing::warn!(interface = %kept.interface, "kept frames of an interface that is not here");
            continue;
        };
        let frames = kept.frames.iter().map(|frame| Frame(frame.to_vec()));
        // they travel in pieces: what belongs together is one piece again
        match sorted.iter_mut().find(|(name, _)| *name == link.name) {
            Some((_, before)) => before.extend(frames),
            None => sorted.push((link.name.clone(), frames.collect())),
        }
    }
    sorted
}
