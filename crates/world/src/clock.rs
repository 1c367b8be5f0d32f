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

#[cfg(test)]
mod tests {
    use super::*;

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
