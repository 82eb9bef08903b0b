//! Dates of the Gregorian calendar, UTC: what people read, and what "daily" means. Never used to compute how long something took.

use std::time::Duration;

/// UTC as `2026-11-21 14:02:11.204`; the wall clock is only a label.
pub fn show_time(unix_us: u64) -> String {
    let since = Duration::from_micros(unix_us);
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date_of_day(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}.{:03}",
        second % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of so many days since 1970, a date of the Gregorian calendar: whole cycles of 400 years, counted from 1 March.
pub fn date_of_day(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    let from_march = days + 719_468;
    let (cycle, day) = (from_march / CYCLE, from_march % CYCLE);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next_year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date() {
        // as `date -u -d @N` shows them
        for (unix, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400, "2000-02-29 00:00:00.000"),
            (1_709_251_199, "2024-02-29 23:59:59.000"),
            (4_107_542_400, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(show_time(unix * 1_000_000), text);
        }
        assert_eq!(show_time(1_204), "1970-01-01 00:00:00.001");
    }
}
