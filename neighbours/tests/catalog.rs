//! A catalog in a real etcd: who is in it, what they have, and that whoever dies is gone from it and whoever lives comes back.
#![allow(clippy::unwrap_used)]

use godwit_etcd_server::Etcd;
use godwit_migration::Cancel;
use godwit_neighbours::{Catalog, Registration};
use godwit_store::{Digest, Store};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const NOWHERE: &str = "/nowhere";
/// How long it may take until the catalog shows what is.
const PATIENCE: Duration = Duration::from_secs(40);

fn registration(etcd: &Etcd, address: &str, store: &Path, ttl: u64) -> Registration {
    let host = address.trim_start_matches("tls://");
    let (place, address) = (etcd.place().parse().unwrap(), address.parse().unwrap());
    Registration::new(&place, Path::new(NOWHERE), &address, host, store.to_owned(), Duration::from_secs(ttl))
        .unwrap()
}

fn catalog(etcd: &Etcd) -> Catalog {
    Catalog::new(&etcd.place().parse().unwrap(), Path::new(NOWHERE), false).unwrap()
}

fn nodes(catalog: &Catalog) -> Vec<String> {
    catalog.nodes().unwrap().into_iter().map(|node| node.address).collect()
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Something in a store, with these facts; the manifest that describes it.
fn keep(store: &Store, dir: &Path, pin: &str, facts: &[(&str, &str)]) -> Digest {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("file"), pin).unwrap();
    let mut lease = store.lease().unwrap();
    let added = lease.add_tree(dir, &mut |_| {}).unwrap();
    let facts = facts.iter().map(|(name, fact)| ((*name).to_owned(), (*fact).to_owned())).collect();
    let manifest = lease.describe(added.manifest, facts).unwrap();
    lease.pin(&pin.parse().unwrap(), manifest).unwrap();
    manifest
}

#[test]
fn what_a_node_keeps_is_found_until_it_keeps_it_no_more() {
    let Some(etcd) = Etcd::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let (store, tree) = (Store::open(&one, None).unwrap(), dir.path().join("tree"));
    let volume = [("volume", "data"), ("path", "/srv/data"), ("made_unix_us", "5000000")];
    let snapshot = keep(&store, &tree, "snapshot/data-5", &volume);
    let _inner =
        keep(&store, &tree, "snapshot/inner", &[("volume", "data/inner"), ("path", "/srv/data/inner")]);
    keep(&store, &tree, "checkpoint/web-1", &[("container", "runc:web"), ("made_unix_s", "1")]);
    let newest = keep(&store, &tree, "checkpoint/web-9", &[("container", "runc:web"), ("made_unix_s", "9")]);
    let of_image = [("container", "podman:app"), ("made_unix_s", "9"), ("image_id", "sha256:1f")];
    let of_image = keep(&Store::open(&other, None).unwrap(), &tree, "checkpoint/app", &of_image);
    keep(&store, &tree, "kept/other", &[]);
    let catalog = catalog(&etcd);
    let (mut first, mut second) = (
        registration(&etcd, "tls://rack1:7700", &one, 60),
        registration(&etcd, "tls://rack2:7700", &other, 60),
    );
    second.renew().unwrap();
    first.renew().unwrap();
    assert_eq!(nodes(&catalog), ["tls://rack1:7700", "tls://rack2:7700"]);
    for name in ["data", "/srv/data"] {
        let found = catalog.snapshots(name).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&*found[0].manifest, found[0].made_unix_us), (&*snapshot.to_string(), 5_000_000));
    }
    let found: Vec<String> =
        catalog.checkpoints("runc:web").unwrap().into_iter().map(|it| it.manifest).collect();
    assert_eq!((found.len(), &found[0]), (2, &newest.to_string()));
    assert_eq!(catalog.holders(snapshot).unwrap()[0].host, "rack1:7700");
    assert_eq!(catalog.checkpoints("runc:we").unwrap(), []);
    let found = catalog.of_image("sha256:1f").unwrap();
    assert_eq!((found.len(), &found[0].manifest), (1, &of_image.to_string()));

    // who has something comes first, and a host does not ask itself
    let text =
        |found: Vec<godwit_transfer::Address>| found.iter().map(ToString::to_string).collect::<Vec<_>>();
    let near = |name: &str, paths: &[PathBuf], host: &str, most| {
        text(catalog.near(name, None, paths, host, most).unwrap())
    };
    // whoever has a checkpoint of the same image comes before who has nothing
    let by_image = |image| text(catalog.near("runc:other", image, &[], "here", 1).unwrap());
    assert_eq!(by_image(Some("sha256:1f")), ["tls://rack2:7700"]);
    assert_eq!(by_image(None), ["tls://rack1:7700"]);
    assert_eq!(near("runc:web", &[], "here", 1), ["tls://rack1:7700"]);
    assert_eq!(
        near("runc:other", &["/srv/data".into()], "here", 9),
        ["tls://rack1:7700", "tls://rack2:7700"]
    );
    assert_eq!(near("runc:web", &[], "rack1:7700", 9), ["tls://rack2:7700"]);

    let lease = store.lease().unwrap();
    store.unpin(&"snapshot/data-5".parse().unwrap()).unwrap();
    drop(lease);
    first.renew().unwrap();
    assert_eq!(catalog.snapshots("data").unwrap(), []);
    assert_eq!(catalog.holders(snapshot).unwrap(), []);
    assert_eq!(catalog.checkpoints("runc:web").unwrap().len(), 2);
}

#[test]
fn a_node_that_dies_disappears_and_one_that_leaves_is_gone_at_once() {
    let Some(etcd) = Etcd::start() else { return };
    let catalog = catalog(&etcd);
    let cancel = Cancel::default();
    let mut dead = registration(&etcd, "tls://dead:1", Path::new(NOWHERE), 5);
    dead.renew().unwrap();
    assert_eq!(nodes(&catalog), ["tls://dead:1"]);
    thread::scope(|scope| {
        let alive = registration(&etcd, "tls://alive:1", Path::new(NOWHERE), 6);
        scope.spawn(|| alive.keep(&cancel, |_| ()));
        wait("the dead one goes", || nodes(&catalog) == ["tls://alive:1"]);
        // the living one outlives its own time
        thread::sleep(Duration::from_secs(7));
        wait("it lives", || nodes(&catalog) == ["tls://alive:1"]);
        cancel.raise();
    });
    assert_eq!(nodes(&catalog), [""; 0]);
    // nobody renewed it: it says so by another lease
    dead.renew().unwrap();
    assert_eq!(nodes(&catalog), ["tls://dead:1"]);
}

#[test]
fn a_node_is_back_when_etcd_is() {
    let Some(mut etcd) = Etcd::start() else { return };
    let catalog = catalog(&etcd);
    let cancel = Cancel::default();
    let told = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        let node = registration(&etcd, "tls://rack1:7700", Path::new(NOWHERE), 3);
        scope.spawn(|| node.keep(&cancel, |text| told.lock().unwrap().push(text.to_owned())));
        wait("it comes", || nodes(&catalog).len() == 1);
        etcd.kill();
        wait("it is told", || told.lock().unwrap().len() == 1);
        assert!(catalog.nodes().is_err());
        // longer than its lease
        thread::sleep(Duration::from_secs(4));
        etcd.restart();
        wait("it is told that it is back", || told.lock().unwrap().len() == 2);
        assert_eq!(nodes(&catalog), ["tls://rack1:7700"]);
        cancel.raise();
    });
    let told = told.into_inner().unwrap();
    assert!(
        told[0].starts_with("warning: this node cannot be kept in the catalog: no etcd answers"),
        "{told:?}"
    );
    assert_eq!(told[1], "this node is in the catalog again");
}
