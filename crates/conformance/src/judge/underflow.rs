//! Gradual underflow that an operator divides by something small: bounds that hang on the data, which a tolerance's floor
//! cannot hold.

use toprope_program::Tensor;
use toprope_program::operator::{Operator, Router};

/// One f32 rounding below the normal numbers is off by at most half of this.
const SMALLEST: f64 = 1.401_298_464_324_817e-45;

/// What each element of each output may be off besides its tolerance; empty where that is nothing.
pub(super) fn slack(operator: &Operator, operands: &[Tensor], want: &[Tensor]) -> Vec<Vec<f64>> {
    match operator {
        Operator::Adamw(adamw) => {
            // Four roundings below the normal numbers in m', divided as the step is.
            let rates = &operands[5].data;
            let weights = want[2].data.iter().map(|v| {
                let root = (v / rates[2]).sqrt() + adamw.epsilon;
                rates[0] / rates[1] / root * 2.0 * SMALLEST
            });
            vec![weights.collect()]
        }
        Operator::GlobalNorm(_) => {
            // Each square is off by at most half of the smallest number, and so is the norm by the root of their sum.
            let count: usize = operands.iter().map(|gradient| gradient.data.len()).sum();
            vec![vec![(count as f64 * SMALLEST / 2.0).sqrt()]]
        }
        Operator::Router(router) => {
            // Scores below the normal numbers, divided by their sum.
            let (experts, k) = (operands[0].sizes[1], router.top_k);
            let weights = want[1].data.chunks(k).enumerate().flat_map(|(row, chosen)| {
                let scores = chosen.iter().map(|&e| want[0].data[row * experts + e as usize]);
                let sum = if router.normalize { scores.sum::<f64>() + 1e-20 } else { 1.0 };
                vec![router_slack(router, sum); k]
            });
            vec![Vec::new(), Vec::new(), weights.collect()]
        }
        _ => Vec::new(),
    }
}

/// What a weight may be off where the chosen scores have this sum, from scores below the normal numbers.
pub(super) fn router_slack(router: &Router, sum: f64) -> f64 {
    router.scale / sum * (1 + router.top_k) as f64 * SMALLEST
}

/// Magnitudes with the slack taken in, in units of the tolerance's factor.
pub(super) fn widened(magnitudes: &[Vec<f64>], slack: &[Vec<f64>], factors: &[f64]) -> Vec<Vec<f64>> {
    let mut widened = magnitudes.to_vec();
    for ((magnitudes, slack), factor) in widened.iter_mut().zip(slack).zip(factors) {
        for (magnitude, slack) in magnitudes.iter_mut().zip(slack) {
            if *factor > 0.0 && slack.is_finite() {
                *magnitude += slack / factor;
            }
        }
    }
    widened
}
