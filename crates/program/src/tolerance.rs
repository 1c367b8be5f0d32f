//! The contract's tolerances: bounds derived from an operator's arithmetic, and the one place where floats are judged.

use crate::dtype::DType;

/// How far an output may lie from the exact result.
///
/// An element passes when `|got - want| ≤ relative·|want| + accumulated·magnitude + absolute`, where `magnitude` is the
/// operator's own sum of absolute contributions (for a product `Σ|a||b|`), computed by the reference device.
/// Accumulation in any order is bounded by `γ_n = n·u` (Higham, "Accuracy and Stability", 2nd ed., section 3.1, to first
/// order in `u`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Factor of the exact result's size: rounding on store.
    pub relative: f64,
    /// Factor of the magnitude: roundings inside.
    pub accumulated: f64,
    /// A floor: gradual underflow, of the output's type on store and of f32 in each rounding inside (Higham, section 2.1:
    /// half of the smallest number each).
    pub absolute: f64,
}

/// The smallest normal number of f32 and bf16; a product may treat bf16 operands below it as zero.
const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;

impl Tolerance {
    /// Nothing but the same value.
    pub const EXACT: Tolerance = Tolerance { relative: 0.0, accumulated: 0.0, absolute: 0.0 };

    /// `roundings` f32 roundings inside (each relative to the magnitude), one rounding to `output` on store.
    pub fn rounded(output: DType, roundings: f64) -> Tolerance {
        let unit = DType::F32.unit_roundoff();
        // A bf16 store is at most half a unit in the last place of |got|; the second-order term is in the factor 1 + u.
        let store = match output {
            DType::F32 => 0.0,
            other => other.unit_roundoff(),
        };
        Tolerance {
            relative: store * (1.0 + store),
            accumulated: (roundings + 1.0) * unit,
            absolute: SMALLEST_NORMAL
                * (2f64.powi(if output == DType::Bf16 { -7 } else { -23 }) + roundings * 2f64.powi(-24)),
        }
    }

    /// A sum of `terms` products in f32, any order, one unit more where a matrix unit truncates.
    pub fn product(output: DType, operands_bf16: bool, terms: usize) -> Tolerance {
        let mut tolerance = Tolerance::rounded(output, terms as f64 + 1.0);
        if operands_bf16 {
            // Flushed subnormal operands: each of the terms may lose a product below 2^-126 · |other|; with |other| of
            // training size this is below any other term, so the floor takes it.
            tolerance.absolute += terms as f64 * SMALLEST_NORMAL;
        }
        tolerance
    }

    /// The largest accepted distance for one element.
    pub fn bound(&self, want: f64, magnitude: f64) -> f64 {
        self.relative * want.abs() + self.accumulated * magnitude.abs() + self.absolute
    }

    /// Judges one element, positively: anything that is not shown to be right is wrong, NaN among it.
    pub fn accepts(&self, got: f64, want: f64, magnitude: f64) -> bool {
        if want.is_nan() {
            return got.is_nan();
        }
        if got == want {
            return true;
        }
        if want.is_infinite() || got.is_infinite() {
            // The store may round up to infinity where the exact result is within the tolerance of overflow.
            let limit = f64::from(f32::MAX);
            return got.is_infinite()
                && want.is_finite()
                && got.signum() == want.signum()
                && want.abs() + self.bound(want, magnitude) >= limit * (1.0 - 2f64.powi(-9));
        }
        (got - want).abs() <= self.bound(want, magnitude)
    }
}
