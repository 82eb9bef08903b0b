//! What a host is like, row by row, as `godwit check` shows it and two of them are compared.

use godwit_checkpoint::preflight::{check_kernel, check_privilege, usable_criu};
use godwit_criu::{CriuBinary, Linkage, cpu};
use godwit_engine::by_kind;
use godwit_migration::Failure;
use godwit_migration::quantity::show_bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What the rows are called; `godwit check` compares rows of the same name.
pub const RUNC: &str = "runc";
/// How the value of an engine's row begins that is not installed.
pub const NOT_THERE: &str = "not there";
pub const CPU: &str = "cpu features";
pub const CRIU: &str = "criu";
pub const FREEZER: &str = "cgroup freezer";

/// One thing that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// What was found.
    pub value: String,
    /// Why no migration can work with it.
    pub problem: Option<String>,
    /// More about that, too long for a table.
    pub cause: Option<String>,
    /// What to do about that.
    pub hint: Option<String>,
}

/// All that is known of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Its name.
    pub host: String,
    /// The godwit there.
    pub godwit: String,
    /// CRIU's version as in its RPC (40200 is 4.2); 0 when there is none.
    pub criu: u32,
    /// As in /proc/cpuinfo.
    pub cpu_flags: BTreeSet<String>,
    /// The rows of the table.
    pub rows: Vec<Row>,
    /// Nothing is missing.
    pub ok: bool,
}

impl HostReport {
    /// Looks at this host; touches nothing. `root` is godwit's directory.
    pub fn of_this_host(root: &Path) -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let text = |pick: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            uname.as_ref().map(|uname| pick(uname).to_string_lossy().into_owned()).unwrap_or_default()
        };
        let (criu_row, tracking, criu) = criu_rows();
        let cpu_flags = cpu::cpu_flags().unwrap_or_default();
        let rows = vec![
            row("godwit", env!("CARGO_PKG_VERSION")),
            kernel(text(|uname| uname.release())),
            privilege(),
            criu_row,
            tracking,
            engine(RUNC),
            engine("crun"),
            engine("podman"),
            engine("docker"),
            freezer(),
            nf_tables(),
            tool("ip", &["-V"], "the networks of containers are read and made with it", "install iproute2"),
            ssh(),
            row(CPU, format!("{} flags", cpu_flags.len())),
            disk(root),
            memory(),
        ];
        Self {
            host: text(|uname| uname.nodename()),
            godwit: env!("CARGO_PKG_VERSION").into(),
            criu,
            cpu_flags,
            ok: rows.iter().all(|row| row.problem.is_none()),
            rows,
        }
    }

    /// The row of that name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// Found, and nothing wrong with it.
fn row(name: &str, value: impl Into<String>) -> Row {
    Row { name: name.into(), value: value.into(), problem: None, cause: None, hint: None }
}

impl Row {
    fn wrong(mut self, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        self.problem = Some(problem.into());
        self.hint = Some(hint.into());
        self
    }

    fn wrong_as(self, failure: &Failure) -> Self {
        let hint = failure.hints.first().cloned().unwrap_or_default();
        let cause = (!failure.causes.is_empty()).then(|| failure.causes.join(": "));
        Self { cause, ..self.wrong(failure.message.clone(), hint) }
    }
}

fn kernel(release: String) -> Row {
    let checked = check_kernel(&release);
    let kernel = row("kernel", release);
    checked.map_or_else(|failure| kernel.clone().wrong_as(&failure), |()| kernel.clone())
}

fn privilege() -> Row {
    match check_privilege() {
        Ok(()) => row("privilege", "all capabilities needed"),
        Err(failure) => row("privilege", "not enough").wrong_as(&failure),
    }
}

/// The rows of CRIU and of memory tracking, and CRIU's version as a number.
fn criu_rows() -> (Row, Row, u32) {
    let tracking = |value: &str| row("dirty tracking", value);
    let unknown = || tracking("unknown without criu");
    let found = CriuBinary::find().ok();
    let version = found.as_ref().and_then(|criu| criu.version().ok());
    let shown = match (&found, version) {
        (Some(criu), Some(version)) if criu.linkage() == Linkage::Static => format!("{version}, static"),
        (_, Some(version)) => version.to_string(),
        (Some(_), None) => "of unknown version".into(),
        (None, None) => "not there".into(),
    };
    let number = version.map_or(0, |version| version.major * 10_000 + version.minor * 100 + version.sublevel);
    let criu = match usable_criu() {
        Err(failure) => return (row(CRIU, shown).wrong_as(&failure), unknown(), number),
        Ok(criu) => criu,
    };
    let tracking = match criu.features() {
        Ok(features) if features.mem_track => tracking("soft-dirty (tracker `pre-dump`)"),
        Ok(_) => tracking("none (tracker `checkpoint`)"),
        Err(error) => tracking("not told").wrong(error.to_string(), "run `criu check --all`"),
    };
    (row(CRIU, shown), tracking, number)
}

/// A host without any can still move bare process trees.
fn engine(kind: &str) -> Row {
    match by_kind(kind).map(|engine| engine.usable()) {
        Some(Ok(version)) => row(kind, version),
        _ => row(kind, format!("{NOT_THERE} (no `{kind}:` can move)")),
    }
}

/// mountinfo of proc_pid_mountinfo(5): the file system's type comes after a lone dash, its options last.
fn freezer() -> Row {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut kinds = BTreeSet::new();
    for line in mounts.lines() {
        let Some((_, after)) = line.split_once(" - ") else { continue };
        match after.split(' ').collect::<Vec<_>>().as_slice() {
            ["cgroup2", ..] => kinds.insert("v2"),
            ["cgroup", .., options] if options.split(',').any(|option| option == "freezer") => {
                kinds.insert("v1")
            }
            _ => false,
        };
    }
    let value = kinds.iter().copied().collect::<Vec<_>>().join(" and ");
    if value.is_empty() {
        return row(FREEZER, "none").wrong(
            "no cgroup hierarchy with a freezer is mounted",
            "mount one: `mount -t cgroup2 none /sys/fs/cgroup`",
        );
    }
    row(FREEZER, value)
}

/// The network lock is made with nf_tables, over a netlink socket; the kernel loads what it has when it is asked.
fn nf_tables() -> Row {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let opened =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
    match opened {
        Ok(_) => row("network lock", "nf_tables"),
        Err(errno) => row("network lock", "none").wrong(
            format!("the kernel has no netfilter netlink socket: {}", errno.desc()),
            "load the module nf_tables",
        ),
    }
}

fn tool(name: &str, args: &[&str], why: &str, hint: &str) -> Row {
    match first_line(name, args) {
        Some(line) => {
            let version = line.split(", ").find(|part| part.contains('-') || part.contains('.'));
            row(name, version.unwrap_or(&line).trim())
        }
        None => row(name, "not there").wrong(format!("`{name}` cannot be run: {why}"), hint),
    }
}

/// Only one of the ways to another host.
fn ssh() -> Row {
    let version = first_line("ssh", &["-V"]);
    row("ssh", version.as_deref().map_or("not there", |line| line.split([',', ' ']).next().unwrap_or(line)))
}

/// The first line that a program says of itself, wherever it says it.
fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(std::process::Stdio::null()).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().map(str::to_owned)
}

/// Room in godwit's directory, or where it would be made.
fn disk(root: &Path) -> Row {
    let free = root.ancestors().find(|place| place.exists()).and_then(|place| {
        let stat = nix::sys::statvfs::statvfs(place).ok()?;
        Some(stat.blocks_available() * stat.fragment_size())
    });
    match free {
        Some(free) => row("free disk", format!("{} in {}", show_bytes(free), root.display())),
        None => row("free disk", "unknown"),
    }
}

fn memory() -> Row {
    row("free memory", godwit_memory::available_memory().map_or_else(|_| "unknown".into(), show_bytes))
}
