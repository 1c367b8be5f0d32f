//! Whether a result that keeps the contract's bound is still as exact as it ought to be.
//!
//! The contract bounds the worst case of any order of addition, `n·u` for `n` terms. Typical errors are far below it, so a
//! product whose operands lose 13 of 24 bits may stay inside. What it cannot hide is the root of its mean squared error
//! beside the control's (exact arithmetic, rounded once) and beside the trusted device's.

use toprope_conformance::judge::Accuracy;
use toprope_program::{DType, Tolerance};

/// Fewer elements tell little of a typical error.
const ELEMENTS_MIN: u64 = 32;

/// How far a typical error may lie above what it is compared with: three bits.
const FACTOR: f64 = 8.0;

/// The typical error that an output may have, relative to its magnitude. `terms` are added in f32 one after another and
/// each addition may cut: the partial sums of random terms grow as their root, so the cuts come to `2^-23·√terms`; twice
/// that is allowed. Where the contract lets something be rounded to bf16 on the way (probabilities), so does this.
pub fn limit(tolerance: Tolerance, terms: usize, control: f64, trusted: Option<f64>) -> f64 {
    let sum = 2.0 * DType::F32.unit_roundoff() * 2.0 * (terms.max(1) as f64).sqrt();
    let own = FACTOR * trusted.map_or(control, |trusted| trusted.max(control));
    let rounded = tolerance.accumulated >= DType::Bf16.unit_roundoff();
    let floor = if rounded { tolerance.accumulated } else { FACTOR * DType::F32.unit_roundoff() };
    own.max(sum).max(floor)
}

/// Why an output is less exact than it ought to be; none where it is not.
pub fn objection(
    tolerance: Tolerance,
    terms: usize,
    accuracy: &Accuracy,
    trusted: Option<&Accuracy>,
) -> Option<String> {
    let (subject, control) = (accuracy.subject, accuracy.control);
    if subject.count < ELEMENTS_MIN {
        return None;
    }
    let trusted = trusted.filter(|trusted| trusted.subject.count == subject.count);
    let limit = limit(tolerance, terms, control.typical(), trusted.map(|trusted| trusted.subject.typical()));
    (subject.typical() > limit).then(|| {
        format!(
            "{:.1} effective bits where exact arithmetic rounded once has {:.1} and {:.1} are the least",
            subject.typical_bits(),
            control.typical_bits(),
            -limit.log2()
        )
    })
}
