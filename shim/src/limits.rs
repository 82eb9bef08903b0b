//! A task's limits from the text of `/proc/PID/limits`.

/// Value of a limit that there is none of: RLIM64_INFINITY.
pub const UNLIMITED: u64 = u64::MAX;

/// Names of the resources by their numbers (the kernel's fs/proc/base.c, lnames).
const NAMES: [&[u8]; crate::answer::RESOURCES] = [
    b"Max cpu time",
    b"Max file size",
    b"Max data size",
    b"Max stack size",
    b"Max core file size",
    b"Max resident set",
    b"Max processes",
    b"Max open files",
    b"Max locked memory",
    b"Max address space",
    b"Max file locks",
    b"Max pending signals",
    b"Max msgqueue size",
    b"Max nice priority",
    b"Max realtime priority",
    b"Max realtime timeout",
];

/// The soft and the hard limit of a resource: `Max cpu time              unlimited            unlimited            seconds`.
pub fn limit_of(text: &[u8], resource: usize) -> Option<(u64, u64)> {
    let name = NAMES.get(resource)?;
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(*name))?;
    let mut values = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    Some((value(values.next()?)?, value(values.next()?)?))
}

fn value(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" {
        return Some(UNLIMITED);
    }
    word.iter().try_fold(0u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max stack size            8388608              unlimited            bytes     
Max open files            1024                 524288               files     
Max nice priority         0                    0                    
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn values() {
        assert_eq!(limit_of(TEXT, 0), Some((UNLIMITED, UNLIMITED)));
        assert_eq!(limit_of(TEXT, 3), Some((8 << 20, UNLIMITED)));
        assert_eq!(limit_of(TEXT, 7), Some((1024, 524_288)));
        assert_eq!(limit_of(TEXT, 13), Some((0, 0)), "without a unit");
        assert_eq!(limit_of(TEXT, 1), None, "not there");
        assert_eq!(limit_of(TEXT, 16), None);
        assert_eq!(limit_of(b"Max cpu time  x y", 0), None);
        assert_eq!(limit_of(b"Max cpu time  99999999999999999999 1", 0), None);
        assert_eq!(limit_of(b"Max cpu time  1", 0), None);
    }

    /// What this kernel prints, against what it says when asked.
    #[test]
    fn own_limits() {
        let text = std::fs::read("/proc/self/limits").unwrap();
        for resource in 0..crate::answer::RESOURCES {
            let mut asked = [0u64; 2];
            let call = crate::sys::call::prlimit64(0, resource as u32, 0, (&raw mut asked).addr());
            assert_eq!(call, 0);
            assert_eq!(limit_of(&text, resource), Some((asked[0], asked[1])), "resource {resource}");
        }
    }
}
