//! What a task's descriptors tell about its memory.

use std::path::Path;

/// What was found among the descriptors of a task.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Memfds.
    pub(crate) memfds: Vec<i32>,
    /// Userfaultfds, the application's or ours.
    pub(crate) userfaultfds: Vec<i32>,
    /// It has a file open with O_DIRECT, or an io_uring: devices may write to its memory.
    pub(crate) direct: bool,
}

impl Descriptors {
    /// Looks through them; a task that is gone has none. Whether there is one with O_DIRECT is only looked up if asked, since
    /// it costs several times the rest.
    pub(crate) fn of(pid: i32, ask_direct: bool) -> Self {
        let mut found = Self::default();
        let directory = format!("/proc/{pid}/fd");
        let Ok(entries) = std::fs::read_dir(&directory) else { return found };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            match target.as_os_str().as_encoded_bytes() {
                name if name.starts_with(b"/memfd:CRIUMFD") => {}
                name if name.starts_with(b"/memfd:") => found.memfds.push(fd),
                b"anon_inode:[userfaultfd]" => found.userfaultfds.push(fd),
                b"anon_inode:[io_uring]" => found.direct = true,
                name if name.starts_with(b"/") && ask_direct && !found.direct => {
                    let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(fd.to_string());
                    found.direct = std::fs::read_to_string(info).is_ok_and(|info| is_direct(&info));
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether the octal flags of a /proc/PID/fdinfo file have O_DIRECT.
fn is_direct(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_file_opened_with_o_direct_is_noticed() {
        assert!(is_direct("pos:\t0\nflags:\t0140002\nmnt_id:\t1\n"));
        assert!(!is_direct("pos:\t0\nflags:\t0100002\nmnt_id:\t1\n"));
        assert!(!is_direct(""));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        if let Ok(file) = file {
            let me = std::process::id() as i32;
            assert!(Descriptors::of(me, true).direct);
            assert!(!Descriptors::of(me, false).direct);
            drop(file);
        }
    }

    #[test]
    fn memfds_are_found() {
        let memfd =
            nix::sys::memfd::memfd_create(c"descriptors", nix::sys::memfd::MFdFlags::empty()).unwrap();
        assert!(Descriptors::of(std::process::id() as i32, false).memfds.contains(&memfd.as_raw_fd()));
    }
}
