//! Figures of both sides, pair by pair.

/// What both sides showed in runs that took turns.
#[derive(Default)]
pub struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pairs {
    /// Adds a pair, and says it.
    pub fn push(&mut self, what: &str, ours: f64, theirs: f64, unit: &str) {
        self.ours.push(ours);
        self.theirs.push(theirs);
        println!(
            "  {what}, pair {}: {} and {} {unit}, ratio {:.3}",
            self.ours.len(),
            number(ours),
            number(theirs),
            ours / theirs
        );
    }

    /// Median and range of ours.
    pub fn ours(&self, unit: &str) -> String {
        spread(&self.ours, unit)
    }

    /// Median and range of theirs.
    pub fn theirs(&self, unit: &str) -> String {
        spread(&self.theirs, unit)
    }

    /// Ours over theirs: the median of the pairs, and each.
    pub fn ratio(&self) -> String {
        let mut ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        format!("**{:.2}** ({})", median(&mut ratios), all.join(", "))
    }
}

/// The one in the middle; NaN of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64], unit: &str) -> String {
    let mut sorted = values.to_vec();
    let middle = median(&mut sorted);
    match (sorted.first(), sorted.last()) {
        (Some(least), Some(most)) if sorted.len() > 1 => {
            format!("{} ({} to {}) {unit}", number(middle), number(*least), number(*most))
        }
        _ => format!("{} {unit}", number(middle)),
    }
}

/// With three figures at least, thousands apart.
fn number(value: f64) -> String {
    if value.is_nan() || value < 9.995 {
        return format!("{value:.2}");
    }
    if value < 99.95 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_easily() {
        let shown: Vec<String> = [0.123, 9.99, 12.34, 812.4, 8675.2, 1234567.0].map(number).into();
        assert_eq!(shown, ["0.12", "9.99", "12.3", "812", "8,675", "1,234,567"]);
    }

    #[test]
    fn the_ratio_is_the_median_of_pairs() {
        let mut pairs = Pairs::default();
        for (ours, theirs) in [(2.0, 1.0), (9.0, 3.0), (4.0, 4.0)] {
            pairs.push("x", ours, theirs, "s");
        }
        assert_eq!(pairs.ratio(), "**2.00** (2.00, 3.00, 1.00)");
        assert_eq!(pairs.ours("s"), "4.00 (2.00 to 9.00) s");
    }
}
