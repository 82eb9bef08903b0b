//! Extended attributes, which nix does not read.

use nix::errno::Errno;
use std::ffi::CStr;

/// The value of an attribute, at most 64 bytes of it; links are followed.
///
/// # Errors
/// [`Errno::ENODATA`] when there is none of that name.
pub(crate) fn get(path: &CStr, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; 64];
    // SAFETY: both names end with a zero; the kernel writes at most `value.len()` bytes to `value` (getxattr(2))
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(Errno::result(length)?).unwrap_or_default());
    Ok(value)
}
