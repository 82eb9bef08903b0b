//! Where a runtime has the cgroup of a container: at a path, or where systemd makes a scope for it.
//!
//! `linux.cgroupsPath` of config.json is a path, or systemd's form `SLICE:PREFIX:NAME` for the scope `PREFIX-NAME.scope` in a slice
//! (runc: libcontainer/cgroups/systemd; crun: src/libcrun/cgroup-systemd.c). A runtime asks systemd for it when it is told to
//! (`--systemd-cgroup`). crun has the tasks one cgroup further down.

use super::Flavor;
use crate::freezer::cgroup_at;
use godwit_transfer::message::Refusal;
use procfs::process::Process;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Where runtimes have scopes without being told.
const DEFAULT_SLICE: &str = "system.slice";
/// What names crun's own cgroup in a scope (crun(1)); empty for none.
const SUBGROUP: &str = "run.oci.systemd.subgroup";
const DEFAULT_SUBGROUP: &str = "container";

/// Whether systemd is process 1 here (sd_booted(3)).
pub(crate) fn systemd_is_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What the bundle says.
fn said(config: &Value) -> Option<&str> {
    config["linux"]["cgroupsPath"].as_str()
}

/// Whether the bundle asks for a scope of systemd's. A runtime that is not told to ask systemd takes even this for a path.
pub(crate) fn is_scope(config: &Value) -> bool {
    said(config).is_some_and(|text| text.contains(':'))
}

/// The cgroup's path below the root of the hierarchy, for the container `name`; none if it leads elsewhere, or nowhere.
pub(crate) fn below_root(flavor: Flavor, config: &Value, name: &str, by_systemd: bool) -> Option<PathBuf> {
    if !by_systemd {
        return plain(config, name);
    }
    let Scope { slice, unit } = Scope::of(flavor, config, name)?;
    let scope = slice_path(&slice)?.join(unit);
    if flavor.places_criu() {
        return Some(scope);
    }
    let subgroup = config["annotations"][SUBGROUP].as_str().unwrap_or(DEFAULT_SUBGROUP);
    let is_plain = Path::new(subgroup).components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then(|| scope.join(subgroup))
}

/// The same as a directory of this host.
pub(crate) fn directory(flavor: Flavor, config: &Value, name: &str, by_systemd: bool) -> Option<PathBuf> {
    cgroup_at(&below_root(flavor, config, name, by_systemd)?)
}

/// How the cgroup is called that a restore makes, whoever makes it.
pub(crate) fn own_name(flavor: Flavor, config: &Value, name: &str, by_systemd: bool) -> String {
    if by_systemd && let Some(scope) = Scope::of(flavor, config, name) {
        return scope.unit;
    }
    let last = said(config).map(Path::new).and_then(Path::file_name);
    last.map_or_else(|| name.to_owned(), |last| last.to_string_lossy().into_owned())
}

/// Whether systemd has made the cgroup of a running container.
pub(crate) fn is_made_by_systemd(pid: i32, flavor: Flavor, config: &Value, name: &str) -> bool {
    let Some(scope) = Scope::of(flavor, config, name) else { return false };
    let cgroups = Process::new(pid).and_then(|process| process.cgroups());
    let is_in =
        |path: &str| Path::new(path).components().any(|part| part.as_os_str() == OsStr::new(&scope.unit));
    cgroups.into_iter().flatten().any(|cgroup| is_in(&cgroup.pathname))
}

/// What a host lacks to make it.
pub(crate) fn without_systemd(by_systemd: bool) -> Option<Refusal> {
    (by_systemd && !systemd_is_here()).then(|| {
        Refusal::new("its cgroup is systemd's to make, and systemd is not process 1 of that host")
            .hint("make it without systemd's cgroups: podman, runc and crun by cgroupfs (`cgroup_manager = \"cgroupfs\"` in containers.conf, no `--systemd-cgroup`)")
    })
}

/// A path below the root, `name` if the bundle does not say; none if it leads elsewhere.
fn plain(config: &Value, name: &str) -> Option<PathBuf> {
    let path = Path::new(said(config).unwrap_or(name));
    let path = path.strip_prefix("/").unwrap_or(path);
    let is_plain = |part: Component<'_>| match part {
        Component::Normal(name) => !name.to_string_lossy().contains(':'),
        _ => false,
    };
    (path.components().next().is_some() && path.components().all(is_plain)).then(|| path.to_owned())
}

/// A unit of systemd's that holds processes.
struct Scope {
    slice: String,
    unit: String,
}

impl Scope {
    fn of(flavor: Flavor, config: &Value, name: &str) -> Option<Self> {
        let (slice, prefix, name) = match said(config).filter(|text| !text.is_empty()) {
            None => ("", flavor.kind(), name),
            Some(text) => {
                let mut parts = text.splitn(3, ':');
                (parts.next()?, parts.next()?, parts.next()?)
            }
        };
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        // systemd.unit(5); it becomes a path, and may be the peer's text
        let is_unit =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte));
        (is_unit(slice) && is_unit(prefix) && is_unit(name) && !name.is_empty())
            .then(|| Self { slice: slice.to_owned(), unit: format!("{prefix}-{name}.scope") })
    }
}

/// Where the cgroup of a slice is: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..end]));
    }
    let is_slice = name.split('-').all(|part| !part.is_empty() && part != "..");
    is_slice.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(path: &str) -> Value {
        json!({"linux": {"cgroupsPath": path}})
    }

    #[test]
    fn a_cgroup_is_a_plain_path_or_none_that_godwit_makes() {
        let of = |path: &str| below_root(Flavor::Crun, &at(path), "web", false);
        assert_eq!(of("/a/b"), Some("a/b".into()));
        assert_eq!(below_root(Flavor::Crun, &json!({}), "web", false), Some("web".into()));
        for odd in ["machine.slice:libpod:x", "/a/../../etc", "..", "/", ""] {
            assert_eq!(of(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_scope_is_in_its_slice_and_that_in_those_whose_names_it_begins_with() {
        let of = |flavor, path: &str| {
            below_root(flavor, &at(path), "web", true).map(|path| path.to_string_lossy().into_owned())
        };
        let some = |text: &str| Some(text.to_owned());
        let (runc, crun) = (Flavor::Runc, Flavor::Crun);
        assert_eq!(of(runc, "system.slice:docker:0a"), some("system.slice/docker-0a.scope"));
        assert_eq!(of(crun, "machine.slice:libpod:0a"), some("machine.slice/libpod-0a.scope/container"));
        assert_eq!(
            of(crun, "machine-libpod_pod_1.slice:libpod:2"),
            some("machine.slice/machine-libpod_pod_1.slice/libpod-2.scope/container")
        );
        assert_eq!(of(runc, "-.slice:a:b"), some("a-b.scope"));
        assert_eq!(of(runc, ""), some("system.slice/runc-web.scope"));
        assert_eq!(of(runc, ":a:b"), some("system.slice/a-b.scope"));
        for odd in [
            "a:b",
            "a:b:c",
            "/x.slice:a:b",
            "a--b.slice:a:b",
            "../x.slice:a:b",
            "a.slice:../../b:c",
            "a.slice:b:/c",
            "a.slice:b:",
        ] {
            assert_eq!(of(runc, odd), None, "{odd}");
        }
        let mut config = at("a.slice:b:c");
        for (annotation, want) in
            [("", Some("a.slice/b-c.scope")), ("x", Some("a.slice/b-c.scope/x")), ("../..", None)]
        {
            config["annotations"] = json!({SUBGROUP: annotation});
            assert_eq!(below_root(crun, &config, "web", true), want.map(PathBuf::from), "{annotation}");
        }
    }

    #[test]
    fn what_a_restore_makes_has_a_name() {
        let of = |path: &str, by_systemd| own_name(Flavor::Runc, &at(path), "web", by_systemd);
        assert_eq!(of("/a/b", false), "b");
        assert_eq!(of("a.slice:b:c", true), "b-c.scope");
        assert_eq!(own_name(Flavor::Crun, &json!({}), "web", true), "crun-web.scope");
        assert_eq!(own_name(Flavor::Crun, &json!({}), "web", false), "web");
    }
}
