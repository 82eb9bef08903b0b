//! Durations, rates and sizes as they are written on the command line.

use std::time::Duration;

/// The shortest pace between two requests.
pub(super) const SHORTEST_INTERVAL: Duration = Duration::from_micros(10);
/// The longest pace between two requests.
pub(super) const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// Parses a duration with its unit: `500us`, `1ms`, `2.5s`, `10m`, `1h`.
///
/// # Errors
/// A text that names what could not be understood.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "ns" => number / 1e9,
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "" => return Err(format!("`{text}` has no unit, write for example `{text}ms` or `{text}s`")),
        _ => return Err(format!("`{unit}` in `{text}` is not a unit of time (ns, us, ms, s, m, h)")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is too long a time"))
}

/// Parses the time between two requests, from 10 µs to one hour.
///
/// # Errors
/// A text that names what could not be understood.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    in_range(text, parse_duration(text)?)
}

/// Parses a rate (`2000/s`, `90/m`, `2000` for per second) into the time between two requests.
///
/// # Errors
/// A text that names what could not be understood.
pub(super) fn parse_rate(text: &str) -> Result<Duration, String> {
    let (count, period) = match text.split_once('/') {
        None => (text, 1.0),
        Some((count, "s")) => (count, 1.0),
        Some((count, "m" | "min")) => (count, 60.0),
        Some((_, unit)) => return Err(format!("`{unit}` in `{text}` is not a period (s, m)")),
    };
    let (number, rest) = split(count)?;
    if !rest.is_empty() || number <= 0.0 {
        return Err(format!("`{text}` is not a rate such as `2000/s`"));
    }
    let interval =
        Duration::try_from_secs_f64(period / number).map_err(|_| format!("`{text}` is too slow a rate"))?;
    in_range(text, interval)
}

/// Parses a size in bytes: `64`, `4KiB`, `1MiB`, `10kB`.
///
/// # Errors
/// A text that names what could not be understood.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let (number, unit) = split(text)?;
    let factor: u32 = match unit {
        "" | "B" => 1,
        "kB" => 1000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        _ => return Err(format!("`{unit}` in `{text}` is not a unit of size (B, kB, KiB, MB, MiB)")),
    };
    let bytes = number * f64::from(factor);
    if bytes > f64::from(u32::MAX) {
        return Err(format!("`{text}` is too large"));
    }
    Ok(bytes as usize)
}

fn in_range(text: &str, interval: Duration) -> Result<Duration, String> {
    if interval < SHORTEST_INTERVAL {
        return Err(format!("`{text}` is too fast, the shortest interval is 10us"));
    }
    if interval > LONGEST_INTERVAL {
        return Err(format!("`{text}` is too slow, the longest interval is 1h"));
    }
    Ok(interval)
}

/// Splits `2.5s` into 2.5 and `s`.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    match number.parse::<f64>() {
        Ok(number) => Ok((number, unit.trim())),
        Err(_) => Err(format!("`{text}` does not begin with a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood() {
        assert_eq!(parse_duration("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(parse_duration("2.5s"), Ok(Duration::from_millis(2500)));
        assert_eq!(parse_rate("2000/s"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_rate("2000"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_size("4KiB"), Ok(4096));
    }

    #[test]
    fn errors_name_the_bad_text() {
        for bad in ["", "ms", "10", "10parsec", "-1s", "1e999s", "99999999999999999999999999h"] {
            let error = parse_duration(bad).expect_err(bad);
            assert!(error.contains(bad), "`{bad}`: {error}");
        }
        for bad in ["0/s", "2000/x", "ten/s", "1000000/s", "10x/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        for bad in ["1ns", "2h"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
        assert!(parse_size("4 parsecs").is_err());
        assert!(parse_size("5000MiB").is_err());
    }
}
