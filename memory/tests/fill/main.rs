//! The fill, with real userfaultfds: fake restored processes that hand their memory over as CRIU does, work on it, and
//! check every page. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod content;
mod sys;
mod tenant;

use godwit_memory::destination::PageStore;
use godwit_memory::destination::fill::{FillError, FillReport, Filler, TaskPages, run_fill};
use godwit_memory::ledger::PageLedger;
use godwit_memory::{ImageId, PAGE_SIZE};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tenant::Plan;

const ROLE: &str = "GODWIT_FILL_TEST_ROLE";

/// Not a test: what this program is when it is started as the handler or as a tenant.
#[test]
#[ignore = "started by the tests"]
fn role() {
    match std::env::var(ROLE) {
        Ok(role) if role == "handler" => {
            run_fill(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap()
        }
        Ok(plan) => tenant::run(&plan),
        Err(_) => {}
    }
}

const AS_ROLE: [&str; 4] = ["role", "--exact", "--ignored", "--nocapture"];

fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert_ne!(std::env::var("GODWIT_REQUIRE").as_deref(), Ok("all"), "needs root");
        println!("skipped: needs root, for userfaultfds that hear of forks");
    }
    root
}

struct Tenant {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Tenant {
    fn start(plan: &Plan) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(AS_ROLE)
            .env(ROLE, plan.to_text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut tenant = Self { child, stdin, stdout };
        tenant.hear("ready");
        tenant
    }

    /// Waits for this line; others that are figures are shown.
    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "a tenant ended without saying {word}");
            if line.starts_with("faults:") {
                print!("{line}");
            }
        }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").unwrap();
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Case {
    tenants: u32,
    parts: u64,
    part_pages: u64,
    operations: &'static str,
    work: u64,
    dies: bool,
    /// How often the handler is killed while the tenants work, and whether before anything is handed over.
    kills: u32,
    kill_first: bool,
    /// How long the tenants work before the restore ends, in ms.
    held: u64,
    /// They begin only when the restore has ended and the anchors are in place.
    is_held: bool,
}

const CASE: Case = Case {
    tenants: 1,
    parts: 1,
    part_pages: 8192,
    operations: "",
    work: 400,
    dies: false,
    kills: 0,
    kill_first: false,
    held: 20,
    is_held: false,
};

/// Fills a store as the rounds would; in pieces out of order, so that slots are no straight line.
fn stored(case: &Case) -> PageStore {
    let pages = case.parts * case.part_pages;
    let store = PageStore::reserve(pages * u64::from(case.tenants)).unwrap();
    let mut ledger = PageLedger::new(2, store.room(), 3);
    let mut apply = |_: usize, batch: &mut Vec<u8>| store.apply(batch).map(drop);
    for vpid in 1..=case.tenants {
        let pieces = pages.div_ceil(100);
        for piece in 0..pieces {
            let piece = piece * 7919 % pieces;
            for page in piece * 100..(piece * 100 + 100).min(pages) {
                let address = content::address(page, case.part_pages);
                ledger.add(ImageId::Task(vpid), address, &content::page(vpid, page), &mut apply).unwrap();
            }
        }
    }
    ledger.end_round(&mut apply).unwrap();
    store
}

/// Of every task, the first page of each mapping is an anchor, and every third run is to come first; so many that some will be cut,
/// moved or given up before.
fn lists(store: &PageStore, case: &Case) -> Vec<TaskPages> {
    // a part is two mappings
    let mapping = |address: &u64| address / (case.part_pages / 2 * PAGE_SIZE);
    let vpid = |image| match image {
        ImageId::Task(vpid) | ImageId::Shared(vpid) => vpid,
    };
    let of_task = |image| {
        let pages = store.runs(image, None);
        let first = pages.iter().skip(1).step_by(3).map(|(run, _)| *run).collect();
        let mut anchors: Vec<u64> = pages.iter().map(|(run, _)| run.start).collect();
        anchors.dedup_by_key(|address| mapping(address));
        TaskPages { vpid: vpid(image), anchors, pages, first }
    };
    store.images().into_iter().map(of_task).collect()
}

fn kill_handler(filler: &Filler, last: &mut Option<u32>) {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match filler.handler_pid() {
            Some(pid) if Some(pid) != *last => {
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid as i32),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .unwrap();
                *last = Some(pid);
                return;
            }
            _ => assert!(Instant::now() < patience, "no successor"),
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn start_filler(socket: &Path, store: &PageStore) -> Filler {
    // By env(1), so that no other child of this process has the role.
    let exe = std::env::current_exe().unwrap();
    let role = format!("{ROLE}=handler");
    let mut args = vec![role.as_str(), exe.to_str().unwrap()];
    args.extend(AS_ROLE);
    Filler::start(Path::new("/usr/bin/env"), &args, socket, store).unwrap()
}

fn run(case: &Case) -> FillReport {
    // One at a time: they measure each other otherwise.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let socket: PathBuf = dir.path().join("lazy-pages.socket");
    let store = stored(case);
    let mut filler = start_filler(&socket, &store);
    let mut last = None;
    if case.kill_first {
        kill_handler(&filler, &mut last);
    }
    filler.give(&lists(&store, case)).unwrap();
    if case.kill_first {
        kill_handler(&filler, &mut last);
    }
    let plan = |vpid| Plan {
        vpid,
        parts: case.parts,
        part_pages: case.part_pages,
        operations: case.operations.into(),
        work: case.work,
        dies: case.dies,
        socket: socket.to_str().unwrap().into(),
    };
    let mut tenants: Vec<Tenant> = (1..=case.tenants).map(|vpid| Tenant::start(&plan(vpid))).collect();
    let mut criu = UnixStream::connect(&socket).unwrap();
    // A zombie.
    criu.write_all(&(-77i32).to_ne_bytes()).unwrap();
    if case.kill_first {
        kill_handler(&filler, &mut last);
    }
    let mut go = || tenants.iter_mut().for_each(|tenant| tenant.say("go"));
    if !case.is_held {
        go();
        std::thread::sleep(Duration::from_millis(case.held));
    }
    criu.write_all(&0x5253_5446u32.to_ne_bytes()).unwrap();
    if case.is_held {
        assert!(filler.wait_for_anchors(Duration::from_secs(10)));
        go();
    }
    for _ in 0..case.kills {
        kill_handler(&filler, &mut last);
        std::thread::sleep(Duration::from_millis(15));
    }
    let mut seen = (0, 0);
    let report = filler
        .wait(Instant::now() + Duration::from_secs(60), &mut |done, total| seen = (done, total))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen.0, seen.1, "all pages are accounted for");
    println!("{report:?}");
    for mut tenant in tenants {
        if case.dies {
            assert!(tenant.child.wait().unwrap().success());
            continue;
        }
        tenant.hear("worked");
        tenant.say("filled");
        tenant.hear("clean");
        assert!(tenant.child.wait().unwrap().success());
    }
    assert_eq!(report.restarts, u64::from(case.kills) + 3 * u64::from(case.kill_first));
    drop(filler);
    let patience = Instant::now() + Duration::from_secs(5);
    while socket.exists() {
        assert!(Instant::now() < patience, "the socket was left behind");
        std::thread::sleep(Duration::from_millis(1));
    }
    report
}

#[test]
fn reads_and_writes() {
    if !can_run() {
        return;
    }
    let report = run(&CASE);
    let stored = (0..8192).filter(|page| content::word(1, *page) != 0).count() as u64;
    assert_eq!(report.pages, stored);
    assert!(report.faults > 0 && report.zero_faults > 0);
    assert_eq!(report.unregistered, 0);
}

#[test]
fn what_is_cut_for_a_while_is_one_mapping_again() {
    if can_run() {
        // so much that of the last part nothing but anchors is there when the tenant begins
        let report = run(&Case { operations: "c", parts: 3, part_pages: 32 << 10, is_held: true, ..CASE });
        assert!(report.faults > 0);
    }
}

#[test]
fn threads() {
    if can_run() {
        run(&Case { parts: 4, part_pages: 4096, ..CASE });
    }
}

#[test]
fn forks_share_and_split() {
    if can_run() {
        let report = run(&Case { operations: "f", part_pages: 32 << 10, held: 30, ..CASE });
        assert!(report.forks > 0);
    }
}

#[test]
fn given_up_pages_stay_zero() {
    if can_run() {
        let report = run(&Case { operations: "r", part_pages: 32 << 10, work: 1500, held: 1000, ..CASE });
        assert!(report.removes > 0);
    }
}

#[test]
fn unmapped_pages_do_not_come_back() {
    if can_run() {
        let report = run(&Case { operations: "u", part_pages: 32 << 10, work: 1500, held: 1000, ..CASE });
        assert!(report.unmaps > 0);
    }
}

#[test]
fn moved_pages_have_their_content_at_the_new_place() {
    if can_run() {
        let report = run(&Case { operations: "m", part_pages: 32 << 10, work: 1500, held: 1000, ..CASE });
        assert!(report.remaps > 0);
    }
}

#[test]
fn what_moves_to_where_another_was_keeps_its_content() {
    if can_run() {
        let report =
            run(&Case { operations: "x", parts: 4, part_pages: 64 << 10, work: 2000, held: 1500, ..CASE });
        assert!(report.remaps > 100);
        assert_eq!(report.unregistered, 0, "what was just moved away is filled where it came to");
    }
}

#[test]
fn everything_at_once_with_threads() {
    if can_run() {
        let report =
            run(&Case { operations: "frum", parts: 3, part_pages: 32 << 10, work: 1200, held: 400, ..CASE });
        assert!(report.forks > 0 && report.removes > 0 && report.unmaps > 0 && report.remaps > 0);
    }
}

#[test]
fn twenty_processes() {
    if can_run() {
        run(&Case { tenants: 20, part_pages: 1024, operations: "frum", work: 200, ..CASE });
    }
}

#[test]
fn tenants_that_die() {
    if can_run() {
        run(&Case { tenants: 6, dies: true, held: 5, work: 50, ..CASE });
    }
}

#[test]
fn killed_before_anything_is_handed_over() {
    if can_run() {
        run(&Case { kill_first: true, ..CASE });
    }
}

#[test]
fn killed_again_and_again() {
    if can_run() {
        run(&Case {
            kills: 8,
            tenants: 2,
            part_pages: 48 << 10,
            operations: "frum",
            work: 800,
            held: 100,
            ..CASE
        });
    }
}

#[test]
fn a_deadline_that_passes_ends_nothing() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("lazy-pages.socket");
    let store = PageStore::reserve(1).unwrap();
    let mut filler = start_filler(&socket, &store);
    let error = filler.wait(Instant::now() + Duration::from_millis(20), &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, FillError::Deadline { .. }));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let pid = filler.handler_pid().unwrap();
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid as i32)));
    filler.abandon();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!socket.exists());
    assert!(session.is_ok());
}

/// A measurement: `cargo test --release --test fill -- --ignored --nocapture --test-threads 1 speed`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    println!("nobody at work:");
    run(&Case { part_pages: 256 << 10, work: 0, ..CASE });
    println!("faults only, no background fill:");
    run(&Case { part_pages: 256 << 10, operations: "l", work: 500, held: 700, ..CASE });
    println!("one thread that touches as fast as it can, while filling:");
    run(&Case { part_pages: 256 << 10, operations: "l", work: 500, held: 0, ..CASE });
    println!("one thread that touches a page every 100 µs, while filling:");
    run(&Case { part_pages: 256 << 10, operations: "ls", work: 1000, held: 0, ..CASE });
}
