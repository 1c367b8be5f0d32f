//! What a number of clean runs says of a fault that does not show every time.

/// The probability that `runs` independent runs all miss a fault that shows in a run with probability `rate`.
pub fn missed(rate: f64, runs: u64) -> f64 {
    (1.0 - rate.clamp(0.0, 1.0)).powf(runs as f64)
}

/// The largest rate that a fault may have and still be missed by `runs` clean runs with probability `missed`: the upper limit
/// of a binomial rate with no success, `1 - missed^(1/runs)` (Clopper and Pearson, 1934).
pub fn rate_bound(runs: u64, missed: f64) -> f64 {
    if runs == 0 { 1.0 } else { 1.0 - missed.powf(1.0 / runs as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_hundred_clean_runs_exclude_one_in_a_hundred() {
        assert!((missed(0.01, 300) - 0.049).abs() < 1e-3);
        assert!((rate_bound(300, 0.05) - 0.00994).abs() < 1e-4);
        assert!((missed(rate_bound(77, 0.05), 77) - 0.05).abs() < 1e-12);
        assert_eq!((missed(0.0, 5), rate_bound(0, 0.05)), (1.0, 1.0));
    }
}
