//! The list of a task's mappings as it was just before the freeze.
//!
//! For `/proc/PID/smaps` the kernel walks over all pages, some 13 ms for a GiB; CRIU reads it for the flags of each mapping. They
//! are read while the task runs, and are right under the freeze when `/proc/PID/maps`, which costs 0.1 ms, shows the same
//! mappings. What that does not show is a change of a mapping's flags alone in between, by madvise(2) or mlock(2) on just the
//! whole mapping, so the copy is to be as young as possible.

use std::io;

/// The mappings of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Smaps {
    /// What CRIU reads of smaps: the line of each mapping, and that of its flags.
    pub(super) text: Vec<u8>,
    /// The lines of the mappings: what `/proc/PID/maps` must still say.
    maps: Vec<u8>,
}

impl Smaps {
    /// Reads them of the task `pid`.
    pub(super) fn read(pid: i32) -> io::Result<Smaps> {
        let smaps = Self::of_text(&std::fs::read(format!("/proc/{pid}/smaps"))?);
        // A kernel thread or a zombie has none.
        if smaps.maps.is_empty() { Err(io::Error::from(io::ErrorKind::NotFound)) } else { Ok(smaps) }
    }

    fn of_text(smaps: &[u8]) -> Smaps {
        let (mut text, mut maps) = (Vec::new(), Vec::new());
        for line in smaps.split_inclusive(|byte| *byte == b'\n') {
            // A mapping's line begins with its address, those of its properties with a capital letter.
            if line.first().is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                maps.extend_from_slice(line);
                text.extend_from_slice(line);
            } else if line.starts_with(b"VmFlags:") {
                text.extend_from_slice(line);
            }
        }
        Smaps { text, maps }
    }

    /// Whether a task whose `/proc/PID/maps` is this still has these mappings.
    pub(super) fn are_of(&self, maps: &[u8]) -> bool {
        self.maps == maps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_that_matter() {
        let smaps = b"55d0a000-55d0b000 r--p 00000000 fe:00 1 /bin/x
Size:                  4 kB
THPeligible:           0
VmFlags: rd mr mw me sd 
ffff0000-ffff1000 --xp 00000000 00:00 0                                  [vsyscall]
Size:                  4 kB
VmFlags: ex 
";
        let read = Smaps::of_text(smaps);
        assert_eq!(
            String::from_utf8_lossy(&read.text),
            "55d0a000-55d0b000 r--p 00000000 fe:00 1 /bin/x\nVmFlags: rd mr mw me sd \n\
            ffff0000-ffff1000 --xp 00000000 00:00 0                                  [vsyscall]\nVmFlags: ex \n"
        );
        let maps = b"55d0a000-55d0b000 r--p 00000000 fe:00 1 /bin/x
ffff0000-ffff1000 --xp 00000000 00:00 0                                  [vsyscall]
";
        assert!(read.are_of(maps));
        assert!(!read.are_of(&maps[..47]), "one is gone");
        assert!(!read.are_of(&[&maps[..], b"x"].concat()), "one more");
    }

    /// The kernel's two files agree, line by line.
    #[test]
    fn of_a_process_that_does_nothing() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        // Until it has begun to sleep its mappings change.
        let mut same = false;
        for _ in 0..200 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let read = Smaps::read(pid).unwrap();
            same = read.are_of(&std::fs::read(format!("/proc/{pid}/maps")).unwrap());
            if same {
                let flags = read.text.windows(9).filter(|bytes| *bytes == b"\nVmFlags:").count();
                assert_eq!(flags, read.maps.iter().filter(|byte| **byte == b'\n').count());
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(same);
        assert!(Smaps::read(pid).is_err(), "it is gone");
    }
}
