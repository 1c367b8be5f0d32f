//! The figures that MindStudio's msprobe gives of an operator (its "accuracy pre-check", document `api_accuracy_checker.md` of
//! mindstudio-probe 1.0.3), computed from that document's definitions against the f64 result.

use toprope_program::{DType, Tensor};

/// Figures of one output against the exact result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// The largest distance.
    pub max_absolute_error: f64,
    /// Share of elements whose relative error is below 1 in 100, 1,000 and 10,000.
    pub within: [f64; 3],
    /// The root of the mean square distance.
    pub rmse: f64,
    /// Share of small elements (below 1e-6 in f32, 1e-3 in bf16) that are off by more than 1e-9 (1e-5).
    pub small_value_errors: f64,
    /// The largest relative error of the elements that are not small.
    pub max_relative_error: f64,
    /// Their mean relative error.
    pub mean_relative_error: f64,
    /// Share of elements too large minus share too small.
    pub error_balance: f64,
    /// Share of elements where one is finite and the other is not.
    pub inf_nan_errors: f64,
}

/// The figures of the first output of floats; none where there is none.
pub fn ratios(want: &[Tensor], got: &[Tensor]) -> Option<Ratios> {
    let (want, got) =
        want.iter().zip(got).find(|(want, _)| want.dtype.is_float() && !want.data.is_empty())?;
    let (small, off) = if want.dtype == DType::Bf16 { (1e-3, 1e-5) } else { (1e-6, 1e-9) };
    let count = want.data.len() as f64;
    let (mut dot, mut squares) = (0.0, (0.0, 0.0));
    let mut it = Ratios {
        cosine: 0.0,
        max_absolute_error: 0.0,
        within: [0.0; 3],
        rmse: 0.0,
        small_value_errors: 0.0,
        max_relative_error: 0.0,
        mean_relative_error: 0.0,
        error_balance: 0.0,
        inf_nan_errors: 0.0,
    };
    let (mut small_ones, mut normal_ones) = (0.0f64, 0.0f64);
    for (want, got) in want.data.iter().copied().zip(got.data.iter().copied()) {
        let same = want == got || want.is_nan() && got.is_nan();
        if !want.is_finite() || !got.is_finite() {
            it.inf_nan_errors += if same { 0.0 } else { 1.0 / count };
            continue;
        }
        let error = (got - want).abs();
        dot += want * got;
        squares = (squares.0 + want * want, squares.1 + got * got);
        it.max_absolute_error = it.max_absolute_error.max(error);
        it.rmse += error * error / count;
        it.error_balance += if same { 0.0 } else { (got - want).signum() / count };
        let relative = if error == 0.0 { 0.0 } else { error / want.abs().max(f64::MIN_POSITIVE) };
        for (share, limit) in it.within.iter_mut().zip([1e-2, 1e-3, 1e-4]) {
            *share += if relative < limit { 1.0 / count } else { 0.0 };
        }
        if want.abs() < small {
            small_ones += 1.0;
            it.small_value_errors += if error > off { 1.0 } else { 0.0 };
        } else {
            normal_ones += 1.0;
            it.max_relative_error = it.max_relative_error.max(relative);
            it.mean_relative_error += relative;
        }
    }
    it.cosine = if squares.0 == 0.0 && squares.1 == 0.0 { 1.0 } else { dot / (squares.0 * squares.1).sqrt() };
    it.rmse = it.rmse.sqrt();
    it.small_value_errors /= small_ones.max(1.0);
    it.mean_relative_error /= normal_ones.max(1.0);
    Some(it)
}

impl Ratios {
    /// What the document's rules for a single API say: cosine, then the largest distance, then the shares.
    pub fn status(&self, dtype: DType) -> &'static str {
        let [hundred, thousand, ten_thousand] = self.within;
        let (fails, warns) = if dtype == DType::Bf16 {
            (hundred <= 0.99, thousand <= 0.999)
        } else {
            (thousand <= 0.999, ten_thousand <= 0.9999)
        };
        match () {
            () if self.cosine.is_nan() || self.cosine <= 0.99 => "error",
            () if self.max_absolute_error < 1e-3 && self.inf_nan_errors == 0.0 => "pass",
            () if fails => "error",
            () if warns => "warning",
            () => "pass",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_their_definitions() {
        let tensor = |data: Vec<f64>| vec![Tensor { dtype: DType::F32, sizes: vec![data.len()], data }];
        let want = tensor(vec![1.0, -2.0, 1e-7, 4.0]);
        let right = ratios(&want, &want).unwrap();
        assert!((right.cosine - 1.0).abs() < 1e-15 && right.rmse == 0.0 && right.within == [1.0; 3]);
        assert_eq!(right.status(DType::F32), "pass");
        let off = ratios(&want, &tensor(vec![1.005, -2.0, 2e-7, 4.0])).unwrap();
        assert!(
            (off.max_relative_error - 0.005).abs() < 1e-9 && (off.small_value_errors - 1.0).abs() < 1e-15
        );
        assert_eq!(off.within, [0.75, 0.5, 0.5]);
        assert_eq!(off.status(DType::F32), "error");
        let infinite = ratios(&want, &tensor(vec![f64::INFINITY, -2.0, 1e-7, 4.0])).unwrap();
        assert_eq!(infinite.inf_nan_errors, 0.25);
    }
}
