//! Who may send what to where, as the receiving host's `policy.toml` says.
//!
//! The file is a list of rules that allow; what no rule allows is refused. Without a file everything is allowed to whoever
//! came so far: by ssh, or by a key that this host trusts.

use godwit_migration::quantity;
use godwit_transfer::Refusal;
use serde::Deserialize;
use std::fmt::Display;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// A longer file is refused, bytes.
const MAX_FILE: u64 = 1 << 20;
/// More rules, or more entries in a list of one, are refused.
const MAX_ENTRIES: usize = 1000;
/// A longer pattern or path is refused, bytes.
const MAX_TEXT: usize = 4096;

/// Why the policy cannot be used: nothing is received then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says what cannot be.
    #[error("`{}` cannot be understood: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What this host lets in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Option<Vec<Rule>>,
}

/// Allows something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    peers: Vec<String>,
    containers: Vec<String>,
    roots: Option<Vec<PathBuf>>,
    max_memory: Option<u64>,
    hooks: Vec<String>,
    store: bool,
    keep: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    allow: Vec<RuleText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleText {
    rule: String,
    #[serde(default = "all")]
    peers: Vec<String>,
    #[serde(default = "all")]
    containers: Vec<String>,
    roots: Option<Vec<PathBuf>>,
    max_memory: Option<String>,
    #[serde(default)]
    hooks: Vec<String>,
    #[serde(default)]
    store: bool,
    #[serde(default)]
    keep: bool,
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

/// What a source wants, as far as a policy is concerned.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Who it is: [`godwit_transfer::Peer::name`].
    pub peer: &'a str,
    /// `ENGINE:NAME`.
    pub container: &'a str,
    /// Every path of this host that is written to or given to the container.
    pub places: &'a [PathBuf],
    /// Memory that it has and that room is kept for, bytes.
    pub memory: u64,
    /// A program of this host that it wants to have run for its network.
    pub hook: Option<&'a Path>,
}

impl Policy {
    /// Reads `policy.toml` in `dir`. Without one everything is allowed.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let path = dir.join("policy.toml");
        let failed = |source| PolicyError::File { path: path.clone(), source };
        let mut text = String::new();
        match std::fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
            Ok(file) => file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?,
        };
        Self::parse(&text).map_err(|why| PolicyError::Content { path, why })
    }

    /// Reads the text of a policy.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() as u64 > MAX_FILE {
            return Err(format!("it is longer than {MAX_FILE} bytes"));
        }
        let file: FileText = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.allow.len() > MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} rules"));
        }
        let rules = file.allow.into_iter().map(Rule::check).collect::<Result<_, _>>()?;
        Ok(Self { rules: Some(rules) })
    }

    /// Whether somebody may ask for content of this host's store.
    ///
    /// # Errors
    /// The refusal says what is missing.
    pub fn may_ask(&self, peer: &str) -> Result<(), Refusal> {
        if self.has_rule(peer, |rule| rule.store) {
            return Ok(());
        }
        Err(Refusal::new(format!("the policy there lets `{peer}` have nothing of its store"))
            .hint("add `store = true` to a rule for it in the policy.toml there, usually in /etc/godwit"))
    }

    /// Whether somebody may have snapshots kept in this host's store, and say by them whose a volume is.
    ///
    /// # Errors
    /// The refusal says what is missing.
    pub fn may_keep(&self, peer: &str) -> Result<(), Refusal> {
        if self.has_rule(peer, |rule| rule.keep) {
            return Ok(());
        }
        Err(Refusal::new(format!("the policy there lets `{peer}` keep no snapshots in its store"))
            .hint("add `keep = true` to a rule for it in the policy.toml there, usually in /etc/godwit"))
    }

    /// Whether somebody may send containers of this name, and so may learn what pages an earlier checkpoint of that name has.
    pub fn may_know(&self, peer: &str, container: &str) -> bool {
        self.has_rule(peer, |rule| rule.containers.iter().any(|glob| matches(glob, container)))
    }

    fn has_rule(&self, peer: &str, allows: impl Fn(&Rule) -> bool) -> bool {
        let is_of = |rule: &Rule| rule.peers.iter().any(|glob| matches(glob, peer));
        self.rules.as_ref().is_none_or(|rules| rules.iter().any(|rule| allows(rule) && is_of(rule)))
    }

    /// Whether a source may have its wish; touches nothing.
    ///
    /// # Errors
    /// The refusal names the rules that come into question and what each of them does not allow.
    pub fn examine(&self, wish: &Wish<'_>) -> Result<(), Refusal> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let mut reasons = Vec::new();
        for rule in rules.iter().filter(|rule| rule.peers.iter().any(|glob| matches(glob, wish.peer))) {
            match rule.objection(wish) {
                None => return Ok(()),
                Some(objection) => reasons.push(format!("rule `{}` allows no {objection}", rule.name)),
            }
        }
        if reasons.is_empty() {
            reasons.push(format!("it has no rule for `{}`", wish.peer));
        }
        let reasons = reasons.join("; ");
        Err(Refusal::new(format!("the policy there does not let `{}` in: {reasons}", wish.container))
            .hint("the policy of the destination is its policy.toml, usually in /etc/godwit"))
    }
}

impl Rule {
    fn check(text: RuleText) -> Result<Self, String> {
        let RuleText { rule, peers, containers, roots, max_memory, hooks, store, keep } = text;
        let wrong = |what: &dyn Display| Err(format!("rule `{rule}`: {what}"));
        if rule.is_empty() || rule.len() > 200 || rule.chars().any(char::is_control) {
            return Err("a rule without a name that can be shown".into());
        }
        let lists = [&peers, &containers, &hooks];
        let entries = lists.iter().map(|list| list.len()).chain(roots.as_ref().map(Vec::len)).max();
        if entries > Some(MAX_ENTRIES) {
            return wrong(&format!("a list of more than {MAX_ENTRIES}"));
        }
        if let Some(long) = lists.into_iter().flatten().find(|text| text.len() > MAX_TEXT) {
            return wrong(&format!("`{}…` is too long", long.chars().take(40).collect::<String>()));
        }
        for root in roots.iter().flatten() {
            if !is_plain(root) || root.as_os_str().len() > MAX_TEXT {
                return wrong(&format!("root `{}` is not absolute and without `..`", root.display()));
            }
        }
        if let Some(hook) = hooks.iter().find(|hook| !hook.starts_with('/')) {
            return wrong(&format!("hook `{hook}` is not absolute"));
        }
        let max_memory = match max_memory.as_deref().map(quantity::bytes) {
            Some(Err(error)) => return wrong(&error),
            Some(Ok(bytes)) => Some(bytes),
            None => None,
        };
        Ok(Self { name: rule, peers, containers, roots, max_memory, hooks, store, keep })
    }

    /// What of a wish this rule does not allow.
    fn objection(&self, wish: &Wish<'_>) -> Option<String> {
        if !self.containers.iter().any(|glob| matches(glob, wish.container)) {
            return Some(format!("container `{}`", wish.container));
        }
        if let Some(roots) = &self.roots {
            let roots: Vec<PathBuf> = roots.iter().filter_map(|root| real(root)).collect();
            let outside = wish.places.iter().find(|place| {
                real(place).is_none_or(|place| !roots.iter().any(|root| place.starts_with(root)))
            });
            if let Some(outside) = outside {
                return Some(format!("files in `{}`", outside.display()));
            }
        }
        if self.max_memory.is_some_and(|max| wish.memory > max) {
            return Some(format!("container of {} of memory", quantity::show_bytes(wish.memory)));
        }
        let hook = wish.hook?;
        let text = hook.to_str().filter(|_| is_plain(hook));
        let known = text.is_some_and(|text| self.hooks.iter().any(|glob| matches(glob, text)));
        (!known).then(|| format!("network hook `{}`", hook.display()))
    }
}

/// Absolute, without `.` or `..`.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Where a path leads that may not exist in full yet, symbolic links resolved; nothing when that cannot be told.
fn real(path: &Path) -> Option<PathBuf> {
    if !is_plain(path) {
        return None;
    }
    // what is there, if only a link that leads nowhere, must be resolved or is no place
    let there = path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok())?;
    let rest = path.strip_prefix(there).ok()?;
    let there = there.canonicalize().ok()?;
    Some(if rest.as_os_str().is_empty() { there } else { there.join(rest) })
}

/// Whether a pattern is all of a text: `*` is any characters, `?` is one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // where the last star was, and how much of the text it takes
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wish<'a>(peer: &'a str, container: &'a str, places: &'a [PathBuf]) -> Wish<'a> {
        Wish { peer, container, places, memory: 1 << 30, hook: None }
    }

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a:b"),
            ("runc:web-*", "runc:web-1"),
            ("a?c", "abc"),
            ("*b*b", "abcb"),
            ("", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("runc:web-*", "runc:db"), ("a?c", "ac"), ("a", "ab"), ("*b", "ba"), ("", "a")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn without_a_file_all_and_with_an_empty_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let policy = Policy::load(dir.path()).unwrap();
        assert!(policy.examine(&wish("ssh:", "runc:web", &[])).is_ok());
        std::fs::write(dir.path().join("policy.toml"), "").unwrap();
        let policy = Policy::load(dir.path()).unwrap();
        let refusal = policy.examine(&wish("ssh:10.0.0.1", "runc:web", &[])).unwrap_err();
        assert!(refusal.reason.contains("it has no rule for `ssh:10.0.0.1`"), "{refusal:?}");
    }

    #[test]
    fn each_limit_of_a_rule_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("srv");
        std::fs::create_dir_all(root.join("web")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        let policy = Policy::parse(&format!(
            r#"
            [[allow]]
            rule = "web servers"
            peers = ["rack2", "rack3"]
            containers = ["runc:web-*"]
            roots = ["{}"]
            max-memory = "2GiB"
            hooks = ["/usr/lib/net/*"]
            [[allow]]
            rule = "anything by ssh"
            peers = ["ssh:*"]
            "#,
            root.display()
        ))
        .unwrap();
        let inside = [root.clone(), root.join("web/new/deep")];
        let no = |wish: &Wish<'_>| policy.examine(wish).unwrap_err().reason;
        assert!(policy.examine(&wish("rack2", "runc:web-1", &inside)).is_ok());
        assert!(policy.examine(&wish("ssh:10.0.0.1", "pid:7", &["/etc".into()])).is_ok());
        assert!(no(&wish("rack4", "runc:web-1", &inside)).contains("no rule for `rack4`"));
        assert!(
            no(&wish("rack2", "runc:db", &inside))
                .contains("rule `web servers` allows no container `runc:db`")
        );
        for outside in
            ["/etc", "/", "/srvx", "relative", "/srv/../etc"].map(PathBuf::from).into_iter().chain([
                root.join("../x"),
                root.join("out"),
                root.join("out/cron.d"),
                root.join("dangling"),
                root.join("dangling/x"),
                dir.path().to_owned(),
            ])
        {
            let said = no(&wish("rack2", "runc:web-1", std::slice::from_ref(&outside)));
            assert!(said.contains("allows no files in"), "{outside:?}: {said}");
        }
        let large = Wish { memory: 3 << 30, ..wish("rack2", "runc:web-1", &inside) };
        assert!(no(&large).contains("allows no container of 3.0 GiB of memory"), "{}", no(&large));
        let hook = |path| Wish { hook: Some(Path::new(path)), ..wish("rack2", "runc:web-1", &inside) };
        assert!(policy.examine(&hook("/usr/lib/net/attach")).is_ok());
        assert!(no(&hook("/bin/sh")).contains("allows no network hook `/bin/sh`"));
        assert!(no(&hook("/usr/lib/net/../../../bin/sh")).contains("allows no network hook"));
    }

    #[test]
    fn the_store_is_for_those_who_are_named() {
        assert!(Policy::default().may_ask("rack2").is_ok());
        let policy = "[[allow]]\nrule = \"web\"\npeers = [\"rack2\"]\n[[allow]]\nrule = \"near\"\npeers = [\"rack3\"]\nstore = true";
        let policy = Policy::parse(policy).unwrap();
        assert!(policy.may_ask("rack3").is_ok());
        assert!(policy.may_ask("rack2").unwrap_err().reason.contains("lets `rack2` have nothing"));
    }

    #[test]
    fn what_a_container_has_is_for_those_who_may_send_it() {
        assert!(Policy::default().may_know("rack2", "runc:web"));
        let policy = "[[allow]]\nrule = \"web\"\npeers = [\"rack2\"]\ncontainers = [\"runc:web-*\"]\n[[allow]]\nrule = \"db\"\npeers = [\"rack3\"]";
        let policy = Policy::parse(policy).unwrap();
        assert!(policy.may_know("rack2", "runc:web-1") && policy.may_know("rack3", "runc:web-1"));
        assert!(!policy.may_know("rack2", "runc:db") && !policy.may_know("rack4", "runc:web-1"));
        assert!(!Policy::parse("").unwrap().may_know("rack2", "runc:web-1"));
    }

    #[test]
    fn who_may_read_the_store_may_not_write_to_it_and_the_other_way_round() {
        assert!(Policy::default().may_keep("rack2").is_ok());
        let policy = "[[allow]]\nrule = \"a\"\npeers = [\"rack2\"]\nstore = true\n[[allow]]\nrule = \"b\"\npeers = [\"rack3\"]\nkeep = true";
        let policy = Policy::parse(policy).unwrap();
        assert!(policy.may_keep("rack3").is_ok() && policy.may_ask("rack3").is_err());
        assert!(policy.may_keep("rack2").unwrap_err().reason.contains("lets `rack2` keep no snapshots"));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in [
            "allow = 1",
            "[[allow]]",
            "[[allow]]\nrule = \"\"",
            "[[allow]]\nrule = \"a\"\npeer = [\"x\"]",
            "[[allow]]\nrule = \"a\"\nroots = [\"srv\"]",
            "[[allow]]\nrule = \"a\"\nroots = [\"/srv/../etc\"]",
            "[[allow]]\nrule = \"a\"\nmax-memory = \"much\"",
            "[[allow]]\nrule = \"a\"\nhooks = [\"*\"]",
            "[[deny]]\nrule = \"a\"",
            &"[[allow]]\nrule = \"a\"\n".repeat(1001),
            &format!("[[allow]]\nrule = \"a\"\npeers = [\"{}\"]", "x".repeat(5000)),
            &"#".repeat(2 << 20),
            &format!("x = {}", "[".repeat(100_000)),
        ] {
            assert!(Policy::parse(text).is_err(), "{}", &text[..text.len().min(80)]);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}", lines in "(\\[\\[allow\\]\\]\n|rule = \"[a-z]{0,3}\"\n|peers = \\[\"[*?a-z]{0,4}\"\\]\n|roots = \\[\"[./a-z]{0,6}\"\\]\n|[\\[\\]a-z\"=]{0,6}\n){0,12}") {
            let _ = Policy::parse(&text);
            if let Ok(policy) = Policy::parse(&lines) {
                let _ = policy.examine(&wish("rack2", "runc:web", &[PathBuf::from("/srv")]));
            }
        }

        #[test]
        fn a_pattern_of_plain_characters_is_equality(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(matches(&a, &b), a == b);
            let (long, more) = (format!("{a}*{b}"), format!("{a}xyz{b}"));
            prop_assert!(matches(&long, &more));
        }
    }
}
