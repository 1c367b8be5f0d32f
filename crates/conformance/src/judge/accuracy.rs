//! How exact a result is, in bits: its error beside the sum of its absolute contributions, and the error that exact
//! arithmetic with one rounding on store would have had.

use toprope_program::DType;
use toprope_program::tensor::round;

/// Errors of many elements, each relative to its own magnitude.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The largest.
    pub most: f64,
    /// Their squares, added up.
    pub squares: f64,
    /// How many elements.
    pub count: u64,
}

impl Spread {
    fn add(&mut self, error: f64) {
        self.most = self.most.max(error);
        self.squares += error * error;
        self.count += 1;
    }

    /// Takes in the errors of other elements.
    pub fn merge(&mut self, other: &Spread) {
        self.most = self.most.max(other.most);
        self.squares += other.squares;
        self.count += other.count;
    }

    /// The root of the mean square; 0 of no elements.
    pub fn typical(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.squares / self.count as f64).sqrt() }
    }

    /// `-log2` of the largest error, at most 53 (the oracle's own).
    pub fn worst_bits(&self) -> f64 {
        bits(self.most)
    }

    /// `-log2` of the typical error: what it loses against a control is what its arithmetic lost.
    pub fn typical_bits(&self) -> f64 {
        bits(self.typical())
    }
}

fn bits(error: f64) -> f64 {
    if error > 0.0 { (-error.log2()).clamp(0.0, 53.0) } else { 53.0 }
}

/// How exact an output is. Only finite elements count whose exact value and magnitude are normal f32 numbers: elsewhere an
/// error is one of range, not of precision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// The subject's errors.
    pub subject: Spread,
    /// Those of exact arithmetic on the same operands, rounded once to the output's type.
    pub control: Spread,
    /// Errors with their signs, added up: over `count` it is the mean, far from 0 where everything is cut the same way.
    pub signed: f64,
}

impl Accuracy {
    /// Takes one element in.
    pub(super) fn element(&mut self, dtype: DType, got: f64, want: f64, magnitude: f64) {
        let normal = |x: f64| x.abs() >= f64::from(f32::MIN_POSITIVE) && x.abs() <= f64::from(f32::MAX);
        if !got.is_finite() || !normal(want) || !normal(magnitude) {
            return;
        }
        self.subject.add((got - want).abs() / magnitude);
        self.control.add((round(dtype, want) - want).abs() / magnitude);
        self.signed += (got.abs() - want.abs()) / magnitude;
    }

    /// Takes in what another run gave.
    pub fn merge(&mut self, other: &Accuracy) {
        self.subject.merge(&other.subject);
        self.control.merge(&other.control);
        self.signed += other.signed;
    }

    /// The mean error, negative where results are too small: rounding to nearest gives about 0, cutting does not.
    pub fn bias(&self) -> f64 {
        if self.subject.count == 0 { 0.0 } else { self.signed / self.subject.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_arithmetic_is_its_own_control_and_a_coarse_sum_loses_bits() {
        let (mut exact, mut coarse) = (Accuracy::default(), Accuracy::default());
        for i in 1..1000 {
            let want = 1.0 + f64::from(i) / 1013.0;
            exact.element(DType::F32, round(DType::F32, want), want, want);
            coarse.element(DType::F32, round(DType::Bf16, want), want, want);
        }
        assert_eq!(exact.subject, exact.control);
        assert!(exact.subject.typical_bits() > 24.0 && coarse.subject.typical_bits() < 10.5);
        assert!(coarse.subject.worst_bits() >= 8.0 && coarse.bias().abs() < coarse.subject.typical() / 4.0);
    }

    #[test]
    fn cutting_is_a_bias() {
        let mut cut = Accuracy::default();
        for i in 1..1000 {
            let want = 1.0 + f64::from(i) / 1013.0;
            cut.element(
                DType::F32,
                f64::from(f32::from_bits((want as f32).to_bits() & 0xFFFF_0000)),
                want,
                want,
            );
        }
        assert!(cut.bias() < -cut.subject.typical() / 2.0);
    }

    #[test]
    fn what_is_no_number_does_not_count() {
        let mut none = Accuracy::default();
        for (got, want, magnitude) in
            [(f64::NAN, 1.0, 1.0), (1.0, f64::INFINITY, 1.0), (0.0, 0.0, 0.0), (1e-45, 1e-45, 1e-45)]
        {
            none.element(DType::F32, got, want, magnitude);
        }
        assert_eq!(none, Accuracy::default());
        assert_eq!(none.subject.worst_bits(), 53.0);
    }
}
