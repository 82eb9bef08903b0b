//! `godwit probe`: what a client sees while a container moves.
//!
//! Numbered requests leave at a fixed pace over one connection, without waiting for replies; the result is
//! the longest time between two consecutive answers and whether every acknowledged write is still there.

mod address;
mod amounts;
mod client;
mod connection;
mod control;
mod echo;
mod gaps;
mod http;
mod keys;
mod latency;
mod ledger;
mod output;
mod protocol;
mod redis;
mod report;
mod resp;
mod tally;
#[cfg(test)]
mod tests;
mod verify;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use address::{Address, Scheme};
use client::{Client, Plan, StoppedBy};
use connection::{Connection, Limits};
use control::{Command, Commander, Control};
use keys::KeySpace;
use ledger::{CounterLedger, KeyLedger, Ledger};
use output::Output;
use protocol::Protocol;
use report::Report;
use tally::Tally;

/// How long a host name may take to look up.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// Measure the gaps a client sees, and find or miss every acknowledged write
///
/// While it runs, SIGUSR1 prints the largest gap since the last SIGUSR1 as one JSON line on stdout;
/// SIGINT and SIGTERM stop sending, verify and print the result.
#[derive(Debug, Clone, clap::Args)]
pub struct ProbeArgs {
    /// `tcp://HOST:PORT` or `udp://HOST:PORT` (the server must echo), `redis://HOST:PORT` or `http://HOST:PORT/PATH`
    #[arg(value_name = "ADDRESS")]
    pub address: Address,

    /// Time between two requests
    #[arg(long, value_parser = amounts::parse_interval, default_value = "1ms", value_name = "TIME")]
    pub interval: Duration,

    /// Requests per second instead of an interval, for example `2000/s`
    #[arg(long, value_parser = amounts::parse_rate, conflicts_with = "interval", value_name = "RATE")]
    pub rate: Option<Duration>,

    /// Stop sending after this time; without it and `--count`, run until stopped
    #[arg(long, value_parser = amounts::parse_duration, value_name = "TIME")]
    pub duration: Option<Duration>,

    /// Stop sending after this many requests, skipped ones included
    #[arg(long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Connections that take turns; gaps are measured on each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
    pub connections: u16,

    /// Bytes of each message or, of redis, of each value at least: a bulk transfer in both directions
    #[arg(long, default_value = "0", value_parser = amounts::parse_size, value_name = "BYTES")]
    pub value_size: usize,

    /// Redis: keys are named `PREFIX:N`; new for each run by default
    #[arg(long, value_name = "PREFIX")]
    pub key_prefix: Option<String>,

    /// Redis: number of keys; later requests overwrite them and check what they overwrite
    #[arg(long, default_value_t = 100_000, value_name = "KEYS",
        value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub key_space: u64,

    /// Redis: increment a counter instead, and check its sequence
    #[arg(long)]
    pub incr: bool,

    /// Redis: send nothing, read back the N writes that an earlier run had acknowledged
    #[arg(long, value_name = "N", requires = "key_prefix", conflicts_with_all = ["incr", "count", "duration"])]
    pub verify_only: Option<u64>,

    /// Requests without an answer at most; further ones are skipped and counted
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub max_outstanding: u32,

    /// A request without an answer for this long means the connection is dead
    #[arg(long, value_parser = amounts::parse_duration, default_value = "30s", value_name = "TIME")]
    pub reply_timeout: Duration,

    /// At the end, wait at most this long for replies, and for each step of reading back
    #[arg(long, value_parser = amounts::parse_duration, default_value = "5s", value_name = "TIME")]
    pub drain_timeout: Duration,

    /// How many of the largest gaps are reported
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
    pub gaps: u16,

    /// Create this file when the first answer has arrived
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,

    /// Unix socket that answers the lines `gap`, `status` and `stop` with one JSON line each
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The host name has no address.
    #[error("could not look up `{host}`: {reason}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// The control socket could not be made.
    #[error("could not listen on control socket `{path}`: {source}")]
    Control {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The ready file could not be written or removed.
    #[error("could not write ready file `{path}`: {source}")]
    ReadyFile {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Signal handlers, threads or sockets were refused.
    #[error("could not set up signal handling: {0}")]
    Runtime(io::Error),
    /// ppoll(2) failed.
    #[error("could not wait for replies: {0}")]
    Poll(nix::errno::Errno),
    /// The result could not be printed.
    #[error("could not print the result: {0}")]
    Output(io::Error),
}

impl ProbeError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> i32 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

/// Runs the probe and prints the result on stdout, as one JSON object with `json`. `quiet` hides the progress
/// on stderr. Returns the exit code: 0 when done, also after gaps; 1 when acknowledged writes were lost or
/// could not be verified, or the server never answered.
///
/// It handles SIGINT, SIGTERM and SIGUSR1 of the whole process from here on.
///
/// # Errors
/// When the run could not begin or its result could not be printed.
pub fn run(args: &ProbeArgs, json: bool, quiet: bool) -> Result<i32, ProbeError> {
    let (commander, commands, wake) = Commander::pair()?;
    let control = Control::start(commander, args.control.as_deref())?;
    let report = measure(args, quiet, &commands, &wake)?;
    drop(control);
    let text = if json {
        let line = serde_json::to_string(&report).map_err(|error| ProbeError::Output(error.into()))?;
        format!("{line}\n")
    } else {
        report.table()
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(ProbeError::Output)?;
    Ok(report.exit_code())
}

/// Sends, drains and verifies.
fn measure(
    args: &ProbeArgs,
    quiet: bool,
    commands: &Receiver<Command>,
    wake: &std::os::unix::net::UnixStream,
) -> Result<Report, ProbeError> {
    if args.address.scheme != Scheme::Redis && (args.incr || args.verify_only.is_some()) {
        return Err(ProbeError::Usage(format!(
            "`--incr` and `--verify-only` need `redis://`, not `{}`",
            args.address
        )));
    }
    if args.address.scheme == Scheme::Udp && args.value_size > echo::LARGEST_DATAGRAM {
        return Err(ProbeError::Usage(format!("a datagram holds at most {} bytes", echo::LARGEST_DATAGRAM)));
    }
    if let Some(path) = &args.ready_file {
        // a file from an earlier run would tell a lie
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ProbeError::ReadyFile { path: path.clone(), source });
            }
            _ => {}
        }
    }
    let server = args.address.resolve(RESOLVE_LIMIT)?;
    let output = Output::start();
    let run = Run::new(args);
    let interval = args.rate.unwrap_or(args.interval);
    let mut tally = Tally::new(run.ledger(), usize::from(args.gaps));
    let ended = if args.verify_only.is_some() {
        (StoppedBy::VerifyOnly, Duration::ZERO)
    } else {
        let plan = Plan {
            interval,
            duration: args.duration,
            count: args.count,
            first_connection: args.reply_timeout,
            drain: args.drain_timeout,
            ready_file: args.ready_file.clone(),
            progress: !quiet,
        };
        let mut client = Client::new(plan, run.connections(server), tally, commands, wake, &output);
        let ended = client.run()?;
        tally = client.tally;
        ended
    };
    let asked_to_stop = || {
        // a second signal while reading back
        std::iter::from_fn(|| commands.try_recv().ok()).any(|command| matches!(command, Command::Stop(_)))
    };
    let verify_error =
        verify::verify(&mut tally.ledger, server, args.value_size, args.drain_timeout, asked_to_stop);
    drop(output);
    let connections = usize::from(args.connections);
    Ok(Report::new(args.address.to_string(), interval, connections, ended, &tally, verify_error))
}

/// What tells this run from others.
struct Run<'a> {
    args: &'a ProbeArgs,
    identity: u64,
    keys: KeySpace,
    prefix: String,
}

impl<'a> Run<'a> {
    fn new(args: &'a ProbeArgs) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let identity = (now.as_micros() as u64) << 12 | u64::from(std::process::id() & 0xfff);
        let run = format!("{identity:x}");
        let prefix = args.key_prefix.clone().unwrap_or_else(|| format!("godwit-probe-{run}"));
        // a multiple of the connections, so that each key belongs to one of them and is written in order
        let size = args.key_space.next_multiple_of(u64::from(args.connections));
        Self { args, identity, keys: KeySpace::new(prefix.clone(), run, size, args.value_size), prefix }
    }

    fn ledger(&self) -> Ledger {
        match (self.args.address.scheme, self.args.incr, self.args.verify_only) {
            (Scheme::Redis, true, _) => {
                Ledger::Counters(CounterLedger::new(self.prefix.clone(), usize::from(self.args.connections)))
            }
            (Scheme::Redis, false, Some(n)) => Ledger::Keys(KeyLedger::of_earlier_run(self.keys.clone(), n)),
            (Scheme::Redis, false, None) => Ledger::Keys(KeyLedger::new(self.keys.clone())),
            _ => Ledger::None,
        }
    }

    fn connections(&self, server: SocketAddr) -> Vec<Connection> {
        let of = usize::from(self.args.connections);
        let limits = Limits {
            server,
            outstanding: self.args.max_outstanding as usize,
            reply: self.args.reply_timeout,
        };
        (0..of).map(|index| Connection::new(index, of, limits, self.protocol(index))).collect()
    }

    fn protocol(&self, index: usize) -> Box<dyn Protocol> {
        let address = &self.args.address;
        match address.scheme {
            Scheme::Tcp => Box::new(echo::Echo::new(self.identity, self.args.value_size, false)),
            Scheme::Udp => Box::new(echo::Echo::new(self.identity, self.args.value_size, true)),
            Scheme::Http => Box::new(http::Http::new(&address.authority(), &address.path)),
            Scheme::Redis if self.args.incr => {
                let counters = CounterLedger::new(self.prefix.clone(), 0);
                Box::new(redis::Increments::new(counters.name(index)))
            }
            Scheme::Redis => Box::new(redis::Writes::new(self.keys.clone())),
        }
    }
}
