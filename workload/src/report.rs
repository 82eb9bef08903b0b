//! What a check found, as one line of JSON.

use crate::kind::Kind;
use crate::sys::Failure;
use std::fmt::Write;

/// How many bad pages and failures are told one by one.
const TOLD: usize = 8;

/// What a check of one process found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Pages compared.
    pub pages: u64,
    /// Pages that are not what they must be.
    pub bad: u64,
    /// Tables that are not what was written to them.
    pub bad_tables: u64,
    /// Calls that failed and should not.
    pub unexpected: u64,
    samples: Vec<String>,
    failures: Vec<String>,
}

impl Findings {
    /// Nothing bad, and something seen.
    pub fn is_pass(&self) -> bool {
        self.pages > 0 && self.bad == 0 && self.bad_tables == 0 && self.unexpected == 0
    }

    /// Notes a bad page; `address` is 0 for one that is not mapped.
    pub fn bad_page(&mut self, kind: Kind, region: u64, page: usize, address: usize, holds: &str) {
        self.bad += 1;
        self.sample(kind, region, page, address, holds);
    }

    /// Notes a table that its checksum does not fit.
    pub fn bad_table(&mut self, kind: Kind, region: u64, address: usize, count: usize) {
        self.bad_tables += 1;
        self.sample(kind, region, 0, address, &format!("its table of {count} pages is not what was written"));
    }

    fn sample(&mut self, kind: Kind, region: u64, page: usize, address: usize, holds: &str) {
        if self.samples.len() < TOLD {
            self.samples.push(format!(
                r#"{{"kind":"{kind}","region":{region},"page":{page},"address":"{address:#x}","holds":"{holds}"}}"#
            ));
        }
    }

    /// Notes a call that failed and should not.
    pub fn failure(&mut self, failure: Failure) {
        self.failure_in(failure, &[]);
    }

    /// The same, with the kernel's lines on the mappings that it was about.
    pub fn failure_in(&mut self, failure: Failure, mappings: &[String]) {
        self.unexpected += 1;
        if self.failures.len() < TOLD {
            let Failure { call, errno } = failure;
            let lines = mappings.iter().map(|line| format!("\"{line}\"")).collect::<Vec<_>>().join(",");
            self.failures.push(format!(r#"{{"call":"{call}","errno":{errno},"mappings":[{lines}]}}"#));
        }
    }

    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.bad += other.bad;
        self.bad_tables += other.bad_tables;
        self.unexpected += other.unexpected;
        let room = |list: &[String]| TOLD.saturating_sub(list.len());
        self.samples.extend(other.samples.iter().take(room(&self.samples)).cloned());
        self.failures.extend(other.failures.iter().take(room(&self.failures)).cloned());
    }

    /// One line, without its end.
    pub fn line(&self, process: usize, operations: &[(&str, u64)]) -> String {
        let mut line = format!(
            r#"{{"process":{process},"pid":{},"pass":{},"pages":{},"bad":{},"bad_tables":{},"unexpected":{},"bad_pages":[{}],"failures":[{}],"operations":{{"#,
            std::process::id(),
            self.is_pass(),
            self.pages,
            self.bad,
            self.bad_tables,
            self.unexpected,
            self.samples.join(","),
            self.failures.join(","),
        );
        for (number, (name, count)) in operations.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(line, r#"{comma}"{name}":{count}"#);
        }
        line + "}}"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_is_a_pass() {
        let clean = || Findings { pages: 10, ..Findings::default() };
        assert!(clean().is_pass());
        assert!(!Findings::default().is_pass(), "nothing was looked at");
        let mut bad = clean();
        bad.bad_page(Kind::Anon, 1, 2, 0x3000, "zero");
        assert!(!bad.is_pass());
        let mut table = clean();
        table.bad_table(Kind::Anon, 1, 0x3000, 1);
        assert!(!table.is_pass());
        let mut failed = clean();
        failed.failure(Failure { call: "mremap move", errno: 14 });
        assert!(!failed.is_pass());
        let mut sum = clean();
        sum.add(&failed);
        assert!(!sum.is_pass());
        let line = sum.line(3, &[("write", 5), ("fork", 1)]);
        assert!(line.contains(r#""pass":false,"pages":20,"#), "{line}");
        assert!(line.contains(r#""failures":[{"call":"mremap move","errno":14,"mappings":[]}]"#), "{line}");
        assert!(line.ends_with(r#""operations":{"write":5,"fork":1}}"#), "{line}");
    }
}
