//! Uploads in parts of hosts that are gone: the server tells when one was begun by the age of a file of its own, beside the buckets.

use super::forget::grow_old;
use super::*;

impl Scene {
    /// What the server has of each upload that was begun and not ended.
    fn begun(&self) -> Vec<PathBuf> {
        self.of_server(|name| name.starts_with(".upload-") && name.ends_with(".json"))
    }

    fn parts(&self) -> usize {
        self.of_server(|name| name.contains(".part-")).len()
    }

    fn of_server(&self, which: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let all = files(&self.dir.path().join("buckets"));
        all.into_iter().filter(|path| which(&path.file_name().unwrap().to_string_lossy())).collect()
    }

    fn gc_there(&self, line: &Line, more: &[&str]) -> Value {
        object(&self.well("there", line, &[&["--json", "images", "gc", PLACE], more].concat()))
    }

    /// A godwit on the host `here` has begun more uploads in parts than the server names at once, and has put parts.
    fn begin(&self, line: &Line) -> Child {
        let mut command = self.command("here", &line.url, &self.put(&[]));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while self.begun().len() < 3 || self.parts() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(50), "it does not get that far");
            assert!(child.try_wait().unwrap().is_none(), "it came to its end");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    fn slow_line(&self) -> Line {
        self.line(
            |request| if is_content(request) { Fault::Slow(Duration::from_millis(10)) } else { Fault::None },
        )
    }
}

fn count(line: &Value, what: &str) -> u64 {
    line[what].as_u64().unwrap_or_else(|| panic!("no {what}: {line}"))
}

fn signal(child: &Child, which: &str) {
    assert!(Command::new("kill").args([which, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn what_a_host_has_begun_that_is_gone_goes_a_day_later_and_the_image_beside_it_stays() {
    let scene = Scene::new(80);
    scene.snapshot();
    kill_in_the_middle(&scene, &[], || scene.begun().len() >= 3 && scene.parts() > 0);
    // it never comes again, nor does anybody know what it has begun
    std::fs::remove_dir_all(scene.dir.path().join("here")).unwrap();
    let line = scene.line(|_| Fault::None);
    let left = scene.begun();
    assert!(left.len() >= 3 && scene.parts() > 0, "it has left nothing");
    scene.well("there", &line, &["volume", "snapshot", scene.name()]);
    scene.well("there", &line, &scene.put(&[]));
    let stay = |hours: u64, more: &[&str]| {
        left.iter().for_each(|path| grow_old(path, hours));
        let gone = scene.gc_there(&line, more);
        assert_eq!(scene.begun(), left, "{gone}");
        (count(&gone, "uploads_young"), count(&gone, "uploads_removed"))
    };
    let all = left.len() as u64;
    assert_eq!(stay(0, &[]), (all, 0));
    assert_eq!(stay(23, &[]), (all, 0));
    assert_eq!(stay(24, &["--dry-run"]), (0, all), "it was only to be said");
    let gone = scene.gc_there(&line, &[]);
    assert_eq!((count(&gone, "uploads_removed"), count(&gone, "uploads_young")), (all, 0), "{gone}");
    assert_eq!((scene.begun().len(), scene.parts()), (0, 0));
    scene.well("there", &line, &["images", "verify", PLACE]);
    scene.assert_comes_back("another", &[]);
}

#[test]
fn what_a_host_is_about_to_complete_stays() {
    let scene = Scene::new(80);
    scene.snapshot();
    let child = scene.begin(&scene.slow_line());
    let line = scene.line(|_| Fault::None);
    for _ in 0..3 {
        let gone = scene.gc_there(&line, &[]);
        assert_eq!(count(&gone, "uploads_removed"), 0, "{gone}");
    }
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    scene.assert_comes_back("there", &[]);
}

#[test]
fn a_host_that_stood_still_for_a_day_is_told_so_and_the_same_command_goes_on() {
    let scene = Scene::new(80);
    scene.snapshot();
    let child = scene.begin(&scene.slow_line());
    signal(&child, "-STOP");
    scene.begun().iter().for_each(|path| grow_old(path, 24));
    let line = scene.line(|_| Fault::None);
    assert!(count(&scene.gc_there(&line, &[]), "uploads_removed") >= 3);
    signal(&child, "-CONT");
    let said = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("NoSuchUpload") && text.contains("the same command again"), "{text}");
    assert!(scene.indexes().is_empty());
    scene.well("here", &line, &scene.put(&[]));
    scene.well("there", &line, &["images", "verify", PLACE]);
    scene.assert_comes_back("there", &[]);
    assert!(scene.begun().is_empty());
}

#[test]
fn a_bucket_that_does_not_say_what_was_begun_holds_up_nothing() {
    fn is_listing(request: &Request) -> bool {
        request.target.contains("uploads=&")
    }
    let scene = Scene::new(80);
    scene.snapshot();
    kill_in_the_middle(&scene, &[], || scene.begun().len() >= 3 && scene.parts() > 0);
    let left = scene.begun();
    left.iter().for_each(|path| grow_old(path, 24));
    for status in [403, 501] {
        let line =
            scene.line(move |request| if is_listing(request) { Fault::Status(status) } else { Fault::None });
        let gone = scene.gc_there(&line, &[]);
        let why = gone["uploads_unlisted"].as_str().unwrap();
        assert!(why.contains(&status.to_string()) && why.contains("Told"), "{gone}");
        assert_eq!(line.seen().iter().filter(|request| is_listing(request)).count(), 1, "a no is a no");
        let said = scene.well("there", &line, &["images", "gc", PLACE]);
        let lines: Vec<&str> =
            said.err.lines().filter(|line| line.contains("a rule of the bucket")).collect();
        assert_eq!(lines.len(), 1, "{}", said.err);
        assert!(!format!("{gone}{}{}", said.out, said.err).contains("X-Amz"), "{}", said.err);
    }
    assert_eq!(scene.begun(), left);
    // one that only fails once is asked again
    let line = scene.line(once(Fault::Status(500), is_listing));
    let gone = scene.gc_there(&line, &[]);
    assert_eq!(
        (count(&gone, "uploads_removed"), &gone["uploads_unlisted"]),
        (left.len() as u64, &Value::Null)
    );
    assert!(scene.begun().is_empty());
}
