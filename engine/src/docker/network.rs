//! docker's network, ahead of the runtime.
//!
//! docker connects a container by a hook that the runtime calls when the network namespace is there (`libnetwork-setkey`): in a
//! restore that would be in the downtime, some 60 ms. Here the namespace is made before, and the hook is called for it; the runtime
//! gets a namespace that exists. docker keeps it by a name of its own.

use crate::error::EngineError;
use crate::network::Namespace;
use crate::runtime::config;
use crate::tool;
use nix::unistd::gettid;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hook's own name for what it does (libnetwork: cmd/setkey).
const SET_KEY: &str = "libnetwork-setkey";
/// Time that `ip` may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Name under /run/netns until the container runs: docker's ids are unique.
pub(super) fn namespace_name(id: &str) -> String {
    format!("godwit-{}", id.get(..12).unwrap_or(id))
}

/// Makes the network namespace of a container whose bundle waits for its runtime, has docker connect it, and points the bundle's
/// `config` there. Gives its path; none if the container has no namespace of its own.
///
/// # Errors
/// When it cannot be made, or docker does not connect it.
pub(super) fn make(id: &str, bundle: &Path, config: &mut Value) -> Result<Option<PathBuf>, EngineError> {
    // that of another container is there already, and has a path
    if !config::has_namespace(config, "network") || config::network_namespace_path(config).is_some() {
        return Ok(None);
    }
    let hooks = take_hooks(config);
    let name = namespace_name(id);
    let ip = |args: &[&str]| tool::run(Path::new("ip"), args, LIMIT);
    ip(&["netns", "add", &name])?;
    ip(&["-n", &name, "link", "set", "dev", "lo", "up"])?;
    let namespace = Namespace::named(&name)?;
    for hook in hooks {
        namespace.run(|| call(&hook, id, bundle))??;
    }
    let path = Namespace::path_of(&name);
    config::set_network_namespace_path(config, &path);
    Ok(Some(path))
}

/// Removes the name; the namespace stays as long as somebody is in it. Idempotent.
///
/// # Errors
/// What `ip` said.
pub(super) fn forget(id: &str) -> Result<(), EngineError> {
    let name = namespace_name(id);
    match Namespace::path_of(&name).exists() {
        true => tool::run(Path::new("ip"), &["netns", "delete", &name], LIMIT).map(drop),
        false => Ok(()),
    }
}

/// Takes the hooks out of a config.json that connect the container.
fn take_hooks(config: &mut Value) -> Vec<Value> {
    let mut taken = Vec::new();
    for stage in ["prestart", "createRuntime"] {
        let hooks = config.pointer_mut(&format!("/hooks/{stage}")).and_then(Value::as_array_mut);
        let Some(hooks) = hooks else { continue };
        let (ours, others) =
            hooks.drain(..).partition(|hook| hook.pointer("/args/0").is_some_and(|word| word == SET_KEY));
        *hooks = others;
        taken.extend::<Vec<Value>>(ours);
    }
    taken
}

/// Calls a hook for the namespace of this thread, as for a container whose first process is in it (OCI runtime specification:
/// runtime.md, State).
fn call(hook: &Value, id: &str, bundle: &Path) -> Result<(), EngineError> {
    let failed = |what: String| EngineError::Tool { program: SET_KEY.into(), what };
    let state = json!({
        "ociVersion": "1.0.2", "id": id, "status": "creating", "pid": gettid().as_raw(), "bundle": bundle,
    });
    let args = hook["args"].as_array().into_iter().flatten().filter_map(Value::as_str).skip(1);
    let mut command = Command::new(hook["path"].as_str().unwrap_or_default());
    std::os::unix::process::CommandExt::arg0(&mut command, SET_KEY);
    let child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(format!("cannot be run: {error}")))?;
    let told = child.stdin.take().map(|mut input| input.write_all(state.to_string().as_bytes()));
    let ended = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match told {
        // one that does not read may have done its work
        Some(Err(error)) if error.kind() != ErrorKind::BrokenPipe => return Err(failed(error.to_string())),
        _ => {}
    }
    match ended.status.success() {
        true => Ok(()),
        false => Err(failed(format!(
            "failed ({}): {}",
            ended.status,
            String::from_utf8_lossy(&ended.stderr).trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dockers_own_hook_is_called_early() {
        let mut config = json!({"hooks": {"prestart": [
            {"path": "/proc/7/exe", "args": ["libnetwork-setkey", "-exec-root=/x", "id", "key"]},
            {"path": "/opt/hook", "args": ["hook"]}]}});
        let taken = take_hooks(&mut config);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0]["path"], "/proc/7/exe");
        assert_eq!(config["hooks"]["prestart"], json!([{"path": "/opt/hook", "args": ["hook"]}]));
        assert!(take_hooks(&mut json!({"hooks": null})).is_empty());
    }

    #[test]
    fn a_hook_is_told_a_task_in_the_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let hook = json!({"path": "/bin/sh", "args": ["x", "-c", format!("cat > {}", said.display())]});
        call(&hook, "abc", Path::new("/b")).unwrap();
        let state: Value = serde_json::from_slice(&std::fs::read(said).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["pid"]), (&json!("abc"), &json!(gettid().as_raw())));
        let error = call(&json!({"path": "/bin/false"}), "abc", Path::new("/b")).unwrap_err().to_string();
        assert!(error.contains("failed"), "{error}");
    }
}
