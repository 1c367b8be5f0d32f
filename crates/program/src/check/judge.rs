//! The one place where results of checks are judged.

use super::site::{CheckKind, CheckSite};
use crate::tensor::Tensor;

/// A check that did not hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mismatch {
    /// The distance seen, in units of the bound; the number of digests that differ where bits are compared.
    pub error: f64,
    /// The distance allowed.
    pub tolerance: f64,
}

/// Judges the results of a check that fired: the values of [`CheckSite::results`], then those of [`CheckSite::against`],
/// in their order. Judged positively: what is not shown to be right, NaN and a missing value among it, is a mismatch.
pub fn judge(site: &CheckSite, results: &[Tensor]) -> Option<Mismatch> {
    let wanted = site.results.len() + site.against.len();
    let wrong = |error: f64| Some(Mismatch { error, tolerance: site.limit });
    if results.len() != wanted || wanted == 0 {
        return wrong(f64::INFINITY);
    }
    match site.kind {
        CheckKind::Carried | CheckKind::State => {
            let (have, want) = results.split_at(site.results.len());
            match (total(have), total(want)) {
                (Some(have), Some(want)) if have == want => None,
                _ => wrong(1.0),
            }
        }
        CheckKind::Product
        | CheckKind::Replay
        | CheckKind::Verify
        | CheckKind::Attention
        | CheckKind::Loss => {
            let mut largest = 0.0f64;
            for result in results {
                let Some(distance) = result.data.first().copied() else { return wrong(f64::INFINITY) };
                let distance = if distance >= 0.0 { distance } else { f64::INFINITY };
                largest = largest.max(distance);
            }
            if largest <= site.limit { None } else { wrong(largest) }
        }
    }
}

/// The sum of digests modulo 2^64; none where a tensor is no digest.
fn total(digests: &[Tensor]) -> Option<u64> {
    let word = |x: f64| (x >= 0.0 && x <= f64::from(u32::MAX)).then_some(x as u64);
    digests.iter().try_fold(0u64, |sum, digest| match digest.data.as_slice() {
        [low, high] => Some(sum.wrapping_add(word(*low)? | word(*high)? << 32)),
        _ => None,
    })
}
