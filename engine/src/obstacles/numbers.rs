//! Process numbers of a tree in the host's own pid namespace: at the destination they must be free.

use godwit_transfer::message::Refusal;
use std::collections::BTreeSet;

/// The numbers of the tasks and of their threads: CRIU makes each with the number that it had.
pub(crate) fn of(pids: &BTreeSet<i32>) -> Vec<i32> {
    let threads = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let all: BTreeSet<i32> =
        pids.iter().flat_map(threads).filter_map(number).chain(pids.iter().copied()).collect();
    all.into_iter().collect()
}

/// Which of them this host has given to others, or does not give at all; `mend` says what else could be done about it.
pub(crate) fn unavailable(wanted: &[i32], mend: &str) -> Vec<Refusal> {
    let most =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    wanted.iter().filter_map(|number| judge(*number, most, mend)).collect()
}

/// `most`: proc_sys_kernel(5), `pid_max`; numbers are below it.
fn judge(number: i32, most: Option<i32>, mend: &str) -> Option<Refusal> {
    if let Some(most) = most.filter(|most| number >= *most) {
        return Some(
            Refusal::new(format!("it has the process number {number}, and that host's end at {}", most - 1))
                .hint(format!("raise them there: `sysctl kernel.pid_max={}`; or {mend}", 4 << 20)),
        );
    }
    // threads have such a file as well, though no entry in /proc
    let comm = std::fs::read_to_string(format!("/proc/{number}/comm")).ok()?;
    Some(
        Refusal::new(format!("the process number {number} is taken there, by `{}`", comm.trim()))
            .hint(format!("{mend}; or end that process there, if it may be ended (`ps -p {number}`)")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_taken_are_named_with_who_has_them() {
        let me = std::process::id().cast_signed();
        let thread = std::thread::spawn(move || {
            let tid = nix::unistd::gettid().as_raw();
            let own = of(&BTreeSet::from([me]));
            assert!(own.contains(&me) && own.contains(&tid), "{own:?}");
            unavailable(&[me, tid], "use a namespace")
        });
        let refusals = thread.join().unwrap();
        assert_eq!(refusals.len(), 2);
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(
            refusals[0].reason,
            format!("the process number {me} is taken there, by `{}`", comm.trim())
        );
        let hint = refusals[0].hint.as_deref().unwrap();
        assert!(hint.starts_with("use a namespace; or") && hint.contains(&format!("ps -p {me}")), "{hint}");
    }

    #[test]
    fn numbers_that_are_free_or_too_high_are_told_apart() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let number = child.id().cast_signed();
        child.wait().unwrap();
        assert!(judge(number, Some(number + 1), "").is_none());
        let high = judge(number, Some(number), "use a namespace").unwrap();
        assert!(high.reason.ends_with(&format!("end at {}", number - 1)), "{}", high.reason);
        assert!(high.hint.unwrap().contains("`sysctl kernel.pid_max=4194304`"));
    }
}
