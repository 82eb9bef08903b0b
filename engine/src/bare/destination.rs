//! A bare process tree at the destination.

use super::{Recipe, cgroup_name};
use crate::arrival::Arrival;
use crate::container::{DestinationContainer, Given, Note, RestoreRequest, Shipment};
use crate::error::EngineError;
use crate::freezer::{Freezer, HookCall, OwnCgroup, hold_from_hook, process_tree};
use crate::network::NetworkRecord;
use crate::process::without_groups;
use crate::remains::{this_boot, understood, written};
use godwit_criu::{CriuBinary, NotifyAnswer, RestoreOptions, restore};
use godwit_migration::ownership::Presence;
use godwit_transfer::message::Refusal;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the tree may take to freeze at the hold.
const HOLD: Duration = Duration::from_secs(10);

struct BareArrival {
    shipment: Shipment,
    recipe: Recipe,
    arrival: Arrival,
    cgroup: Option<OwnCgroup>,
}

/// What outlasts the process that receives.
#[derive(Serialize, Deserialize)]
struct Remains {
    shipment: Shipment,
    cgroup: OwnCgroup,
    network: Option<NetworkRecord>,
    /// Process numbers and cgroups mean nothing after the host was started anew.
    boot: String,
}

fn parse(shipment: &Shipment) -> Result<Recipe, Refusal> {
    serde_json::from_str(&shipment.recipe)
        .map_err(|error| Refusal::new(format!("the process tree's recipe cannot be understood: {error}")))
}

pub(super) fn examine(shipment: &Shipment) -> Vec<Refusal> {
    let recipe = match parse(shipment) {
        Ok(recipe) => recipe,
        Err(refusal) => return vec![refusal],
    };
    let mut reasons = Arrival::examine(shipment, recipe.namespace.as_deref());
    let mend = "run the tree in a container, which has process numbers of its own";
    reasons.extend(crate::obstacles::numbers::unavailable(&recipe.tasks, mend));
    reasons.extend(crate::obstacles::ports::unavailable(&recipe.listeners));
    let mut wrong: Vec<String> = Vec::new();
    for (path, size) in &recipe.files {
        match std::fs::metadata(path) {
            Err(_) => wrong.push(format!("`{}` is missing", path.display())),
            Ok(meta) if meta.len() != *size => {
                wrong.push(format!("`{}` has {} bytes and not {size}", path.display(), meta.len()));
            }
            Ok(_) => {}
        }
    }
    if let Some(first) = wrong.first() {
        reasons.push(
            Refusal::new(format!("{} of the files it has open or mapped differ there: {first}", wrong.len()))
                .hint("install the same programs there, or take the files along with `--volume`"),
        );
    }
    reasons
}

pub(super) fn prepare(
    shipment: &Shipment,
    note: &mut Note<'_>,
) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let recipe = parse_known(shipment)?;
    let cgroup = OwnCgroup::create(&cgroup_name(recipe.pid))?;
    let mut arrival =
        BareArrival { shipment: shipment.clone(), recipe, arrival: Arrival::default(), cgroup: Some(cgroup) };
    match arrival.make(note) {
        Ok(()) => Ok(Box::new(arrival)),
        Err(error) => {
            arrival.abandon();
            Err(error)
        }
    }
}

/// Finds again what another process has made or restored.
pub(super) fn reopen(remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
    let Remains { shipment, cgroup, network, boot } = understood(remains)?;
    let recipe = parse_known(&shipment)?;
    let mut arrival = Arrival::reopen(network);
    let is_there = this_boot()? == boot;
    if is_there && let Ok(freezer) = cgroup.freezer() {
        arrival.held(freezer);
    }
    Ok(Box::new(BareArrival { shipment, recipe, arrival, cgroup: is_there.then_some(cgroup) }))
}

/// The recipe of a shipment that was examined.
fn parse_known(shipment: &Shipment) -> Result<Recipe, EngineError> {
    parse(shipment)
        .map_err(|refusal| EngineError::Unreadable { path: "recipe".into(), reason: refusal.reason })
}

impl BareArrival {
    fn make(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        let namespace = self.recipe.namespace.clone();
        self.note(note, Arrival::plan(&self.shipment, namespace.as_deref()))?;
        self.arrival.make_network(&self.shipment, namespace.as_deref())?;
        // early, since it takes a moment
        self.arrival.guardian();
        self.note(note, self.arrival.record())
    }

    fn note(&self, note: &mut Note<'_>, network: Option<NetworkRecord>) -> Result<(), EngineError> {
        let Some(cgroup) = self.cgroup.clone() else { return Ok(()) };
        let remains = Remains { shipment: self.shipment.clone(), cgroup, network, boot: this_boot()? };
        note(&written(&remains)?).map_err(EngineError::io("note what is made in", &self.shipment.job))
    }

    fn options(&self, request: &RestoreRequest, cgroup: &Path) -> Result<RestoreOptions, EngineError> {
        let mut options = RestoreOptions::new(&request.images, &request.work);
        let carry = &self.shipment.carry;
        options.tcp_established = carry.tcp_established;
        options.ext_unix_sk = carry.ext_unix_sk;
        options.shell_job = carry.shell_job;
        options.file_locks = carry.file_locks;
        options.link_remap = carry.link_remap;
        options.lazy_pages = request.lazy;
        options.criu_cgroups = vec![cgroup.to_owned()];
        // CRIU itself is in it, until the hold
        options.guardian = Some((self.arrival.guardian(), Freezer::at(cgroup)?.brake()?));
        if let (Some(key), Some(namespace)) = (&self.recipe.network_key, self.arrival.namespace()) {
            let path: PathBuf = namespace.path().to_owned();
            let file = File::open(&path).map_err(EngineError::io("open", path))?;
            options.inherit_fd.push((file.into(), key.clone()));
        }
        Ok(options)
    }
}

impl DestinationContainer for BareArrival {
    fn restore(
        &mut self,
        request: &RestoreRequest,
        _restored: &mut dyn FnMut(i32),
    ) -> Result<Given, EngineError> {
        let cgroup = self.cgroup.as_ref().ok_or_else(|| EngineError::NotHeld("its cgroup is gone".into()))?;
        let (dir, freezer) = (cgroup.dir.clone(), cgroup.freezer()?);
        // from the first moment on: a restore that fails half way may leave tasks there
        self.arrival.held(freezer.clone());
        let options = self.options(request, &dir)?;
        without_groups()?;
        let report = restore::restore(&CriuBinary::find()?, options, &mut |notify| {
            let call = HookCall { action: notify.script.clone(), init_pid: notify.pid };
            match hold_from_hook(&call, Some(&dir), HOLD) {
                Ok(_) => NotifyAnswer::Continue,
                Err(error) => {
                    // CRIU does not listen at this step; the hold is verified below
                    tracing::error!(%error, "the restored tree could not be held");
                    NotifyAnswer::Refuse
                }
            }
        })?;
        freezer.verify_held(&process_tree(report.pid))?;
        Ok(Given { pid: report.pid })
    }

    fn presence(&self) -> Presence {
        self.arrival.presence(self.recipe.pid)
    }

    fn pid(&self) -> Option<i32> {
        Some(self.recipe.pid)
    }

    fn go(&mut self, frames: &[godwit_transfer::wire::HeldFrames]) -> Result<(), EngineError> {
        self.arrival.go(frames)
    }

    fn settle(&mut self) -> Vec<String> {
        self.arrival.settle()
    }

    fn abandon(&mut self) -> Vec<String> {
        let mut leftovers = Vec::new();
        let mut keep = |what: &str, result: Result<(), EngineError>| {
            if let Err(error) = result {
                leftovers.push(format!("{what}: {error}"));
            }
        };
        keep("held tasks", self.arrival.kill_held());
        self.arrival.sweep(&self.shipment.job.join("work"));
        if let Some(cgroup) = self.cgroup.take() {
            keep("cgroup", cgroup.release().map_err(EngineError::from));
        }
        keep("network", self.arrival.remove_network());
        leftovers
    }
}
