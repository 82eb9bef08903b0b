//! What can be configured: options of commands, by the same names, and destinations.

use clap::{Arg, ArgMatches, Command};
use godwit_transfer::Address;

/// The section of destinations: `hosts.NAME`.
pub const HOSTS: &str = "hosts";

/// An option that can have another default. Its meaning, its values and its variable are those of the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The section of the file.
    pub section: &'static str,
    /// The option, without its dashes.
    pub option: &'static str,
    /// Whose option it is.
    commands: &'static [&'static str],
}

const fn migrate(option: &'static str) -> Key {
    Key { section: "migrate", option, commands: &["migrate"] }
}

const fn serve(option: &'static str) -> Key {
    Key { section: "node", option, commands: &["node", "serve"] }
}

const fn follow(option: &'static str) -> Key {
    Key { section: "follow", option, commands: &["volume", "follow"] }
}

/// All of them. Nothing that lowers the protection of a move (`--insecure`), and nothing that belongs to one container.
pub const KEYS: &[Key] = &[
    migrate("max-downtime"),
    migrate("max-rounds"),
    migrate("timeout"),
    migrate("on-timeout"),
    migrate("throttle"),
    migrate("bandwidth"),
    migrate("connections"),
    migrate("witness"),
    migrate("retries"),
    migrate("compress"),
    migrate("cooperative"),
    migrate("file-watch"),
    migrate("pace"),
    migrate("tracker"),
    migrate("restore"),
    migrate("stop-timeout"),
    migrate("network-plan"),
    migrate("remote-command"),
    Key { section: "receive", option: "keep-received", commands: &["receive"] },
    Key { section: "receive", option: "neighbours", commands: &["receive"] },
    Key { section: "receive", option: "catalog", commands: &["receive"] },
    serve("listen"),
    serve("catalog"),
    serve("advertise"),
    serve("quota"),
    follow("interval"),
    follow("every"),
    follow("to"),
    follow("keep-last"),
    follow("keep-hourly"),
    follow("keep-daily"),
    follow("keep-weekly"),
    follow("keep-monthly"),
    follow("quota"),
    Key { section: "store", option: "quota", commands: &["store", "add"] },
];

/// What a name in the configuration stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// An option.
    Option(&'static Key),
    /// A destination.
    Host(String),
}

/// A name that stands for nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No such key.
    #[error("there is no key `{}`{}", name.escape_debug(), nearest.as_ref().map(|key| format!("; is it `{key}`?")).unwrap_or_default())]
    Unknown { name: String, nearest: Option<String> },
    /// `hosts.` and something that cannot be told from a destination, or from an option.
    #[error("`{}` cannot be a host's name: letters, digits, `-`, `_` and `.`, a letter or digit first", .0.escape_debug())]
    Host(String),
}

/// Least likeness, 0 to 1, of a name that was meant.
const LIKE: f64 = 0.8;

impl Name {
    /// Finds what `section.name` stands for.
    ///
    /// # Errors
    /// When it stands for nothing.
    pub fn find(text: &str) -> Result<Self, NameError> {
        if let Some(host) = text.strip_prefix("hosts.") {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let begins = host.starts_with(|c: char| c.is_ascii_alphanumeric());
            return match begins && host.len() <= 253 && host.chars().all(is_plain) {
                true => Ok(Self::Host(host.to_owned())),
                false => Err(NameError::Host(host.to_owned())),
            };
        }
        if let Some(key) = KEYS.iter().find(|key| key.to_string() == text) {
            return Ok(Self::Option(key));
        }
        let likeness = |key: &String| strsim::jaro_winkler(key, text);
        let nearest = KEYS.iter().map(Key::to_string).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let nearest = nearest.filter(|key| likeness(key) >= LIKE);
        Err(NameError::Unknown { name: text.to_owned(), nearest })
    }

    /// Whether it can have this value.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn check(&self, value: &str) -> Result<(), String> {
        match self {
            Self::Option(key) => key.check(value),
            Self::Host(_) => value.parse::<Address>().map(drop).map_err(|error| error.to_string()),
        }
    }

    /// What it means, in a line.
    pub fn help(&self) -> String {
        match self {
            Self::Option(key) => key.help(),
            Self::Host(_) => String::new(),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Option(key) => key.fmt(f),
            Self::Host(name) => write!(f, "{HOSTS}.{name}"),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.section, self.option)
    }
}

impl Key {
    /// clap's name of it: that of the field.
    fn id(&self) -> String {
        self.option.replace('-', "_")
    }

    /// Its option, as clap has it.
    fn arg(&self) -> Option<Arg> {
        let mut command = crate::command();
        for name in self.commands {
            command = command.find_subcommand(name)?.clone();
        }
        command.get_arguments().find(|arg| arg.get_long() == Some(self.option)).cloned()
    }

    /// What the option means, in a line.
    pub fn help(&self) -> String {
        self.arg().and_then(|arg| arg.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// What it is without any configuration; none if then there is nothing.
    pub fn built_in(&self) -> Option<String> {
        let arg = self.arg()?;
        arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned())
    }

    /// The environment variable that counts more, when it is set, and its value.
    pub fn variable(&self) -> Option<(String, String)> {
        let name = self.arg()?.get_env()?.to_string_lossy().into_owned();
        let value = std::env::var(&name).ok()?;
        Some((name, value))
    }

    fn check(&self, value: &str) -> Result<(), String> {
        let arg = self.arg().ok_or("no command has this option")?;
        // without what it says of other options, which are not there
        let mut bare = Arg::new(self.id()).long(self.option).value_parser(arg.get_value_parser().clone());
        if let Some(names) = arg.get_value_names() {
            bare = bare.value_names(names.to_vec());
        }
        let alone = Command::new("check").no_binary_name(true).arg(bare);
        let parsed = alone.try_get_matches_from([format!("--{}={value}", self.option)]);
        parsed.map(drop).map_err(|error| {
            let text = error.render().to_string();
            let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
            lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
        })
    }

    /// Whether a command line is one of the command that has it.
    pub(super) fn is_of(&self, matches: &ArgMatches) -> bool {
        let mut matches = matches;
        self.commands.iter().all(|name| match matches.subcommand() {
            Some((found, inner)) if found == *name => {
                matches = inner;
                true
            }
            _ => false,
        })
    }

    /// The command line, with another default for it.
    pub(super) fn with_default(&self, command: Command, value: &str) -> Command {
        fn inner(command: Command, way: &[&'static str], id: String, value: String) -> Command {
            match way {
                [first, rest @ ..] => {
                    command.mut_subcommand(first, |command| inner(command, rest, id, value))
                }
                [] => command.mut_arg(id, |arg| arg.default_value(value)),
            }
        }
        inner(command, self.commands, self.id(), value.to_owned())
    }
}
