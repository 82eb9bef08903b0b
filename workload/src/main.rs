//! Programs that use memory in every way they can, and check every page of it: what tests and measurements move.

mod args;
mod bench_table;
mod content;
mod dirty;
mod heartbeat;
mod json;
mod kind;
mod operations;
mod process;
mod random;
mod region;
mod report;
mod settings;
mod sys;
mod table;
mod team;
mod without;

use args::Args;
use settings::Settings;
use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "\
godwit-workload: uses memory, and checks all of it when asked

  godwit-workload chaos --dir DIR [--seed N] [--threads T] [--processes P] [--size MIB] [--file FILE] [--no-direct]
                        [--rate N] [--kinds KIND,…]
      does everything to memory of every kind. --file is made anew, read into memory (also past the page cache), and
      mapped. --rate: operations a second of each thread, 0 for as many as it can (default: 20000)
  godwit-workload dirty --dir DIR --size MIB [--rate PAGES|full]
      fills memory with what does not compress, then writes PAGES a second, each pass over all pages in a scattered
      order; appends to DIR/gaps each time that CLOCK_REALTIME went on by more than 1 ms between two beats
  godwit-workload tree --dir DIR [--size MIB] [--own MIB] [--children N] [--rate N]
      children that share their parent's memory copy-on-write, and write parts of it
  godwit-workload special KIND --dir DIR [--size MIB] [--rate N] [--file FILE]
      memory of one kind
  godwit-workload without pagemap-scan|userfaultfd COMMAND…
      runs a command as on a kernel that lacks this
  godwit-workload bench-table [--json] < LINES
      what the lines of scripts/bench come to

DIR/ready, which says where the memory is, is made when a run is in full swing. When DIR/check is made, or SIGUSR1 comes to the first process, all
processes stand still, each compares each page with what it must hold, and DIR/result.N (N counts from 1) gets a line
of JSON of each process. `pass` is true when no page is bad and no system call failed that should not. SIGTERM ends it.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    if command == "without" {
        return without::run(words);
    }
    let done = Args::parse(words, &["no-direct", "json"]).and_then(|args| run(&command, args));
    match done {
        Ok(code) => code,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "godwit-workload: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &str, mut args: Args) -> Result<ExitCode, String> {
    let settings = match command {
        "nothing" => return Ok(ExitCode::SUCCESS),
        "" | "help" | "--help" => {
            let _ = std::io::stdout().write_all(USAGE.as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
        "dirty" => return dirty::run(args),
        "bench-table" => return bench_table::run(args),
        "chaos" => Settings::chaos(&mut args),
        "tree" => Settings::tree(&mut args),
        "special" => Settings::special(&mut args),
        _ => Err(format!("there is no command `{command}`; `godwit-workload help` names them")),
    };
    let mut settings = settings?;
    args.done()?;
    std::fs::create_dir_all(&settings.dir)
        .map_err(|error| format!("`{}` cannot be made: {error}", settings.dir.display()))?;
    sys::process::listen();
    sys::memory::keep_out_of_heap(128 << 10);
    let workers = settings.workers()?;
    let team = team::Team::new().map_err(|failure| failure.to_string())?;
    let code = process::Process::first(settings, team, workers).run();
    Ok(ExitCode::from(code as u8))
}
