//! Files that are watched (inotify(7), fanotify(7)) and that CRIU cannot find again. The kernel tells their handles and not their
//! paths: CRIU opens the handle, or looks in the places where files are usually watched (CRIU's fsnotify.c and irmap.c).

use crate::sys::handle;
use godwit_criu::{CriuBinary, Version};
use godwit_transfer::message::Refusal;
use nix::sys::stat::{major, minor};
use procfs::process::{MountInfo, Process};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where CRIU looks, with all that is below (irmap.c).
const PLACES: &[&str] = &[
    "etc",
    "var/spool",
    "var/log",
    "usr/share/dbus-1/system-services",
    "var/lib/polkit-1/localauthority",
    "usr/share/polkit-1/actions",
    "lib/udev",
];
/// Files and directories that are looked at there. More are taken to be found: CRIU has more patience.
const MOST: usize = 50_000;
/// From this version on CRIU finds a watched file of an overlay by walking through it.
const WALKS_OVERLAYS: Version = Version { major: 4, minor: 3, sublevel: 0 };

/// A file system: its major and minor number.
type Device = (u64, u64);
/// Files by file system and inode.
type Files = BTreeSet<(Device, u64)>;

/// A file that is watched, as a line of /proc/PID/fdinfo/N tells it (proc_pid_fdinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watch {
    inode: u64,
    /// Of the file system: `MKDEV` of the kernel's own numbers, 20 bits for the minor one.
    device: Device,
    /// Kind and content; none where the file system makes no handles.
    handle: Option<(i32, Vec<u8>)>,
}

impl Watch {
    /// Whether a mount shows a part of its file system.
    fn is_on(&self, mount: &MountInfo) -> bool {
        mount.majmin == format!("{}:{}", self.device.0, self.device.1)
    }

    /// All of a descriptor.
    pub(super) fn all(info: &str) -> Vec<Watch> {
        info.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Watch> {
        let line = line.strip_prefix("inotify ").or_else(|| line.strip_prefix("fanotify "))?;
        let word = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        let number = |name: &str| u64::from_str_radix(word(name)?, 16).ok();
        let device = number("sdev")?;
        let handle = || Some((i32::try_from(number("fhandle-type")?).ok()?, bytes(word("f_handle")?)?));
        Some(Watch {
            // marks of whole mounts and file systems have none
            inode: number("ino")?,
            device: (device >> 20, device & 0xf_ffff),
            handle: handle(),
        })
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Looks for watched files in the root of the tree of process `root`; finds the places of a tree once.
pub(super) struct Finder {
    root: PathBuf,
    mounts: Vec<MountInfo>,
    /// Device and inode of all in [`PLACES`]; none yet, or too many.
    usual: Option<Option<Files>>,
    has_walker: Option<bool>,
}

impl Finder {
    pub(super) fn of(root: i32) -> Self {
        let mounts = Process::new(root).and_then(|process| process.mountinfo());
        Self {
            root: format!("/proc/{root}/root").into(),
            mounts: mounts.map(|mounts| mounts.0).unwrap_or_default(),
            usual: None,
            has_walker: None,
        }
    }

    /// The first of them that CRIU will not find.
    pub(super) fn obstacle(&mut self, pid: i32, number: i32, watches: &[Watch]) -> Option<Refusal> {
        let walks = |finder: &mut Self, watch: &Watch| finder.is_overlay(watch) && finder.has_walker();
        let lost = watches.iter().find(|watch| !self.finds(watch) && !walks(self, watch))?;
        let mount = self.mounts.iter().find(|mount| lost.is_on(mount));
        let place = match mount {
            Some(mount) => format!("the {} at `{}`", mount.fs_type, mount.mount_point.display()),
            None => {
                let (major, minor) = lost.device;
                format!("a file system ({major}:{minor}) that the container has not mounted")
            }
        };
        let kind = mount.map_or("", |mount| mount.fs_type.as_str());
        let hint = match kind {
            "overlay" => {
                "mount a volume where it watches, or let it poll (`DOTNET_USE_POLLING_FILE_WATCHER=1`, `CHOKIDAR_USEPOLLING=1`); \
                 or mount the overlay with `index=on,nfs_export=on`; or install a criu newer than 4.2"
            }
            _ => {
                "let it watch a file of its disk, or poll (`DOTNET_USE_POLLING_FILE_WATCHER=1`, `CHOKIDAR_USEPOLLING=1`)"
            }
        };
        Some(
            Refusal::new(format!(
                "descriptor {number} of process {pid} watches inode {} of {place}, which CRIU cannot find again",
                lost.inode
            ))
            .hint(hint),
        )
    }

    fn is_overlay(&self, watch: &Watch) -> bool {
        self.mounts.iter().any(|mount| watch.is_on(mount) && mount.fs_type == "overlay")
    }

    fn finds(&mut self, watch: &Watch) -> bool {
        self.opens(watch) || self.is_usual(watch)
    }

    fn opens(&self, watch: &Watch) -> bool {
        let Some((kind, content)) = &watch.handle else { return false };
        self.mounts.iter().filter(|mount| watch.is_on(mount)).any(|mount| {
            let below = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
            // whatever is mounted over it would have another device, or the same files
            let place = File::open(self.root.join(below));
            place.is_ok_and(|place| handle::open(&place, *kind, content).is_ok())
        })
    }

    fn is_usual(&mut self, watch: &Watch) -> bool {
        let root = &self.root;
        let usual = self.usual.get_or_insert_with(|| {
            let mut found = Files::new();
            found.extend(std::fs::metadata(root).map(|meta| identity(&meta)));
            PLACES.iter().all(|place| collect(&root.join(place), &mut found)).then_some(found)
        });
        usual.as_ref().is_none_or(|usual| usual.contains(&(watch.device, watch.inode)))
    }

    fn has_walker(&mut self) -> bool {
        *self.has_walker.get_or_insert_with(|| {
            let version = CriuBinary::find().and_then(|criu| criu.version());
            version.is_ok_and(|version| version >= WALKS_OVERLAYS)
        })
    }
}

fn identity(meta: &std::fs::Metadata) -> (Device, u64) {
    ((major(meta.dev()), minor(meta.dev())), meta.ino())
}

/// Adds all from `path` on, following no links; false when it is too much.
fn collect(path: &Path, found: &mut Files) -> bool {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return true };
    found.insert(identity(&meta));
    if found.len() > MOST {
        return false;
    }
    let entries = meta.is_dir().then(|| std::fs::read_dir(path).ok()).flatten();
    entries.into_iter().flatten().flatten().all(|entry| collect(&entry.path(), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn lines_of_fdinfo_are_understood() {
        let info = "pos:\t0\nflags:\t00\nmnt_id:\t17\nino:\t17\n\
            inotify wd:1 ino:6 sdev:100046 mask:2 ignored_mask:0 fhandle-bytes:4 fhandle-type:f8 f_handle:00fb210a\n\
            inotify wd:2 ino:a sdev:15 mask:2 ignored_mask:0\n\
            fanotify flags:10 event-flags:0\nfanotify mnt_id:12 mflags:0 mask:3b ignored_mask:40000000\n\
            fanotify ino:4f sdev:800013 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:2 fhandle-type:1 f_handle:fedc\n";
        let watch = |inode, device, handle| Watch { inode, device, handle };
        assert_eq!(
            Watch::all(info),
            [
                watch(6, (1, 0x46), Some((0xf8, vec![0, 0xfb, 0x21, 0x0a]))),
                watch(10, (0, 0x15), None),
                watch(0x4f, (8, 0x13), Some((1, vec![0xfe, 0xdc]))),
            ]
        );
        assert_eq!(bytes("é1"), None);
    }

    fn told(watched: &[&Path]) -> Option<(String, String)> {
        let watching = handle::watch(watched);
        let number = watching.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let watches = Watch::all(&info);
        assert_eq!(watches.len(), watched.len(), "{info}");
        let me = std::process::id().cast_signed();
        let refusal = Finder::of(me).obstacle(me, number, &watches)?;
        Some((refusal.reason, refusal.hint.unwrap()))
    }

    fn needs_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            assert!(
                std::env::var_os("GODWIT_REQUIRE").is_none_or(|what| what != "all"),
                "this test needs root"
            );
            eprintln!("skipped: only root opens files by their handles");
        }
        root
    }

    #[test]
    fn a_file_of_a_disk_is_found_and_one_of_proc_is_not() {
        if !needs_root() {
            return;
        }
        let file = tempfile::NamedTempFile::new_in(std::env::current_dir().unwrap()).unwrap();
        assert_eq!(told(&[file.path()]), None);
        let (reason, hint) = told(&[file.path(), Path::new("/proc/self")]).unwrap();
        assert!(reason.contains("of the proc at `/proc`") && hint.contains("poll"), "{reason}: {hint}");
        // CRIU looks there itself
        assert_eq!(told(&[Path::new("/etc")]), None);
    }

    /// Runs this test again where mounts are its own.
    fn in_own_mounts(name: &str, script: &str) -> String {
        let me = std::env::current_exe().unwrap();
        let output = Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-euc",
                &format!("{script}; exec \"$1\" --exact \"$2\" --nocapture"),
                "sh",
            ])
            .arg(me)
            .arg(format!("{}::{name}", module_path!().split_once("::").unwrap().1))
            .env("GODWIT_TEST_INSIDE", "1")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    #[test]
    fn a_file_of_an_overlay_is_found_when_it_exports_handles() {
        if std::env::var_os("GODWIT_TEST_INSIDE").is_some() {
            let at = |name: &str| PathBuf::from(format!("/mnt/{name}/app"));
            let plain = told(&[&at("plain")]);
            assert_eq!(told(&[&at("exported")]), None);
            // the mend of the hint
            assert_eq!(told(&[&at("volume")]), None);
            if CriuBinary::find().is_ok_and(|criu| criu.version().is_ok_and(|v| v >= WALKS_OVERLAYS)) {
                return assert_eq!(plain, None);
            }
            let (reason, hint) = plain.unwrap();
            assert!(reason.contains("of the overlay at `/mnt/plain`"), "{reason}");
            assert!(hint.contains("index=on,nfs_export=on") && hint.contains("volume"), "{hint}");
            return;
        }
        if !needs_root() {
            return;
        }
        let script = "mount -t tmpfs none /mnt
            for name in plain exported; do
                mkdir -p /mnt/$name /mnt/$name.lower/app /mnt/$name.upper /mnt/$name.work
            done
            with() { echo lowerdir=/mnt/$1.lower,upperdir=/mnt/$1.upper,workdir=/mnt/$1.work; }
            mount -t overlay none -o $(with plain) /mnt/plain
            mount -t overlay none -o $(with exported),index=on,nfs_export=on /mnt/exported
            mkdir -p /mnt/volume/app";
        let said = in_own_mounts("a_file_of_an_overlay_is_found_when_it_exports_handles", script);
        assert!(said.contains("1 passed"), "{said}");
    }
}
