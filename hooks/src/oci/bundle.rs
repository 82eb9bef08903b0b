//! A bundle for runc or crun that is to be moved one day: its config.json gets godwit's hooks, and what a dump cannot do without.

use super::{OciError, Stage, replace};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A config.json longer than this is none.
const LONGEST: u64 = 16 << 20;
/// What the config.json is kept as that was there first.
const BACKUP: &str = "config.json.before-godwit";

/// What a bundle shall have.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// godwit.
    pub program: &'a Path,
    /// Its directory, if it is not the usual one.
    pub root: Option<&'a Path>,
    /// The path of its network namespace, which somebody makes before it is run.
    pub network: Option<&'a Path>,
}

/// Edits a bundle's config.json, as a whole or not at all; the first one stays beside it. Gives what was changed: nothing when
/// all was as it should be.
///
/// # Errors
/// When it is no bundle, or cannot be written.
pub fn prepare(bundle: &Path, wish: &Wish<'_>) -> Result<Vec<String>, OciError> {
    let program = crate::program::check(wish.program)?;
    let path = bundle.join("config.json");
    let meta = path.metadata().map_err(OciError::io("look at", &path))?;
    let odd = |why: &str| OciError::Odd { path: path.clone(), why: why.into() };
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(odd("is no config.json"));
    }
    let text = std::fs::read_to_string(&path).map_err(OciError::io("read", &path))?;
    let mut config: Value = serde_json::from_str(&text).map_err(|error| odd(&error.to_string()))?;
    let changes = edit(&mut config, &Wish { program: &program, ..*wish }).map_err(odd)?;
    if changes.is_empty() {
        return Ok(changes);
    }
    let backup = bundle.join(BACKUP);
    if !backup.exists() {
        replace(&backup, &text)?;
    }
    replace(&path, &format!("{config:#}\n"))?;
    Ok(changes)
}

fn edit(config: &mut Value, wish: &Wish<'_>) -> Result<Vec<String>, &'static str> {
    let mut changes = Vec::new();
    let object = config.as_object_mut().ok_or("is no object")?;
    for stage in Stage::ALL {
        let hooks = below(object, "hooks")?;
        let hooks = hooks.entry(stage.name()).or_insert_with(|| json!([]));
        let hooks = hooks.as_array_mut().ok_or("has hooks that are no list")?;
        let ours = json!({ "path": wish.program, "args": stage.words(wish.root) });
        match hooks.iter_mut().find(|hook| stage.is_called_by(&hook["args"])) {
            Some(hook) if *hook == ours => continue,
            Some(hook) => *hook = ours,
            None => hooks.push(ours),
        }
        changes.push(format!("hook `{stage}`"));
    }
    let process = below(object, "process")?;
    if process.get("terminal").is_some_and(|terminal| terminal != &json!(false)) {
        process.insert("terminal".into(), json!(false));
        changes.push("no terminal".into());
    }
    if let Some(network) = wish.network {
        let namespaces = below(object, "linux")?.entry("namespaces").or_insert_with(|| json!([]));
        let namespaces = namespaces.as_array_mut().ok_or("has namespaces that are no list")?;
        let ours = json!({ "type": "network", "path": network });
        match namespaces.iter_mut().find(|namespace| namespace["type"] == "network") {
            Some(namespace) if *namespace == ours => return Ok(changes),
            Some(namespace) => *namespace = ours,
            None => namespaces.push(ours),
        }
        changes.push(format!("network namespace `{}`", network.display()));
    }
    Ok(changes)
}

fn below<'a>(
    object: &'a mut Map<String, Value>,
    name: &str,
) -> Result<&'a mut Map<String, Value>, &'static str> {
    object.entry(name).or_insert_with(|| json!({})).as_object_mut().ok_or("is no config.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_made_ready_once_and_the_first_config_is_kept() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let first = r#"{"process": {"terminal": true, "args": ["sh"]}, "hooks": {"poststop": [{"path": "/x"}]},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}}"#;
        std::fs::write(&path, first).unwrap();
        let wish = |network| Wish { program: Path::new("/bin/true"), root: None, network };
        let read = || serde_json::from_str::<Value>(&std::fs::read_to_string(&path).unwrap()).unwrap();

        assert_eq!(prepare(dir.path(), &wish(None)).unwrap().len(), 3);
        let config = read();
        assert_eq!(config["process"], json!({"terminal": false, "args": ["sh"]}));
        assert_eq!(config["linux"]["namespaces"][1], json!({"type": "network"}));
        assert_eq!(config["hooks"]["poststop"][0], json!({"path": "/x"}));
        assert_eq!(config["hooks"]["poststop"][1]["args"], json!(["godwit", "hook", "run", "poststop"]));
        assert_eq!(config["hooks"]["createRuntime"].as_array().unwrap().len(), 1);

        assert_eq!(prepare(dir.path(), &wish(None)).unwrap(), [""; 0]);
        let network = Some(Path::new("/run/netns/web"));
        assert_eq!(prepare(dir.path(), &wish(network)).unwrap(), ["network namespace `/run/netns/web`"]);
        assert_eq!(read()["linux"]["namespaces"][1], json!({"type": "network", "path": "/run/netns/web"}));
        assert_eq!(std::fs::read_to_string(dir.path().join(BACKUP)).unwrap(), first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "a draft is left");
    }

    #[test]
    fn nonsense_is_refused_and_left_as_it_is() {
        let wish = Wish { program: Path::new("/bin/true"), root: None, network: Some(Path::new("/x")) };
        for text in [
            "[]",
            "7",
            r#"{"hooks": 1}"#,
            r#"{"process": []}"#,
            r#"{"hooks": {"poststop": {}}}"#,
            r#"{"linux": {"namespaces": 1}}"#,
        ] {
            let mut config: Value = serde_json::from_str(text).unwrap();
            assert!(edit(&mut config, &wish).is_err(), "{text}");
        }
    }
}
