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
    if let Some(old) = criu.version().ok().filter(|version| *version < OLDEST) {
        return Err(Failure::new(FailureKind::Missing, format!("criu {old} is too old"))
            .because("godwit knows the images and the answers of criu 4.1 and later; older ones also fail on current kernels")
            .hint("install criu 4.1 or later; on kernels from 6.16 on, 4.2"));
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

/// The oldest criu whose images and answers are known.
const OLDEST: Version = Version { major: 4, minor: 1, sublevel: 0 };

/// The oldest kernel, as major and minor: since then ptrace(2) tells of restartable sequences, which every program with
/// glibc 2.35 has, and cgroups can be killed as a whole.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// Whether a kernel is recent enough, by its release as uname(2) tells it.
///
/// # Errors
/// Why not. What cannot be read as a version passes.
pub fn check_kernel(release: &str) -> Result<(), Failure> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return Ok(()) };
    if (major, minor) >= OLDEST_KERNEL {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Missing, format!("linux {major}.{minor} is too old"))
        .because("programs with glibc 2.35 or later crash after a restore, unless the kernel tells of their restartable sequences")
        .hint("use linux 5.14 or later"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        for release in ["5.14.0-362.el9.x86_64", "6.18.44", "10.0-rc1", "strange"] {
            assert!(check_kernel(release).is_ok(), "{release}");
        }
        for release in ["5.13.19-generic", "4.18.0-553.el8_10.x86_64", "3.10.0"] {
            let failure = check_kernel(release).unwrap_err();
            assert!(failure.message.contains("too old") && failure.hints[0].contains("5.14"), "{failure:?}");
        }
    }
}
