//! The criu executable: where it is, which it is, and what it and the kernel can do.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rust_criu::rust_criu_protobuf::rpc::{Criu_features, Criu_req_type};

use crate::cpu::CpuVerdict;
use crate::dump::{Places, make_private_dir, remove_stale};
use crate::error::CriuError;
use crate::log;
use crate::session::{NotifyAnswer, Session, SessionOptions, expect_success, request_of};

/// How long a question without a process tree may take.
const QUESTION_TIME: Duration = Duration::from_secs(30);
/// Image written by [`CriuBinary::cpuinfo_dump`].
pub const CPUINFO_IMAGE: &str = "cpuinfo.img";

/// A criu executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriuBinary {
    path: PathBuf,
}

/// CRIU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number, 0 when it has none.
    pub sublevel: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.sublevel)
    }
}

/// How the executable is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// No interpreter: runs in any mount namespace.
    Static,
    /// Needs a loader and libraries.
    Dynamic,
    /// Not an ELF file of this kind (a wrapper script).
    Unknown,
}

/// What CRIU and the kernel can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Pre-dumps work: CRIU says so and [`soft_dirty_works`](Self::soft_dirty_works).
    pub mem_track: bool,
    /// Restores with memory on demand work.
    pub lazy_pages: bool,
    /// Exact detection of reused pids works.
    pub pidfd_store: bool,
    /// A page just written carries the soft-dirty bit. CRIU's own answer comes from a cache (`/run/criu.kdat`) that may be
    /// older than the running kernel.
    pub soft_dirty_works: bool,
}

impl CriuBinary {
    /// The executable in `GODWIT_CRIU`, or `criu` in `PATH`, `/usr/local/sbin`, `/usr/sbin`, `/sbin`.
    pub fn find() -> Result<Self, CriuError> {
        if let Some(named) = std::env::var_os("GODWIT_CRIU").filter(|v| !v.is_empty()) {
            return Self::at(named);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
        for more in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
            if !places.iter().any(|dir| dir == Path::new(more)) {
                places.push(more.into());
            }
        }
        places
            .iter()
            .map(|dir| dir.join("criu"))
            .find(|file| executable(file))
            .map(|path| CriuBinary { path })
            .ok_or_else(|| CriuError::NotFound {
                searched: places.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":"),
            })
    }

    /// The executable at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, CriuError> {
        let path = path.into();
        if executable(&path) {
            Ok(CriuBinary { path })
        } else {
            Err(CriuError::NotFound { searched: format!("`{}`", path.display()) })
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, from `criu --version`.
    pub fn version(&self) -> Result<Version, CriuError> {
        let output = self.run(&["--version"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text).ok_or_else(|| CriuError::Protocol {
            operation: "version",
            detail: format!("no version in `{}`", text.trim()),
        })
    }

    /// Whether it needs a loader: an ELF program header of type PT_INTERP (3), see elf(5).
    pub fn linkage(&self) -> Linkage {
        File::open(&self.path).ok().and_then(|file| elf_linkage(&file)).unwrap_or(Linkage::Unknown)
    }

    /// Runs `criu check`: `Ok` when CRIU can work on this host, else [`CriuError::Unusable`] with its reason.
    pub fn check(&self) -> Result<(), CriuError> {
        let output = self.run(&["check"])?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        let explanation = log::explain(&text);
        Err(CriuError::Unusable { reason: format!("{explanation} ({})", output.status) })
    }

    /// What it and the kernel can do.
    pub fn features(&self) -> Result<Features, CriuError> {
        const OPERATION: &str = "feature check";
        let mut wanted = Criu_features::new();
        wanted.set_mem_track(true);
        wanted.set_lazy_pages(true);
        wanted.set_pidfd_store(true);
        let mut req = request_of(Criu_req_type::FEATURE_CHECK, None);
        req.features = Some(wanted).into();
        let mut session = Session::start(self, SessionOptions::default())?;
        let answer = session.request(OPERATION, &req, QUESTION_TIME, &mut |_| NotifyAnswer::Continue);
        let resp = expect_success(OPERATION, Criu_req_type::FEATURE_CHECK, answer, None)?;
        session.finish()?;
        let soft_dirty_works = soft_dirty_works().unwrap_or(false);
        Ok(Features {
            mem_track: resp.features.mem_track() && soft_dirty_works,
            lazy_pages: resp.features.lazy_pages(),
            pidfd_store: resp.features.pidfd_store(),
            soft_dirty_works,
        })
    }

    /// Writes this host's processor into `dir/cpuinfo.img`, for [`Self::cpuinfo_check`] on another.
    pub fn cpuinfo_dump(&self, dir: &Path) -> Result<PathBuf, CriuError> {
        make_private_dir(dir)?;
        self.cpuinfo(dir, "cpuinfo dump", Criu_req_type::CPUINFO_DUMP, "cpuinfo-dump.log")?;
        Ok(dir.join(CPUINFO_IMAGE))
    }

    /// Whether this host's processor can run what ran on the one described by `dir/cpuinfo.img`.
    pub fn cpuinfo_check(&self, dir: &Path) -> Result<CpuVerdict, CriuError> {
        let log_name = "cpuinfo-check.log";
        match self.cpuinfo(dir, "cpuinfo check", Criu_req_type::CPUINFO_CHECK, log_name) {
            Ok(()) => Ok(CpuVerdict::Compatible),
            Err(CriuError::Failed { errno: Some(libc::ENOTSUP), explanation, .. }) => {
                Ok(CpuVerdict::Incompatible { reason: explanation.to_string() })
            }
            // 4.1.1 and 4.2.1 give no errno here (measured): the log tells.
            Err(CriuError::Failed { explanation, .. }) if explanation.is_about_cpu() => {
                Ok(CpuVerdict::Incompatible { reason: explanation.to_string() })
            }
            Err(other) => Err(other),
        }
    }

    fn cpuinfo(
        &self,
        dir: &Path,
        operation: &'static str,
        kind: Criu_req_type,
        log_name: &str,
    ) -> Result<(), CriuError> {
        let log_file = dir.join(log_name);
        remove_stale(&log_file)?;
        let places = Places::open(dir, dir)?;
        let mut session = Session::start(self, SessionOptions::default())?;
        let request = request_of(kind, Some(places.options(log_name, 3)));
        let answer = session.request(operation, &request, QUESTION_TIME, &mut |_| NotifyAnswer::Continue);
        expect_success(operation, kind, answer, Some(&log_file))?;
        session.finish()?;
        Ok(())
    }

    fn run(&self, args: &[&str]) -> Result<std::process::Output, CriuError> {
        Command::new(&self.path)
            .args(args)
            .stdin(Stdio::null())
            .current_dir("/")
            .output()
            .map_err(|source| CriuError::Spawn { path: self.path.clone(), source })
    }
}

/// Whether the kernel marks a written page soft-dirty: bit 55 of its entry in `/proc/self/pagemap` (the kernel's
/// pagemap.rst). Always clear without CONFIG_MEM_SOFT_DIRTY.
pub fn soft_dirty_works() -> std::io::Result<bool> {
    const SOFT_DIRTY: u64 = 1 << 55;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096).unsigned_abs();
    let mut memory = vec![0u8; 4 * usize::try_from(page).unwrap_or(4096)];
    memory.fill(0x5a);
    let memory = std::hint::black_box(memory);
    // The second page begun here lies wholly inside.
    let inside = memory.as_ptr().addr() as u64 / page + 1;
    let mut entry = [0u8; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, inside * 8)?;
    drop(memory);
    Ok(u64::from_ne_bytes(entry) & SOFT_DIRTY != 0)
}

fn executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn parse_version(text: &str) -> Option<Version> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Version:"))?.trim();
    let numeric = line.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
    let mut parts = numeric.split('.').map(|part| part.parse::<u32>());
    let major = parts.next()?.ok()?;
    let minor = parts.next()?.ok()?;
    let sublevel = parts.next().and_then(Result::ok).unwrap_or(0);
    Some(Version { major, minor, sublevel })
}

fn elf_linkage(file: &File) -> Option<Linkage> {
    const PT_INTERP: u32 = 3;
    let mut header = [0u8; 64];
    (&*file).read_exact(&mut header).ok()?;
    // 64 bit and little-endian, which all hosts CRIU's x86_64 and arm64 builds run on are.
    if header[..4] != *b"\x7fELF" || header[4] != 2 || header[5] != 1 {
        return None;
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let table = u64::from_le_bytes(header[32..40].try_into().ok()?);
    let (entry_size, entries) = (u16_at(54), u16_at(56));
    for i in 0..u64::from(entries) {
        let mut kind = [0u8; 4];
        let at = table.checked_add(i * u64::from(entry_size))?;
        file.read_exact_at(&mut kind, at).ok()?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Some(Linkage::Dynamic);
        }
    }
    Some(Linkage::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let v = |major, minor, sublevel| Some(Version { major, minor, sublevel });
        assert_eq!(parse_version("Version: 4.2.1\nGitID: v4.2.1\n"), v(4, 2, 1));
        assert_eq!(parse_version("Version: 4.2\n"), v(4, 2, 0));
        assert_eq!(parse_version("Warn: x\nVersion: 3.17.1-dirty\n"), v(3, 17, 1));
        assert_eq!(parse_version("Version: none\n"), None);
        assert_eq!(parse_version(""), None);
        assert!(v(4, 1, 1) < v(4, 2, 0));
    }

    #[test]
    fn linkage_of_a_script_is_unknown_and_of_a_dynamic_program_dynamic() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("criu");
        std::fs::write(
            &script,
            "#!/bin/sh\nexec /opt/criu/criu \"$@\"\n# long enough to fill an ELF header, were it one\n",
        )
        .unwrap();
        assert!(CriuBinary::at(&script).is_err(), "not executable yet");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(CriuBinary::at(&script).unwrap().linkage(), Linkage::Unknown);
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        assert_eq!(CriuBinary::at(shell).unwrap().linkage(), Linkage::Dynamic);

        // An ELF header with one program header of type PT_LOAD: nothing to interpret.
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        std::fs::write(&script, &elf).unwrap();
        assert_eq!(CriuBinary::at(&script).unwrap().linkage(), Linkage::Static);
        elf[64] = 3;
        std::fs::write(&script, &elf).unwrap();
        assert_eq!(CriuBinary::at(&script).unwrap().linkage(), Linkage::Dynamic);
    }
}
