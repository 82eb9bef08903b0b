//! The known failures, each by the words of its message. The messages are those of CRIU 3.17 to 4.2.

mod files;
mod host;
mod runtime;
mod sockets;
mod tasks;
#[cfg(test)]
mod tests;

use serde::Serialize;

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// What the processor can do.
    Processor,
    /// What the kernel can do, or CRIU with it.
    Kernel,
    /// Pages, and the images that hold them.
    Memory,
    /// Open files.
    Files,
    /// Mounts.
    Mounts,
    /// Terminals.
    Terminal,
    /// Sockets, addresses, the packet filter.
    Sockets,
    /// Processes: their numbers and states.
    Processes,
    /// Namespaces.
    Namespaces,
    /// Cgroups.
    Cgroup,
    /// AppArmor, SELinux, seccomp, capabilities.
    Security,
    /// Room, or images that are not whole.
    Space,
    /// The container's engine.
    Engine,
}

/// A failure known by the words of its message.
pub(super) struct Rule {
    /// All of these are in the message.
    words: &'static [&'static str],
    pub(super) subject: Subject,
    pub(super) cause: &'static str,
    pub(super) hint: &'static str,
    /// Where: a name, and what stands before and after it in the message. Nothing after: up to the next blank or comma.
    places: &'static [(&'static str, &'static str, &'static str)],
}

impl Rule {
    const fn at(mut self, places: &'static [(&'static str, &'static str, &'static str)]) -> Self {
        self.places = places;
        self
    }

    /// Where it is, as far as the message says.
    pub(super) fn places<'a>(&self, message: &'a str) -> Vec<(&'static str, &'a str)> {
        let between = |(name, before, after): &(&'static str, &str, &str)| {
            let (_, rest) = message.split_once(before)?;
            let end = match *after {
                "" => rest.find([' ', ',', ')', ';']).unwrap_or(rest.len()),
                after => rest.find(after)?,
            };
            Some((*name, rest[..end].trim())).filter(|(_, found)| !found.is_empty())
        };
        self.places.iter().filter_map(between).collect()
    }
}

const fn rule(
    words: &'static [&'static str],
    subject: Subject,
    cause: &'static str,
    hint: &'static str,
) -> Rule {
    Rule { words, subject, cause, hint, places: &[] }
}

/// Errors that are in logs of successful dumps and restores too, or are only the echo of another.
pub(super) const HARMLESS: &[&str] = &[
    "Can't setup RLIMIT_NOFILE",
    "Address already assigned",
    "address already assigned",
    "exited, status=1",
    "cgroupd: recv req error",
    "tun: Unable to create tun",
    "CRIU logging may be incomplete",
];

/// More special rules first.
const ALL: [&[Rule]; 5] = [host::RULES, files::RULES, sockets::RULES, tasks::RULES, runtime::RULES];

/// The first rule for this message.
pub(super) fn find(message: &str) -> Option<&'static Rule> {
    ALL.iter().copied().flatten().find(|rule| rule.words.iter().all(|words| message.contains(words)))
}
