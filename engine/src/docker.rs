//! Containers of docker, with runc below it.
//!
//! The dump is godwit's own, of a tree frozen by godwit; docker takes no part in it. At the destination docker makes a container from
//! what the source's docker says of it, over its [socket](api), and later starts it as ever: its runtime is a
//! [stand-in](crate::stand_in) that the admin has registered, which restores. docker gives it a new id.

mod api;
mod destination;
mod image;
mod layer;
mod network;
mod offer;
mod record;
mod removal;
mod restart;
mod sharing;
mod source;

use crate::container::{DestinationContainer, Engine, Note, OpenRequest, Shipment, SourceContainer};
use crate::error::EngineError;
use crate::runtime::needs::Needs;
use crate::stand_in::REGISTERED;
use crate::tool;
use crate::volumes::Volume;
use api::Api;
use godwit_transfer::message::Refusal;
use record::{Record, no_restart};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sharing::{Company, Owner};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the engine.
const KIND: &str = "docker";
/// Where its daemon listens.
const SOCKET: &str = "/var/run/docker.sock";
/// The storage driver whose layers are understood.
const STORAGE: &str = "overlay2";
/// Time that a question to a program may take.
const QUESTION: Duration = Duration::from_secs(30);
/// What makes docker use the stand-in for containers that come here.
const MEND: &str = "there: `ln -s $(command -v godwit) /usr/local/bin/godwit-runc`, add `\"runtimes\": {\"godwit\": {\"path\": \
    \"/usr/local/bin/godwit-runc\"}}` to /etc/docker/daemon.json, then `systemctl reload docker` (or send dockerd a HUP): nothing is restarted";

/// docker as it runs on this host.
#[derive(Clone, Debug)]
pub struct Docker {
    api: Api,
}

impl Default for Docker {
    /// The daemon at docker's usual socket, or at that which `GODWIT_DOCKER` names.
    fn default() -> Self {
        let socket = std::env::var_os("GODWIT_DOCKER").map_or_else(|| SOCKET.into(), PathBuf::from);
        Self { api: Api::at(socket) }
    }
}

/// What travels to docker at the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Recipe {
    /// The id at the source.
    id: String,
    record: Record,
    /// config.json as the source's runtime was given it.
    config: Value,
    /// Those that have a name.
    volumes: Vec<Volume>,
    /// Those that docker makes with the container: where they are in it, and how their content is called on the wire.
    anonymous: Vec<(PathBuf, PathBuf)>,
    /// Where its standard streams lead.
    descriptors: Vec<String>,
    /// Where the source has the container's root file system mounted: how the layer is called on the wire.
    merged: PathBuf,
    /// The file of its log, if it travels: how it is called on the wire.
    log: Option<PathBuf>,
    /// Paths that it is given of the host and nobody copies.
    binds: Vec<PathBuf>,
    /// Who makes its cgroup: `cgroupfs` or `systemd`.
    cgroup_driver: String,
    /// The runtime that starts it there; none when it is restored, by the stand-in.
    #[serde(default)]
    runtime: Option<String>,
    /// Whose namespaces it shares.
    #[serde(default)]
    owner: Option<Owner>,
    needs: Needs,
}

/// What of docker's setting matters here: `GET /info`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Setting {
    driver: String,
    cgroup_version: String,
    cgroup_driver: String,
    docker_root_dir: PathBuf,
    runtimes: Value,
    security_options: Vec<String>,
}

impl Setting {
    /// The runtime that is a stand-in: its name, and its program.
    fn stand_in(&self) -> Option<(&str, &Path)> {
        let all = self.runtimes.as_object()?;
        all.iter().find_map(|(name, runtime)| {
            let path = Path::new(runtime["path"].as_str()?);
            (path.file_name()? == REGISTERED).then_some((name.as_str(), path))
        })
    }

    /// Whether a runtime of that name is here.
    fn has_runtime(&self, name: &str) -> bool {
        self.runtimes.get(name).is_some()
    }

    /// What starts a container with this runtime on another host: runc itself where it is runc under another name.
    fn starts_with(&self, name: &str) -> String {
        if self.is_runc(name) { "runc".into() } else { name.into() }
    }

    /// Whether a runtime's name means runc.
    fn is_runc(&self, name: &str) -> bool {
        // no path is the default of docker's, which is runc
        let path = self.runtimes.get(name).and_then(|runtime| runtime["path"].as_str()).unwrap_or("runc");
        let is_known =
            matches!(name, "" | "runc" | "io.containerd.runc.v2") || self.runtimes.get(name).is_some();
        let program = Path::new(path).file_name().unwrap_or_default();
        is_known && (program == "runc" || program == REGISTERED)
    }

    /// What of it no container can come from or go to.
    fn unsuitable(&self, place: &str) -> Vec<Refusal> {
        let mut reasons = Vec::new();
        if self.driver != STORAGE {
            reasons.push(
                Refusal::new(format!("docker's storage driver {place} is `{}`, not `{STORAGE}`", self.driver)).hint(
                    "set `\"storage-driver\": \"overlay2\"` in /etc/docker/daemon.json, with containerd's image store off \
                     (`\"features\": {\"containerd-snapshotter\": false}`), and make the container again",
                ),
            );
        }
        if self.cgroup_version != "2" {
            reasons.push(
                Refusal::new(format!(
                    "cgroups {place} are those of v{}, and docker's containers move on v2 only",
                    self.cgroup_version
                ))
                .hint("boot with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line"),
            );
        }
        for (option, what) in [
            ("name=userns", "gives its containers user namespaces (`userns-remap`)"),
            ("name=rootless", "is rootless"),
        ] {
            if self.security_options.iter().any(|found| found.split(',').any(|word| word == option)) {
                reasons.push(Refusal::new(format!("docker {place} {what}")).hint(
                    "only containers of a docker that runs as root, without `userns-remap`, can be moved yet",
                ));
            }
        }
        reasons
    }
}

impl Docker {
    fn setting(&self) -> Result<Setting, EngineError> {
        understood("info", self.api.get("/info")?.unwrap_or_default())
    }

    /// What docker says of a container; none if it knows none.
    fn find(&self, name: &str) -> Result<Option<Value>, EngineError> {
        match is_name(name) {
            true => self.api.get(&format!("/containers/{name}/json")),
            false => Ok(None),
        }
    }

    fn inspect(&self, name: &str) -> Result<Value, EngineError> {
        self.find(name)?.ok_or_else(|| EngineError::NotFound(format!("{KIND}:{name}")))
    }

    fn volume(&self, name: &str) -> Result<Option<Volume>, EngineError> {
        let found = self.api.get(&format!("/volumes/{name}"))?;
        found.map(|volume| understood("volumes", volume)).transpose()
    }

    /// Has docker leave a container alone when it ends, or start it again, as `policy` says.
    fn set_restart_policy(&self, id: &str, policy: &Value) -> Result<(), EngineError> {
        self.api.post(&format!("/containers/{id}/update"), Some(&json!({"RestartPolicy": policy}))).map(drop)
    }
}

fn understood<T: for<'a> Deserialize<'a>>(what: &str, said: Value) -> Result<T, EngineError> {
    serde_json::from_value(said).map_err(|error| EngineError::Unreadable {
        path: Path::new(KIND).join(what),
        reason: error.to_string(),
    })
}

/// docker's rule for names of containers, volumes and networks (moby: daemon/names), which also keeps them from being paths.
fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl Engine for Docker {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn usable(&self) -> Result<String, EngineError> {
        let said = self.api.get("/version")?.unwrap_or_default();
        let version = said["Version"].as_str().unwrap_or_default().to_owned();
        // the time that this takes is that of a start of a program, too
        match self.setting()?.stand_in() {
            Some((name, path)) => {
                tool::run(path, &["--version"], QUESTION)?;
                Ok(format!("{version}, runtime `{name}` is godwit's"))
            }
            None => Ok(format!(
                "{version}, without godwit's runtime: containers can leave, none can come (docs/engines.md)"
            )),
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.api.is_there() && self.find(name).is_ok_and(|found| found.is_some())
    }

    fn open(&self, name: &str, request: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::open(self, name, &mut Company::default(), request)
    }

    fn open_group(
        &self,
        name: &str,
        request: &OpenRequest,
    ) -> Result<Vec<Box<dyn SourceContainer>>, EngineError> {
        sharing::open_group(self, name, request)
    }

    fn examine(&self, shipment: &Shipment) -> Vec<Refusal> {
        offer::examine(self, shipment)
    }

    fn places(&self, shipment: &Shipment) -> Vec<PathBuf> {
        offer::places(shipment)
    }

    fn lacks_image(&self, shipment: &Shipment) -> Result<Option<String>, EngineError> {
        destination::lacks_image(self, shipment)
    }

    fn take_image(&self, shipment: &Shipment, dir: &Path) -> Result<(), EngineError> {
        destination::take_image(self, shipment, dir)
    }

    fn write_image(&self, image: &str, dir: &Path) -> Result<(), EngineError> {
        self.export(image, "[]", dir)
    }

    fn prepare(
        &self,
        shipment: &Shipment,
        note: &mut Note<'_>,
    ) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::prepare(self, shipment, note)
    }

    fn reopen_source(&self, remains: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
        source::reopen(self, remains)
    }

    fn reopen_destination(&self, remains: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
        destination::reopen(self, remains)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(runtimes: Value) -> Setting {
        Setting { driver: STORAGE.into(), cgroup_version: "2".into(), runtimes, ..Setting::default() }
    }

    #[test]
    fn the_stand_in_is_known_by_its_program() {
        let runtimes = json!({"runc": {"path": "runc"}, "io.containerd.runc.v2": {"path": "runc"},
            "moving": {"path": "/opt/bin/godwit-runc"}, "crun": {"path": "/usr/bin/crun"}});
        let with = setting(runtimes);
        assert_eq!(with.stand_in(), Some(("moving", Path::new("/opt/bin/godwit-runc"))));
        for (name, is_runc) in
            [("runc", true), ("", true), ("moving", true), ("crun", false), ("kata", false)]
        {
            assert_eq!(with.is_runc(name), is_runc, "{name}");
        }
        assert_eq!(setting(json!({"runc": {"path": "runc"}})).stand_in(), None);
        assert_eq!(setting(Value::Null).stand_in(), None);
    }

    #[test]
    fn a_docker_that_is_set_up_otherwise_is_named() {
        assert!(setting(Value::Null).unsuitable("here").is_empty());
        let told = |setting: Setting| setting.unsuitable("there").remove(0).reason;
        assert!(
            told(Setting { driver: "overlayfs".into(), ..setting(Value::Null) })
                .contains("`overlayfs`, not `overlay2`")
        );
        assert!(told(Setting { cgroup_version: "1".into(), ..setting(Value::Null) }).contains("v1"));
        let options = vec!["name=seccomp,profile=builtin".into(), "name=userns".into()];
        assert!(told(Setting { security_options: options, ..setting(Value::Null) }).contains("userns-remap"));
    }
}
