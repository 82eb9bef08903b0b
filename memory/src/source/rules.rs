//! The rules of tracking that can be broken, to see what they are for.

use std::time::Duration;

/// What the engine does beyond asking which pages were written. Everything is on; tests turn parts off, and find that
/// memory is lost without them.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Rules {
    /// Pages of a task with O_DIRECT files are read again once they are [`Rules::direct_age`] old, and under the freeze:
    /// a device may have written to them after they were read, without a fault.
    pub reread_direct: bool,
    /// How long a device may take to finish a read.
    pub direct_age: Duration,
    /// Pages that look swapped out are read again in private mappings of files.
    pub reread_markers: bool,
    /// All pages of a mapping that is new, or that the kernel had to refuse an answer for, are read.
    pub read_new: bool,
    /// Mappings that are new are registered.
    pub register_new: bool,
    /// What is between two mappings, or replaced one of them, is registered with them.
    pub register_between: bool,
    /// How long it takes until a mapping that is new is registered, and until we look at it again.
    pub hesitate: Duration,
    /// Mappings that cannot be registered are read in full each round.
    pub read_unregistered: bool,
    /// Shared objects are compared under the freeze.
    pub compare_objects: bool,
    /// Pages that forked tasks share are not read with process_vm_readv.
    pub keep_shared: bool,
    /// Forked children are relieved of our descriptor.
    pub close_leaked: bool,
    /// A task that executed another program is noticed.
    pub notice_exec: bool,
    /// How long our descriptor stays open in the task.
    pub linger: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            reread_direct: true,
            direct_age: Duration::from_secs(1),
            reread_markers: true,
            read_new: true,
            register_new: true,
            register_between: true,
            hesitate: Duration::ZERO,
            read_unregistered: true,
            compare_objects: true,
            keep_shared: true,
            close_leaked: true,
            notice_exec: true,
            linger: Duration::ZERO,
        }
    }
}
