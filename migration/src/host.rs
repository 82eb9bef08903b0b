//! What this host is called.

/// Its name, as uname(2) has it; empty when it has none.
pub fn host_name() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map(|uname| uname.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}
