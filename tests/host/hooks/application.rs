//! An application that takes part in its own move: a small HTTP service in a container that is asked to get ready, says that it
//! is, stands still, and is told that it goes on.

use super::{HOOK, flags, moments, strs, write_hook};
use crate::bed::{Bed, DST, SRC, Said, bed};
use crate::container::{add_bind, assert_runs_only_on, make_bundle, run_bundle, runc_state};
use crate::godwit::{Background, godwit, godwit_with};
use crate::state::State;
use serde_json::Value;
use std::time::{Duration, Instant};

const PROGRAM: &str = include_str!("application.py");
const SHUTDOWN: &[&str] = &["--shutdown-hook", "http://127.0.0.1:8080/down"];
const QUIESCE: &[&str] = &["--quiesce-hook", "http://localhost:8080/still"];
const RESUME: &[&str] = &["--resume-hook", "http://127.0.0.1:8080/up"];

/// The service in a container of runc's with a network namespace of its own.
fn serve(bed: &Bed, mode: &str, annotations: &[(&str, &str)]) {
    bed.sh(SRC, "mkdir -p /srv/app-data");
    make_bundle(bed, "app", &["python3", "/app.py"], |config| {
        add_bind(config, "/srv/app-data", "/data", "rw");
        for (name, value) in annotations {
            config["annotations"][name] = (*value).into();
        }
    });
    bed.write(SRC, "/srv/app/rootfs/app.py", PROGRAM);
    set_mode(bed, mode);
    run_bundle(bed, "app");
    await_ready(bed);
}

fn set_mode(bed: &Bed, mode: &str) {
    bed.sh(SRC, &format!("echo {mode} > /srv/app-data/mode"));
}

fn await_ready(bed: &Bed) {
    bed.sh(SRC, "timeout 20 sh -c 'until grep -q ready /srv/app-data/log; do sleep 0.05; done'");
}

fn migrate(bed: &Bed, more: &[&[&str]]) -> Said {
    godwit(bed, &[MOVE, &more.concat()].concat())
}

const MOVE: &[&str] =
    &["--json", "migrate", "runc:app", "ssh://dst", "--max-downtime", "60s", "--retries", "0"];

/// What the service has noted on a host.
fn log(bed: &Bed, host: &str) -> Vec<Value> {
    let text = bed.sh(host, "cat /srv/app-data/log");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events it was told of.
fn events(bed: &Bed, host: &str) -> Vec<String> {
    log(bed, host).iter().filter_map(|line| Some(line["event"].as_str()?.to_owned())).collect()
}

/// What its reports were answered with; 0 where nobody was there.
fn answers(bed: &Bed, host: &str) -> Vec<u64> {
    log(bed, host).iter().filter_map(|line| line["report"].as_u64()).collect()
}

/// Runs it on the source as the same processes as ever?
struct Before {
    pid: Value,
    there: State,
}

impl Before {
    fn of(bed: &Bed) -> Self {
        Self { pid: runc_state(bed, SRC, "app").unwrap()["pid"].clone(), there: State::of(bed, DST) }
    }

    #[track_caller]
    fn assert_stayed(&self, bed: &Bed, said: &Said) {
        assert_eq!(said.code, 1, "{}{}", said.out, said.err);
        assert_eq!(said.lines("exit_error")[0]["disposition"], "running_at_source", "{}", said.out);
        assert_eq!(runc_state(bed, SRC, "app").unwrap()["pid"], self.pid);
        assert_eq!(bed.sh(SRC, "cat /sys/fs/cgroup/app/cgroup.freeze"), "0");
        assert_runs_only_on(bed, SRC, "app");
        self.there.assert_unchanged(bed, DST);
    }
}

#[test]
fn it_is_asked_waited_for_and_told_that_it_goes_on() {
    let Some(bed) = bed() else { return };
    serve(&bed, "right", &[]);
    let said = migrate(&bed, &[&["-vvv"], SHUTDOWN, QUIESCE, RESUME]);
    let summary = said.summary();
    assert_runs_only_on(&bed, DST, "app");
    assert_eq!(events(&bed, SRC), ["shutdown", "quiesce"], "the source's copy of its volume");
    assert_eq!(events(&bed, DST), ["shutdown", "quiesce", "resume"]);
    assert_eq!(answers(&bed, DST), [200]);
    let begun: Vec<String> = said
        .lines("phase")
        .iter()
        .filter(|line| line["event"] == "begin")
        .map(|line| line["phase"].as_str().unwrap().to_owned())
        .collect();
    let expected = [
        "negotiate",
        "prepare",
        "pre-copy",
        "shutdown",
        "quiesce",
        "freeze",
        "stop-and-copy",
        "restore",
        "commit",
    ];
    assert_eq!(begun, expected);

    let lines = log(&bed, DST);
    let told = |event: &str| lines.iter().find(|line| line["event"] == event).unwrap().clone();
    let (shutdown, resume) = (told("shutdown"), told("resume"));
    assert_eq!((&shutdown["path"], &resume["path"]), (&"/down".into(), &"/up".into()));
    assert_eq!(shutdown["container"], "runc:app");
    for told in [&shutdown, &resume] {
        assert_eq!(told["migration"], summary["migration"]);
    }
    assert!(resume["token"].is_null());
    // 256 bits, which are nowhere but in what the application was told
    let token = shutdown["token"].as_str().unwrap();
    assert_eq!(token.len(), 64);
    assert!(!said.out.contains(token) && !said.err.contains(token), "the token was shown");
    for host in [SRC, DST] {
        assert!(!bed.holds(host, &format!("grep -rq {token} /var/lib/godwit")), "{host} has written it down");
    }
}

#[test]
fn a_report_from_within_the_call_counts() {
    let Some(bed) = bed() else { return };
    serve(&bed, "within", &[]);
    migrate(&bed, &[SHUTDOWN, &["--hook-listen", "127.0.0.1:7001"]]).summary();
    assert_eq!(answers(&bed, DST), [200]);
    let shutdown = log(&bed, DST).into_iter().find(|line| line["event"] == "shutdown").unwrap();
    assert_eq!(shutdown["report"], "http://127.0.0.1:7001/report");
}

#[test]
fn a_wrong_token_is_refused_and_the_right_one_is_waited_for() {
    let Some(bed) = bed() else { return };
    serve(&bed, "wrong_then_right", &[]);
    migrate(&bed, &[SHUTDOWN]).summary();
    assert_eq!(answers(&bed, DST), [403, 403, 200]);
    assert_runs_only_on(&bed, DST, "app");
}

#[test]
fn a_second_report_changes_nothing() {
    let Some(bed) = bed() else { return };
    serve(&bed, "twice", &[]);
    migrate(&bed, &[SHUTDOWN]).summary();
    assert_eq!(answers(&bed, DST), [200, 409]);
    assert_runs_only_on(&bed, DST, "app");
}

#[test]
fn who_does_not_get_ready_stays_and_is_told_so() {
    let Some(bed) = bed() else { return };
    let limit: &[&str] = &["--shutdown-timeout", "1500ms"];
    for (mode, reports, why) in [
        ("never", &[][..], "nobody reported within 1.50 s"),
        ("wrong", &[403, 403], "nobody reported within 1.50 s"),
        ("late", &[0], "nobody reported within 1.50 s"),
        ("cannot", &[200], "the application cannot get ready: the disk is full"),
        ("refuses_shutdown", &[], "/down answered with status 503"),
    ] {
        bed.wipe();
        serve(&bed, mode, &[]);
        let before = Before::of(&bed);
        let begun = Instant::now();
        let said = migrate(&bed, &[SHUTDOWN, RESUME, limit]);
        assert!(begun.elapsed() < Duration::from_secs(30), "{mode}");
        assert!(said.out.contains(why), "{mode}: {}", said.out);
        before.assert_stayed(&bed, &said);
        assert_eq!(events(&bed, SRC), ["shutdown", "rollback"], "{mode}");
        // late is late: nobody is there any more, and nothing happens
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(answers(&bed, SRC), reports, "{mode}");
        // another attempt, and another token
        set_mode(&bed, "right");
        migrate(&bed, &[SHUTDOWN, RESUME]).summary();
        assert_eq!(events(&bed, DST), ["shutdown", "rollback", "shutdown", "resume"], "{mode}");
        assert_eq!(answers(&bed, DST).last(), Some(&200), "{mode}");
        assert_runs_only_on(&bed, DST, "app");
    }
}

#[test]
fn who_cannot_be_called_or_does_not_stand_still_stays() {
    let Some(bed) = bed() else { return };
    for (mode, flags, why) in [
        (
            "right",
            &["--shutdown-hook", "http://127.0.0.1:8081/"][..],
            "http://127.0.0.1:8081/ cannot be called",
        ),
        ("refuses_quiesce", QUIESCE, "/still answered with status 503"),
        ("dawdles", QUIESCE, "/still did not answer within 1.00 s"),
    ] {
        bed.wipe();
        serve(&bed, mode, &[]);
        let before = Before::of(&bed);
        let said = migrate(&bed, &[flags, RESUME]);
        assert!(said.out.contains(why), "{mode}: {}", said.out);
        before.assert_stayed(&bed, &said);
        assert_eq!(events(&bed, SRC).last().unwrap(), "rollback", "{mode}");
    }
}

#[test]
fn after_a_rollback_from_the_freeze_it_takes_up_work_again() {
    let Some(bed) = bed() else { return };
    serve(&bed, "right", &[]);
    write_hook(&bed, &[("post-freeze", "exit 1")]);
    let before = Before::of(&bed);
    let said = migrate(&bed, &[SHUTDOWN, QUIESCE, RESUME, &["--hook", &format!("post-freeze={HOOK}")]]);
    before.assert_stayed(&bed, &said);
    assert_eq!(events(&bed, SRC), ["shutdown", "quiesce", "rollback"]);
    assert_eq!(answers(&bed, SRC), [200]);
}

#[test]
fn a_resume_hook_that_fails_after_the_move_is_told() {
    let Some(bed) = bed() else { return };
    serve(&bed, "refuses_resume", &[]);
    let said = migrate(&bed, &[QUIESCE, RESUME]);
    assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    assert!(said.out.contains("/up answered with status 503"), "{}", said.out);
    assert_runs_only_on(&bed, DST, "app");
    assert_eq!(events(&bed, DST), ["quiesce", "resume"]);
}

#[test]
fn whoever_resumes_after_a_crash_tells_the_application_once() {
    let Some(bed) = bed() else { return };
    serve(&bed, "never", &[]);
    let pid = runc_state(&bed, SRC, "app").unwrap()["pid"].clone();
    let mut running = Background::start(&bed, SRC, &[&["godwit"], MOVE, SHUTDOWN, RESUME].concat());
    running.wait_for_phase("shutdown");
    bed.sh(SRC, "timeout 10 sh -c 'until grep -q shutdown /srv/app-data/log; do sleep 0.05; done'");
    running.signal("KILL");
    drop(running);
    for _ in 0..2 {
        let said = godwit_with(&bed, SRC, &[], &["resume"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        assert_eq!(events(&bed, SRC), ["shutdown", "rollback"]);
    }
    bed.end_what_is_kept();
    assert_eq!(runc_state(&bed, SRC, "app").unwrap()["pid"], pid);
    assert_runs_only_on(&bed, SRC, "app");
}

#[test]
fn ctrl_c_while_it_is_waited_for() {
    let Some(bed) = bed() else { return };
    serve(&bed, "never", &[]);
    let before = Before::of(&bed);
    let mut running = Background::start(&bed, SRC, &[&["godwit"], MOVE, SHUTDOWN, RESUME].concat());
    running.wait_for_phase("shutdown");
    std::thread::sleep(Duration::from_millis(500));
    running.signal("INT");
    let begun = Instant::now();
    let said = running.finish();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(said.code, 130, "{}{}", said.out, said.err);
    assert_eq!(events(&bed, SRC), ["shutdown", "rollback"]);
    assert_runs_only_on(&bed, SRC, "app");
    before.there.assert_unchanged(&bed, DST);
}

/// Reports from inside of the container's network namespace with the token that it was given.
const REPORTS: &str = r#"[ ${#GODWIT_TOKEN} = 64 ] || exit 9
nsenter -t $GODWIT_PID -n python3 -c 'import json, os, urllib.request
body = json.dumps({"token": os.environ["GODWIT_TOKEN"], **MORE}).encode()
print(urllib.request.urlopen(os.environ["GODWIT_REPORT"], body).status)' > /run/test.status"#;

#[test]
fn a_program_can_speak_for_the_application() {
    let Some(bed) = bed() else { return };
    serve(&bed, "right", &[]);
    write_hook(&bed, &[("shutdown", "exit 4"), ("quiesce", "exit 0")]);
    let before = Before::of(&bed);
    let by_program: Vec<&str> =
        ["--shutdown-hook", HOOK, "--quiesce-hook", HOOK, "--resume-hook", HOOK].to_vec();
    let said = migrate(&bed, &[&by_program]);
    assert!(said.out.contains("exit status: 4"), "{}", said.out);
    before.assert_stayed(&bed, &said);
    assert_eq!(moments(&bed), ["shutdown", "rollback"]);

    // its own end says yes, the application says no
    write_hook(&bed, &[("shutdown", &REPORTS.replace("MORE", "{\"error\": \"the disk is full\"}"))]);
    let said = migrate(&bed, &[&by_program]);
    assert!(said.out.contains("the application cannot get ready: the disk is full"), "{}", said.out);
    before.assert_stayed(&bed, &said);

    bed.sh(SRC, "rm /run/test.hooks");
    write_hook(&bed, &[("shutdown", &REPORTS.replace("MORE", "{}"))]);
    let all = flags(&["pre-copy", "pre-freeze", "post-freeze", "post-commit"]);
    migrate(&bed, &[&by_program, &strs(&all)]).summary();
    let order = ["pre-copy", "shutdown", "pre-freeze", "quiesce", "post-freeze", "resume", "post-commit"];
    assert_eq!(moments(&bed), order);
    assert_eq!(bed.sh(SRC, "cat /run/test.status"), "200");
    assert_runs_only_on(&bed, DST, "app");
}

#[test]
fn annotations_say_where_it_is_called_unless_the_command_line_does() {
    let Some(bed) = bed() else { return };
    let annotations = [
        ("godwit.shutdown-hook", "http://127.0.0.1:8080/a"),
        ("godwit.quiesce-hook", "http://127.0.0.1:8080/b"),
        ("godwit.resume-hook", "http://127.0.0.1:8080/c"),
    ];
    serve(&bed, "right", &annotations);
    migrate(&bed, &[&["--quiesce-hook", "none", "--resume-hook", "http://127.0.0.1:8080/d"]]).summary();
    let paths: Vec<Value> = log(&bed, DST)
        .into_iter()
        .filter(|line| line["event"].is_string())
        .map(|line| line["path"].clone())
        .collect();
    assert_eq!(paths, ["/a", "/d"]);

    // a program is not run because somebody's image says so
    bed.wipe();
    write_hook(&bed, &[]);
    serve(&bed, "right", &[("godwit.shutdown-hook", HOOK)]);
    let said = migrate(&bed, &[]);
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    assert!(said.out.contains("it names a program of this host"), "{}", said.out);
    bed.wipe();
    serve(&bed, "right", &[("godwit.resume-hook", "http://web.example/")]);
    let said = migrate(&bed, &[]);
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    assert!(said.out.contains("`godwit.resume-hook` cannot be followed"), "{}", said.out);
    assert_eq!(moments(&bed), [""; 0]);
    assert!(!bed.holds(SRC, "ls -d /var/lib/godwit/migrations/*"), "a migration was begun");
}

/// Labels of an engine's container say where the application is called.
fn labels_are_followed(engine: &str) {
    let Some(bed) = bed() else { return };
    for host in [SRC, DST] {
        bed.sh(host, &format!("testbed-container image --engine {engine}"));
    }
    bed.sh(SRC, "mkdir -p /srv/app-data");
    set_mode(&bed, "right");
    bed.write(SRC, "/srv/app.py", PROGRAM);
    let labels: String = ["shutdown", "quiesce", "resume"]
        .iter()
        .map(|moment| format!("--label godwit.{moment}-hook=http://127.0.0.1:8080/{moment} "))
        .collect();
    bed.sh(
        SRC,
        &format!(
            "{engine} run -d --name app --network none {labels} -v /srv/app-data:/data -v /srv/app.py:/app.py:ro \
             localhost/redis:test python3 /app.py"
        ),
    );
    await_ready(&bed);
    let container = format!("{engine}:app");
    let words = ["--json", "migrate", &container, "ssh://dst", "--max-downtime", "60s", "--retries", "0"];
    godwit(&bed, &words).summary();
    assert_eq!(events(&bed, DST), ["shutdown", "quiesce", "resume"]);
    assert_eq!(answers(&bed, DST), [200]);
    assert_eq!(bed.sh(DST, &format!("{engine} ps --format '{{{{.Names}}}}'")), "app");
    assert_eq!(bed.sh(SRC, &format!("{engine} ps --all --format '{{{{.Names}}}}'")), "");
}

#[test]
fn labels_of_podman_say_where_it_is_called() {
    labels_are_followed("podman");
}

#[test]
fn labels_of_docker_say_where_it_is_called() {
    labels_are_followed("docker");
}

/// What a snapshot of the service's volume came to.
fn snapshot(bed: &Bed, more: &[&str]) -> Said {
    let words = ["--json", "volume", "snapshot", "/srv/app-data", "--freeze", "runc:app"];
    godwit(bed, &[&words, more].concat())
}

#[test]
fn it_is_asked_to_stand_still_for_a_snapshot() {
    let Some(bed) = bed() else { return };
    serve(&bed, "right", &[("godwit.resume-hook", "http://127.0.0.1:8080/up")]);
    let taken = snapshot(&bed, QUIESCE);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    let line = taken.lines("volume_snapshot").remove(0);
    let restored = godwit(&bed, &["volume", "restore", line["id"].as_str().unwrap(), "/srv/copy"]);
    assert_eq!(restored.code, 0, "{}", restored.err);
    let kept = bed.sh(SRC, "cat /srv/copy/log");
    assert!(
        kept.contains(r#""event": "quiesce""#) && !kept.contains(r#""event": "resume""#),
        "it is of the time between the two: {kept}"
    );
    assert_eq!(events(&bed, SRC), ["quiesce", "resume"]);
    let told = log(&bed, SRC).into_iter().find(|line| line["event"] == "quiesce").unwrap();
    let expected = serde_json::json!({
        "path": "/still", "event": "quiesce", "volume": "/srv/app-data", "container": "runc:app", "timeout_ms": 1000,
        "resume_within_ms": 3000,
    });
    assert_eq!(told, expected);

    // who says no, or nothing in time, is told that it goes on, and there is no snapshot
    for (mode, why) in [("refuses_quiesce", "answered with status 503"), ("dawdles", "did not answer within")]
    {
        bed.sh(SRC, "rm /srv/app-data/log; touch /srv/app-data/log");
        set_mode(&bed, mode);
        let refused = snapshot(&bed, QUIESCE);
        assert_eq!(refused.code, 1, "{}{}", refused.out, refused.err);
        assert!(refused.out.contains(why), "{}", refused.out);
        assert_eq!(events(&bed, SRC), ["quiesce", "resume"]);
        assert_eq!(bed.sh(SRC, "cat /sys/fs/cgroup/app/cgroup.freeze"), "0");
    }
    // it takes longer than it may: the same
    set_mode(&bed, "right");
    bed.sh(SRC, "rm /srv/app-data/log; touch /srv/app-data/log");
    let refused = snapshot(&bed, &[QUIESCE, &["--freeze-limit", "1ms"]].concat());
    assert_eq!(refused.code, 1, "{}{}", refused.out, refused.err);
    assert_eq!(events(&bed, SRC), ["quiesce", "resume"]);
    let listed = godwit(&bed, &["--json", "volume", "list"]).lines("volume_snapshots").remove(0);
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 1);

    // the snapshot is whole, and what is left over is said
    set_mode(&bed, "refuses_resume");
    let taken = snapshot(&bed, QUIESCE);
    assert_eq!(taken.code, 3, "{}{}", taken.out, taken.err);
    assert!(taken.err.contains("`runc:app` was not told that it goes on"), "{}", taken.err);
}

#[test]
fn a_program_is_run_around_a_snapshot() {
    let Some(bed) = bed() else { return };
    serve(&bed, "right", &[("godwit.quiesce-hook", "http://127.0.0.1:8080/still")]);
    let script = "#!/bin/sh\necho $GODWIT_HOOK $GODWIT_CONTAINER $GODWIT_VOLUME $GODWIT_RESUME_WITHIN_MS >> /run/test.hooks\n";
    bed.write(SRC, HOOK, script);
    bed.sh(SRC, &format!("chmod 755 {HOOK}"));
    let taken = snapshot(&bed, &["--quiesce-hook", HOOK, "--resume-hook", HOOK, "--freeze-limit", "4s"]);
    assert_eq!(taken.code, 0, "{}{}", taken.out, taken.err);
    let seen = bed.sh(SRC, "cat /run/test.hooks");
    assert_eq!(seen, "quiesce runc:app /srv/app-data 5000\nresume runc:app /srv/app-data");
    assert_eq!(events(&bed, SRC), [""; 0], "the option stands above the label");
    let refused = godwit(&bed, &["--json", "volume", "snapshot", "/srv/app-data", "--quiesce-hook", HOOK]);
    assert_eq!(refused.code, 2, "{}{}", refused.out, refused.err);
}
