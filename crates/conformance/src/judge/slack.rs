//! What hangs on the data and cannot stand in a tolerance: gradual underflow that later factors make larger, and
//! intermediate results beyond f32.

use super::{OVERFLOW, OVERFLOWS};
use toprope_program::operator::{Operator, Router, RouterGradient, Scoring};
use toprope_program::{DType, Tensor, Tolerance};

/// Why a NaN where the contract has a number cannot be compared, in attention with a NaN among its operands.
pub(super) const SPREADS: &str = "a key that is no number may reach rows that do not see it: 0 times NaN";

/// The smallest f32; one rounding below the normal numbers is off by at most half of it.
const SMALLEST: f64 = 1.401_298_464_324_817e-45;

/// The smallest normal number of f32 and bf16. A bf16 product may take operands, products and sums below it as zero.
const SMALLEST_NORMAL: f64 = 1.175_494_350_822_287_5e-38;

/// A sigmoid below this is 0 where e^-x overflows an f32 on the way: beyond x = -88.7, of which it is 2^-128.
const SMALLEST_SIGMOID: f64 = 2.938_735_877_055_719e-39;

/// Beyond this, squares and their sums may leave f32.
const WILD: f64 = 1_073_741_824.0;

/// Whether an operator multiplies or divides what it rounded before, so that errors below the normal numbers grow.
fn is_compound(operator: &Operator) -> bool {
    match operator {
        Operator::Activation(_)
        | Operator::ActivationGradient(_)
        | Operator::Swiglu(_)
        | Operator::SwigluGradient(_)
        | Operator::Attention(_)
        | Operator::AttentionGradient(_)
        | Operator::RmsNorm(_)
        | Operator::RmsNormGradient(_)
        | Operator::LinearCrossEntropy(_)
        | Operator::LinearCrossEntropyGradient(_)
        | Operator::Router(_)
        | Operator::RouterGradient(_)
        | Operator::BalanceLoss(_)
        | Operator::BalanceLossGradient(_)
        | Operator::GlobalNorm(_)
        | Operator::Adamw(_) => true,
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Assemble(_)
        | Operator::Gather(_)
        | Operator::ScatterAdd(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::Matmul(_)
        | Operator::GroupedMatmul(_)
        | Operator::GroupedOuter(_)
        | Operator::Rope(_)
        | Operator::ExpertSort(_)
        | Operator::Combine(_)
        | Operator::CombineGradient(_)
        | Operator::BiasUpdate(_)
        | Operator::Increment(_)
        | Operator::Accumulate(_)
        | Operator::RandomBits(_)
        | Operator::Append(_)
        | Operator::Digest(_)
        | Operator::ProductCheck(_)
        | Operator::Compare(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => false,
    }
}

fn floats(operands: &[Tensor]) -> impl Iterator<Item = f64> {
    operands.iter().filter(|tensor| tensor.dtype.is_float()).flat_map(|tensor| tensor.data.iter().copied())
}

/// An exponent from here on may be off by so much that `e` to it is off by more than its tolerance, which takes such an
/// error to first order: 2^20 and the roundings of a few products are an error of one.
const EXPONENT: f64 = 1_048_576.0;

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

/// Why an output may be anything, where the operands are such that arithmetic in f32 leaves what tolerances cover:
/// an intermediate result beyond f32 although the outputs are not, or exponents whose rounding is more than small.
pub(super) fn wildness(operator: &Operator, operands: &[Tensor]) -> Option<&'static str> {
    let exponent = "an exponent's rounding is not small";
    let attends = |scale: f64| {
        let (q, k) = (&operands[0], &operands[1]);
        scale * q.sizes[2] as f64 * largest(&q.data) * largest(&k.data) > EXPONENT
    };
    let wild = |operator| is_compound(operator) && floats(operands).any(|x| x.abs() > WILD);
    match operator {
        // A norm that is not finite has a meaning; one whose square alone leaves f32 has not.
        Operator::GlobalNorm(_) => {
            let sum: f64 = floats(operands).map(|x| x * x).sum();
            (sum.is_finite() && sum >= OVERFLOW).then_some(OVERFLOWS)
        }
        Operator::Activation(_) => None,
        operator if wild(operator) => Some(OVERFLOWS),
        Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => {
            vanishes_beside_infinity(&operands[0], &operands[1])
                .then_some("a bf16 operand below the normal numbers may be zero beside an infinity")
        }
        // Infinities are told above as beyond f32.
        Operator::Attention(_) | Operator::AttentionGradient(_) if floats(operands).any(|x| x.is_nan()) => {
            Some(SPREADS)
        }
        Operator::Attention(attention) => attends(attention.scale).then_some(exponent),
        Operator::AttentionGradient(attention) => attends(attention.scale).then_some(exponent),
        _ => None,
    }
}

/// f32 roundings that a tolerance takes in.
fn roundings(tolerance: &Tolerance) -> f64 {
    tolerance.accumulated / DType::F32.unit_roundoff()
}

fn vanishes(tensor: &Tensor) -> bool {
    tensor.data.iter().any(|x| *x != 0.0 && x.abs() < SMALLEST_NORMAL)
}

fn vanishes_beside_infinity(a: &Tensor, b: &Tensor) -> bool {
    let infinite = |tensor: &Tensor| tensor.data.iter().any(|x| x.is_infinite());
    let both_bf16 = a.dtype == DType::Bf16 && b.dtype == DType::Bf16;
    both_bf16 && (vanishes(a) && infinite(b) || infinite(a) && vanishes(b))
}

/// What one term of a product of two bf16 operands may lose where values below the normal numbers are taken as zero.
fn flushed(a: &Tensor, b: &Tensor) -> f64 {
    if a.dtype != DType::Bf16 || b.dtype != DType::Bf16 {
        return 0.0;
    }
    let most = |tensor: &Tensor| {
        tensor.data.iter().filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()))
    };
    let beside = |vanishing: &Tensor, other: &Tensor| if vanishes(vanishing) { most(other) } else { 0.0 };
    SMALLEST_NORMAL * (1.0 + beside(a, b) + beside(b, a))
}

/// Whether an operator has products inside of which both sides may be bf16.
fn multiplies_bf16(operator: &Operator, operands: &[Tensor]) -> bool {
    let inside = matches!(
        operator,
        Operator::Attention(_)
            | Operator::AttentionGradient(_)
            | Operator::LinearCrossEntropy(_)
            | Operator::LinearCrossEntropyGradient(_)
    );
    inside && operands[..2].iter().all(|operand| operand.dtype == DType::Bf16)
}

/// What each element of each output may be off besides its tolerance; empty where that is nothing.
pub(super) fn slack(
    operator: &Operator,
    operands: &[Tensor],
    want: &[Tensor],
    tolerances: &[Tolerance],
) -> Vec<Vec<f64>> {
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
        Operator::Router(router) => router_slacks(router, want),
        Operator::RouterGradient(gradient) => router_gradient_slack(gradient, operands),
        Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => {
            let flushed = flushed(&operands[0], &operands[1]);
            if flushed == 0.0 {
                return Vec::new();
            }
            // Row sums, the second output, add up as many elements as a row has.
            let columns = want[0].sizes.last().copied().unwrap_or(1) as f64;
            let terms =
                |output: usize| roundings(&tolerances[output]) * if output == 0 { 1.0 } else { columns };
            let slack = |(output, want): (usize, &Tensor)| vec![terms(output) * flushed; want.data.len()];
            want.iter().enumerate().map(slack).collect()
        }
        _ if is_compound(operator) => {
            // Each rounding inside may be off by half of the smallest number, and two factors may follow it.
            let most = floats(operands).filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()));
            let later = (1.0 + most).powi(2);
            let lost = if multiplies_bf16(operator, operands) { SMALLEST_NORMAL } else { SMALLEST / 2.0 };
            let one = |tolerance| roundings(tolerance) * later * lost;
            want.iter().zip(tolerances).map(|(want, t)| vec![one(t); want.data.len()]).collect()
        }
        _ => Vec::new(),
    }
}

/// The weights that the operator is given come from scores before these were stored. Below the normal numbers the two part:
/// `Σ_j dweights·weights` is off by what a weight is, times `s/n`, which is 1 at most.
fn router_gradient_slack(gradient: &RouterGradient, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (scores, indices, dweights) = (&operands[0], &operands[1], &operands[3]);
    let (experts, top_k) = (scores.sizes[1], indices.sizes[1]);
    let rows = scores.data.chunks(experts).zip(indices.data.chunks(top_k)).zip(dweights.data.chunks(top_k));
    let slack = rows.flat_map(|((scores, chosen), dweights)| {
        let sum: f64 = chosen.iter().filter_map(|e| scores.get(*e as usize)).sum();
        let divisor = if gradient.normalize { sum + 1e-20 } else { 1.0 };
        let most: f64 = dweights.iter().map(|dweight| dweight.abs()).sum();
        vec![most * gradient.scale / divisor * (1 + top_k) as f64 * SMALLEST; experts]
    });
    vec![slack.collect()]
}

fn router_slacks(router: &Router, want: &[Tensor]) -> Vec<Vec<f64>> {
    let experts = want[0].sizes[1];
    let weights = want[1].data.chunks(router.top_k).enumerate().flat_map(|(row, chosen)| {
        let sum = chosen.iter().map(|e| want[0].data[row * experts + *e as usize]).sum();
        vec![router_underflow(router, sum); router.top_k]
    });
    let scores = match router.scoring {
        Scoring::Sigmoid => vec![SMALLEST_SIGMOID; want[0].data.len()],
        Scoring::Softmax => Vec::new(),
    };
    vec![scores, Vec::new(), weights.collect()]
}

fn divisor(router: &Router, sum: f64) -> f64 {
    if router.normalize { sum + 1e-20 } else { 1.0 }
}

/// What a weight may be off where the chosen scores have this sum, from scores below the normal numbers.
pub(super) fn router_underflow(router: &Router, sum: f64) -> f64 {
    let lost = if router.scoring == Scoring::Sigmoid { SMALLEST_SIGMOID } else { SMALLEST };
    router.scale / divisor(router, sum) * (1 + router.top_k) as f64 * lost
}

/// Magnitudes with the slack taken in, in units of the tolerance's factor.
pub(super) fn widened(
    magnitudes: &[Vec<f64>],
    slack: &[Vec<f64>],
    tolerances: &[Tolerance],
) -> Vec<Vec<f64>> {
    let mut widened = magnitudes.to_vec();
    for ((magnitudes, slack), tolerance) in widened.iter_mut().zip(slack).zip(tolerances) {
        for (magnitude, slack) in magnitudes.iter_mut().zip(slack) {
            if tolerance.accumulated > 0.0 && slack.is_finite() {
                *magnitude += slack / tolerance.accumulated;
            }
        }
    }
    widened
}
