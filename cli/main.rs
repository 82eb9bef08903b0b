//! The `godwit` command: parse, call, draw.

mod args;
mod capabilities;
mod commands;
mod config;
mod draw;
mod probe;
mod progress;

use capabilities::Role;
use clap::{CommandFactory, Parser};
use config::{ConfigError, ParseError};
use godwit_migration::fault;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    // CRIU calls godwit under this name while it restores: no time for anything else then
    let arg0 = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if godwit_engine::hold::is_hook(&arg0) {
        // what cannot be given up does no harm to the container, a hook that does not run does
        let _ = capabilities::keep(Role::Hook);
        return match godwit_engine::hold::run_hook() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // an engine under a runtime's while it starts a container
    if godwit_engine::stand_in::is_stand_in(&arg0) {
        let args = std::env::args_os().skip(1).collect();
        return ExitCode::from(godwit_engine::stand_in::run_stand_in(&arg0, args));
    }
    // and in CRIU's place, where a container runtime starts it
    if godwit_criu::relay::is_front(&arg0) {
        let error = godwit_criu::relay::run_front();
        let _ = writeln!(std::io::stderr(), "godwit: {error}");
        return ExitCode::FAILURE;
    }
    // a test of crashes that met no crash would pass for the wrong reason
    if std::env::var_os(fault::VARIABLE).is_some() && !fault::is_built_in() {
        let text = format!(
            "error: `{}` is set, and this godwit is built without the feature `faults`",
            fault::VARIABLE
        );
        let _ = writeln!(std::io::stderr(), "{text}");
        return ExitCode::from(2);
    }
    let line: Vec<_> = std::env::args_os().collect();
    let args = match config::parse(&line) {
        Ok(args) => args,
        Err(ParseError::Line(error)) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
        Err(ParseError::Config(error)) => return refuse(&line, &error),
    };
    let kept = capabilities::keep(Role::of(&args.command));
    start_logging(&args.global);
    if let Err(error) = kept {
        tracing::warn!(%error, "all capabilities are kept");
    }
    let draw = draw::Draw::new(&args.global);
    match commands::run(&args, &draw) {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            draw.failure(&trouble);
            ExitCode::from(trouble.failure.kind.exit_code())
        }
    }
}

/// The command line is right, the configuration is not: nothing is begun.
fn refuse(line: &[OsString], error: &ConfigError) -> ExitCode {
    let failure = commands::config_failure(error);
    match args::Args::try_parse_from(line) {
        Ok(args) => draw::Draw::new(&args.global).failure(&failure.into()),
        Err(error) => drop(error.print()),
    }
    ExitCode::from(2)
}

/// Logs go to stderr or to the log file, never to stdout: that is data.
fn start_logging(global: &args::Global) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::writer::BoxMakeWriter;
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let file = global
        .log_file
        .as_ref()
        .and_then(|path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok());
    let writer = match file {
        Some(file) => BoxMakeWriter::new(file),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // a word that cannot be written, as when ssh has taken standard error along, must not end what is under way
    let builder = builder.log_internal_errors(false);
    let started = match global.log_format {
        args::LogFormat::Text => builder.try_init(),
        args::LogFormat::Json => builder.json().try_init(),
    };
    // only a second start in one process could fail
    drop(started);
}

/// The command line as clap sees it, for `completions`.
pub(crate) fn command() -> clap::Command {
    args::Args::command()
}
