//! The preload library on this host: its file, its directory, and whether CRIU takes it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use godwit_shim::config::{
    ANSWERS_VARIABLE, DIRECTORY_VARIABLE, LIFE_FILE, LIFE_MAGIC, LIFE_SIZE, LIFE_WORDS, Life, MAX_DIRECTORY,
    PRELOAD_VARIABLE, SHARED_FILE, SMAPS_FILE,
};

use super::shared::SharedObject;
use crate::binary::{CriuBinary, Linkage};
use crate::dump::{make_private_dir, remove_stale};
use crate::error::CriuError;
use crate::images::file::create_private;

/// The library: an ELF shared object for this processor, made by the build script; empty where there is none.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/godwit-shim.so"));
/// Its name in the directory.
const LIBRARY_FILE: &str = "godwit-shim.so";

/// The library, installed and found to work with a CRIU.
#[derive(Debug)]
pub(super) struct Preload {
    dir: PathBuf,
}

/// What the library did in a CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// Process it was loaded into last.
    pub(super) pid: u64,
    /// `st_dev` and `st_ino` of that process' program.
    pub(super) program: (u64, u64),
    /// How often it said that there are no pages.
    pub(super) pages: u64,
    /// How often it said that there is no shared data.
    pub(super) shared: u64,
    /// How often it gave the list of mappings.
    pub(super) smaps: u64,
    /// How often it told limits.
    pub(super) limits: u64,
}

impl Preload {
    /// Installs the library in the new directory `dir` (0700), and starts `criu --version` with it. `Ok(Err(why))` when CRIU does
    /// not take it.
    pub(super) fn install(criu: &CriuBinary, dir: PathBuf) -> Result<Result<Preload, String>, CriuError> {
        if LIBRARY.is_empty() {
            return Ok(Err("there is no shim for this processor".into()));
        }
        match criu.linkage() {
            Linkage::Dynamic => {}
            Linkage::Static => return Ok(Err("criu is statically linked".into())),
            Linkage::Unknown => {
                return Ok(Err(format!("`{}` is not a program but a wrapper", criu.path().display())));
            }
        }
        let name = dir.as_os_str().as_bytes();
        if !dir.is_absolute() || name.len() > MAX_DIRECTORY || name.iter().any(|b| b" \t:;\n$".contains(b)) {
            return Ok(Err(format!("a loader cannot be given the path `{}`", dir.display())));
        }
        make_private_dir(&dir)?;
        let path = dir.join(LIBRARY_FILE);
        remove_stale(&path)?;
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&path)
            .and_then(|mut file| file.write_all(LIBRARY))
            .map_err(CriuError::io(format!("cannot write `{}`", path.display())))?;
        let preload = Preload { dir };
        preload.reset()?;

        let output = Command::new(criu.path())
            .arg("--version")
            .envs(preload.environment(&[]))
            .stdin(Stdio::null())
            .current_dir("/")
            .output()
            .map_err(|source| CriuError::Spawn { path: criu.path().to_owned(), source })?;
        if !output.status.success() {
            return Ok(Err(format!("criu does not start with the shim ({})", output.status)));
        }
        let Some(signs) = preload.signs()? else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("nothing said").trim().to_owned();
            return Ok(Err(format!("the loader did not load the shim ({said})")));
        };
        let program = criu
            .path()
            .metadata()
            .map_err(CriuError::io(format!("cannot look at `{}`", criu.path().display())))?;
        if signs.program != (program.dev(), program.ino()) {
            return Ok(Err(format!("`{}` starts another program", criu.path().display())));
        }
        Ok(Ok(preload))
    }

    /// The variables that load the library and have it answer these questions.
    pub(super) fn environment(&self, answers: &[&str]) -> Vec<(OsString, OsString)> {
        let name = |bytes: &[u8]| OsString::from(String::from_utf8_lossy(bytes).into_owned());
        vec![
            (name(PRELOAD_VARIABLE), self.dir.join(LIBRARY_FILE).into()),
            (name(DIRECTORY_VARIABLE), self.dir.clone().into()),
            (name(ANSWERS_VARIABLE), answers.join(",").into()),
        ]
    }

    /// Forgets the signs of life.
    pub(super) fn reset(&self) -> Result<(), CriuError> {
        create_private(&self.file(LIFE_FILE))?
            .set_len(LIFE_SIZE as u64)
            .map_err(CriuError::io("cannot make the shim's life file"))
    }

    /// The signs of life since [`Self::reset`]; `None` when there are none.
    pub(super) fn signs(&self) -> Result<Option<Signs>, CriuError> {
        let path = self.file(LIFE_FILE);
        let bytes =
            std::fs::read(&path).map_err(CriuError::io(format!("cannot read `{}`", path.display())))?;
        let mut words = [0; LIFE_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let word = |which: Life| words[which as usize];
        Ok((word(Life::Magic) == LIFE_MAGIC).then(|| Signs {
            pid: word(Life::Pid),
            program: (word(Life::ExeDevice), word(Life::ExeInode)),
            pages: word(Life::Pages),
            shared: word(Life::Shared),
            smaps: word(Life::Smaps),
            limits: word(Life::Limits),
        }))
    }

    /// Gives CRIU this text for `/proc/PID/smaps`.
    pub(super) fn put_smaps(&self, pid: i32, text: &[u8]) -> Result<(), CriuError> {
        let path = self.file(&[SMAPS_FILE, pid.to_string().as_bytes()].concat());
        create_private(&path)?
            .write_all(text)
            .map_err(CriuError::io(format!("cannot write `{}`", path.display())))
    }

    /// Lets CRIU read every `/proc/PID/smaps` itself again.
    pub(super) fn remove_smaps(&self) -> Result<(), CriuError> {
        let failed = || CriuError::io(format!("cannot clear `{}`", self.dir.display()));
        for entry in std::fs::read_dir(&self.dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().as_bytes().starts_with(SMAPS_FILE) {
                remove_stale(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Has the data of just these objects left out.
    pub(super) fn put_shared<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a SharedObject>,
    ) -> Result<(), CriuError> {
        let path = self.file(SHARED_FILE);
        let bytes: Vec<u8> = objects
            .into_iter()
            .flat_map(|object| [object.device, object.inode])
            .flat_map(u64::to_ne_bytes)
            .collect();
        create_private(&path)?
            .write_all(&bytes)
            .map_err(CriuError::io(format!("cannot write `{}`", path.display())))
    }

    fn file(&self, name: &[u8]) -> PathBuf {
        self.dir.join(Path::new(std::ffi::OsStr::from_bytes(name)))
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(%error, dir = %self.dir.display(), "cannot remove the shim's directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Any dynamic program does for the loader; this one prints its environment.
    fn env() -> CriuBinary {
        CriuBinary::at(std::fs::canonicalize("/usr/bin/env").unwrap()).unwrap()
    }

    #[test]
    fn is_loaded_says_so_and_leaves_no_trace_in_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let preload = Preload::install(&env(), dir.path().join("shim")).unwrap().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("shim")), 0o700);
        assert_eq!(mode(&dir.path().join("shim").join(LIBRARY_FILE)), 0o700);
        preload.reset().unwrap();
        assert_eq!(preload.signs().unwrap(), None);
        let output = Command::new("/usr/bin/env")
            .env_clear()
            .env("FIRST", "1")
            .envs(preload.environment(&["pages", "limits"]))
            .env("LD_PRELOADED", "2")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["FIRST=1", "LD_PRELOADED=2"]);
        assert!(output.stderr.is_empty(), "{:?}", output.stderr);
        let signs = preload.signs().unwrap().unwrap();
        assert!(signs.pid > 0 && (signs.pages, signs.limits) == (0, 0));
        let path = dir.path().join("shim");
        drop(preload);
        assert!(!path.exists());
    }

    #[test]
    fn its_table_needs_no_library() {
        // DT_NEEDED would be in the dynamic section, whose strings name the library; only two symbols come from outside.
        let text = String::from_utf8_lossy(LIBRARY);
        assert!(!text.contains("libc.so") && text.contains("__errno_location") && text.contains("openat64"));
    }

    #[test]
    fn why_it_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let why = |criu: &CriuBinary, name: &str| {
            Preload::install(criu, dir.path().join(name)).unwrap().unwrap_err()
        };
        let script = dir.path().join("criu");
        std::fs::write(
            &script,
            "#!/bin/sh\nunset LD_PRELOAD\nexec /usr/bin/env\n# as long as the header of an ELF file\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(why(&CriuBinary::at(&script).unwrap(), "s").contains("wrapper"));
        assert!(why(&env(), "with space").contains("cannot be given"));
        // A program that refuses its argument.
        let failing = CriuBinary::at(std::fs::canonicalize("/usr/bin/false").unwrap()).unwrap();
        assert!(why(&failing, "f").contains("does not start"));
    }
}
