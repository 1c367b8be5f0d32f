//! The figures that MindStudio's msprobe gives of an operator: its `acc_check` ("accuracy pre-check") against an exact result,
//! and its `api_precision_compare` of two devices' figures. They follow what mindstudio-probe 26.2.0 computes;
//! `benches/rivals/beside_msprobe.py figures` puts them beside the program's own.

use toprope_program::tensor::round;
use toprope_program::{DType, Tensor};

/// Figures of one output against the exact result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// The dtype of the output.
    pub dtype: DType,
    /// Cosine of the angle between the two; none of one element, and where one of the two is zero.
    pub cosine: Option<f64>,
    /// Whether the cosine speaks against it.
    pub cosine_fails: bool,
    /// The largest distance; NaN where an element is, infinite where one is.
    pub max_absolute_error: f64,
    /// Share of elements whose relative error is below 1 in 100, 1,000 and 10,000.
    pub within: [f64; 3],
    /// The root of the mean square distance of what is neither small nor infinite.
    pub rmse: f64,
    /// Share of small elements (up to 2^-20 in f32, 2^-10 in bf16) that are off by more than 2^-30 (1e-16).
    pub small_value_errors: f64,
    /// The largest relative error of the elements that are not small.
    pub max_relative_error: f64,
    /// Their mean relative error.
    pub mean_relative_error: f64,
    /// Share of elements too large and share too small, how far apart.
    pub error_balance: f64,
}

/// The figures of the first output of floats; none where there is none.
pub fn ratios(want: &[Tensor], got: &[Tensor]) -> Option<Ratios> {
    let (want, got) =
        want.iter().zip(got).find(|(want, _)| want.dtype.is_float() && !want.data.is_empty())?;
    let is_bf16 = want.dtype == DType::Bf16;
    // What is added to a denominator is the roundoff of the exact result's own dtype, f64; of bf16 it is bf16's.
    let (small, off, epsilon) = match is_bf16 {
        true => (2f64.powi(-10), 1e-16, 2f64.powi(-8)),
        false => (2f64.powi(-20), 2f64.powi(-30), f64::EPSILON),
    };
    // bf16 is compared as f32.
    let exact = |x: f64| if is_bf16 { round(DType::F32, x) } else { x };
    let count = want.data.len() as f64;
    let (mut largest, mut squares, mut masked) = (0.0f64, 0.0, 0.0);
    let (mut small_ones, mut small_off, mut normal_ones, mut relative_sum) = (0.0f64, 0.0, 0.0f64, 0.0);
    let (mut within, mut max_relative, mut balance) = ([0.0; 3], 0.0f64, 0.0f64);
    for (want, got) in want.data.iter().map(|x| exact(*x)).zip(got.data.iter().copied()) {
        let error = (got - want).abs();
        largest = if error.is_nan() || largest.is_nan() { f64::NAN } else { largest.max(error) };
        let relative = error / (want.abs() + epsilon);
        for (share, limit) in within.iter_mut().zip(LIMITS) {
            *share += if relative < limit { 1.0 / count } else { 0.0 };
        }
        let difference = got - round(DType::F32, want);
        balance += if difference > 0.0 { 1.0 } else { 0.0 } - if difference < 0.0 { 1.0 } else { 0.0 };
        let finite = got.is_finite() && round(DType::F32, want).is_finite();
        let is_small = finite && want.abs() <= small;
        if is_small {
            small_ones += 1.0;
            small_off += if error > off { 1.0 } else { 0.0 };
        }
        if is_small || !finite {
            masked += 1.0;
            continue;
        }
        squares += error * error;
        normal_ones += 1.0;
        max_relative = max_relative.max(relative);
        relative_sum += relative;
    }
    let (cosine, cosine_fails) = cosine(want.data.iter().map(|x| exact(*x)), &got.data);
    Some(Ratios {
        dtype: want.dtype,
        cosine,
        cosine_fails,
        max_absolute_error: largest,
        within,
        // So it is corrected there for what does not count.
        rmse: (squares / count * (count / (count - masked + 1e-4) + 1e-4)).sqrt(),
        small_value_errors: small_off / small_ones.max(1.0),
        max_relative_error: max_relative,
        mean_relative_error: relative_sum / normal_ones.max(1.0),
        error_balance: balance.abs() / count,
    })
}

/// Relative errors whose shares are counted.
const LIMITS: [f64; 3] = [1e-2, 1e-3, 1e-4];

/// The cosine, and whether it speaks against the result: one that is not a number does not.
fn cosine(want: impl ExactSizeIterator<Item = f64> + Clone, got: &[f64]) -> (Option<f64>, bool) {
    let largest = |most: f64, x: f64| if x.is_nan() { x } else { most.max(x.abs()) };
    let scale = (want.clone().fold(0.0, largest), got.iter().copied().fold(0.0, largest));
    if want.len() == 1 {
        return (None, false);
    }
    match (scale.0 <= f64::EPSILON, scale.1 <= f64::EPSILON) {
        (true, true) => return (None, false),
        (false, false) => {}
        _ => return (None, true),
    }
    let (mut dot, mut squares) = (0.0, (0.0, 0.0));
    for (want, got) in want.zip(got) {
        let (want, got) = (want / scale.0, got / scale.1);
        dot += want * got;
        squares = (squares.0 + want * want, squares.1 + got * got);
    }
    let cosine = dot / (squares.0.sqrt() * squares.1.sqrt());
    (Some(cosine.clamp(-1.0, 1.0)), cosine <= 0.99)
}

impl Ratios {
    /// What `acc_check` says of a single API: cosine, then the largest distance, then the shares.
    pub fn status(&self) -> &'static str {
        let [hundredth, thousandth, ten_thousandth] =
            [0, 1, 2].map(|at: usize| self.within[at] > 1.0 - LIMITS[at]);
        let is_bf16 = self.dtype == DType::Bf16;
        match () {
            () if self.cosine_fails => "error",
            () if self.max_absolute_error < 1e-3 => "pass",
            () if is_bf16 && !hundredth => "error",
            () if is_bf16 && !thousandth => "warning",
            () if is_bf16 => "pass",
            () if !thousandth => "error",
            () if !ten_thousandth => "warning",
            () => "pass",
        }
    }

    /// What `api_precision_compare` says of two devices' figures: each figure over the other device's, and the limit that it
    /// may not pass. Small-value errors, RMSE, largest and mean relative error, in this order.
    pub fn beside(&self, trusted: &Ratios, operator: &str) -> [(f64, f64); 4] {
        // An error below this counts as this.
        let least = 2f64.powi(if self.dtype == DType::Bf16 { -8 } else { -14 });
        let over = |own: f64, other: f64| own.abs() / other.abs().max(least);
        let [rmse, largest, mean] = limits(operator);
        [
            (over(self.small_value_errors, trusted.small_value_errors), 2.0),
            (over(self.rmse, trusted.rmse), rmse),
            (over(self.max_relative_error, trusted.max_relative_error), largest),
            (over(self.mean_relative_error, trusted.mean_relative_error), mean),
        ]
    }
}

/// Limits of RMSE, largest and mean relative error beside another device: msprobe has three levels, by the API. Which API an
/// operator is there is our reading.
fn limits(operator: &str) -> [f64; 3] {
    match operator {
        // matmul, npu_rms_norm, npu_cross_entropy_loss, sum, and gradients of them
        "matmul" | "rms_norm" | "rms_norm_gradient" | "linear_cross_entropy" | "column_sum" => {
            [1.2, 2.0, 1.2]
        }
        // npu_fusion_attention, embedding, scatter_add_, and gradients of them
        "attention" | "attention_gradient" | "gather" | "scatter_add" => [1.5, 5.0, 1.5],
        _ => [2.0, 10.0, 2.0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: DType, data: Vec<f64>) -> Vec<Tensor> {
        vec![Tensor { dtype, sizes: vec![data.len()], data }]
    }

    #[test]
    fn figures_follow_their_definitions() {
        let want = tensor(DType::F32, vec![1.0, -2.0, 1e-7, 4.0]);
        let right = ratios(&want, &want).unwrap();
        assert!((right.cosine.unwrap() - 1.0).abs() < 1e-15 && right.rmse == 0.0 && right.within == [1.0; 3]);
        assert_eq!(right.status(), "pass");
        let off = ratios(&want, &tensor(DType::F32, vec![1.005, -2.0, 2e-7, 4.0])).unwrap();
        assert!((off.max_relative_error - 0.005).abs() < 1e-9, "{off:?}");
        assert!((off.mean_relative_error - 0.005 / 3.0).abs() < 1e-9, "{off:?}");
        assert!((off.small_value_errors - 1.0).abs() < 1e-15, "{off:?}");
        // Of three that count, corrected as the program does it.
        let mse = 0.005f64.powi(2) / 4.0 * (4.0 / 3.0001 + 1e-4);
        assert!((off.rmse - mse.sqrt()).abs() < 1e-9, "{off:?}");
        assert_eq!((off.within, off.status()), ([0.75, 0.5, 0.5], "error"));
        // One is too large, one too.
        assert_eq!(off.error_balance, 0.5);
    }

    #[test]
    fn what_is_not_finite_fails_by_its_distance_alone() {
        let want = tensor(DType::F32, vec![1.0, -2.0, 4.0]);
        let infinite = ratios(&want, &tensor(DType::F32, vec![f64::INFINITY, -2.0, 4.0])).unwrap();
        assert!(infinite.max_absolute_error.is_infinite() && infinite.cosine.unwrap().is_nan());
        assert_eq!((infinite.rmse, infinite.status()), (0.0, "error"));
        let silent = ratios(&want, &tensor(DType::F32, vec![0.0; 3])).unwrap();
        assert_eq!((silent.cosine, silent.status()), (None, "error"));
    }

    #[test]
    fn bf16_is_compared_with_its_own_limits_and_beside_a_floor() {
        let want = tensor(DType::Bf16, vec![1.0, 2.0, 3.0, 0.25f64.powi(6)]);
        let got =
            ratios(&want, &tensor(DType::Bf16, vec![1.0, 2.0, 3.0078125, 1.25 * 0.25f64.powi(6)])).unwrap();
        assert_eq!((got.small_value_errors, got.status()), (1.0, "error"));
        let trusted = ratios(&want, &want).unwrap();
        // The trusted device makes no error: it counts as 2^-8.
        let beside = got.beside(&trusted, "swiglu");
        assert_eq!(beside[0], (256.0, 2.0));
        let largest = 0.0078125 / (3.0 + 2f64.powi(-8)) * 256.0;
        assert!((beside[2].0 - largest).abs() < 1e-9 && beside[2].1 == 10.0, "{beside:?}");
        assert_eq!(got.beside(&trusted, "matmul")[2].1, 2.0);
    }
}
