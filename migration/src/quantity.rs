//! Durations, sizes and rates as people write them: `300ms`, `2GiB`, `500MiB/s`, `1gbit`.

use std::time::Duration;

/// Said when a quantity cannot be read. Names the text and what would have been right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not {expected}")]
pub struct InvalidQuantity {
    text: String,
    expected: &'static str,
}

fn invalid(text: &str, expected: &'static str) -> InvalidQuantity {
    InvalidQuantity { text: text.chars().take(64).collect(), expected }
}

/// Splits `12.5ms` into 12.5 and `ms`; `None` for a missing, negative or unbelievable number.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    number.is_finite().then(|| (number, text[end..].trim()))
}

/// Reads a duration with its unit: `us`, `ms`, `s`, `m`, `h`. A number without a unit is refused, since
/// nobody agrees what it would mean.
///
/// # Errors
/// When the text is not a number with one of these units, or does not fit.
pub fn duration(text: &str) -> Result<Duration, InvalidQuantity> {
    const EXPECTED: &str = "a duration such as `300ms`, `2s` or `10m`";
    let (number, unit) = number_and_unit(text).ok_or_else(|| invalid(text, EXPECTED))?;
    let seconds = match unit {
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(invalid(text, EXPECTED)),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid(text, EXPECTED))
}

/// A duration above zero: nobody can move a container in no time, so zero is a mistake and not a wish.
///
/// # Errors
/// As [`duration`], and when it is zero.
pub fn positive_duration(text: &str) -> Result<Duration, InvalidQuantity> {
    let value = duration(text)?;
    if value.is_zero() { Err(invalid(text, "a duration above zero")) } else { Ok(value) }
}

/// Reads a size in bytes: a plain number, or with `k`, `M`, `G`, `T` (powers of 1000 with `B`, of 1024 with `iB`).
///
/// # Errors
/// When the text is not such a size, or does not fit in 64 bits.
pub fn bytes(text: &str) -> Result<u64, InvalidQuantity> {
    const EXPECTED: &str = "a size such as `4096`, `512MiB` or `2GB`";
    let (number, unit) = number_and_unit(text).ok_or_else(|| invalid(text, EXPECTED))?;
    let factor = size_unit(unit).ok_or_else(|| invalid(text, EXPECTED))?;
    whole(number * factor).ok_or_else(|| invalid(text, EXPECTED))
}

/// Reads a rate and returns bytes per second: `500MiB/s`, or in bits as network people write it: `1gbit`.
///
/// # Errors
/// When the text is neither, or is zero.
pub fn bytes_per_second(text: &str) -> Result<u64, InvalidQuantity> {
    const EXPECTED: &str = "a rate above zero such as `500MiB/s` or `1gbit`";
    let (number, unit) = number_and_unit(text).ok_or_else(|| invalid(text, EXPECTED))?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        _ => unit.strip_suffix("/s").and_then(size_unit).ok_or_else(|| invalid(text, EXPECTED))?,
    };
    whole(number * factor).filter(|rate| *rate > 0).ok_or_else(|| invalid(text, EXPECTED))
}

fn size_unit(unit: &str) -> Option<f64> {
    Some(match unit {
        "" | "B" => 1.0,
        "k" | "kB" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "T" | "TB" => 1e12,
        "Ki" | "KiB" => 1024.0,
        "Mi" | "MiB" => 1024.0 * 1024.0,
        "Gi" | "GiB" => 1024.0 * 1024.0 * 1024.0,
        "Ti" | "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    })
}

fn whole(value: f64) -> Option<u64> {
    // 2^63 is exact in a double; nobody means more
    (value.is_finite() && value < 9.2e18).then_some(value.round() as u64)
}

/// Writes a duration for people: `167 ms`, `3.42 s`, `2 m 05 s`.
pub fn show_duration(value: Duration) -> String {
    let millis = value.as_secs_f64() * 1e3;
    if millis < 9.95 {
        format!("{millis:.1} ms")
    } else if millis < 999.5 {
        format!("{millis:.0} ms")
    } else if millis < 99_950.0 {
        format!("{:.2} s", millis / 1e3)
    } else {
        format!("{} m {:02} s", value.as_secs() / 60, value.as_secs() % 60)
    }
}

/// Writes a size for people, in powers of 1024: `4.0 KiB`, `512.0 MiB`.
pub fn show_bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut number = value as f64;
    let mut unit = 0;
    while number >= 1023.95 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{number:.1} {}", UNITS[unit]) }
}

/// Writes a rate for people.
pub fn show_rate(bytes_per_second: f64) -> String {
    format!("{}/s", show_bytes(bytes_per_second.max(0.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in
            ["", "300", "ms", "-1s", "1.2.3s", "5 parsecs", "1e99s", "99999999999999999999999h", "NaNs"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(
            positive_duration("0ms").map_err(|e| e.to_string()),
            Err("`0ms` is not a duration above zero".into())
        );
    }

    #[test]
    fn sizes_and_rates() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes_per_second("1gbit"), Ok(125_000_000));
        assert_eq!(bytes_per_second("500MiB/s"), Ok(500 << 20));
        for bad in ["", "MiB", "1XiB", "-1", "1e30", "99999999999TiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for bad in ["0gbit", "500MiB", "fast", "0B/s"] {
            assert!(bytes_per_second(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_for_people() {
        assert_eq!(show_duration(Duration::from_micros(1_640)), "1.6 ms");
        assert_eq!(show_duration(Duration::from_millis(167)), "167 ms");
        assert_eq!(show_duration(Duration::from_millis(3_420)), "3.42 s");
        assert_eq!(show_duration(Duration::from_secs(125)), "2 m 05 s");
        assert_eq!(show_bytes(0), "0 B");
        assert_eq!(show_bytes(512 << 20), "512.0 MiB");
    }
}
