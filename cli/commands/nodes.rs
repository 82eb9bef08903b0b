//! `godwit node list` and `godwit node find`: which neighbours there are, and what the catalog knows of them.

use super::node::refuse_exposed;
use crate::args::{CatalogArgs, Neighbours};
use crate::config::{Config, Name};
use crate::draw::Draw;
use godwit_migration::calendar::show_time;
use godwit_migration::{Cancel, Failure, FailureKind, host_name};
use godwit_neighbours::{Acquaintance, Catalog, EtcdError, Place};
use godwit_store::Digest;
use godwit_transfer::Address;
use godwit_transfer::tls::config_dir;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The catalog at a place; plain HTTP only for whoever says so.
///
/// # Errors
/// When it would be spoken to in the open, or its certificates are not there.
pub fn catalog(place: &Place, insecure: bool) -> Result<Catalog, Failure> {
    refuse_exposed_catalog(place, insecure)?;
    Catalog::new(place, &config_dir(), insecure).map_err(|error| unusable(place, &error))
}

/// Plain HTTP only for whoever says so.
///
/// # Errors
/// That it would be spoken to in the open.
pub fn refuse_exposed_catalog(place: &Place, insecure: bool) -> Result<(), Failure> {
    if !place.is_exposed() || insecure {
        return Ok(());
    }
    let exposed = format!(
        "the catalog `{place}` is neither encrypted nor authenticated: anybody on the way could say who has what"
    );
    Err(Failure::new(FailureKind::Usage, exposed)
        .hint("use `etcds://`, or add `--insecure` if the network to it is yours alone"))
}

/// That a catalog cannot be used.
pub fn unusable(place: &Place, error: &EtcdError) -> Failure {
    Failure::new(FailureKind::Missing, format!("the catalog `{place}` cannot be used")).because_of(error)
}

/// Neighbours by their addresses are visited, those of the catalog are shown as it has them.
///
/// # Errors
/// When the catalog cannot be asked.
pub fn list(named: Option<Neighbours>, wanted: &CatalogArgs, draw: &Draw) -> Result<u8, Failure> {
    let place = match (&wanted.catalog, &named) {
        (Some(place), _) => Some(place.clone()),
        (None, Some(_)) => None,
        (None, None) => configured_catalog()?,
    };
    let neighbours = match named {
        Some(named) => named,
        None => configured("receive.neighbours", Neighbours::parse)?.unwrap_or_default(),
    };
    refuse_exposed(&neighbours, wanted.insecure)?;
    let visits: Vec<Visited> = neighbours.0.iter().map(|address| visit(address, draw)).collect();
    let listed = match &place {
        Some(place) => catalog(place, wanted.insecure)?.nodes().map_err(|error| unusable(place, &error))?,
        None => Vec::new(),
    };
    if draw.is_json() {
        let visits: Vec<Value> = visits.iter().map(Visited::json).collect();
        draw.json_line(&json!({ "message_type": "nodes", "neighbours": visits, "catalog": listed }));
    } else if visits.is_empty() && place.is_none() {
        draw.talk(
            "no neighbours are configured: `godwit config set receive.neighbours URLS`, or `receive.catalog URL`",
        );
    }
    for node in listed.iter().filter(|_| !draw.is_json()) {
        draw.data(&format!("{}  {}  in the catalog", node.address, node.host));
    }
    Ok(if visits.iter().all(|visited| visited.answer.is_ok()) { 0 } else { FailureKind::Failed.exit_code() })
}

/// A neighbour, and within which time it has said what it is called.
struct Visited {
    address: String,
    answer: Result<(String, Duration), String>,
}

impl Visited {
    fn json(&self) -> Value {
        match &self.answer {
            Ok((host, spent)) => {
                json!({ "neighbour": self.address, "host": host, "answered_us": spent.as_micros() as u64 })
            }
            Err(why) => json!({ "neighbour": self.address, "failed": why }),
        }
    }
}

fn visit(address: &Address, draw: &Draw) -> Visited {
    let begun = Instant::now();
    let mut acquaintance = Acquaintance::new(address.clone(), &host_name(), Cancel::default());
    let answer = acquaintance.visit().map(|visit| (visit.host.clone(), begun.elapsed()));
    if !draw.is_json() {
        draw.data(&match &answer {
            Ok((host, spent)) => format!("{address}  {host}  answered within {} ms", spent.as_millis()),
            Err(why) => format!("{address}  {why}"),
        });
    }
    Visited { address: address.to_string(), answer }
}

/// Which nodes have something, by the catalog.
///
/// # Errors
/// When the catalog cannot be asked, or nobody has it.
pub fn find(what: &str, wanted: &CatalogArgs, draw: &Draw) -> Result<u8, Failure> {
    let place = match &wanted.catalog {
        Some(place) => place.clone(),
        None => configured_catalog()?.ok_or_else(|| {
            Failure::new(FailureKind::Usage, "there is no catalog")
                .hint("name one: `--catalog URL`, or `godwit config set receive.catalog URL`")
        })?,
    };
    let catalog = catalog(&place, wanted.insecure)?;
    let found = look_for(&catalog, what).map_err(|error| unusable(&place, &error))?;
    if draw.is_json() {
        draw.json_line(&json!({ "message_type": "found", "what": what, "found": found }));
    } else {
        for row in &found {
            let made = row["made_unix_us"].as_u64().map(show_time);
            let manifest = row["manifest"].as_str().unwrap_or_default();
            let words = [row["address"].as_str(), row["kind"].as_str(), made.as_deref(), Some(manifest)];
            draw.data(words.into_iter().flatten().collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    match found.is_empty() {
        true => Err(Failure::new(FailureKind::NotFound, format!("no living node has `{what}`"))
            .hint("`godwit node list` shows the nodes of the catalog")),
        false => Ok(0),
    }
}

/// Checkpoints of a container or an image, snapshots, and holders of a digest.
fn look_for(catalog: &Catalog, what: &str) -> Result<Vec<Value>, EtcdError> {
    let kinds = [
        ("checkpoint", catalog.checkpoints(what)?),
        ("checkpoint of the image", catalog.of_image(what)?),
        ("snapshot", catalog.snapshots(what)?),
    ];
    let mut found = Vec::new();
    for (kind, offered) in kinds {
        for offered in offered {
            let mut row = json!(offered);
            row["kind"] = kind.into();
            found.push(row);
        }
    }
    if let Ok(digest) = what.parse::<Digest>() {
        for node in catalog.holders(digest)? {
            let mut row = json!(node);
            row["kind"] = "digest".into();
            found.push(row);
        }
    }
    Ok(found)
}

fn configured_catalog() -> Result<Option<Place>, Failure> {
    configured("receive.catalog", |text| text.parse::<Place>().map_err(|error| error.to_string()))
}

/// What this host's configuration has under a name.
fn configured<T>(name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
    let config = Config::load().map_err(|error| super::config_failure(&error))?;
    let setting = Name::find(name).ok().and_then(|name| config.setting(&name).cloned());
    let parsed = setting.map(|setting| parse(&setting.value)).transpose();
    parsed.map_err(|why| Failure::new(FailureKind::Usage, why))
}
