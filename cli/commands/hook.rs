//! `godwit hook`.

use super::Trouble;
use crate::args::{Args, HookCommand};
use crate::draw::{Draw, table};
use godwit_hooks::oci::bundle::{Wish, prepare};
use godwit_hooks::oci::registry::{Entry, MAX_STATE, Registry, State};
use godwit_hooks::oci::{OciError, Stage, definition};
use godwit_migration::{Failure, FailureKind};
use std::io::Read;
use std::path::{Path, PathBuf};

/// godwit's directory if nobody names another one.
const USUAL_ROOT: &str = "/var/lib/godwit";

pub fn run(args: &Args, command: &HookCommand, draw: &Draw) -> Result<u8, Trouble> {
    let root = &args.global.root;
    let done = match command {
        HookCommand::Install { dir } => own_path()
            .and_then(|program| definition::install(dir, &program, unusual(root)))
            .map(|made| tell(draw, "made", &made)),
        HookCommand::Uninstall { dir } => {
            definition::uninstall(dir).map(|removed| tell(draw, "removed", &removed))
        }
        HookCommand::List => list(root, draw),
        HookCommand::Prepare { bundle, netns } => edit(bundle, netns.as_deref(), root, draw),
        HookCommand::Run { stage } => {
            // a runtime makes no container whose hook fails
            if let Err(error) = answer(root, (*stage).into()) {
                draw.talk(&format!("godwit: {error}"));
            }
            Ok(())
        }
    };
    done.map(|()| 0).map_err(|error| {
        let kind = match &error {
            OciError::Odd { .. } | OciError::Program(_) => FailureKind::Usage,
            _ => FailureKind::Failed,
        };
        Trouble::from(Failure::new(kind, error.to_string()))
    })
}

/// Where godwit lies: `hook run` must find it there as long as there are containers.
fn own_path() -> Result<PathBuf, OciError> {
    std::env::current_exe().map_err(|source| OciError::Io {
        act: "find",
        path: "/proc/self/exe".into(),
        source,
    })
}

fn unusual(root: &Path) -> Option<&Path> {
    (root != Path::new(USUAL_ROOT)).then_some(root)
}

fn tell(draw: &Draw, what: &str, paths: &[PathBuf]) {
    if draw.is_json() {
        draw.json_line(&serde_json::json!({ "message_type": "hooks", what: paths }));
    }
    if paths.is_empty() {
        draw.talk("nothing was to be done");
    }
    for path in paths {
        draw.data(&format!("{what} {}", path.display()));
    }
}

fn edit(bundle: &Path, network: Option<&Path>, root: &Path, draw: &Draw) -> Result<(), OciError> {
    let program = own_path()?;
    let changes = prepare(bundle, &Wish { program: &program, root: unusual(root), network })?;
    if draw.is_json() {
        draw.json_line(&serde_json::json!({ "message_type": "prepared", "changes": changes }));
    } else if changes.is_empty() {
        draw.data("nothing was to be done");
    } else {
        draw.data(&changes.join(", "));
    }
    Ok(())
}

fn list(root: &Path, draw: &Draw) -> Result<(), OciError> {
    let (entries, odd) = Registry::below(root).list()?;
    let mut rows = vec![["CONTAINER", "PID", "FINDINGS"].map(str::to_owned).to_vec()];
    for entry in &entries {
        let is_alive = entry.is_alive();
        if draw.is_json() {
            draw.json_line(&serde_json::json!({
                "message_type": "registered", "container": entry.container, "id": entry.id, "pid": entry.pid,
                "alive": is_alive, "bundle": entry.bundle, "findings": entry.findings }));
        }
        let pid = if is_alive { entry.pid.to_string() } else { "gone".into() };
        let findings = if entry.findings.is_empty() { "none".into() } else { entry.findings.join("; ") };
        rows.push(vec![entry.container.clone(), pid, findings]);
    }
    draw.data(table(&rows).trim_end());
    for path in odd {
        draw.talk(&format!("warning: `{}` cannot be understood", path.display()));
    }
    Ok(())
}

/// What a runtime's call is answered with.
fn answer(root: &Path, stage: Stage) -> Result<(), OciError> {
    let mut said = Vec::new();
    let read = std::io::stdin().take(MAX_STATE).read_to_end(&mut said);
    read.map_err(|source| OciError::Io { act: "read", path: "/dev/stdin".into(), source })?;
    let state = State::parse(&said)?;
    let registry = Registry::below(root);
    match stage {
        Stage::CreateRuntime => registry.add(&Entry::of(&state, &caller())?),
        Stage::Poststop => registry.remove(&state.id),
    }
}

/// The runtime that calls, if it is one that is known.
fn caller() -> String {
    let path = format!("/proc/{}/comm", std::os::unix::process::parent_id());
    let name = std::fs::read_to_string(path).unwrap_or_default();
    ["runc", "crun"].into_iter().find(|known| name.trim() == *known).unwrap_or_default().to_owned()
}
