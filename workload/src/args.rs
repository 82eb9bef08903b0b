//! Options of the form `--name value`.

use std::fmt::Display;
use std::str::FromStr;

/// What was given, each taken once.
#[derive(Debug)]
pub struct Args {
    given: Vec<(String, Option<String>)>,
    /// What is no option, in order.
    pub words: Vec<String>,
}

impl Args {
    /// Reads the words behind the command. `switches` are options without a value.
    pub fn parse(words: impl Iterator<Item = String>, switches: &[&str]) -> Result<Self, String> {
        let mut args = Self { given: Vec::new(), words: Vec::new() };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) if switches.contains(&name) => args.given.push((name.into(), None)),
                Some(name) => {
                    let value = words.next().ok_or_else(|| format!("--{name} wants a value"))?;
                    args.given.push((name.into(), Some(value)));
                }
                None => args.words.push(word),
            }
        }
        Ok(args)
    }

    /// Takes an option.
    pub fn take<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(place) = self.given.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.given.remove(place);
        let value = value.unwrap_or_default();
        value.parse().map(Some).map_err(|error| format!("--{name} `{value}`: {error}"))
    }

    /// Takes an option, or what is meant without it.
    pub fn take_or<T: FromStr<Err: Display>>(&mut self, name: &str, otherwise: T) -> Result<T, String> {
        Ok(self.take(name)?.unwrap_or(otherwise))
    }

    /// Takes an option that must be there.
    pub fn need<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, String> {
        self.take(name)?.ok_or_else(|| format!("--{name} is missing"))
    }

    /// Whether an option without a value is there.
    pub fn has(&mut self, name: &str) -> bool {
        let before = self.given.len();
        self.given.retain(|(given, _)| given != name);
        self.given.len() < before
    }

    /// Fails when something is left.
    pub fn done(&self) -> Result<(), String> {
        match (self.given.first(), self.words.first()) {
            (Some((name, _)), _) => Err(format!("there is no option --{name}, or it is given twice")),
            (_, Some(word)) => Err(format!("there is no argument `{word}`")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned), &["no-direct"])
    }

    #[test]
    fn options_are_taken_once() {
        let mut given = args("mlock --size 64 --no-direct --dir /data").unwrap();
        assert_eq!(given.take_or("size", 1), Ok(64));
        assert!(given.has("no-direct") && !given.has("no-direct"));
        assert_eq!(given.need::<String>("dir"), Ok("/data".into()));
        assert_eq!(given.take_or("rate", 7), Ok(7));
        assert_eq!(given.words.pop(), Some("mlock".into()));
        assert_eq!(given.done(), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(args("--size").unwrap_err().contains("--size wants a value"));
        assert!(args("--size much").unwrap().take::<usize>("size").unwrap_err().contains("`much`"));
        assert!(args("--sice 5").unwrap().done().unwrap_err().contains("--sice"));
        assert!(args("what").unwrap().done().unwrap_err().contains("`what`"));
        assert!(args("").unwrap().need::<usize>("size").is_err());
    }
}
