//! Whether this host can take what is offered. Nothing is touched; all reasons are given at once.

use godwit_criu::{CriuBinary, cpu};
use godwit_memory::available_memory;
use godwit_migration::plan::Strategy;
use godwit_migration::quantity::show_bytes;
use godwit_transfer::message::{Offer, TreeOffer};
use godwit_transfer::{HostFacts, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// What this host is like; an error says what is missing for any checkpoint or restore.
///
/// # Errors
/// When there is no usable CRIU.
pub fn host_facts(criu: &CriuBinary) -> Result<HostFacts, godwit_criu::CriuError> {
    let version = criu.version()?;
    let uname = nix::sys::utsname::uname().ok();
    let text = |pick: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|uname| pick(uname).to_string_lossy().into_owned()).unwrap_or_default()
    };
    Ok(HostFacts {
        host: text(|uname| uname.nodename()),
        kernel: text(|uname| uname.release()),
        criu: version.major * 10_000 + version.minor * 100 + version.sublevel,
        cpu_flags: cpu::cpu_flags().unwrap_or_default().into_iter().collect(),
    })
}

/// What speaks against an offer, as far as it does not depend on the engine.
/// So many bytes of
/// memory are in use for it already.
pub fn examine(offer: &Offer, here: &HostFacts, root: &Path, in_use: u64) -> Vec<Refusal> {
    let mut reasons = Vec::new();
    if offer.strategy != Strategy::Restart {
        reasons.extend(criu_reason(offer.facts.criu, here.criu));
        reasons.extend(cpu_reason(&offer.facts.cpu_flags, &here.cpu_flags));
    }
    reasons.extend(offer.trees.iter().filter_map(|tree| path_reason(&tree.path)));
    if reasons.is_empty() {
        // pages that come by themselves are kept in memory, and CRIU's images hold next to none
        let kept = offer.room_pages.map_or(0, |pages| pages.saturating_mul(godwit_memory::PAGE_SIZE));
        let no_images = offer.room_pages.is_some() || offer.strategy == Strategy::Restart;
        let images = if no_images { IMAGES } else { offer.memory_bytes.saturating_mul(2) };
        let memory = offer.memory_bytes.saturating_add(kept.saturating_sub(in_use));
        reasons.extend(room_reasons(&offer.trees, images, memory, root, free_bytes, available_memory().ok()));
    }
    reasons
}

/// A CRIU older than the one that wrote the images may not understand them.
fn criu_reason(theirs: u32, ours: u32) -> Option<Refusal> {
    // the last two digits are fixes, which change no format
    (ours / 100 < theirs / 100).then(|| {
        Refusal::new(format!(
            "criu {} is older than the source's {}",
            show_version(ours),
            show_version(theirs)
        ))
        .hint("install the same criu on both hosts")
    })
}

fn show_version(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn cpu_reason(theirs: &[String], ours: &[String]) -> Option<Refusal> {
    let set = |flags: &[String]| flags.iter().cloned().collect::<BTreeSet<_>>();
    let missing = cpu::missing_flags(&set(theirs), &set(ours));
    if missing.is_empty() {
        return None;
    }
    Some(
        Refusal::new(format!("the processor lacks {}, which running programs may use", missing.join(", ")))
            .hint(cpu::mask(&missing)),
    )
}

fn path_reason(path: &Path) -> Option<Refusal> {
    let strange = !path.is_absolute()
        || path == Path::new("/")
        || path.components().any(|part| !matches!(part, Component::Normal(_) | Component::RootDir));
    strange.then(|| {
        Refusal::new(format!(
            "`{}` is no place for a tree: it must be absolute, without `..`",
            path.display()
        ))
    })
}

/// Bytes that may be written at a path that may not exist yet, and the file system's number.
fn free_bytes(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    Some((std::fs::metadata(existing).ok()?.dev(), stat.blocks_available() * stat.fragment_size()))
}

/// Why a container's image of so many bytes cannot come: it lies there twice for a while.
pub fn no_room_for_image(dir: &Path, bytes: u64) -> Option<Refusal> {
    let (_, free) = free_bytes(dir)?;
    (free < bytes.saturating_mul(2)).then(|| {
        Refusal::new(format!(
            "the container's image needs {} of disk twice, and {} are free",
            show_bytes(bytes),
            show_bytes(free)
        ))
        .hint("make room there, or load a smaller image")
    })
}

/// Room for CRIU's images without pages, bytes: tens of KiB for each task, and what is eager.
const IMAGES: u64 = 64 << 20;

/// Whether files find room on their file systems, `images_bytes` in godwit's directory (the memory twice while it is put
/// together, when it comes in images), and tasks in memory.
fn room_reasons(
    trees: &[TreeOffer],
    images_bytes: u64,
    memory_bytes: u64,
    root: &Path,
    free: impl Fn(&Path) -> Option<(u64, u64)>,
    available: Option<u64>,
) -> Vec<Refusal> {
    let mut wanted: BTreeMap<u64, (PathBuf, u64, u64)> = BTreeMap::new();
    let mut want = |path: &Path, bytes: u64| {
        if let Some((device, free)) = free(path) {
            let entry = wanted.entry(device).or_insert_with(|| (path.to_owned(), 0, free));
            entry.1 = entry.1.saturating_add(bytes);
        }
    };
    for tree in trees {
        // a copy that lies there already gives its room back as it is overwritten
        let there = if tree.path.exists() { dir_bytes(&tree.path) } else { 0 };
        want(&tree.path, tree.bytes.saturating_sub(there));
    }
    want(root, images_bytes);
    let mut reasons: Vec<Refusal> = wanted
        .into_values()
        .filter(|(_, wanted, free)| wanted > free)
        .map(|(path, wanted, free)| {
            Refusal::new(format!(
                "{} are needed on the file system of `{}`, {} are free",
                show_bytes(wanted),
                path.display(),
                show_bytes(free)
            ))
            .hint("make room there")
        })
        .collect();
    if let Some(available) = available.filter(|available| *available < memory_bytes) {
        reasons.push(
            Refusal::new(format!(
                "{} of memory are needed for the container and its move, {} are available",
                show_bytes(memory_bytes),
                show_bytes(available)
            ))
            .hint("free memory there"),
        );
    }
    reasons
}

fn dir_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_transfer::{TreeId, TreeKind};

    fn tree(path: &str, bytes: u64) -> TreeOffer {
        TreeOffer {
            id: TreeId(0),
            kind: TreeKind::Volume,
            path: path.into(),
            single_file: false,
            read_only: false,
            bytes,
            made_there: false,
        }
    }

    #[test]
    fn room_is_counted_for_each_file_system() {
        let free = |path: &Path| Some(if path.starts_with("/a") { (1, 1000) } else { (2, 5000) });
        let reasons = |trees: &[TreeOffer], memory, available| {
            room_reasons(trees, 2 * memory, memory, Path::new("/b/root"), free, Some(available)).len()
        };
        assert_eq!(reasons(&[tree("/a/x", 600), tree("/b/y", 600)], 1000, 4000), 0);
        assert_eq!(
            reasons(&[tree("/a/x", 600), tree("/a/y", 600)], 1000, 4000),
            1,
            "both on one file system"
        );
        assert_eq!(reasons(&[], 2600, 4000), 1, "images need twice the memory on disk");
        assert_eq!(reasons(&[], 1000, 900), 1, "memory");
        assert_eq!(reasons(&[tree("/a/x", 2000)], 9000, 900), 3);
    }

    #[test]
    fn strange_places_are_refused() {
        for path in ["relative", "/", "/srv/../etc", ".."] {
            assert!(path_reason(Path::new(path)).is_some(), "{path}");
        }
        assert!(path_reason(Path::new("/srv/data")).is_none());
    }

    #[test]
    fn an_older_criu_and_a_lesser_processor_are_refused() {
        assert!(criu_reason(40_201, 40_200).is_none());
        assert!(criu_reason(40_200, 40_101).unwrap().reason.contains("4.1.1"));
        let flags = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let refusal = cpu_reason(&flags("sse2 avx2 avx512f"), &flags("sse2 avx2")).unwrap();
        assert!(refusal.reason.contains("avx512f") && !refusal.reason.contains("avx2,"));
        assert!(cpu_reason(&flags("sse2"), &flags("sse2 avx2")).is_none());
    }
}
