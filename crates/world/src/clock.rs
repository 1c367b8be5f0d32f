//! Time as the rest of the program sees it.

use std::time::Duration;

/// A source of time. Times are durations, so that a simulated clock can start where it likes.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary origin; never goes back within one world.
    fn monotonic(&self) -> Duration;
    /// Time since 1970-01-01T00:00:00Z; may jump when someone sets the clock.
    fn wall(&self) -> Duration;
    /// Returns after at least `duration`.
    fn sleep(&self, duration: Duration);
}

/// A wall-clock time as `2026-11-24T08:05:09.042Z` (RFC 3339, UTC, milliseconds).
///
/// The civil date comes from the day count by Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for the proleptic Gregorian calendar.
pub fn utc_timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        since_epoch.subsec_millis()
    )
}

/// The time that [`utc_timestamp`] printed, since 1970; none for any other text, and for times before 1970.
///
/// The day count comes from Howard Hinnant's `days_from_civil`, at the same address.
pub fn parse_utc_timestamp(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, milliseconds) = time.split_once('.')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let [milliseconds] = numbers(milliseconds, '.', [3])?;
    let in_range = year >= 1970 && (1..=12).contains(&month) && hour < 24 && minute < 60 && second < 60;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !in_range || !(1..=month_days).contains(&day) {
        return None;
    }
    let shifted_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(Duration::from_millis(seconds * 1_000 + milliseconds))
}

/// Numbers of fixed lengths between separators.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(separator);
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        if part.len() != length || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_times_are_read_back() {
        // Steps that share no factor with days or years: every month, leap years, ends of centuries.
        for count in 0..20_000_u64 {
            let time = Duration::from_millis(count * 11_777_777_777 / 50);
            assert_eq!(parse_utc_timestamp(&utc_timestamp(time)), Some(time), "{}", utc_timestamp(time));
        }
        let year_2100 = Duration::from_secs(4_107_542_400);
        assert_eq!(parse_utc_timestamp("2100-03-01T00:00:00.000Z"), Some(year_2100));
        for wrong in [
            "",
            "2026-11-24T08:05:09Z",
            "2026-11-24 08:05:09.042Z",
            "2026-13-24T08:05:09.042Z",
            "2026-02-29T08:05:09.042Z",
            "2026-11-24T24:05:09.042Z",
            "1969-12-31T23:59:59.999Z",
            "2026-11-24T08:05:09.0420Z",
            "2026-1-024T08:05:09.042Z",
            "+026-11-24T08:05:09.042Z",
        ] {
            assert_eq!(parse_utc_timestamp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_print_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, printed) in cases {
            assert_eq!(utc_timestamp(Duration::from_secs(seconds)), printed);
        }
        assert_eq!(utc_timestamp(Duration::from_millis(1_042)), "1970-01-01T00:00:01.042Z");
    }
}
