//! What each role of godwit keeps of root's capabilities (capabilities(7)).
//!
//! A process gives all others up from its permitted and effective sets before it does anything. The bounding and the
//! inheritable set stay as they are: what godwit starts as root (CRIU, runc, `ip`, ssh) gets the whole bounding set again when
//! it is executed, and CRIU must be able to restore any capability that a container had.

use crate::args::{Command, ImagesCommand, LogArgs, NodeCommand, StoreCommand};
use Role::{Destination, Fill, Guard, Hook, Look, Node, Source};
use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::sys::prctl::get_no_new_privs;
use nix::unistd::{geteuid, getuid};

/// What a process of godwit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads a container: `migrate`, `check`.
    Source,
    /// Makes one: `receive`, `restore`, and what keeps files for them.
    Destination,
    /// Either, as the journal says: `resume`, `cancel`. Both: `checkpoint`, which reads a container and copies its files.
    Either,
    /// `guard`.
    Guard,
    /// `fill`.
    Fill,
    /// CRIU's action script.
    Hook,
    /// Gives neighbours what the store and file systems keep, and keeps what they bring: `node serve`.
    Node,
    /// Everything else: reads files, writes some.
    Look,
}

/// A capability, who keeps it, and what for. docs/security.md has the same table.
type Row = (Capability, &'static [Role], &'static str);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    (Capability::CAP_DAC_OVERRIDE, &[Source, Destination, Fill, Hook, Node, Look], "files and cgroups of any owner"),
    (Capability::CAP_DAC_READ_SEARCH, &[Source], "files that are watched, by their handles (open_by_handle_at(2))"),
    (Capability::CAP_CHOWN, &[Source, Destination], "owners of copied files"),
    (Capability::CAP_FOWNER, &[Source, Destination, Node], "modes, times and attributes of others' files; reading them without a new access time"),
    (Capability::CAP_FSETID, &[Destination], "set-id bits of copied files"),
    (Capability::CAP_MKNOD, &[Source, Destination], "device nodes of copied trees"),
    (Capability::CAP_SETFCAP, &[Destination], "capabilities of copied files"),
    (Capability::CAP_MAC_ADMIN, &[Source, Destination, Node], "security labels that this host's policy does not know"),
    (Capability::CAP_KILL, &[Source, Destination], "tasks of any user"),
    (Capability::CAP_SETGID, &[Source, Destination], "giving up the supplementary groups that CRIU would leave to a restored task"),
    (Capability::CAP_SETUID, &[Source, Destination], "nothing of godwit's own: asked for on behalf of CRIU before a move"),
    (Capability::CAP_NET_ADMIN, &[Source, Destination], "network lock, netlink, repair mode of sockets, sysctls of the network"),
    (Capability::CAP_NET_RAW, &[Source, Destination], "packet sockets: kept frames, announcements of addresses"),
    (Capability::CAP_NET_BIND_SERVICE, &[Destination], "`receive --listen` on a port below 1024"),
    (Capability::CAP_SYS_PTRACE, &[Source, Destination, Guard, Hook], "memory and descriptors of tasks, userfaultfd, tracing CRIU"),
    (Capability::CAP_SYS_ADMIN, &[Source, Destination, Node], "namespaces, mounts, mapped files, physical pages, trusted attributes"),
    (Capability::CAP_SYS_CHROOT, &[Source, Destination], "entering namespaces (setns(2))"),
    (Capability::CAP_SYS_NICE, &[Source, Destination, Guard, Fill, Hook], "moving tasks with more capabilities between cpusets; being there in time"),
    (Capability::CAP_SYS_RESOURCE, &[Destination, Guard, Fill], "files of users whose quota is used up; being spared when memory runs out (oom_score_adj)"),
    (Capability::CAP_IPC_LOCK, &[Guard], "memory that is never paged out"),
];

impl Role {
    /// The role of a command.
    pub fn of(command: &Command) -> Role {
        match command {
            // a bundle has what `check` says
            Command::Migrate(_)
            | Command::Check(_)
            | Command::Hook(_)
            | Command::Log(LogArgs { bundle: Some(_), .. }) => Source,
            // what is parked may be of any owner
            Command::Receive(_) | Command::Restore(_) | Command::Park => Destination,
            Command::Checkpoint(_) | Command::Resume(_) | Command::Cancel(_) => Role::Either,
            // trusted attributes of a checkpoint's files count, and one that is encrypted is opened in memory
            Command::Images(ImagesCommand::Verify(_)) => Destination,
            Command::Images(ImagesCommand::Inspect(image)) if !image.identities.is_empty() => Destination,
            // trees of files, to be read and to be made
            Command::Store(StoreCommand::Add(_)) => Source,
            Command::Store(StoreCommand::Get(_)) => Destination,
            Command::Node(NodeCommand::Serve(_)) => Node,
            // what uses a volume is seen in the namespaces and descriptors of others
            Command::Volume(_) => Role::Either,
            Command::Guard => Guard,
            Command::Fill { .. } => Fill,
            Command::Log(_)
            | Command::Status(_)
            | Command::Explain(_)
            | Command::Images(_)
            | Command::Store(_)
            | Command::Node(_)
            | Command::LetGo { .. }
            | Command::Config(_)
            | Command::Keys(_)
            | Command::Probe(_)
            | Command::Completions { .. } => Look,
        }
    }

    /// What it keeps, if it has it.
    fn keeps(self) -> CapsHashSet {
        let is_kept = |roles: &[Role]| match self {
            Role::Either => roles.contains(&Source) || roles.contains(&Destination),
            role => roles.contains(&role),
        };
        TABLE.iter().filter(|(_, roles, _)| is_kept(roles)).map(|(capability, ..)| *capability).collect()
    }

    /// Whether it starts programs that need more than it keeps.
    fn starts_others(self) -> bool {
        matches!(self, Source | Destination | Node | Role::Either)
    }
}

/// Gives up all capabilities that `role` does not need. To be called before there are other threads: each has its own sets.
///
/// # Errors
/// The kernel, or a filter of system calls, refuses it.
pub fn keep(role: Role) -> Result<(), CapsError> {
    if role.starts_others() && !children_have_all()? {
        return Ok(());
    }
    let kept = role.keeps();
    for set in [CapSet::Effective, CapSet::Permitted] {
        let have = caps::read(None, set)?;
        caps::set(None, set, &have.intersection(&kept).copied().collect())?;
    }
    Ok(())
}

/// Whether a program that is executed gets the whole bounding set whatever this process has: root's programs do, unless
/// `no_new_privs` is set. Ambient capabilities are of use only where root is no root (`SECBIT_NOROOT`), and end with the
/// permitted ones.
fn children_have_all() -> Result<bool, CapsError> {
    let is_root = getuid().is_root() && geteuid().is_root();
    Ok(is_root && !get_no_new_privs().unwrap_or(true) && caps::read(None, CapSet::Ambient)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_same_table() {
        let text = include_str!("../docs/security.md");
        for (capability, roles, reason) in TABLE {
            let holds = |role: Role| if roles.contains(&role) { "x" } else { "" };
            let cells = [Source, Destination, Guard, Fill, Hook, Node, Look].map(holds).join(" | ");
            let name = capability.to_string();
            let row = format!("| {} | {cells} | {reason} |", name.trim_start_matches("CAP_"));
            let squeezed = text.replace("|  |", "| |");
            assert!(squeezed.contains(&row.replace("|  |", "| |").replace("|  |", "| |")), "{row}");
        }
        let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains(" x |")).count();
        assert_eq!(rows, TABLE.len());
    }

    #[test]
    fn whoever_resumes_keeps_what_either_side_does() {
        let both: CapsHashSet = Source.keeps().union(&Destination.keeps()).copied().collect();
        assert_eq!(Role::Either.keeps(), both);
        assert!(!both.contains(&Capability::CAP_SYS_MODULE) && !both.contains(&Capability::CAP_IPC_LOCK));
    }
}
