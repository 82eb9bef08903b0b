//! How many bytes the store has, without counting them each time: `BOOT-ID BYTES` in the file `usage`, changed under its lock.
//!
//! A process that is killed between adding and writing leaves too large a number, never too small a one; each collection counts anew,
//! and so does whoever finds the number of an earlier boot, which may not have reached the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use crate::{Goal, Store, StoreError};

impl Store {
    /// Makes room for `need` bytes within the quota, and counts them.
    ///
    /// # Errors
    /// [`StoreError::Full`] when nothing more may go.
    pub(crate) fn reserve(&self, need: u64) -> Result<(), StoreError> {
        let quota = self.quota.unwrap_or(u64::MAX);
        let add = |used: u64| Some(used.saturating_add(need)).filter(|sum| *sum <= quota);
        let Err(used) = self.change_usage(add)? else { return Ok(()) };
        // some more than is lacking, so that the next few batches need no collection
        let lacking = used.saturating_add(need).saturating_add(quota / 32).saturating_sub(quota);
        self.collect(Goal::Room(lacking), false)?;
        match self.change_usage(add)? {
            Ok(()) => Ok(()),
            Err(used) => Err(StoreError::Full { need, used, quota }),
        }
    }

    /// The number as it stands.
    pub(crate) fn usage(&self) -> Result<u64, StoreError> {
        Ok(self.change_usage(|_| None)?.err().unwrap_or_default())
    }

    /// Puts another number in place of the present one, if `change` gives one; else says what it is.
    pub(crate) fn change_usage(
        &self,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<Result<(), u64>, StoreError> {
        let path = self.path("usage");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim_end();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file =
            file.and_then(|file| file.lock().map(|()| file)).map_err(StoreError::io("lock", &path))?;
        let mut text = String::new();
        let read = (&file).take(128).read_to_string(&mut text);
        let known = read.ok().and_then(|_| text.trim_end().strip_prefix(boot)?.trim_start().parse().ok());
        let used = match known {
            Some(used) => used,
            None => self.bytes()?,
        };
        let (next, answer) = match change(used) {
            Some(next) => (next, Ok(())),
            None => (used, Err(used)),
        };
        if known != Some(next) {
            write(&mut file, &format!("{boot} {next}\n")).map_err(StoreError::io("write", &path))?;
        }
        Ok(answer)
    }
}

fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}
