//! How writes are found.

use super::scan::Scanner;
use crate::sys::pagemap::entry;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How writes are found, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Asynchronous write protection by a userfaultfd in each task, and PAGEMAP_SCAN (kernel 6.7).
    Uffd,
    /// Soft-dirty bits (CONFIG_MEM_SOFT_DIRTY).
    SoftDirty,
    /// Not at all: all pages are read in every round, and the receiver finds those that changed.
    Hash,
}

/// What the kernel offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The best method that works.
    pub method: Method,
    /// Why the better ones do not.
    pub missing: Vec<(Method, String)>,
}

impl Method {
    /// The best method of this kernel, and why a better one is not available.
    pub fn best() -> Choice {
        let mut missing = Vec::new();
        for method in [Self::Uffd, Self::SoftDirty] {
            match method.probe() {
                Ok(()) => return Choice { method, missing },
                Err(why) => missing.push((method, why)),
            }
        }
        Choice { method: Self::Hash, missing }
    }

    /// Whether this kernel has the method, or why not.
    pub fn probe(self) -> Result<(), String> {
        match self {
            Self::Uffd => probe_uffd(),
            Self::SoftDirty => probe_soft_dirty(),
            Self::Hash => Ok(()),
        }
    }
}

fn probe_uffd() -> Result<(), String> {
    if !Scanner::new().can_scan() {
        return Err("the kernel has no PAGEMAP_SCAN (it came with 6.7)".into());
    }
    let uffd = crate::sys::userfaultfd::Userfaultfd::open()
        .map_err(|errno| format!("userfaultfd: {}", errno.desc().to_lowercase()))?;
    uffd.enable(super::space::FEATURES).map(drop).map_err(|_| {
        "the kernel has no asynchronous write protection by userfaultfd (it came with 6.7)".into()
    })
}

/// What CRIU does (kerndat.c, `kerndat_get_dirty_track`), without clearing the bits of a process that others may follow:
/// a kernel that has them sets the bit of a page that was just written.
fn probe_soft_dirty() -> Result<(), String> {
    let page = vec![1u8; 2 * crate::PAGE_SIZE as usize];
    let address = page.as_ptr() as u64 / crate::PAGE_SIZE + 1;
    let mut bytes = [0; 8];
    File::open("/proc/self/pagemap")
        .and_then(|pagemap| pagemap.read_exact_at(&mut bytes, address * 8))
        .map_err(|error| format!("/proc/self/pagemap: {error}"))?;
    std::hint::black_box(&page);
    let value = u64::from_ne_bytes(bytes);
    if value & entry::SOFT_DIRTY == 0 {
        return Err("the kernel is built without soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".into());
    }
    if value & entry::FRAME == 0 {
        return Err("the kernel hides the frames of pages (that needs CAP_SYS_ADMIN)".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kebab_case() {
        let name = |method| format!("{:?}", serde_name(method));
        assert_eq!(name(Method::SoftDirty), "\"soft-dirty\"");
        assert_eq!(name(Method::Uffd), "\"uffd\"");
    }

    fn serde_name(method: Method) -> String {
        use serde::de::value::{Error, StrDeserializer};
        for name in ["uffd", "soft-dirty", "hash"] {
            let read = Method::deserialize(StrDeserializer::<Error>::new(name));
            if read == Ok(method) {
                return name.into();
            }
        }
        String::new()
    }

    #[test]
    fn what_is_missing_is_what_is_better() {
        let choice = Method::best();
        assert!(choice.method.probe().is_ok());
        for (method, why) in &choice.missing {
            assert_ne!(*method, choice.method);
            assert!(!why.is_empty());
        }
    }
}
