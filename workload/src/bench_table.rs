//! What the lines of `scripts/bench` come to: medians, ratios, and how much time a GiB more costs.

use crate::args::Args;
use crate::json::Object;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

const TOOLS: [&str; 2] = ["stock", "godwit"];

/// One run that succeeded.
#[derive(Clone, Debug)]
struct Run {
    tool: usize,
    size_mib: u64,
    load: String,
    downtime_ms: f64,
    gap_ms: f64,
}

/// All runs.
#[derive(Debug, Default)]
struct Runs {
    good: Vec<Run>,
    failed: usize,
    loads: Vec<String>,
}

/// Which figure.
type Figure = fn(&Run) -> f64;
const DOWNTIME: Figure = |run| run.downtime_ms;
const GAP: Figure = |run| run.gap_ms;

impl Runs {
    fn parse(text: &str) -> Result<Self, String> {
        let mut runs = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let object = Object::parse(line)?;
            let want =
                |name: &str| object.number(name).ok_or_else(|| format!("`{line}` has no number `{name}`"));
            let load = object.text("load").ok_or_else(|| format!("`{line}` has no `load`"))?.to_owned();
            if !runs.loads.contains(&load) {
                runs.loads.push(load.clone());
            }
            if object.is_set("failed") {
                runs.failed += 1;
                continue;
            }
            let tool = TOOLS.iter().position(|tool| object.text("tool") == Some(tool));
            runs.good.push(Run {
                tool: tool.ok_or_else(|| format!("`{line}` is of no tool that is compared"))?,
                size_mib: want("size_mib")? as u64,
                load,
                downtime_ms: want("downtime_ms")?,
                gap_ms: want("probe_gap_ms")?,
            });
        }
        Ok(runs)
    }

    fn sizes(&self, load: &str) -> Vec<u64> {
        let mut sizes: Vec<u64> =
            self.good.iter().filter(|run| run.load == load).map(|run| run.size_mib).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn figures(&self, tool: usize, load: &str, size: u64, figure: Figure) -> Vec<f64> {
        let runs =
            self.good.iter().filter(|run| run.tool == tool && run.load == load && run.size_mib == size);
        let mut figures: Vec<f64> = runs.map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures
    }

    fn median(&self, tool: usize, load: &str, size: u64, figure: Figure) -> Option<f64> {
        median(&self.figures(tool, load, size, figure))
    }

    /// How many times as long the first tool takes as the second.
    fn ratio(&self, load: &str, size: u64, figure: Figure) -> Option<f64> {
        let (first, second) = (self.median(0, load, size, figure)?, self.median(1, load, size, figure)?);
        (second > 0.0).then_some(first / second)
    }

    /// Milliseconds that a GiB more costs: least squares of the medians over the size.
    fn slope(&self, tool: usize, load: &str, figure: Figure) -> Option<f64> {
        let points = self.sizes(load).into_iter();
        slope(
            &points
                .filter_map(|size| Some((size as f64 / 1024.0, self.median(tool, load, size, figure)?)))
                .collect::<Vec<_>>(),
        )
    }
}

/// The middle one of sorted figures, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Slope of the line of least squares.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let common: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (spread > 0.0).then(|| common / spread)
}

/// `bench-table`: reads lines, writes tables or one line.
pub fn run(mut args: Args) -> Result<ExitCode, String> {
    let json = args.has("json");
    args.done()?;
    let text = std::io::read_to_string(std::io::stdin()).map_err(|error| error.to_string())?;
    let runs = Runs::parse(&text)?;
    let told = if json { line(&runs) } else { tables(&runs) };
    std::io::stdout().write_all(told.as_bytes()).map_err(|error| error.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Tables in Markdown.
fn tables(runs: &Runs) -> String {
    let mut out = String::new();
    for load in &runs.loads {
        let _ = writeln!(
            out,
            "## {load}\n\n| MiB | stock: downtime | godwit: downtime | times less | stock: gap seen | godwit: gap seen | times less |"
        );
        out.push_str("|---:|---:|---:|---:|---:|---:|---:|\n");
        for size in runs.sizes(load) {
            let _ = write!(out, "| {size} |");
            for figure in [DOWNTIME, GAP] {
                for tool in 0..TOOLS.len() {
                    let _ = write!(out, " {} |", spread(&runs.figures(tool, load, size, figure)));
                }
                let _ = write!(out, " {} |", number(runs.ratio(load, size, figure), 1));
            }
            out.push('\n');
        }
        if runs.sizes(load).len() > 1 {
            out.push_str("| per GiB more |");
            for figure in [DOWNTIME, GAP] {
                for tool in 0..TOOLS.len() {
                    let _ = write!(out, " {} |", number(runs.slope(tool, load, figure), 0));
                }
                out.push_str(" |");
            }
            out.push('\n');
        }
        out.push('\n');
    }
    if runs.failed > 0 {
        let _ = writeln!(out, "{} runs failed and are not in the tables.\n", runs.failed);
    }
    out
}

/// Median, least and most.
fn spread(sorted: &[f64]) -> String {
    match (median(sorted), sorted.first(), sorted.last()) {
        (Some(median), Some(least), Some(most)) => format!("{median:.0} ({least:.0} to {most:.0})"),
        _ => "-".into(),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// One line of JSON.
fn line(runs: &Runs) -> String {
    let by_load = |of: &dyn Fn(&str) -> String| {
        let members: Vec<String> = runs.loads.iter().map(|load| format!("\"{load}\":{}", of(load))).collect();
        format!("{{{}}}", members.join(","))
    };
    let null = |value: Option<f64>| value.map_or("null".into(), |value| format!("{value:.2}"));
    let slopes = |figure: Figure| {
        let tools: Vec<String> = TOOLS
            .iter()
            .enumerate()
            .map(|(tool, name)| {
                format!("\"{name}\":{}", by_load(&|load| null(runs.slope(tool, load, figure))))
            })
            .collect();
        format!("{{{}}}", tools.join(","))
    };
    let ratios = |figure: Figure| {
        by_load(&|load| {
            let sizes = runs.sizes(load).into_iter();
            let members: Vec<String> =
                sizes.map(|size| format!("\"{size}\":{}", null(runs.ratio(load, size, figure)))).collect();
            format!("{{{}}}", members.join(","))
        })
    };
    format!(
        "{{\"summary\":true,\"runs\":{},\"failed\":{},\"slope_ms_per_gib\":{},\"gap_slope_ms_per_gib\":{},\"ratio\":{},\"gap_ratio\":{}}}\n",
        runs.good.len(),
        runs.failed,
        slopes(DOWNTIME),
        slopes(GAP),
        ratios(DOWNTIME),
        ratios(GAP),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(tool: &str, size: u64, load: &str, downtime: f64) -> String {
        format!(
            r#"{{"tool":"{tool}","size_mib":{size},"load":"{load}","run":1,"downtime_ms":{downtime},"frozen_ms":null,"probe_gap_ms":{},"fill":{{"faults":1}}}}"#,
            downtime + 1.0
        )
    }

    #[test]
    fn medians_ratios_and_slopes() {
        let mut lines = Vec::new();
        for size in [1024, 2048, 4096] {
            for noise in [-50.0, 0.0, 900.0] {
                lines.push(line_of("stock", size, "idle", 100.0 + size as f64 + noise));
                lines.push(line_of("godwit", size, "idle", 50.0));
            }
        }
        lines.push(r#"{"tool":"godwit","size_mib":64,"load":"full","run":3,"failed":true}"#.into());
        let runs = Runs::parse(&lines.join("\n")).unwrap();
        assert_eq!((runs.good.len(), runs.failed), (18, 1));
        assert_eq!(runs.median(0, "idle", 2048, DOWNTIME), Some(2148.0));
        assert_eq!(runs.ratio("idle", 4096, DOWNTIME), Some(4196.0 / 50.0));
        assert!((runs.slope(0, "idle", DOWNTIME).unwrap() - 1024.0).abs() < 1e-9);
        assert_eq!(runs.slope(1, "idle", GAP), Some(0.0));
        assert_eq!(runs.slope(1, "full", GAP), None);
        let tables = tables(&runs);
        assert!(tables.contains("| 2048 | 2148 (2098 to 3048) | 50 (50 to 50) | 43.0 | 2149"), "{tables}");
        assert!(tables.contains("| per GiB more | 1024 | 0 | |"), "{tables}");
        assert!(tables.contains("1 runs failed"), "{tables}");
        let line = line(&runs);
        let object = Object::parse(&line).unwrap();
        assert_eq!((object.number("runs"), object.number("failed")), (Some(18.0), Some(1.0)), "{line}");
        assert!(line.contains(r#""slope_ms_per_gib":{"stock":{"idle":1024.00,"full":null},"#), "{line}");
    }

    #[test]
    fn an_even_number_has_two_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 90.0]), Some(3.0));
        assert_eq!((median(&[7.0]), median(&[])), (Some(7.0), None));
        assert_eq!(slope(&[(1.0, 5.0)]), None);
    }

    #[test]
    fn a_line_that_is_not_one_of_ours_is_refused() {
        assert!(Runs::parse("nonsense").is_err());
        assert!(Runs::parse(&line_of("rsync", 1, "idle", 1.0)).is_err());
        assert!(Runs::parse(r#"{"tool":"stock","load":"idle"}"#).is_err());
    }
}
