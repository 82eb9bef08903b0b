//! Settings of the running process and thread that `std` has no word for.

use nix::libc;

/// Gives the calling thread this nice value (setpriority(2): on Linux it is the thread's own), and lets its sleeps end on
/// time instead of 50 µs later (`PR_SET_TIMERSLACK`). Nothing happens without the right to do so.
pub(crate) fn set_pace(nice: i32) {
    // SAFETY: neither call touches memory of ours; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0);
    }
}

/// Allows as many open descriptors as the process may have: one for each task of a big container is more than the usual
/// 1024. Nothing happens if it cannot be.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid structure for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
