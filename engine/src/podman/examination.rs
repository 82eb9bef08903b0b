//! What comes to podman, as the source tells of it: whether it can be made here.

use super::pod::Pod;
use super::{Podman, QUESTION, Recipe, is_name, sharing};
use crate::container::Shipment;
use crate::error::EngineError;
use crate::published;
use crate::runtime::destination::cgroup_of_its_own;
use crate::runtime::{cgroups, needs};
use crate::tool;
use godwit_transfer::message::Refusal;
use std::path::{Path, PathBuf};

fn parse(shipment: &Shipment) -> Result<Recipe, Refusal> {
    let recipe: Recipe = serde_json::from_str(&shipment.recipe)
        .map_err(|error| Refusal::new(format!("the container's recipe cannot be understood: {error}")))?;
    // they become arguments and paths, and are the peer's text
    let names = recipe.volumes.iter().map(|volume| volume.name.as_str()).chain([recipe.name(shipment)]);
    let of_pod = recipe.pod.iter().flat_map(Pod::names);
    let odd = names.chain(recipe.record.networks()).chain(of_pod).find(|name| !is_name(name));
    let images = [Some(recipe.record.image()), recipe.pod.as_ref().and_then(Pod::image)];
    let (images, image_names): (Vec<&str>, Vec<&str>) = images.into_iter().flatten().unzip();
    let of_pods =
        recipe.pod.iter().flat_map(|pod| pod.members.iter().map(|member| &member.id).chain([&pod.id]));
    let others = of_pods.chain(&recipe.owner).map(String::as_str);
    let ids = images.into_iter().chain([recipe.id.as_str()]).chain(others);
    let odd = odd.or(ids.into_iter().find(|id| !is_id(id)));
    let is_odd = |name: &&str| name.starts_with('-') || name.contains(char::is_whitespace);
    let odd = odd.or(image_names.into_iter().find(is_odd));
    // whoever may come by its name brings nothing of another one
    let is_other = recipe.pod.as_ref().is_some_and(|pod| shipment.name != pod.name_of(&recipe.id));
    let odd = odd.or(is_other.then_some(shipment.name.as_str()));
    if let Some(name) = odd {
        return Err(Refusal::new(format!("`{}` is no name for podman", name.escape_debug())));
    }
    // in a pod podman itself has it share what is the pod's
    let shared: &[&str] = match (&recipe.pod, &recipe.owner) {
        (Some(_), _) => return Ok(recipe),
        (None, Some(owner)) if sharing::owner_of(&recipe.record) == Some(owner) => sharing::OF_OWNERS,
        (None, _) => &[],
    };
    match recipe.record.needs_others(false, shared) {
        Some(why) => Err(Refusal::new(format!("{why}, and does not follow it"))),
        None => Ok(recipe),
    }
}

impl Recipe {
    /// The container's name for podman.
    fn name<'a>(&'a self, shipment: &'a Shipment) -> &'a str {
        if self.pod.is_some() { self.record.name() } else { &shipment.name }
    }
}

/// Whether it is the whole id of a container or an image.
fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    places.extend(recipe.binds);
    places
}

pub(super) fn examine(podman: &Podman, shipment: &Shipment) -> Vec<Refusal> {
    let recipe = match parse(shipment) {
        Ok(recipe) => recipe,
        Err(refusal) => return vec![refusal],
    };
    let mut reasons = Vec::new();
    let infra_name = recipe.led_pod().and_then(Pod::infra_name);
    for name in [recipe.name(shipment), &recipe.id].into_iter().chain(infra_name) {
        if podman.run(&["container", "exists", name]).is_ok() {
            reasons.push(
                Refusal::new(format!("podman has a container `{name}` there already"))
                    .hint(format!("remove it there: `podman rm {name}`")),
            );
            break;
        }
    }
    reasons.extend(recipe.led_pod().into_iter().flat_map(|pod| examine_pod(podman, pod, &recipe)));
    if recipe.pod.is_some() && shipment.restart {
        reasons.push(Refusal::new("a pod is not stopped here and started there yet"));
    }
    if recipe.pod.is_some() && recipe.led_pod().is_none() && shipment.leader.is_none() {
        reasons.push(Refusal::new("it comes without the container that leads its pod"));
    }
    if recipe.owner.is_some() && shipment.leader.is_none() {
        reasons.push(
            Refusal::new("it comes without the container whose namespaces it shares")
                .hint("`godwit migrate --together`"),
        );
    }
    match podman.setting() {
        Ok(setting) if setting.cgroups != "v2" || setting.storage != "overlay" => reasons.push(
            Refusal::new(format!(
                "podman there uses cgroups {} and storage `{}`, not v2 and `overlay`",
                setting.cgroups, setting.storage
            ))
            .hint("set that host up as the source is"),
        ),
        Ok(_) => {}
        Err(error) => reasons.push(Refusal::new(format!("podman there cannot be asked: {error}"))),
    }
    if tool::run(Path::new(recipe.flavor.kind()), &["--version"], QUESTION).is_err() {
        let kind = recipe.flavor.kind();
        reasons.push(
            Refusal::new(format!("its runtime `{kind}` is not there")).hint(format!("install {kind} there")),
        );
    }
    let of_pod = recipe.led_pod().map(|pod| &pod.infra);
    for network in
        recipe.record.networks().into_iter().chain(of_pod.iter().flat_map(|infra| infra.networks()))
    {
        if podman.run(&["network", "exists", network]).is_err() {
            reasons.push(
                Refusal::new(format!("there is no network `{network}`")).hint(format!(
                    "make it there as it is at the source: `podman network inspect {network}`"
                )),
            );
        }
    }
    for publisher in [&recipe.record].into_iter().chain(of_pod) {
        reasons.extend(published::taken(&publisher.published()));
    }
    for volume in &recipe.volumes {
        match podman.volume(&volume.name) {
            Ok(Some(there)) if there.driver != volume.driver || there.options != volume.options => {
                reasons.push(
                    Refusal::new(format!(
                        "the volume `{}` exists there with other options: driver `{}`, {:?}",
                        volume.name, there.driver, there.options
                    ))
                    .hint(format!("remove it there: `podman volume rm {}`", volume.name)),
                );
            }
            Ok(_) => {}
            Err(error) => {
                reasons.push(Refusal::new(format!("podman's volumes cannot be looked at: {error}")))
            }
        }
    }
    reasons.extend(cgroups::without_systemd(cgroups::is_scope(&recipe.config)));
    if !shipment.restart {
        reasons.extend(cgroup_of_its_own(recipe.flavor, recipe.cgroup().as_deref(), needs::cgroups()));
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

/// What stands in the way of a pod.
fn examine_pod(podman: &Podman, pod: &Pod, recipe: &Recipe) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    if podman.run(&["pod", "exists", &pod.name]).is_ok() {
        reasons.push(
            Refusal::new(format!("podman has a pod `{}` there already", pod.name))
                .hint(format!("remove it there: `podman pod rm {}`", pod.name)),
        );
    }
    // that of the container itself goes along
    let needed = pod.image().filter(|(id, _)| *id != recipe.record.image().0);
    if let Some((id, name)) = needed
        && podman.run(&["image", "exists", id]).is_err()
    {
        reasons.push(
            Refusal::new(format!("the image `{name}` of its infra container is not there"))
                .hint(format!("pull or load it there: `podman pull {name}`")),
        );
    }
    reasons
}

pub(super) fn lacks_image(podman: &Podman, shipment: &Shipment) -> Result<Option<String>, EngineError> {
    let recipe = parse_known(shipment)?;
    let (image, _) = recipe.record.image();
    match podman.run(&["image", "exists", image]) {
        Ok(_) => Ok(None),
        Err(_) => podman.layers_here().map(Some),
    }
}

pub(super) fn take_image(podman: &Podman, shipment: &Shipment, dir: &Path) -> Result<(), EngineError> {
    podman.import(parse_known(shipment)?.record.image().0, dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NetworkPlan;
    use serde_json::{Value, json};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A shipment as a source would make it, after `change`.
    fn shipment(change: impl FnOnce(&mut Value)) -> Shipment {
        let mut recipe = json!({
            "id": ID, "flavor": "crun", "config": {}, "descriptors": [], "merged": "/m", "binds": ["/srv/socket"], "needs": {},
            "volumes": [{"Name": "data", "Driver": "local"}],
            "record": {
                "rootfsImageID": ID, "rootfsImageName": "localhost/redis:test", "newNetworks": {"lab": {}},
                "spec": {"mounts": [{"destination": "/x", "type": "bind", "source": "/etc"}]}},
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
            job: "/nonexistent".into(),
            leader: None,
        }
    }

    #[test]
    fn a_peers_words_become_neither_options_nor_paths() {
        parse(&shipment(|_| {})).unwrap();
        for (pointer, odd) in [
            ("/id", "../../etc"),
            ("/id", "web"),
            ("/volumes/0/Name", "../x"),
            ("/volumes/0/Name", "--driver=x"),
            ("/record/rootfsImageID", "--help"),
            ("/record/rootfsImageName", "--help"),
            ("/record/rootfsImageName", "a b"),
        ] {
            let odd_one = shipment(|recipe| *recipe.pointer_mut(pointer).unwrap() = odd.into());
            assert!(parse(&odd_one).unwrap_err().reason.contains(odd), "{pointer} `{odd}`");
        }
        let networks = shipment(|recipe| recipe["record"]["newNetworks"] = json!({"-x": {}}));
        assert!(parse(&networks).is_err());
    }

    #[test]
    fn a_pod_comes_by_its_own_name() {
        let pod = json!({
            "id": ID, "name": "shop", "hostname": "", "labels": {}, "share": ["net"], "exit_policy": "", "restart_policy": "",
            "dns_servers": [], "dns_search": [], "dns_options": [], "hosts": [],
            "infra": {"name": "front", "newNetworks": {"lab": {}}}});
        let in_pod = |name: &str, change: fn(&mut Value)| {
            let mut shipment = shipment(|recipe| {
                recipe["pod"] = pod.clone();
                recipe["record"]["name"] = "web".into();
                change(recipe);
            });
            shipment.name = name.into();
            parse(&shipment).map(|recipe| recipe.name(&shipment).to_owned()).map_err(|refusal| refusal.reason)
        };
        assert_eq!(in_pod("pod/shop", |_| {}), Ok("web".into()));
        for (name, change, odd) in [
            ("web", (|_| {}) as fn(&mut Value), "`web`"),
            ("pod/other", |_| {}, "`pod/other`"),
            ("pod/shop", |recipe| recipe["record"]["name"] = "--all".into(), "`--all`"),
            ("pod/shop", |recipe| recipe["pod"]["id"] = "../x".into(), "`../x`"),
            ("pod/shop", |recipe| recipe["pod"]["infra"]["name"] = "-x".into(), "`-x`"),
            ("pod/shop", |recipe| recipe["pod"]["infra"]["newNetworks"] = json!({"a:ip=1": {}}), "`a:ip=1`"),
            (
                "pod/shop",
                |recipe| {
                    recipe["pod"]["infra"]["rootfsImageID"] = ID.into();
                    recipe["pod"]["infra"]["rootfsImageName"] = "-x".into();
                },
                "`-x`",
            ),
        ] {
            assert!(in_pod(name, change).unwrap_err().contains(odd), "{odd}");
        }
        // one that is in no pod does not come as one
        let mut alone = shipment(|_| {});
        alone.name = "pod/shop".into();
        assert!(parse(&alone).is_err());
    }

    #[test]
    fn the_policy_hears_of_all_that_the_record_binds() {
        assert_eq!(places(&shipment(|_| {})), ["/etc", "/srv/socket"].map(PathBuf::from));
        assert_eq!(places(&shipment(|recipe| *recipe = json!(7))), [PathBuf::new()]);
    }
}
