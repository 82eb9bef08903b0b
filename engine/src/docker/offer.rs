//! What a source offers of a container of docker's: whether it is understood, what of this host it is given, and what speaks against it.

use super::{Docker, MEND, Recipe, Setting};
use crate::container::Shipment;
use crate::error::EngineError;
use crate::published;
use crate::runtime::needs;
use godwit_transfer::message::Refusal;
use std::path::PathBuf;

pub(super) fn parse(shipment: &Shipment) -> Result<Recipe, Refusal> {
    let recipe: Recipe = serde_json::from_str(&shipment.recipe)
        .map_err(|error| Refusal::new(format!("the container's recipe cannot be understood: {error}")))?;
    // they become parts of paths and queries, and are the peer's text
    let names = recipe.volumes.iter().map(|volume| volume.name.as_str()).chain([shipment.name.as_str()]);
    let odd = names.chain(recipe.record.networks()).find(|name| !super::is_name(name));
    let (image, image_name) = recipe.record.image();
    let odd = odd.or(Some(recipe.id.as_str()).filter(|id| !is_id(id)));
    let odd = odd.or(Some(image).filter(|image| !image.strip_prefix("sha256:").is_some_and(is_id)));
    match odd.or(Some(image_name).filter(|name| !is_image_name(name))).map(str::to_owned) {
        Some(name) => Err(Refusal::new(format!("`{}` is no name for docker", name.escape_debug()))),
        // what it shares here is what its own migration's leader has made, and of nobody else
        None if !recipe
            .record
            .shared()
            .all(|id| recipe.owner.as_ref().is_some_and(|owner| owner.id == id)) =>
        {
            Err(Refusal::new("it shares namespaces of a container that it does not follow"))
        }
        None => Ok(recipe),
    }
}

/// Whether it is the whole id of a container or an image.
pub(super) fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether it can be the name of an image, and no more (distribution/reference).
fn is_image_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte))
        && !name.split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// The recipe of a shipment that was examined.
pub(super) fn parse_known(shipment: &Shipment) -> Result<Recipe, EngineError> {
    parse(shipment)
        .map_err(|refusal| EngineError::Unreadable { path: "recipe".into(), reason: refusal.reason })
}

/// What the container is given of this host.
pub(super) fn places(shipment: &Shipment) -> Vec<PathBuf> {
    let Ok(recipe) = parse(shipment) else { return vec![PathBuf::new()] };
    let mut places = recipe.record.host_paths();
    // a volume may be anything that is mounted
    let devices = recipe.volumes.iter().filter_map(|volume| volume.options.get("device"));
    places.extend(devices.filter(|device| device.starts_with('/')).map(PathBuf::from));
    places.extend(recipe.binds);
    places
}

pub(super) fn examine(docker: &Docker, shipment: &Shipment) -> Vec<Refusal> {
    let recipe = match parse(shipment) {
        Ok(recipe) => recipe,
        Err(refusal) => return vec![refusal],
    };
    let mut reasons = Vec::new();
    match docker.find(&shipment.name) {
        Ok(None) => {}
        Ok(Some(_)) => reasons.push(
            Refusal::new(format!("docker has a container `{}` there already", shipment.name))
                .hint(format!("remove it there: `docker rm {}`", shipment.name)),
        ),
        Err(error) => return vec![Refusal::new(format!("docker there cannot be asked: {error}"))],
    }
    if let Some(owner) = recipe.owner.as_ref().filter(|_| shipment.leader.is_none()) {
        let what =
            format!("it shares namespaces of `{}`, which does not come with it", owner.name.escape_debug());
        reasons.push(Refusal::new(what).hint("`godwit migrate --together`"));
    }
    match docker.setting() {
        Ok(setting) => {
            reasons.extend(setting.unsuitable("there"));
            reasons.extend(lacks_runtime(&setting, &recipe, shipment.restart));
            if !shipment.restart && setting.cgroup_driver != recipe.cgroup_driver {
                reasons.push(
                    Refusal::new(format!(
                        "docker's cgroups are made by `{}` there, and by `{}` at the source",
                        setting.cgroup_driver, recipe.cgroup_driver
                    ))
                    .hint("set the same `native.cgroupdriver` in /etc/docker/daemon.json of both hosts"),
                );
            }
        }
        Err(error) => reasons.push(Refusal::new(format!("docker there cannot be asked: {error}"))),
    }
    for name in recipe.record.networks() {
        if !matches!(docker.api.get(&format!("/networks/{name}")), Ok(Some(_))) {
            reasons.push(
                Refusal::new(format!("there is no network `{name}`"))
                    .hint(format!("make it there as it is at the source: `docker network inspect {name}`")),
            );
        }
    }
    reasons.extend(published::taken(&recipe.record.published()));
    for volume in &recipe.volumes {
        match docker.volume(&volume.name) {
            Ok(Some(there)) if there.driver != volume.driver || there.options != volume.options => {
                reasons.push(
                    Refusal::new(format!(
                        "the volume `{}` exists there with other options: driver `{}`, {:?}",
                        volume.name, there.driver, there.options
                    ))
                    .hint(format!("remove it there: `docker volume rm {}`", volume.name)),
                );
            }
            Ok(_) => {}
            Err(error) => {
                reasons.push(Refusal::new(format!("docker's volumes cannot be looked at: {error}")))
            }
        }
    }
    reasons.extend(recipe.needs.lacking(&recipe.config, &needs::Host::this()));
    for path in recipe.binds.iter().filter(|path| !path.exists()) {
        reasons.push(
            Refusal::new(format!("`{}` does not exist, and it is not copied", path.display()))
                .hint("make it there first"),
        );
    }
    reasons
}

/// Why nothing there can restore it, or start it.
fn lacks_runtime(setting: &Setting, recipe: &Recipe, restart: bool) -> Option<Refusal> {
    match (&recipe.runtime, restart) {
        (Some(name), true) => (!setting.has_runtime(name)).then(|| {
            Refusal::new(format!("docker there has no runtime `{}`", name.escape_debug()))
                .hint("add it to /etc/docker/daemon.json there, then `systemctl reload docker`")
        }),
        (None, true) => Some(Refusal::new("its recipe names no runtime to start it")),
        (_, false) => setting
            .stand_in()
            .is_none()
            .then(|| Refusal::new("docker there has no runtime that restores what godwit brings").hint(MEND)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::network::NetworkPlan;
    use serde_json::{Value, json};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A shipment as a source would make it, after `change`.
    pub fn shipment(change: impl FnOnce(&mut Value)) -> Shipment {
        let mut recipe = json!({
            "id": ID, "config": {}, "descriptors": [], "merged": "/m", "log": null, "binds": ["/srv/socket"], "needs": {},
            "volumes": [{"Name": "data", "Driver": "local", "Options": {"type": "none", "device": "/srv/device"}}],
            "anonymous": [["/x", "/v/x"]], "cgroup_driver": "cgroupfs",
            "record": {
                "image": format!("sha256:{ID}"), "networks": {"lab": {}}, "config": {"Image": "localhost/redis:test"},
                "host": {"Binds": ["/etc:/x", "data:/data"]}},
        });
        change(&mut recipe);
        Shipment {
            name: "web".into(),
            recipe: recipe.to_string(),
            network: None,
            network_plan: NetworkPlan::Same,
            trees: vec![],
            carry: Default::default(),
            restart: false,
            job: "/nonexistent/01abc".into(),
            leader: None,
        }
    }

    #[test]
    fn a_peers_words_become_neither_paths_nor_queries() {
        parse(&shipment(|_| {})).unwrap();
        for (pointer, odd) in [
            ("/id", "../../etc"),
            ("/id", "web"),
            ("/volumes/0/Name", "../x"),
            ("/volumes/0/Name", "x?force=1"),
            ("/record/image", "sha256:x"),
            ("/record/config/Image", "x/../../containers"),
            ("/record/config/Image", "a b"),
            ("/record/config/Image", "a?b"),
        ] {
            let odd_one = shipment(|recipe| *recipe.pointer_mut(pointer).unwrap() = odd.into());
            assert!(parse(&odd_one).unwrap_err().reason.contains(odd), "{pointer} `{odd}`");
        }
        let networks = shipment(|recipe| recipe["record"]["networks"] = json!({"a/b": {}}));
        assert!(parse(&networks).is_err());
        assert!(parse(&Shipment { name: "a/b".into(), ..shipment(|_| {}) }).is_err());
    }

    #[test]
    fn nobody_shares_namespaces_of_a_container_that_it_does_not_follow() {
        let shares = |owner: Value| {
            shipment(|recipe| {
                recipe["record"]["host"]["NetworkMode"] = format!("container:{ID}").into();
                recipe["owner"] = owner;
            })
        };
        parse(&shares(json!({"id": ID, "name": "web"}))).unwrap();
        for owner in [Value::Null, json!({"id": "another", "name": "web"})] {
            assert!(parse(&shares(owner)).unwrap_err().reason.contains("does not follow"));
        }
    }

    #[test]
    fn the_policy_hears_of_all_that_the_container_is_given() {
        assert_eq!(places(&shipment(|_| {})), ["/etc", "/srv/device", "/srv/socket"].map(PathBuf::from));
        assert_eq!(places(&shipment(|recipe| *recipe = json!(7))), [PathBuf::new()]);
    }

    #[test]
    fn what_starts_it_must_be_there_and_what_restores_it_else() {
        let setting = |runtimes: Value| Setting { runtimes, ..Setting::default() };
        let (plain, own) = (
            setting(json!({"runc": {"path": "runc"}})),
            setting(json!({"godwit": {"path": "/x/godwit-runc"}})),
        );
        let recipe = |runtime: Value| parse(&shipment(|recipe| recipe["runtime"] = runtime)).unwrap();
        let told =
            |setting, recipe: &Recipe, restart| lacks_runtime(setting, recipe, restart).map(|no| no.reason);
        let (restored, started, kata) = (recipe(Value::Null), recipe("runc".into()), recipe("kata".into()));
        assert_eq!((told(&own, &restored, false), told(&plain, &started, true)), (None, None));
        assert!(told(&plain, &restored, false).unwrap().contains("no runtime that restores"));
        assert!(told(&plain, &kata, true).unwrap().contains("no runtime `kata`"));
        assert!(told(&plain, &restored, true).unwrap().contains("names no runtime"));
    }
}
