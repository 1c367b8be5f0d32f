//! The update: norm, AdamW, the experts' bias, counters; and accumulation before it.

use super::bits::digest_words;
use super::{attribute, tensor};
use toprope_program::operator::{Accumulate, Adamw, AdamwDigest, BiasUpdate, GlobalNorm, Increment};
use toprope_program::{DType, Tensor, Width};

pub(crate) fn global_norm(attributes: &GlobalNorm, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let squares: f64 = operands.iter().flat_map(|gradient| &gradient.data).map(|g| g * g).sum();
    let norm = squares.sqrt();
    let clip = attribute(attributes.clip, width);
    let factor = if !attribute(norm, width).is_finite() {
        0.0
    } else if clip > 0.0 {
        (clip / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    };
    vec![tensor(DType::F32, &[1], vec![norm]), tensor(DType::F32, &[1], vec![factor])]
}

/// Each operation is rounded on its own: an f64 operation rounded to f32 is the f32 operation (Figueroa, "When is double
/// rounding innocuous?", 1995), so that every device that keeps to the written order has the same bits.
pub(crate) fn adamw(attributes: &Adamw, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let r = |x: f64| attribute(x, width);
    let Adamw { beta1, beta2, epsilon, weight_decay, digests } = *attributes;
    let (rest1, rest2) = (r(1.0 - beta1), r(1.0 - beta2));
    let (beta1, beta2, epsilon, decay) = (r(beta1), r(beta2), r(epsilon), r(weight_decay));
    let [weight, gradient, m, v, factor, rates] = [0, 1, 2, 3, 4, 5].map(|index| &operands[index].data);
    let (factor, rate, c1, c2) = (factor[0], rates[0], rates[1], rates[2]);
    let mut next = [0; 3].map(|_| Vec::with_capacity(weight.len()));
    for i in 0..weight.len() {
        let g = r(gradient[i] * factor);
        let m = r(r(beta1 * m[i]) + r(rest1 * g));
        let v = r(r(beta2 * v[i]) + r(r(rest2 * g) * g));
        let decayed = r(weight[i] - r(r(rate * decay) * weight[i]));
        let step = r(r(m / c1) / r(r(r(v / c2).sqrt()) + epsilon));
        let w = r(decayed - r(rate * step));
        next.iter_mut().zip([w, m, v]).for_each(|(next, element)| next.push(element));
    }
    let sizes = &operands[0].sizes;
    let mut outputs = next.map(|next| tensor(DType::F32, sizes, next)).to_vec();
    if digests {
        let told = outputs.iter().map(digest_words).fold(0u64, u64::wrapping_add);
        let state = [0, 2, 3].map(|index: usize| digest_words(&operands[index]));
        let read = [state.into_iter().fold(0, u64::wrapping_add), digest_words(&operands[1])];
        outputs.push(super::bits::words(told));
        outputs.extend(read.map(super::bits::words));
    }
    outputs
}

pub(crate) fn adamw_digest(attributes: &AdamwDigest, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let next = adamw(&attributes.adamw(), operands, width);
    vec![super::bits::words(next.iter().map(digest_words).fold(0u64, u64::wrapping_add))]
}

pub(crate) fn bias_update(attributes: &BiasUpdate, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let (bias, counts) = (&operands[0], &operands[1]);
    let rate = attribute(attributes.rate, width);
    let total: i64 = counts.data.iter().map(|count| *count as i64).sum();
    let experts = counts.data.len() as i64;
    let data = bias
        .data
        .iter()
        .zip(&counts.data)
        .map(|(bias, count)| bias + rate * (total - experts * *count as i64).signum() as f64)
        .collect();
    vec![tensor(DType::F32, &bias.sizes, data)]
}

pub(crate) fn increment(attributes: &Increment, operands: &[Tensor]) -> Vec<Tensor> {
    vec![tensor(DType::I32, &[1], vec![operands[0].data[0] + f64::from(attributes.by)])]
}

pub(crate) fn accumulate(_: &Accumulate, operands: &[Tensor], first: bool) -> Vec<Tensor> {
    let (target, x) = (&operands[0], &operands[1]);
    if first {
        return vec![x.clone()];
    }
    let data = target.data.iter().zip(&x.data).map(|(target, x)| target + x).collect();
    vec![tensor(x.dtype, &x.sizes, data)]
}
