//! The running container at the source, for every engine whose tasks sit in a cgroup of their own.

use crate::container::{Facts, SourceContainer};
use crate::error::EngineError;
use crate::freezer::{FreezeState, Freezer};
use crate::network::{Frame, FrameCapture, Namespace, NetworkAttachment, NetworkLock, inject};
use crate::process;
use godwit_criu::DumpOptions;
use godwit_migration::plan::Carry;
use godwit_transfer::wire::HeldFrames;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;

/// How long all tasks may take to freeze: one in uninterruptible sleep holds the whole cgroup up.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// What differs between engines once a container is found.
pub(crate) trait Kin: Send {
    /// Its cgroup; made when first asked for, if the engine has none for it.
    fn freezer(&mut self) -> Result<Freezer, EngineError>;

    /// Its tasks now.
    fn pids(&self) -> Result<BTreeSet<i32>, EngineError>;

    /// CRIU's external resources.
    fn external(&self) -> Vec<String>;

    /// Adds to a complete dump what the engine's own restore wants.
    fn complete_images(&self, images: &Path) -> Result<(), EngineError>;

    /// Lets go of what was made for the freeze only, when the container stays.
    fn relent(&mut self) -> Result<(), EngineError>;

    /// After all tasks are gone: forgets the container.
    fn forget(&mut self) -> Result<(), EngineError>;
}

/// The network end of a container at the source.
pub(crate) struct SourceNetwork {
    namespace: Namespace,
    attachment: NetworkAttachment,
    lock: NetworkLock,
    /// Host interface and the name of its other end.
    links: Vec<(String, String)>,
    captures: Vec<FrameCapture>,
    kept: Vec<(String, Vec<Frame>)>,
    disconnected: bool,
}

impl SourceNetwork {
    pub(crate) fn new(facts: &Facts, namespace: Namespace) -> Result<Option<Self>, EngineError> {
        let Some(state) = &facts.network else { return Ok(None) };
        let peer = |link: &crate::network::Link| Some((link.peer.as_ref()?.name.clone(), link.name.clone()));
        Ok(Some(Self {
            attachment: NetworkAttachment::new(state, &namespace),
            lock: NetworkLock::of(&namespace)?,
            links: state.links.iter().filter_map(peer).collect(),
            namespace,
            captures: Vec::new(),
            kept: Vec::new(),
            disconnected: false,
        }))
    }

    /// Ends the captures; what they kept stays here, by host interface.
    fn stop_captures(&mut self) {
        for capture in self.captures.drain(..) {
            let host_link = capture.interface().to_owned();
            let captured = capture.stop();
            if captured.lost > 0 {
                tracing::warn!(interface = %host_link, lost = captured.lost, "frames beyond the limit were not kept");
            }
            self.kept.push((host_link, captured.frames));
        }
    }
}

/// A running container.
pub(crate) struct LiveContainer {
    facts: Facts,
    carry: Carry,
    kin: Box<dyn Kin>,
    network: Option<SourceNetwork>,
    freezer: Option<Freezer>,
    /// The tasks at the freeze.
    frozen: BTreeSet<i32>,
}

impl LiveContainer {
    pub(crate) fn new(facts: Facts, carry: Carry, kin: Box<dyn Kin>, network: Option<SourceNetwork>) -> Self {
        Self { facts, carry, kin, network, freezer: None, frozen: BTreeSet::new() }
    }

    fn freezer(&mut self) -> Result<Freezer, EngineError> {
        if let Some(freezer) = &self.freezer {
            return Ok(freezer.clone());
        }
        let freezer = self.kin.freezer()?;
        self.freezer = Some(freezer.clone());
        Ok(freezer)
    }
}

impl SourceContainer for LiveContainer {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tasks(&self) -> Result<BTreeSet<i32>, EngineError> {
        if self.frozen.is_empty() { self.kin.pids() } else { Ok(self.frozen.clone()) }
    }

    fn has_own_mounts(&self) -> bool {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        namespace(&self.facts.pid.to_string()) != namespace("self")
    }

    fn dump_options(&self, images: &Path, work: &Path) -> DumpOptions {
        let mut options = DumpOptions::new(self.facts.pid, images, work);
        options.freeze_cgroup = self.freezer.as_ref().map(|freezer| freezer.path().to_owned());
        options.tcp_established = self.carry.tcp_established;
        options.ext_unix_sk = self.carry.ext_unix_sk;
        options.file_locks = self.carry.file_locks;
        options.shell_job = self.carry.shell_job;
        options.link_remap = self.carry.link_remap;
        options.external = self.kin.external();
        options
    }

    fn complete_images(&self, images: &Path) -> Result<(), EngineError> {
        self.kin.complete_images(images)
    }

    fn mapped_files(&self) -> Result<HashSet<(u64, u64)>, EngineError> {
        process::mapped_files(&self.kin.pids()?)
    }

    fn lock_network(&mut self) -> Result<(), EngineError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        for (host_link, _) in &network.links {
            network.captures.push(FrameCapture::start(host_link)?);
        }
        network.lock.lock()?;
        network.captures.iter().for_each(FrameCapture::locked);
        Ok(())
    }

    fn unlock_network(&mut self) -> Result<(), EngineError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.lock.unlock()?;
        network.stop_captures();
        for (host_link, frames) in network.kept.drain(..) {
            // the peers' retransmission covers what cannot be replayed
            if let Err(error) = inject(&host_link, &frames) {
                tracing::warn!(%error, "kept frames could not be given back");
            }
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), EngineError> {
        let freezer = self.freezer()?;
        let took = freezer.freeze(FREEZE_LIMIT)?;
        self.frozen = freezer.pids()?;
        tracing::debug!(?took, tasks = self.frozen.len(), "frozen");
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), EngineError> {
        if let Some(freezer) = &self.freezer {
            freezer.thaw()?;
        }
        self.frozen.clear();
        Ok(())
    }

    fn verify_frozen(&self) -> Result<(), EngineError> {
        let freezer =
            self.freezer.as_ref().ok_or_else(|| EngineError::NotFrozen("it was never frozen".into()))?;
        if freezer.state()? != FreezeState::Frozen {
            return Err(EngineError::NotFrozen("its cgroup is not frozen any more".into()));
        }
        let now = freezer.pids()?;
        if now != self.frozen {
            let lost: Vec<_> = self.frozen.difference(&now).collect();
            return Err(EngineError::NotFrozen(format!(
                "its tasks changed (lost {lost:?}, now {})",
                now.len()
            )));
        }
        Ok(())
    }

    fn take_frames(&mut self) -> Vec<HeldFrames> {
        let Some(network) = &mut self.network else { return Vec::new() };
        network.stop_captures();
        let inside = |host_link: &str| {
            network.links.iter().find(|(host, _)| host == host_link).map(|(_, inside)| inside.clone())
        };
        // they stay here, too: until commit the container may have to go on at this place
        let held = |(host_link, frames): &(String, Vec<Frame>)| {
            Some(HeldFrames {
                interface: inside(host_link)?,
                frames: frames.iter().map(|frame| serde_bytes::ByteBuf::from(frame.0.clone())).collect(),
            })
        };
        network.kept.iter().filter_map(held).collect()
    }

    fn disconnect(&mut self) -> Result<(), EngineError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.disconnected = true;
        Ok(network.attachment.down()?)
    }

    fn reconnect(&mut self) -> Result<(), EngineError> {
        let (Some(network), Some(state)) = (&mut self.network, &self.facts.network) else { return Ok(()) };
        if std::mem::take(&mut network.disconnected) {
            network.attachment.up(state, &network.namespace)?;
        }
        Ok(())
    }

    fn is_alive(&self) -> bool {
        let stat = procfs::process::Process::new(self.facts.pid).and_then(|process| process.stat());
        stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    fn leave_as_found(&mut self) -> Result<(), EngineError> {
        self.freezer = None;
        self.kin.relent()
    }

    fn discard(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        let mut keep = |what: &str, result: Result<(), EngineError>| {
            if let Err(error) = result {
                leftovers.push(format!("{what}: {error}"));
            }
        };
        if let Some(freezer) = &self.freezer {
            keep("frozen tasks", freezer.kill_frozen().map_err(EngineError::from));
        }
        keep("container", self.kin.forget());
        if let Some(network) = &self.network {
            keep("network", network.attachment.remove().map_err(EngineError::from));
        }
        leftovers
    }
}
