//! Processor features: what the source's programs may use and the destination's processor lacks.

use std::collections::BTreeSet;

/// CRIU's judgement of two processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuVerdict {
    /// What ran there can run here.
    Compatible,
    /// It cannot.
    Incompatible {
        /// CRIU's reason.
        reason: String,
    },
}

/// The flags of this host's first processor, from `/proc/cpuinfo` (`flags` on x86, `Features` on arm64).
pub fn cpu_flags() -> std::io::Result<BTreeSet<String>> {
    Ok(parse_cpu_flags(&std::fs::read_to_string("/proc/cpuinfo")?))
}

/// The flags of the first processor in the text of a `/proc/cpuinfo`.
pub fn parse_cpu_flags(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| matches!(name.trim(), "flags" | "Features"))
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// The source's flags a program can have come to depend on (instructions, register state) that the destination lacks.
/// Flags that matter to kernels only, or tell of flaws, do not count.
pub fn missing_flags(source: &BTreeSet<String>, destination: &BTreeSet<String>) -> Vec<String> {
    source.iter().filter(|f| matters_to_programs(f) && !destination.contains(*f)).cloned().collect()
}

/// What to do when a destination lacks flags: another host, or a start of the program without them. glibc's names are its
/// own in capitals (glibc manual, Hardware Capability Tunables), Go knows some by its own (package internal/cpu).
pub fn mask(missing: &[String]) -> String {
    const GO: &[(&str, &str)] = &[
        ("adx", "adx"),
        ("aes", "aes"),
        ("avx", "avx"),
        ("avx2", "avx2"),
        ("avx512f", "avx512f"),
        ("avx512bw", "avx512bw"),
        ("avx512vl", "avx512vl"),
        ("bmi1", "bmi1"),
        ("bmi2", "bmi2"),
        ("erms", "erms"),
        ("fma", "fma"),
        ("pclmulqdq", "pclmulqdq"),
        ("popcnt", "popcnt"),
        ("pni", "sse3"),
        ("ssse3", "ssse3"),
        ("sse4_1", "sse41"),
        ("sse4_2", "sse42"),
    ];
    let another = "move to a host with at least the same processor features";
    let glibc: Vec<String> = missing.iter().map(|flag| format!("-{}", flag.to_uppercase())).collect();
    let go: Vec<String> = missing
        .iter()
        .filter_map(|flag| GO.iter().find(|(name, _)| name == flag))
        .map(|(_, name)| format!("cpu.{name}=off"))
        .collect();
    let mut text = format!(
        "{another}, or start the program with the missing ones masked and move it then: `GLIBC_TUNABLES=glibc.cpu.hwcaps={}`",
        glibc.join(",")
    );
    if !go.is_empty() {
        text.push_str(&format!(", for Go `GODEBUG={}`", go.join(",")));
    }
    text
}

/// x86 names are those of the kernel's cpufeatures.h in lower case, arm64 names those of its hwcaps.
fn matters_to_programs(flag: &str) -> bool {
    const EXACT: &[&str] = &[
        // x86: arithmetic, vectors, bit fiddling
        "fpu",
        "cmov",
        "cx8",
        "cx16",
        "mmx",
        "mmxext",
        "pni",
        "fxsr",
        "adx",
        "fma",
        "fma4",
        "f16c",
        "movbe",
        "popcnt",
        "abm",
        "tbm",
        "xop",
        "lahf_lm",
        "aes",
        "vaes",
        "gfni",
        "pclmulqdq",
        "vpclmulqdq",
        "rdrand",
        "rdseed",
        "rdpid",
        "rdtscp",
        "fsgsbase",
        "erms",
        "fsrm",
        "prefetchw",
        "3dnowprefetch",
        "clflush",
        "clflushopt",
        "clwb",
        "cldemote",
        "movdiri",
        "movdir64b",
        "enqcmd",
        "serialize",
        "waitpkg",
        "rtm",
        "hle",
        "pku",
        "ospke",
        "user_shstk",
        "sm3",
        "sm4",
        "raoint",
        "cmpccxadd",
        "apx",
        // arm64
        "fp",
        "asimd",
        "pmull",
        "crc32",
        "atomics",
        "fphp",
        "asimdhp",
        "asimdrdm",
        "jscvt",
        "fcma",
        "lrcpc",
        "ilrcpc",
        "dcpop",
        "dcpodp",
        "asimddp",
        "asimdfhm",
        "dit",
        "uscat",
        "flagm",
        "flagm2",
        "frint",
        "i8mm",
        "bf16",
        "rng",
        "bti",
        "mte",
        "mte3",
        "paca",
        "pacg",
        "sb",
        "ssbs",
        "ecv",
        "afp",
        "rpres",
        "wfxt",
        "mops",
        "cssc",
    ];
    const PREFIXES: &[&str] = &[
        "sse", "ssse", "avx", "amx", "xsave", "xgetbv", "bmi",
        "sha", // x86 (sha_ni, sha512) and arm64 (sha1, sha2, sha3)
        "sve", "sme", "ebf",
    ];
    EXACT.contains(&flag) || PREFIXES.iter().any(|prefix| flag.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_can_be_masked() {
        let text = mask(&["avx512f".into(), "sse4_2".into(), "vaes".into()]);
        assert!(text.contains("hwcaps=-AVX512F,-SSE4_2,-VAES`"), "{text}");
        assert!(text.ends_with("`GODEBUG=cpu.avx512f=off,cpu.sse42=off`"), "{text}");
        assert!(!mask(&["vaes".into()]).contains("GODEBUG"));
    }

    #[test]
    fn only_flags_programs_use_count() {
        let source = parse_cpu_flags(
            "processor\t: 0\nvendor_id\t: X\nflags\t\t: fpu sse4_2 avx512f vmx ibrs sha_ni xsaveopt md_clear\n\nprocessor\t: 1\nflags\t\t: fpu amx_tile\n",
        );
        assert!(source.contains("vmx") && !source.contains("amx_tile"), "first processor only");
        let destination = parse_cpu_flags("flags : fpu sse4_2\n");
        assert_eq!(missing_flags(&source, &destination), ["avx512f", "sha_ni", "xsaveopt"]);
        assert!(missing_flags(&destination, &source).is_empty());
        assert!(parse_cpu_flags("nothing here").is_empty());
        assert!(parse_cpu_flags("Features\t: fp asimd aes\n").contains("asimd"));
    }

    #[test]
    fn this_host_has_some() {
        assert!(!cpu_flags().unwrap().is_empty());
    }
}
