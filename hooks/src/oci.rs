//! Taking part in a container's life by hooks of the OCI runtime specification (config.md, POSIX-platform Hooks): containers that
//! are meant to be moved are registered when they are made, and looked at early enough to be made otherwise.

pub mod bundle;
pub mod definition;
pub mod registry;

use serde::{Deserialize, Serialize};
use std::fmt;

/// When a runtime calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Its namespaces exist, and its program does not run yet.
    CreateRuntime,
    /// It was deleted.
    Poststop,
}

impl Stage {
    /// Both.
    pub const ALL: [Stage; 2] = [Stage::CreateRuntime, Stage::Poststop];

    /// Its name in config.json and in a hook's definition.
    pub fn name(self) -> &'static str {
        match self {
            Stage::CreateRuntime => "createRuntime",
            Stage::Poststop => "poststop",
        }
    }

    /// How godwit is called at it: all words, the program's name first.
    pub fn words(self, root: Option<&std::path::Path>) -> Vec<String> {
        let mut words = vec!["godwit".to_owned()];
        words.extend(root.map(|root| format!("--root={}", root.display())));
        words.extend(["hook", "run", self.name()].map(str::to_owned));
        words
    }

    /// Whether these words are how godwit is called at it.
    pub fn is_called_by(self, args: &serde_json::Value) -> bool {
        let words: Vec<&str> =
            args.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
        words.first() == Some(&"godwit") && words.ends_with(&["hook", "run", self.name()])
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why something of it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file.
    #[error("cannot {act} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is there is not what it should be.
    #[error("`{}` {why}", path.display())]
    Odd {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What the runtime says cannot be understood.
    #[error("what the runtime says cannot be understood: {0}")]
    State(String),
    /// godwit itself may not be run by others.
    #[error(transparent)]
    Program(#[from] crate::program::ProgramError),
}

impl OciError {
    pub(crate) fn io(act: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }
}

/// Puts a file in its place at once, as a whole, with the mode and the owner of the one that is there, or else 0644.
pub(crate) fn replace(path: &std::path::Path, text: &str) -> Result<(), OciError> {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.godwit-{}", std::process::id()));
    let before = path.metadata().ok();
    let written = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        if let Some(before) = &before {
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        let mode = before.as_ref().map_or(0o644, |before| before.permissions().mode() & 0o7777);
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    written().map_err(|source| {
        let _ = std::fs::remove_file(&draft);
        OciError::Io { act: "write", path: path.to_owned(), source }
    })
}
