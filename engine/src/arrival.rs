//! What every engine does at the destination: network made early, tree held, go.

use crate::container::Shipment;
use crate::error::EngineError;
use crate::freezer::Freezer;
use crate::network::{Frame, Namespace, NetworkLock, NetworkPlan, RebuiltNetwork, inject};
use godwit_transfer::message::Refusal;
use godwit_transfer::wire::HeldFrames;
use std::path::Path;

/// The part of an arriving container that does not depend on its engine.
#[derive(Default)]
pub(crate) struct Arrival {
    network: Option<(RebuiltNetwork, NetworkLock)>,
    held: Option<Freezer>,
}

impl Arrival {
    /// What stands in the way of its network here; touches nothing.
    pub(crate) fn examine(shipment: &Shipment, namespace: Option<&str>) -> Vec<Refusal> {
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
        let lock = NetworkLock::of(network.namespace());
        let locked = lock.and_then(|lock| lock.lock().map(|()| lock));
        match locked {
            Ok(lock) => self.network = Some((network, lock)),
            Err(error) => {
                network.remove()?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The namespace that was made.
    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.network.as_ref().map(|(network, _)| network.namespace())
    }

    /// The tree is held in this cgroup.
    pub(crate) fn held(&mut self, freezer: Freezer) {
        self.held = Some(freezer);
    }

    /// Whether there is a held tree.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Lets it run. The order is measured: a first answer sent before the unlock would wait 200 ms for its repetition.
    pub(crate) fn go(&mut self, frames: &[HeldFrames]) -> Result<(), EngineError> {
        let held = self.held.as_ref().ok_or_else(|| EngineError::NotHeld("nothing was restored".into()))?;
        if let Some((network, lock)) = &self.network {
            network.go()?;
            lock.unlock()?;
            for kept in frames {
                let link = network.host_links().iter().find(|link| link.inside == kept.interface);
                let frames: Vec<Frame> = kept.frames.iter().map(|frame| Frame(frame.to_vec())).collect();
                // what cannot be replayed the peers send again by themselves
                match link.map(|link| inject(&link.name, &frames)) {
                    Some(Err(error)) => tracing::warn!(%error, "kept frames could not be replayed"),
                    Some(Ok(_)) => {}
                    None => {
                        tracing::warn!(interface = %kept.interface, "kept frames of an interface that is not here")
                    }
                }
            }
        }
        Ok(held.thaw()?)
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

    /// Removes the network that was made.
    pub(crate) fn remove_network(&mut self) -> Result<(), EngineError> {
        match self.network.take() {
            Some((network, _)) => Ok(network.remove()?),
            None => Ok(()),
        }
    }
}
