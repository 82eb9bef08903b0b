//! How much memory this host can still give.

use std::io;

/// `MemAvailable` of /proc/meminfo (proc_meminfo(5)), in bytes.
///
/// # Errors
/// When it cannot be read, or the kernel is older than 3.14.
pub fn available_memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let bytes = kib.and_then(|kib| kib.checked_mul(1024));
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no `MemAvailable`"))
}
