//! Bounds of proportions and of medians.

use serde::Serialize;

/// A proportion with its 95 % bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recall {
    /// How many were caught.
    pub caught: u64,
    /// Of how many.
    pub of: u64,
}

impl Recall {
    /// Counts one.
    pub fn count(&mut self, caught: bool) {
        self.caught += u64::from(caught);
        self.of += 1;
    }

    /// The share.
    pub fn share(&self) -> f64 {
        self.caught as f64 / self.of.max(1) as f64
    }

    /// Wilson's score interval at 95 % (Wilson, 1927), lower and upper; 0 and 1 where nothing was counted.
    pub fn bounds(&self) -> (f64, f64) {
        if self.of == 0 {
            return (0.0, 1.0);
        }
        const Z: f64 = 1.959_963_984_540_054;
        let (n, p) = (self.of as f64, self.share());
        let middle = p + Z * Z / (2.0 * n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        (((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0))
    }

    /// `99.21 % [98.70, 99.52] of 1234`.
    pub fn text(&self) -> String {
        if self.of == 0 {
            return "none".into();
        }
        let (low, high) = self.bounds();
        let percent = |x: f64| format!("{:.2}", 100.0 * x);
        format!("{} % [{}, {}] of {}", percent(self.share()), percent(low), percent(high), self.of)
    }
}

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Median {
    /// The median.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Samples.
    pub samples: usize,
}

/// The median and its distribution-free 95 % interval from order statistics (David and Nagaraja, "Order statistics", 7.1):
/// ranks n/2 ± 1.96·√n/2. None without samples.
pub fn median(samples: &[f64]) -> Option<Median> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let last = n.checked_sub(1)?;
    let half = 1.959_963_984_540_054 * (n as f64).sqrt() / 2.0;
    let low = ((n as f64 / 2.0 - half).floor().max(0.0) as usize).min(last);
    let high = ((n as f64 / 2.0 + half).ceil() as usize).min(last);
    Some(Median {
        median: (sorted[last / 2] + sorted[n / 2]) / 2.0,
        low: sorted[low],
        high: sorted[high],
        samples: n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_bounds_are_the_published_ones() {
        // 81 of 263: Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I.
        let (low, high) = Recall { caught: 81, of: 263 }.bounds();
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        let (low, high) = Recall { caught: 0, of: 20 }.bounds();
        assert!(low == 0.0 && (high - 0.1611).abs() < 5e-5, "{high}");
    }

    #[test]
    fn a_median_lies_in_its_interval() {
        let samples: Vec<f64> = (0..201).map(f64::from).rev().collect();
        let m = median(&samples).unwrap();
        assert_eq!((m.median, m.samples), (100.0, 201));
        assert!(m.low < 100.0 && m.low > 80.0 && m.high > 100.0 && m.high < 120.0);
        assert!(median(&[]).is_none());
    }
}
