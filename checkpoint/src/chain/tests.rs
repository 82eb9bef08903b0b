use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const PAGE: usize = 4096;

/// Bytes that are like no others.
fn page(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn pages(seeds: impl IntoIterator<Item = u64>) -> Vec<u8> {
    seeds.into_iter().flat_map(page).collect()
}

/// A checkpoint as a godwit without parents would have written it, with these pages and this file.
fn make(dir: &Path, id: &str, image: &[u8], file: &[u8]) {
    for below in ["images", "trees/0/etc"] {
        std::fs::create_dir_all(dir.join(below)).unwrap();
    }
    std::fs::write(dir.join("images/pages-1.img"), image).unwrap();
    std::fs::write(dir.join("images/core-1.img"), page(7)).unwrap();
    std::fs::write(dir.join("trees/0/etc/file"), file).unwrap();
    std::fs::set_permissions(dir.join("trees/0/etc/file"), PermissionsExt::from_mode(0o4711)).unwrap();
    std::fs::hard_link(dir.join("trees/0/etc/file"), dir.join("trees/0/etc/second")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("trees/0/link")).unwrap();
    std::fs::write(dir.join("trees/0/new"), page(id.len() as u64 + 900)).unwrap();
    manifest(dir, id, None);
}

fn manifest(dir: &Path, id: &str, parent: Option<&ParentName>) {
    let facts: serde_json::Value =
        serde_json::from_str(r#"{"host": "h", "kernel": "6.18", "criu": 40200, "cpu_flags": []}"#).unwrap();
    let text = serde_json::json!({
        "godwit_checkpoint": if parent.is_some() { 3 } else { 2 }, "id": id, "parent": parent, "engine": "runc", "name": "web",
        "recipe": "", "network": null, "memory_bytes": 0, "facts": facts,
        "carry": { "tcp_established": false, "ext_unix_sk": false, "file_locks": false, "shell_job": false, "link_remap": false },
        "trees": [{ "kind": "root", "path": "/srv/web", "single_file": false, "read_only": false }],
    });
    std::fs::write(dir.join(MANIFEST), text.to_string()).unwrap();
}

/// The same as a godwit with parents writes it.
fn make_with_parent(dir: &Path, id: &str, parent: &Path, image: &[u8], file: &[u8]) -> u64 {
    make(dir, id, image, file);
    let chain = Chain::open(parent).unwrap();
    let name = chain.name_for(dir.parent().unwrap()).unwrap();
    let shared = thin(dir, &chain, &Cancel::default()).unwrap();
    manifest(dir, id, Some(&name));
    digests::write(dir).unwrap();
    shared
}

#[test]
fn what_has_moved_is_shared_and_every_checkpoint_of_the_chain_becomes_whole() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let images = [
        pages(0..600),
        // one page more at the beginning, zeros in the middle, one page gone
        [page(5000), pages(0..300), vec![0; 3 * PAGE], pages(301..600)].concat(),
        [pages(100..300), page(5000), pages(6000..6002)].concat(),
    ];
    let files = [
        [pages(9000..9003), b"tail".to_vec()].concat(),
        [pages(9000..9003), b"tail".to_vec()].concat(),
        page(9002),
    ];
    make(&at("a"), "a", &images[0], &files[0]);
    digests::write(&at("a")).unwrap();
    let shared = make_with_parent(&at("b"), "b", &at("a"), &images[1], &files[1]);
    assert_eq!(shared, (599 * PAGE + 2 * files[1].len() + PAGE) as u64);
    make_with_parent(&at("c"), "c", &at("b"), &images[2], &files[2]);
    assert_eq!(std::fs::metadata(at("b/blocks")).unwrap().len(), PAGE as u64);
    assert_eq!(std::fs::metadata(at("c/blocks")).unwrap().len(), 2 * PAGE as u64);
    for (number, name) in ["b", "c"].iter().enumerate() {
        assert!(archive::verify(&at(name)).unwrap() > 6);
        let whole = at(&format!("{name}-whole"));
        Chain::open(&at(name)).unwrap().assemble(&whole, &Cancel::default()).unwrap();
        assert_eq!(std::fs::read(whole.join("images/pages-1.img")).unwrap(), images[number + 1]);
        assert_eq!(std::fs::read(whole.join("images/core-1.img")).unwrap(), page(7));
        let file = whole.join("trees/0/etc/file");
        assert_eq!(std::fs::read(&file).unwrap(), files[number + 1]);
        let meta = file.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o4711, 2));
        let stored = at(name).join("trees/0/etc/file").metadata().unwrap();
        assert_eq!(
            (stored.len(), stored.mode() & 0o7777, stored.mtime_nsec()),
            (0, 0o4711, meta.mtime_nsec())
        );
        assert_eq!(std::fs::read_link(whole.join("trees/0/link")).unwrap(), Path::new("/etc/passwd"));
        assert!(archive::read_manifest(&whole).unwrap().parent.is_none());
    }
}

#[test]
fn a_parent_is_found_beside_and_refused_when_it_is_another_one() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    make(&at("a"), "a", &pages(0..50), b"x");
    digests::write(&at("a")).unwrap();
    make_with_parent(&at("b"), "b", &at("a"), &pages(1..50), b"x");
    std::fs::rename(at("a"), at("other-name")).unwrap();
    archive::verify(&at("b")).unwrap();
    let refused = |why: &str| {
        let error = archive::verify(&at("b")).unwrap_err();
        assert!(matches!(error, ArchiveError::Parent { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    std::fs::write(at("other-name/images/pages-1.img"), pages(1..51)).unwrap();
    refused("`images/pages-1.img` has other content");
    std::fs::remove_file(at("other-name/digests.json")).unwrap();
    digests::write(&at("other-name")).unwrap();
    refused("is not any more what it was");
    std::fs::remove_dir_all(at("other-name")).unwrap();
    refused("nor beside the checkpoint");
}

#[test]
fn a_description_that_cannot_be_true_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SHARED);
    let read = |json: &str| {
        std::fs::write(&path, zstd::encode_all(json.as_bytes(), 3).unwrap()).unwrap();
        Shared::read(&path, 100).map(|_| ()).map_err(|error| error.to_string())
    };
    let file = |name: &str, bytes: u64, runs: &str| {
        format!(
            r#"{{"sources": ["images/pages-1.img"], "files": {{"{name}": {{"bytes": {bytes}, "blake3": "", "runs": {runs}}}}}}}"#
        )
    };
    assert_eq!(read(&file("images/x", 30, "[[0,0,10],[1,90,10],[2,0,10]]")), Ok(()));
    for (name, bytes, runs, why) in [
        ("../x", 0, "[]", "leads out"),
        ("/x", 0, "[]", "leads out"),
        ("x", 10, "[[1,91,10]]", "beyond what is stored"),
        ("x", 10, "[[3,0,10]]", "has no source"),
        ("x", 11, "[[2,0,10]]", "longer or shorter"),
        ("x", 0, "[[2,0,0]]", "is empty"),
        ("x", 9, "[[2,18446744073709551615,10]]", "has no end"),
    ] {
        let error = read(&file(name, bytes, runs)).unwrap_err();
        assert!(error.contains(why), "{name} {runs}: {error}");
    }
    assert!(read("{").is_err());
}
