//! `godwit check`: this host alone, or beside another.

use super::Trouble;
use super::host::{CPU, CRIU, FREEZER, HostReport, NOT_THERE, RUNC, Row};
use crate::args::{Args, CheckArgs};
use crate::draw::{Draw, table};
use godwit_criu::cpu::{mask, missing_flags};
use godwit_migration::{Failure, FailureKind};
use godwit_transfer::Address;
use serde::Serialize;
use std::process::{Command, Stdio};

const OK: &str = "ok";

/// One row for both hosts.
#[derive(Debug, Serialize)]
struct Comparison<'a> {
    name: &'a str,
    here: &'a str,
    there: &'a str,
    /// What is wrong with the pair, or with one of them; `ok` if nothing.
    result: String,
    ok: bool,
    #[serde(skip)]
    hint: Option<String>,
}

pub fn run(args: &Args, command: &CheckArgs, draw: &Draw) -> Result<u8, Trouble> {
    let Some(destination) = &command.destination else {
        return Ok(alone(&HostReport::of_this_host(&args.global.root), draw)?);
    };
    let address: Address =
        destination.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
    let there = ask(&address, &command.remote_command)?;
    let here = HostReport::of_this_host(&args.global.root);
    Ok(together(&here, &there, destination, draw)?)
}

fn alone(here: &HostReport, draw: &Draw) -> Result<u8, Failure> {
    if draw.is_json() {
        draw.json_line(here);
        return Ok(if here.ok { 0 } else { FailureKind::Missing.exit_code() });
    }
    let result = |row: &Row| row.problem.clone().unwrap_or_else(|| OK.into());
    let header = ["", "this host", "result"].map(String::from).to_vec();
    let rows = here.rows.iter().map(|row| vec![row.name.clone(), row.value.clone(), result(row)]);
    draw.data(table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()).trim_end());
    if here.ok {
        return Ok(0);
    }
    let failure = Failure::new(FailureKind::Missing, "containers cannot be moved from or to this host");
    Err(with_problems(failure, here.rows.iter()))
}

/// The row's own problems as reasons.
fn with_problems<'a>(mut failure: Failure, rows: impl Iterator<Item = &'a Row>) -> Failure {
    for row in rows {
        if let Some(problem) = &row.problem {
            failure = failure.because(format!("{}: {problem}", row.name));
            failure.causes.extend(row.cause.clone());
            failure.hints.extend(row.hint.clone().filter(|hint| !hint.is_empty()));
        }
    }
    failure
}

fn together(here: &HostReport, there: &HostReport, destination: &str, draw: &Draw) -> Result<u8, Failure> {
    let rows = compare(here, there);
    let code = if !here.ok {
        FailureKind::Missing.exit_code()
    } else if rows.iter().all(|row| row.ok) {
        0
    } else {
        FailureKind::Refused.exit_code()
    };
    if draw.is_json() {
        draw.json_line(&serde_json::json!({ "here": here, "there": there, "rows": rows, "ok": code == 0 }));
        return Ok(code);
    }
    let header = ["", "this host", destination, "result"].map(String::from).to_vec();
    let lines =
        rows.iter().map(|row| [row.name, row.here, row.there, &row.result].map(String::from).to_vec());
    draw.data(table(&std::iter::once(header).chain(lines).collect::<Vec<_>>()).trim_end());
    if code == 0 {
        return Ok(0);
    }
    if !here.ok {
        let failure = Failure::new(FailureKind::Missing, "containers cannot be moved from this host");
        return Err(with_problems(failure, here.rows.iter()));
    }
    let mut failure =
        Failure::new(FailureKind::Refused, format!("{destination} cannot receive containers from this host"));
    for row in rows.into_iter().filter(|row| !row.ok) {
        failure = failure.because(format!("{}: {}", row.name, row.result));
        failure.hints.extend(row.hint);
    }
    Err(failure)
}

/// Row by row: a problem of one host, or what does not go together.
fn compare<'a>(here: &'a HostReport, there: &'a HostReport) -> Vec<Comparison<'a>> {
    here.rows.iter().map(|row| compare_row(row, here, there)).collect()
}

fn compare_row<'a>(row: &'a Row, here: &HostReport, there: &'a HostReport) -> Comparison<'a> {
    let other = there.row(&row.name);
    let compared = |result: String, ok: bool, hint: Option<String>| Comparison {
        name: &row.name,
        here: &row.value,
        there: other.map_or("–", |other| &other.value),
        result,
        ok,
        hint,
    };
    if let Some(problem) = &row.problem {
        return compared(format!("here: {problem}"), false, row.hint.clone());
    }
    if let Some((problem, hint)) = other.and_then(|other| Some((other.problem.clone()?, other.hint.clone())))
    {
        return compared(format!("there: {problem}"), false, hint.map(|hint| format!("{hint} (there)")));
    }
    match unlike(&row.name, here, there) {
        Some((result, hint)) => compared(result, false, Some(hint)),
        None => compared(OK.into(), true, None),
    }
}

/// What does not go together although each host is right for itself, and what to do about it.
fn unlike(name: &str, here: &HostReport, there: &HostReport) -> Option<(String, String)> {
    match name {
        // the last two digits are fixes, which change no format
        CRIU if there.criu / 100 < here.criu / 100 => {
            Some(("destination's is older".into(), "install the same criu on both hosts".into()))
        }
        RUNC if is_there(here) && !is_there(there) => {
            Some(("missing at the destination".into(), "install runc there".into()))
        }
        CPU => {
            let missing = missing_flags(&here.cpu_flags, &there.cpu_flags);
            (!missing.is_empty())
                .then(|| (format!("destination lacks {}", missing.join(", ")), mask(&missing)))
        }
        // each kind that is mounted: `v1`, `v2`, `v1 and v2`
        FREEZER => {
            let kinds =
                |report: &HostReport| report.row(FREEZER).map(|row| row.value.clone()).unwrap_or_default();
            let (ours, theirs) = (kinds(here), kinds(there));
            let shared = ours.split(" and ").any(|kind| theirs.split(" and ").any(|other| kind == other));
            (!shared && !theirs.is_empty()).then(|| {
                let hint = "boot both hosts with the same cgroups: `systemd.unified_cgroup_hierarchy=1` is v2, `=0` v1";
                (format!("{theirs} there, {ours} here"), hint.into())
            })
        }
        _ => None,
    }
}

fn is_there(report: &HostReport) -> bool {
    report.row(RUNC).is_some_and(|row| !row.value.starts_with(NOT_THERE))
}

/// Runs `godwit check --json` on the other host.
fn ask(address: &Address, remote_command: &str) -> Result<HostReport, Failure> {
    let Address::Ssh { user, host, port } = address else {
        return Err(Failure::new(FailureKind::Usage, format!("`{address}` cannot be checked from here"))
            .because("only a host that ssh reaches can be asked what it is like")
            .hint("write `ssh://[user@]host[:port]`, or run `godwit check` there"));
    };
    let unreachable = |why: String| {
        Failure::new(FailureKind::Refused, format!("{address} cannot be asked"))
            .because(why)
            .hint("is godwit installed there, and does `ssh` log in without a password?")
    };
    let mut ssh = Command::new("ssh");
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]);
    if let Some(port) = port {
        ssh.args(["-p", &port.to_string()]);
    }
    if let Some(user) = user {
        ssh.args(["-l", user]);
    }
    ssh.args(["--", host, remote_command]).stdin(Stdio::null());
    let output = ssh.output().map_err(|error| unreachable(format!("ssh cannot be run: {error}")))?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        match said.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => unreachable(line.trim().to_owned()),
            None => unreachable(format!(
                "ssh ended with {}, and what it said is no report: {error}",
                output.status
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(criu: u32, flags: &str, runc: &str) -> HostReport {
        let row = |name: &str, value: &str| Row {
            name: name.into(),
            value: value.into(),
            problem: None,
            cause: None,
            hint: None,
        };
        HostReport {
            host: "h".into(),
            godwit: "0".into(),
            criu,
            cpu_flags: flags.split(' ').map(str::to_owned).collect(),
            rows: vec![row(CRIU, "x"), row(RUNC, runc), row(CPU, flags)],
            ok: true,
        }
    }

    fn results(here: &HostReport, there: &HostReport) -> Vec<String> {
        compare(here, there).into_iter().map(|row| row.result).collect()
    }

    #[test]
    fn like_hosts_go_together_and_better_destinations_too() {
        let here = report(40_201, "sse2 avx2", "1.1");
        assert_eq!(results(&here, &report(40_200, "sse2 avx2", "1.3")), ["ok"; 3]);
        assert_eq!(results(&report(40_100, "sse2", "not there"), &here), ["ok"; 3]);
    }

    #[test]
    fn each_lack_of_the_destination_is_said() {
        let here = report(40_200, "sse2 avx2 avx512f", "1.1");
        let there = report(40_101, "sse2 avx2", "not there (only `pid:` can move)");
        let expected = ["destination's is older", "missing at the destination", "destination lacks avx512f"];
        assert_eq!(results(&here, &there), expected);
    }

    #[test]
    fn cgroups_must_have_a_version_in_common() {
        let with = |kinds: &str| {
            let mut report = report(40_200, "sse2", "1.1");
            report.rows.push(Row { name: FREEZER.into(), value: kinds.into(), ..report.rows[0].clone() });
            report
        };
        for (here, there) in [("v2", "v2"), ("v1", "v1 and v2"), ("v1 and v2", "v2")] {
            assert_eq!(results(&with(here), &with(there))[3], "ok", "{here} {there}");
        }
        assert_eq!(results(&with("v1"), &with("v2"))[3], "v2 there, v1 here");
        assert_eq!(
            results(&with("v2"), &report(40_200, "sse2", "1.1"))[3],
            "ok",
            "an older godwit does not say"
        );
    }

    #[test]
    fn a_problem_of_one_host_is_said_before_any_comparison() {
        let here = report(40_200, "sse2", "1.1");
        let mut there = report(0, "sse2", "1.1");
        there.rows[0].problem = Some("criu is not on this host".into());
        assert_eq!(results(&here, &there)[0], "there: criu is not on this host");
        assert_eq!(results(&there, &here)[0], "here: criu is not on this host");
    }
}
