//! `godwit config`.

use super::Trouble;
use crate::args::ConfigCommand;
use crate::config::{self, Config, ConfigError, HOSTS, KEYS, Name, Setting};
use crate::draw::{Draw, table};
use godwit_migration::{Failure, FailureKind};
use serde_json::json;
use std::path::Path;

pub fn run(command: &ConfigCommand, draw: &Draw) -> Result<u8, Trouble> {
    match command {
        ConfigCommand::Get { key } => get(&find(key)?, draw),
        ConfigCommand::Set { key, value } => set(&find(key)?, value, draw),
        ConfigCommand::Unset { key } => unset(&find(key)?, draw),
        ConfigCommand::Show { origin } => show(*origin, draw),
        ConfigCommand::Validate { file } => validate(file.as_deref(), draw),
    }
}

/// The failure for a configuration that does not count: nothing was touched.
pub fn failure(error: &ConfigError) -> Failure {
    let kind = match error {
        ConfigError::Io { .. } => FailureKind::Missing,
        ConfigError::Wrong { .. } => FailureKind::Usage,
    };
    let mut failure = Failure::new(kind, error.to_string()).hint(error.hint());
    if let Some(cause) = std::error::Error::source(error) {
        failure = failure.because(cause);
    }
    failure
}

fn find(key: &str) -> Result<Name, Failure> {
    Name::find(key).map_err(|error| {
        Failure::new(FailureKind::Usage, error.to_string()).hint("`godwit config show` lists all keys")
    })
}

fn load() -> Result<Config, Failure> {
    Config::load().map_err(|error| failure(&error))
}

/// What is in force for a key.
struct InForce {
    name: Name,
    value: Option<String>,
    origin: String,
}

impl InForce {
    fn of(name: Name, config: &Config) -> Self {
        let variable = match &name {
            Name::Option(key) => key.variable(),
            Name::Host(_) => None,
        };
        let (value, origin) = match (variable, config.setting(&name), &name) {
            (Some((variable, value)), ..) => (Some(value), format!("environment variable {variable}")),
            (_, Some(Setting { value, line }), _) => {
                (Some(value.clone()), format!("{} line {line}", config::path().display()))
            }
            (_, None, Name::Option(key)) => (key.built_in(), "built in".into()),
            (_, None, Name::Host(_)) => (None, "nowhere".into()),
        };
        Self { name, value, origin }
    }
}

fn get(name: &Name, draw: &Draw) -> Result<u8, Trouble> {
    let InForce { value, origin, .. } = InForce::of(name.clone(), &load()?);
    if draw.is_json() {
        draw.json_line(&json!({ "key": name.to_string(), "value": value, "origin": origin }));
        return Ok(0);
    }
    match (value, name) {
        (Some(value), _) => draw.data(&value),
        (None, Name::Option(_)) => draw.talk(&format!("`{name}` is not set, and nothing is built in")),
        (None, Name::Host(host)) => {
            return Err(Failure::new(FailureKind::NotFound, format!("no host is called `{host}` here"))
                .hint(format!("`godwit config set {name} ssh://…` calls one so"))
                .into());
        }
    }
    Ok(0)
}

fn set(name: &Name, value: &str, draw: &Draw) -> Result<u8, Trouble> {
    name.check(value).map_err(|reason| {
        Failure::new(FailureKind::Usage, format!("`{name}` cannot be `{}`", value.escape_debug()))
            .because(reason)
    })?;
    config::edit(&config::path(), name, Some(value)).map_err(|error| failure(&error))?;
    draw.talk(&format!("`{name}` is `{value}`, in {}", config::path().display()));
    if let InForce { value: Some(other), origin, .. } = InForce::of(name.clone(), &load()?)
        && other != value
    {
        draw.talk(&format!("here it is `{other}` all the same: {origin}"));
    }
    Ok(0)
}

fn unset(name: &Name, draw: &Draw) -> Result<u8, Trouble> {
    let was_there = config::edit(&config::path(), name, None).map_err(|error| failure(&error))?;
    draw.talk(&match was_there {
        true => format!("`{name}` is not in {} any more", config::path().display()),
        false => format!("`{name}` is not in {}", config::path().display()),
    });
    Ok(0)
}

fn show(with_origin: bool, draw: &Draw) -> Result<u8, Trouble> {
    let config = load()?;
    let options = KEYS.iter().map(Name::Option);
    let hosts = config.hosts.keys().cloned().map(Name::Host);
    let all = options.chain(hosts).map(|name| InForce::of(name, &config));
    if draw.is_json() {
        let all: Vec<_> = all
            .map(|one| json!({ "key": one.name.to_string(), "value": one.value, "origin": one.origin, "help": one.name.help() }))
            .collect();
        draw.json_line(&json!({ "file": config::path(), "keys": all }));
        return Ok(0);
    }
    let mut rows = vec![row(with_origin, "KEY", "VALUE", "FROM")];
    for InForce { name, value, origin } in all {
        rows.push(row(with_origin, &name.to_string(), value.as_deref().unwrap_or("–"), &origin));
    }
    draw.data(table(&rows).trim_end());
    if config.hosts.is_empty() {
        draw.talk(&format!("no other host has a name: `godwit config set {HOSTS}.NAME ssh://…` gives one"));
    }
    Ok(0)
}

fn row(with_origin: bool, key: &str, value: &str, origin: &str) -> Vec<String> {
    let columns = [key, value, origin];
    columns[..2 + usize::from(with_origin)].iter().map(ToString::to_string).collect()
}

fn validate(file: Option<&Path>, draw: &Draw) -> Result<u8, Trouble> {
    let own = config::path();
    let path = file.unwrap_or(&own);
    if !path.exists() {
        return match file {
            Some(_) => {
                Err(Failure::new(FailureKind::NotFound, format!("there is no `{}`", path.display())).into())
            }
            None => {
                draw.talk(&format!("there is no `{}`: what is built in is in force", path.display()));
                Ok(0)
            }
        };
    }
    let config = Config::load_from(path).map_err(|error| failure(&error))?;
    if file.is_none() {
        config::keep_as_good(path).map_err(|error| failure(&error))?;
    }
    if draw.is_json() {
        let keys = config.options.len() + config.hosts.len();
        draw.json_line(&json!({ "file": path, "valid": true, "keys": keys }));
    } else {
        draw.talk(&format!("`{}` is right", path.display()));
    }
    Ok(0)
}
