//! Whether this host can be a source at all; nothing is touched.

use godwit_criu::{CriuBinary, CriuError, Linkage, Version};
use godwit_memory::source::Method;
use godwit_migration::plan::Abilities;
use godwit_migration::{Failure, FailureKind};

/// Capabilities without which no part of a migration works: what CRIU, the freezer, network namespaces and foreign
/// files need (capabilities(7)).
const NEEDED: &[caps::Capability] = &[
    caps::Capability::CAP_SYS_ADMIN,
    caps::Capability::CAP_SYS_PTRACE,
    caps::Capability::CAP_NET_ADMIN,
    caps::Capability::CAP_NET_RAW,
    caps::Capability::CAP_DAC_OVERRIDE,
    caps::Capability::CAP_CHOWN,
    caps::Capability::CAP_FOWNER,
    caps::Capability::CAP_MKNOD,
    caps::Capability::CAP_KILL,
    caps::Capability::CAP_SETUID,
    caps::Capability::CAP_SETGID,
];

/// Checks the rights of this process.
///
/// # Errors
/// Which capabilities are missing.
pub fn check_privilege() -> Result<(), Failure> {
    let have = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    let missing: Vec<String> =
        NEEDED.iter().filter(|needed| !have.contains(needed)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let all = missing.len() == NEEDED.len();
    let what = if all { "all of the capabilities it needs".to_owned() } else { missing.join(", ") };
    Err(Failure::new(FailureKind::Missing, "not permitted to move containers")
        .because(format!("this process lacks {what}"))
        .hint("run with sudo"))
}

/// What this kernel can do to find written pages.
pub fn abilities(criu: &CriuBinary) -> Abilities {
    let soft_dirty = match criu.features() {
        Ok(features) if features.soft_dirty_works => Ok(()),
        Ok(_) => Err("this kernel has no soft-dirty page tracking".to_owned()),
        Err(error) => Err(format!("criu does not tell its features ({error})")),
    };
    Abilities { uffd: Method::Uffd.probe(), soft_dirty }
}

/// Finds a CRIU that works on this kernel.
///
/// # Errors
/// When there is none, it is static, or its own check fails.
pub fn usable_criu() -> Result<CriuBinary, Failure> {
    let criu = CriuBinary::find().map_err(|error| {
        Failure::new(FailureKind::Missing, "criu is not on this host")
            .because_of(&error)
            .hint("install criu, or name it with the environment variable `GODWIT_CRIU`")
    })?;
    if criu.linkage() == Linkage::Static {
        return Err(Failure::new(
            FailureKind::Missing,
            format!("`{}` is linked statically", criu.path().display()),
        )
        .because("godwit works with a dynamically linked criu, as distributions ship it")
        .hint("install your distribution's criu"));
    }
    criu.check().map_err(|error| unusable(&criu, &error))?;
    if let Ok(version) = criu.version()
        && version < ASKS_LESS
        && !every_socket_tells_passcred()
    {
        return Err(Failure::new(
            FailureKind::Missing,
            format!("criu {version} does not work on this kernel"),
        )
        .because(
            "it reads the option SO_PASSCRED of every socket, which this kernel has for unix sockets only",
        )
        .hint(NEWER));
    }
    Ok(criu)
}

/// The first criu that reads SO_PASSCRED of unix sockets only. Older ones fail at the first other socket of a container;
/// their own check does not try.
const ASKS_LESS: Version = Version { major: 4, minor: 2, sublevel: 0 };
const NEWER: &str = "install a newer criu: kernels from 6.16 on need criu 4.2";

/// Whether a socket of the internet family has the option SO_PASSCRED: not on kernels from 6.16 on (net/core/sock.c).
fn every_socket_tells_passcred() -> bool {
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket, sockopt};
    match socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Ok(socket) => getsockopt(&socket, sockopt::PassCred) != Err(Errno::EOPNOTSUPP),
        // a kernel without such sockets has no container with one
        Err(_) => true,
    }
}

fn unusable(criu: &CriuBinary, error: &CriuError) -> Failure {
    let version = criu.version().map_or_else(|_| "of unknown version".into(), |version| version.to_string());
    Failure::new(FailureKind::Missing, format!("criu {version} does not work on this kernel"))
        .because_of(error)
        .hint(NEWER)
}
