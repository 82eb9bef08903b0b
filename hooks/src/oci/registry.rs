//! The containers of this host that are meant to be moved: one file each, made by the runtime's hook and removed by it.

use super::{OciError, replace};
use crate::calls::FirstProcess;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The state that a runtime writes to a hook's standard input is not longer than this, in bytes; nor is an entry.
pub const MAX_STATE: u64 = 1 << 20;

/// What a runtime says to a hook (runtime-spec, runtime.md, State).
#[derive(Debug, Deserialize)]
pub struct State {
    /// Its name there.
    pub id: String,
    /// Its first process; 0 when there is none any more.
    #[serde(default)]
    pub pid: i32,
    /// Its bundle.
    #[serde(default)]
    pub bundle: PathBuf,
}

impl State {
    /// Understands what a runtime has written.
    ///
    /// # Errors
    /// When that is no state, or its name is no file's.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let state: Self =
            serde_json::from_slice(bytes).map_err(|error| OciError::State(error.to_string()))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let is_name = !state.id.starts_with('.') && (1..=200).contains(&state.id.len());
        if !is_name || !state.id.bytes().all(is_plain) {
            return Err(OciError::State("its id is no name of a container".into()));
        }
        Ok(state)
    }
}

/// A container that is registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// As `godwit migrate` takes it, where the runtime is known.
    pub container: String,
    /// Its id at its runtime.
    pub id: String,
    /// Its first process.
    pub pid: i32,
    /// Clock ticks after the start of the kernel when that was started.
    pub started: u64,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What speaks against moving it.
    pub findings: Vec<String>,
}

impl Entry {
    /// Looks at a container that is being made. `runtime` is who calls: `runc`, `crun`.
    ///
    /// # Errors
    /// When its config.json cannot be read.
    pub fn of(state: &State, runtime: &str) -> Result<Self, OciError> {
        let path = state.bundle.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(OciError::io("read", &path))?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|error| OciError::Odd { path: path.clone(), why: error.to_string() })?;
        let is_podmans = config.pointer("/annotations/io.container.manager").is_some_and(|it| it == "libpod");
        let engine = if is_podmans { "podman" } else { runtime };
        let stream = |number: u8| {
            let link = std::fs::read_link(format!("/proc/{}/fd/{number}", state.pid)).ok()?;
            Some((number, link))
        };
        let streams: Vec<(u8, PathBuf)> = (0..3).filter_map(stream).collect();
        let process = FirstProcess::now(state.pid);
        Ok(Self {
            container: if engine.is_empty() { state.id.clone() } else { format!("{engine}:{}", state.id) },
            id: state.id.clone(),
            pid: process.pid,
            started: process.started,
            bundle: state.bundle.clone(),
            findings: findings(&config, &streams),
        })
    }

    /// Whether its first process lives: the runtime may not have come to tell that it does not.
    pub fn is_alive(&self) -> bool {
        FirstProcess { pid: self.pid, started: self.started }.is_alive()
    }
}

/// What of a container, before its program runs, a dump could not do.
fn findings(config: &Value, streams: &[(u8, PathBuf)]) -> Vec<String> {
    let mut findings = Vec::new();
    let has_terminal = config.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or(false);
    if has_terminal {
        findings.push("it has a terminal: make it without".to_owned());
    }
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
    let namespace = |kind: &str| namespaces.into_iter().flatten().find(|namespace| namespace["type"] == kind);
    match namespace("network") {
        None => findings
            .push("it is in the host's network: its established connections cannot go along".to_owned()),
        Some(network) if network["path"].as_str().is_none_or(str::is_empty) => findings.push(
            "its network namespace has no path: it moves with what is inside, but only you know how it is connected"
                .to_owned(),
        ),
        Some(_) if namespace("user").is_some() => {
            findings.push("it has a user namespace and a network namespace of its own".to_owned());
        }
        Some(_) => {}
    }
    for (number, link) in streams {
        let name = ["standard input", "standard output", "standard error"].get(usize::from(*number));
        let name = name.copied().unwrap_or("a stream");
        let text = link.to_string_lossy();
        let is_fine =
            link == Path::new("/dev/null") || text.starts_with("pipe:") || text.starts_with("socket:");
        let is_terminal =
            text.starts_with("/dev/pts/") || text.starts_with("/dev/tty") || text == "/dev/console";
        if is_terminal && !has_terminal {
            findings.push(format!("its {name} is the terminal `{text}`: redirect it"));
        } else if !is_fine && !is_terminal {
            findings
                .push(format!("its {name} is `{text}` of the host: use /dev/null, a pipe, or a file inside"));
        }
    }
    findings
}

/// The directory of entries.
#[derive(Clone, Debug)]
pub struct Registry(PathBuf);

impl Registry {
    /// Below godwit's directory.
    pub fn below(root: &Path) -> Self {
        Self(root.join("registered"))
    }

    fn path_of(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// Registers a container, as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, entry: &Entry) -> Result<(), OciError> {
        std::fs::create_dir_all(&self.0).map_err(OciError::io("make", &self.0))?;
        let text = serde_json::to_string_pretty(entry).map_err(|error| OciError::State(error.to_string()))?;
        replace(&self.path_of(&entry.id), &format!("{text}\n"))
    }

    /// Forgets a container. Idempotent.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), OciError> {
        let path = self.path_of(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(OciError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// All of them by name, and the files that cannot be understood.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<(Vec<Entry>, Vec<PathBuf>), OciError> {
        let (mut entries, mut odd) = (Vec::new(), Vec::new());
        let files = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((entries, odd)),
            files => files.map_err(OciError::io("read", &self.0))?,
        };
        let paths = files.flatten().map(|file| file.path());
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let is_short = path.metadata().is_ok_and(|meta| meta.len() <= MAX_STATE);
            let text = std::fs::read(&path).ok().filter(|_| is_short);
            match text.and_then(|text| serde_json::from_slice(&text).ok()) {
                Some(entry) => entries.push(entry),
                None => odd.push(path),
            }
        }
        entries.sort_by(|one: &Entry, other| one.container.cmp(&other.container));
        Ok((entries, odd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_names_a_container_and_no_path() {
        let state = State::parse(
            br#"{"ociVersion": "1.0.2", "id": "web-1", "status": "created", "pid": 7, "bundle": "/b"}"#,
        );
        assert_eq!(state.unwrap().id, "web-1");
        assert_eq!(State::parse(br#"{"id": "x", "status": "stopped"}"#).unwrap().pid, 0);
        for odd in [
            "",
            "{}",
            "[]",
            r#"{"id": 7}"#,
            r#"{"id": ""}"#,
            r#"{"id": "../x"}"#,
            r#"{"id": ".x"}"#,
            r#"{"id": "a/b"}"#,
            r#"{"id": "a\u0000"}"#,
        ] {
            assert!(State::parse(odd.as_bytes()).is_err(), "{odd}");
        }
        assert!(State::parse(format!(r#"{{"id": "{}"}}"#, "x".repeat(201)).as_bytes()).is_err());
    }

    #[test]
    fn what_a_dump_could_not_do_is_found() {
        let good = json!({"linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}});
        let streams = |link: &str| [(1, PathBuf::from(link))];
        for link in ["/dev/null", "pipe:[1]", "socket:[2]"] {
            assert_eq!(findings(&good, &streams(link)), [""; 0]);
        }
        let told = |config: &Value, link: &str| findings(config, &streams(link)).join("; ");
        assert!(told(&good, "/dev/pts/3").contains("its standard output is the terminal"));
        assert!(told(&good, "/var/log/x").contains("its standard output is `/var/log/x` of the host"));
        let bare = json!({"process": {"terminal": true}, "linux": {"namespaces": [{"type": "network"}]}});
        let told = findings(&bare, &streams("/dev/pts/3"));
        assert!(
            told.len() == 2 && told[0].contains("terminal") && told[1].contains("has no path"),
            "{told:?}"
        );
        assert!(findings(&json!({}), &[])[0].contains("host's network"));
        for nonsense in [json!(null), json!([]), json!({"linux": 7, "process": []})] {
            assert_eq!(findings(&nonsense, &[]).len(), 1);
        }
    }

    #[test]
    fn entries_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::below(root.path());
        assert_eq!(registry.list().unwrap().0, []);
        let own = FirstProcess::now(std::process::id() as i32);
        let entry = Entry {
            container: "runc:web".into(),
            id: "web".into(),
            pid: own.pid,
            started: own.started,
            bundle: "/b".into(),
            findings: vec!["x".into()],
        };
        registry.add(&entry).unwrap();
        registry.add(&entry).unwrap();
        std::fs::write(root.path().join("registered/odd.json"), "{").unwrap();
        let (entries, odd) = registry.list().unwrap();
        assert_eq!(entries, std::slice::from_ref(&entry));
        assert_eq!(odd, [root.path().join("registered/odd.json")]);
        assert!(entry.is_alive() && !Entry { started: 1, ..entry }.is_alive());
        registry.remove("web").unwrap();
        registry.remove("web").unwrap();
        assert_eq!(registry.list().unwrap().0, []);
    }
}
