//! What a container of a runtime needs of its host beside the files that are copied: cgroups as they were, its security profile,
//! and the programs that were left out of the copy.

use super::config::BindMount;
use crate::obstacles::{locks, numbers, ports};
use crate::process::same_namespace;
use godwit_transfer::message::Refusal;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::process::{MMPermissions, MMapPath, Process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What the source tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Needs {
    /// `v1` or `v2`.
    #[serde(default)]
    cgroups: Option<String>,
    /// Programs and libraries that run and are not copied, with their sizes in bytes.
    #[serde(default)]
    programs: Vec<(PathBuf, u64)>,
    /// What it listens on in the host's own network namespace.
    #[serde(default)]
    listeners: Vec<SocketAddr>,
    /// The numbers of its tasks in the host's own pid namespace.
    #[serde(default)]
    numbers: Vec<i32>,
}

/// What to do about a number that is not free at the destination.
const OWN_NUMBERS: &str = "give the container a pid namespace of its own: `{\"type\": \"pid\"}` in `linux.namespaces` of config.json";

/// What a destination has.
#[derive(Debug)]
pub(crate) struct Host {
    cgroups: Option<&'static str>,
    /// /sys/kernel/security/apparmor/profiles: `NAME (MODE)`, a line each; none without AppArmor.
    profiles: Option<String>,
    selinux: bool,
    /// Network locks that were left in its own namespace.
    locks: Vec<Refusal>,
}

impl Host {
    /// This one.
    pub(crate) fn this() -> Self {
        Self {
            cgroups: cgroups(),
            profiles: std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            locks: locks::of_host(),
        }
    }
}

/// Which cgroups runc uses here: those of version 2 when they alone are mounted (runc, libcontainer/cgroups).
pub(crate) fn cgroups() -> Option<&'static str> {
    let kind = statfs("/sys/fs/cgroup").ok()?.filesystem_type();
    Some(if kind == CGROUP2_SUPER_MAGIC { "v2" } else { "v1" })
}

impl Needs {
    /// Those of a running container. `binds` are its bind mounts that are not copied.
    pub(crate) fn of(pids: &BTreeSet<i32>, binds: &[&BindMount], in_host_network: bool) -> Self {
        let listeners = if in_host_network { ports::listening(pids) } else { Vec::new() };
        let in_host_pids = |pid: &i32| same_namespace(&pid.to_string(), "self", "pid");
        let numbers = if pids.first().is_some_and(in_host_pids) { numbers::of(pids) } else { Vec::new() };
        Self { cgroups: cgroups().map(str::to_owned), programs: programs(pids, binds), listeners, numbers }
    }

    /// What of it, and of what the bundle says, a host lacks.
    pub(crate) fn lacking(&self, config: &Value, host: &Host) -> Vec<Refusal> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let process = &config["process"];
        let reasons = [
            self.cgroups.as_deref().and_then(|needed| other_cgroups(needed, host.cgroups?)),
            text(&process["apparmorProfile"]).and_then(|profile| no_profile(&profile, host.profiles.as_deref())),
            text(&process["selinuxLabel"]).filter(|_| !host.selinux).map(|label| {
                Refusal::new(format!("it has the SELinux label `{label}`, and SELinux is not on there"))
                    .hint("turn SELinux on there, with the same policy (container-selinux), or start it with `label=disable`")
            }),
            other_programs(&self.programs),
        ];
        let mut reasons: Vec<Refusal> = reasons.into_iter().flatten().collect();
        reasons.extend(ports::unavailable(&self.listeners));
        reasons.extend(numbers::unavailable(&self.numbers, OWN_NUMBERS));
        reasons.extend(host.locks.iter().cloned());
        reasons
    }
}

fn other_cgroups(needed: &str, there: &str) -> Option<Refusal> {
    (needed != there).then(|| {
        Refusal::new(format!("its cgroups are those of {needed}, and that host uses {there}")).hint(
            "boot both hosts with the same: `systemd.unified_cgroup_hierarchy=1` on the kernel's command line is v2, `=0` v1",
        )
    })
}

fn no_profile(profile: &str, loaded: Option<&str>) -> Option<Refusal> {
    if profile == "unconfined" {
        return None;
    }
    let Some(loaded) = loaded else {
        return Some(
            Refusal::new(format!("it has the AppArmor profile `{profile}`, and AppArmor is not on there"))
                .hint("start that host's kernel with `apparmor=1`, or the container without a profile"),
        );
    };
    let is_there = loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile));
    (!is_there).then(|| {
        Refusal::new(format!("its AppArmor profile `{profile}` is not loaded there"))
            .hint("copy it there from /etc/apparmor.d of the source, and load it: `apparmor_parser -r FILE`")
    })
}

/// The files that tasks run code of, where they lie on the host, if they are not copied.
fn programs(pids: &BTreeSet<i32>, binds: &[&BindMount]) -> Vec<(PathBuf, u64)> {
    let mut programs = BTreeMap::new();
    if binds.is_empty() {
        return Vec::new();
    }
    for pid in pids {
        let Ok(maps) = Process::new(*pid).and_then(|process| process.maps()) else { continue };
        for map in maps {
            let MMapPath::Path(path) = map.pathname else { continue };
            if !map.perms.contains(MMPermissions::EXECUTE) {
                continue;
            }
            let on_host = on_host(&path, binds);
            if let Some((path, meta)) =
                on_host.and_then(|path| Some((path.clone(), std::fs::metadata(path).ok()?)))
            {
                programs.insert(path, meta.len());
            }
        }
    }
    programs.into_iter().collect()
}

/// Where a file of the container is on the host, if it is in one of the bind mounts; the deepest counts.
fn on_host(path: &Path, binds: &[&BindMount]) -> Option<PathBuf> {
    let holds = |bind: &&&BindMount| path.starts_with(&bind.destination);
    let bind = binds.iter().filter(holds).max_by_key(|bind| bind.destination.components().count())?;
    let rest = path.strip_prefix(&bind.destination).ok()?;
    Some(if rest.as_os_str().is_empty() { bind.source.clone() } else { bind.source.join(rest) })
}

/// CRIU opens them again by name, and wants the same size.
fn other_programs(needed: &[(PathBuf, u64)]) -> Option<Refusal> {
    let wrong: Vec<String> = needed
        .iter()
        .filter_map(|(path, size)| match std::fs::metadata(path) {
            Err(_) => Some(format!("`{}` is missing", path.display())),
            Ok(meta) if meta.len() != *size => {
                Some(format!("`{}` has {} bytes and not {size}", path.display(), meta.len()))
            }
            Ok(_) => None,
        })
        .collect();
    let first = wrong.first()?;
    Some(
        Refusal::new(format!(
            "{} of the programs and libraries that it runs and that are not copied differ: {first}",
            wrong.len()
        ))
        .hint("install the same versions there, or let them be copied (without `--no-copy`)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host() -> Host {
        Host {
            cgroups: Some("v2"),
            profiles: Some("docker-default (enforce)\nfoo bar (complain)\n".into()),
            selinux: true,
            locks: Vec::new(),
        }
    }

    fn told(needs: &Needs, config: &Value, host: &Host) -> Vec<String> {
        let reasons = needs.lacking(config, host);
        reasons
            .into_iter()
            .map(|refusal| format!("{}: {}", refusal.reason, refusal.hint.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn cgroups_must_be_of_the_same_version() {
        let needs = |version: &str| Needs { cgroups: Some(version.into()), ..Needs::default() };
        assert!(told(&needs("v2"), &json!({}), &host()).is_empty());
        let reasons = told(&needs("v1"), &json!({}), &host());
        assert!(
            reasons[0].contains("those of v1") && reasons[0].contains("unified_cgroup_hierarchy"),
            "{reasons:?}"
        );
        // a source that does not say
        assert!(told(&Needs::default(), &json!({}), &host()).is_empty());
    }

    #[test]
    fn security_profiles_must_be_loaded() {
        let config = |profile: &str| json!({ "process": { "apparmorProfile": profile } });
        for there in ["docker-default", "foo bar", "unconfined", ""] {
            assert!(told(&Needs::default(), &config(there), &host()).is_empty(), "{there}");
        }
        let reasons = told(&Needs::default(), &config("docker"), &host());
        assert!(
            reasons[0].contains("`docker` is not loaded") && reasons[0].contains("apparmor_parser -r"),
            "{reasons:?}"
        );
        let without = Host { profiles: None, selinux: false, ..host() };
        assert!(
            told(&Needs::default(), &config("docker-default"), &without)[0].contains("AppArmor is not on")
        );
        let label = json!({ "process": { "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2" } });
        assert!(told(&Needs::default(), &label, &host()).is_empty());
        assert!(told(&Needs::default(), &label, &without)[0].contains("container_t"));
    }

    #[test]
    fn programs_that_are_not_copied_must_be_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libc.so");
        std::fs::write(&library, "12345").unwrap();
        let needs = |path: &Path, size| Needs { programs: vec![(path.to_owned(), size)], ..Needs::default() };
        assert!(told(&needs(&library, 5), &json!({}), &host()).is_empty());
        assert!(told(&needs(&library, 6), &json!({}), &host())[0].contains("has 5 bytes and not 6"));
        assert!(told(&needs(&dir.path().join("gone"), 6), &json!({}), &host())[0].contains("is missing"));
    }

    #[test]
    fn numbers_in_the_hosts_pid_namespace_must_be_free_there() {
        let me = std::process::id().cast_signed();
        let needs = Needs::of(&BTreeSet::from([me]), &[], false);
        assert!(needs.numbers.contains(&me), "{needs:?}");
        let reasons = told(&Needs { numbers: vec![me], ..Needs::default() }, &json!({}), &host());
        assert!(
            reasons[0].contains(&format!("the process number {me} is taken"))
                && reasons[0].contains("linux.namespaces"),
            "{reasons:?}"
        );
    }

    #[test]
    fn a_program_is_found_on_the_host_by_its_bind_mount() {
        let bind = |source: &str, destination: &str| BindMount {
            source: source.into(),
            destination: destination.into(),
            read_only: true,
        };
        let (usr, lib) = (bind("/host/usr", "/usr"), bind("/host/lib", "/usr/lib"));
        let binds = [&usr, &lib];
        let at = |path: &str| on_host(Path::new(path), &binds);
        assert_eq!(at("/usr/bin/x"), Some("/host/usr/bin/x".into()));
        assert_eq!(at("/usr/lib/y"), Some("/host/lib/y".into()));
        assert_eq!(at("/usr/lib"), Some("/host/lib".into()));
        assert_eq!(at("/usrx"), None);
        // this test itself runs code of a file
        let root = bind("/", "/");
        let me = programs(&BTreeSet::from([std::process::id().cast_signed()]), &[&root]);
        let exe = std::env::current_exe().unwrap();
        assert!(
            me.iter().any(|(path, size)| *path == exe && *size == exe.metadata().unwrap().len()),
            "{me:?}"
        );
    }
}
