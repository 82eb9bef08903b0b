//! Images go from a place, and a day later what only they needed: the server tells the age of an object by that of its file.

use super::*;
use std::time::SystemTime;

impl Scene {
    /// Everything in a directory of the place is as old as this.
    fn grow_old(&self, directory: &str, hours: u64) {
        let objects = self.objects().into_iter().filter(|(name, _)| name.starts_with(directory));
        objects.for_each(|(_, path)| grow_old(&path, hours));
    }

    /// One more snapshot, with so many MiB that nothing compresses, is there.
    #[track_caller]
    fn put_another(&self, line: &Line, seed: u64, mib: usize) {
        std::fs::write(self.volume.join(format!("more{seed}")), noise(seed, mib * MIB)).unwrap();
        self.snapshot();
        self.well("here", line, &self.put(&[]));
    }

    #[track_caller]
    fn gc(&self, line: &Line, more: &[&str]) -> Value {
        object(&self.well("here", line, &[&["--json", "images", "gc", PLACE], more].concat()))
    }

    /// What `images ls` shows, newest first.
    #[track_caller]
    fn listed(&self, line: &Line) -> Vec<Value> {
        let listed = object(&self.well("there", line, &["--json", "images", "ls", PLACE]));
        listed["images"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn assert_all_is_whole(&self, line: &Line) {
        self.well("there", line, &["images", "verify", PLACE]);
    }
}

pub(super) fn grow_old(path: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600 + 60);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

fn packs(line: &Value, what: &str) -> u64 {
    line[what]["packs"].as_u64().unwrap_or_else(|| panic!("no {what}: {line}"))
}

#[test]
fn what_only_a_forgotten_image_needed_goes_a_day_after_it_was_condemned_and_nothing_else() {
    let scene = Scene::new(2);
    let line = scene.line(|_| Fault::None);
    scene.snapshot();
    scene.well("here", &line, &scene.put(&[]));
    scene.put_another(&line, 7, 3);
    let listed = scene.listed(&line);
    assert_eq!(
        (listed.len(), &listed[0]["kind"], &listed[0]["volume"]),
        (2, &"snapshot".into(), &scene.name().into())
    );
    assert_eq!(scene.packs().len(), 2);
    let newest = listed[0]["path"].as_str().unwrap();
    let dry = object(&scene.well("there", &line, &["--json", "images", "forget", newest, "--dry-run"]));
    assert_eq!((dry["forgotten"][0].as_str(), scene.indexes().len()), (Some(newest), 2));
    let forgotten = object(&scene.well("there", &line, &["--json", "images", "forget", newest]));
    assert_eq!((scene.indexes().len(), packs(&forgotten, "packs_young")), (1, 1), "{forgotten}");
    assert_eq!(scene.godwit("there", &line, &["images", "forget", newest]).code, 10);
    scene.grow_old("packs/", 25);
    assert_eq!(packs(&scene.gc(&line, &[]), "packs_condemned"), 1);
    scene.grow_old("condemned/", 22);
    assert_eq!(packs(&scene.gc(&line, &[]), "packs_waiting"), 1);
    scene.grow_old("condemned/", 24);
    assert_eq!(packs(&scene.gc(&line, &["--dry-run"]), "packs_removed"), 1);
    assert_eq!(scene.packs().len(), 2, "it was only to be said");
    let gone = scene.gc(&line, &[]);
    assert_eq!((packs(&gone, "packs_removed"), packs(&gone, "packs_kept"), scene.packs().len()), (1, 1, 1));
    scene.assert_all_is_whole(&line);
    // the ledger still knows of the pack: it goes once more
    scene.put_another(&line, 8, 1);
    assert_eq!(scene.packs().len(), 2);
    scene.assert_all_is_whole(&line);
    scene.assert_comes_back("there", &[]);
    scene.grow_old("condemned/", 49);
    scene.gc(&line, &[]);
    assert!(
        !scene
            .objects()
            .iter()
            .any(|(name, _)| name.starts_with("condemned/") || name.starts_with("uploads/"))
    );
}

#[test]
fn a_policy_says_which_images_stay_also_right_after_one_was_put_there() {
    let scene = Scene::new(1);
    let line = scene.line(|_| Fault::None);
    (1..4).for_each(|seed| scene.put_another(&line, seed, 1));
    let newest: Vec<Value> =
        scene.listed(&line).into_iter().take(2).map(|image| image["path"].clone()).collect();
    let keep = ["--json", "images", "forget", PLACE, "--keep-last", "2", "--expire", "30d"];
    let forgotten = object(&scene.well("here", &line, &keep));
    let kept: Vec<Value> =
        forgotten["kept"].as_array().unwrap().iter().map(|image| image["path"].clone()).collect();
    assert_eq!((kept, scene.indexes().len()), (newest, 2), "{forgotten}");
    std::fs::write(scene.volume.join("last"), noise(9, MIB)).unwrap();
    scene.snapshot();
    scene.well("here", &line, &scene.put(&["--keep-last", "1"]));
    assert_eq!(scene.indexes().len(), 1);
    scene.assert_comes_back("there", &[]);
    let all = ["images", "forget", PLACE, "--expire", "1ms"];
    std::thread::sleep(Duration::from_millis(2100));
    scene.well("here", &line, &all);
    assert!(scene.indexes().is_empty());
}

#[test]
fn what_cannot_be_meant_is_refused_and_nothing_goes() {
    let scene = Scene::new(1);
    let line = scene.line(|_| Fault::None);
    scene.put_another(&line, 1, 1);
    let image = scene.listed(&line)[0]["path"].as_str().unwrap().to_owned();
    for words in [
        &["images", "forget", PLACE][..],
        &["images", "forget", PLACE, "--keep-last", "0"],
        &["images", "forget", PLACE, "--expire", "0d"],
        &["images", "forget", &image, "--keep-last", "1"],
        &["images", "forget", &image, "s3://of-tests/other#1234"],
        &["images", "forget", PLACE, PLACE, "--keep-last", "1"],
        &["images", "gc", &image],
        &["images", "forget", "/srv/checkpoint"],
        &["checkpoint", "runc:x", "--to", "/srv/x", "--keep-last", "1"],
    ] {
        let ran = scene.godwit("here", &line, words);
        assert_eq!(ran.code, 2, "{words:?}: {}{}", ran.out, ran.err);
    }
    for words in [
        &["images", "forget", &format!("{PLACE}#0000")][..],
        &["images", "forget", "s3://of-tests/nothing", "--keep-last", "1"],
        &["images", "gc", "s3://of-tests/nothing"],
    ] {
        assert_eq!(scene.godwit("here", &line, words).code, 10, "{words:?}");
    }
    assert_eq!(scene.indexes().len(), 1);
    assert!(
        !scene.dir.path().join("buckets/of-tests/nothing").exists(),
        "nothing is made of a place that is none"
    );
}

#[test]
fn of_what_is_encrypted_nothing_goes_without_the_key() {
    let scene = Scene::new(1);
    let line = scene.line(|_| Fault::None);
    for seed in 1..3 {
        std::fs::write(scene.volume.join("more"), noise(seed, MIB)).unwrap();
        scene.snapshot();
        scene.well("here", &line, &scene.put(&["--recipient", RECIPIENT]));
    }
    let key = scene.dir.path().join("key");
    write_key(&key, IDENTITY);
    let key = key.to_str().unwrap();
    assert!(scene.listed(&line).iter().all(|image| image["encrypted"] == true && image["volume"].is_null()));
    let before = scene.objects();
    let keep = ["--json", "images", "forget", PLACE, "--keep-last", "1"];
    let image = scene.listed(&line)[0]["path"].as_str().unwrap().to_owned();
    for words in [&keep[..], &["images", "gc", PLACE], &["images", "forget", &image]] {
        let ran = scene.godwit("here", &line, words);
        assert_eq!(ran.code, 2, "{words:?}: {}{}", ran.out, ran.err);
        assert!(format!("{}{}", ran.out, ran.err).contains("--identity"), "{}{}", ran.out, ran.err);
    }
    assert_eq!(scene.objects(), before);
    let forgotten = object(&scene.well("here", &line, &[&keep[..], &["--identity", key]].concat()));
    assert_eq!((scene.indexes().len(), packs(&forgotten, "packs_kept")), (1, 2), "{forgotten}");
    scene.assert_comes_back("there", &["--identity", key]);
}

#[test]
fn a_damaged_index_holds_up_a_collection_until_it_is_forgotten_by_its_name() {
    let scene = Scene::new(1);
    let line = scene.line(|_| Fault::None);
    (1..3).for_each(|seed| scene.put_another(&line, seed, 1));
    let damaged = scene.indexes().remove(0);
    std::fs::write(&damaged, "x").unwrap();
    let ran = scene.godwit("here", &line, &["images", "forget", PLACE, "--keep-last", "1"]);
    assert_eq!((ran.code, scene.indexes().len()), (10, 2), "{}{}", ran.out, ran.err);
    assert_eq!(scene.godwit("here", &line, &["images", "gc", PLACE]).code, 10);
    let name = format!("{PLACE}#{}", damaged.file_name().unwrap().to_str().unwrap());
    scene.well("here", &line, &["images", "forget", &name]);
    scene.assert_all_is_whole(&line);
}

#[test]
fn what_a_killed_upload_has_left_goes_with_the_next_collection_of_its_host() {
    let scene = Scene::new(80);
    scene.snapshot();
    let parts = || {
        let all = files(&scene.dir.path().join("buckets"));
        all.iter().filter(|path| path.to_string_lossy().contains(".part-")).count()
    };
    kill_in_the_middle(&scene, &[], || scene.packs().len() >= 4 && parts() > 0);
    let line = scene.line(|_| Fault::None);
    assert!(parts() > 0, "it has left no parts");
    assert!(scene.gc(&line, &[])["leftovers_removed"].as_u64() > Some(0));
    assert_eq!(parts(), 0);
    // its packs stay for a day: the same command again goes on where it was
    let there = scene.packs();
    assert!(there.len() >= 4);
    scene.grow_old("packs/", 25);
    scene.gc(&line, &[]);
    scene.well("here", &line, &scene.put(&[]));
    assert!(there.iter().all(|path| path.exists()));
    assert!(content(&line) < 30 * MIB as u64, "they went once more");
    scene.assert_comes_back("there", &[]);
}

#[test]
fn files_that_were_never_completed_go_from_a_directory() {
    let scene = Scene::new(1);
    scene.snapshot();
    let (line, place) = (scene.line(|_| Fault::None), scene.dir.path().join("mnt/place"));
    let url = format!("file://{}", place.display());
    scene.well("here", &line, &["volume", "replicate", scene.name(), "--to", &url]);
    let left = ["1", "2"].map(|number| place.join(format!("packs/{}#{number}", "5e".repeat(32))));
    left.iter().for_each(|path| std::fs::write(path, "half").unwrap());
    grow_old(&left[0], 25);
    let gone = object(&scene.well("here", &line, &["--json", "images", "gc", &url]));
    assert_eq!((gone["leftovers_removed"].as_u64(), packs(&gone, "packs_kept")), (Some(1), 1));
    assert!(!left[0].exists() && left[1].exists());
    assert_eq!(std::fs::metadata(place.join("condemned")).unwrap().mode() & 0o7777, 0o700);
    scene.well("there", &line, &["images", "verify", &url]);
}
