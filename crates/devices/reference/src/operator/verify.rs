//! Results against the same by another route: here, what the operator itself gives in f64.

use super::{exact, tensor, within};
use crate::magnitude::magnitudes;
use std::cmp::Ordering;
use toprope_program::operator::{Router, Verify};
use toprope_program::tensor::round;
use toprope_program::{Concrete, DType, Operator, Tensor, Tolerance, Width};

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

fn largest(distances: impl Iterator<Item = f64>) -> f64 {
    distances.fold(0.0, |largest: f64, x| if x.is_finite() { largest.max(x) } else { f64::INFINITY })
}

fn distance(tolerance: &Tolerance, got: f64, want: f64, magnitude: f64) -> f64 {
    if *tolerance == Tolerance::EXACT {
        return if got == want { 0.0 } else { f64::INFINITY };
    }
    let (relative, accumulated) = Verify::unit(tolerance);
    (got - want).abs() / (relative * want.abs() + accumulated * magnitude + 2f64.powi(-70))
}

pub(crate) fn verify(attributes: &Verify, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let (inputs, got) = operands.split_at(attributes.inputs(operands.len()));
    let mut want = exact(&attributes.of, inputs, &[], false, width);
    // Integers wrap, as the operator's own do when they are stored.
    for output in want.iter_mut().filter(|output| !output.dtype.is_float()) {
        let dtype = output.dtype;
        output.data.iter_mut().for_each(|x| *x = round(dtype, *x));
    }
    let concrete = |tensors: &[Tensor]| -> Vec<Concrete> {
        tensors.iter().map(|t| Concrete { dtype: t.dtype, sizes: t.sizes.clone() }).collect()
    };
    let tolerances = attributes.of.definition().tolerances(&concrete(inputs), &concrete(got));
    let magnitudes = magnitudes(&attributes.of, inputs, &want);
    let output = |at: usize| {
        let elements = got[at].data.iter().zip(&want[at].data).zip(&magnitudes[at]);
        largest(elements.map(|((got, want), magnitude)| distance(&tolerances[at], *got, *want, *magnitude)))
    };
    let worst = match &*attributes.of {
        Operator::Router(router) => output(0).max(choice(router, &inputs[1], got, &tolerances[2])),
        _ => largest((0..got.len()).map(output)),
    };
    vec![tensor(DType::F32, &[1], vec![worst])]
}

/// Numbers in descending order.
fn descending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(|a, b| b.partial_cmp(a).unwrap_or(Ordering::Equal));
    values
}

/// What makes a choice right, by the scores that it was made from.
fn choice(router: &Router, bias: &Tensor, got: &[Tensor], weighted: &Tolerance) -> f64 {
    let [scores, indices, weights, counts] = got else { return f64::INFINITY };
    let (experts, top_k) = (scores.sizes[1], indices.sizes[1]);
    let (members, scale) = (experts / router.groups, f64::from(router.scale as f32));
    let mut found = vec![0.0; experts];
    let mut distances = Vec::new();
    for (token, scores) in scores.data.chunks_exact(experts).enumerate() {
        let place = token * top_k..(token + 1) * top_k;
        let chosen: Vec<usize> =
            indices.data[place.clone()].iter().filter_map(|e| within(*e, experts)).collect();
        let is_chosen = |e: usize| chosen.contains(&e);
        let distinct = (0..experts).filter(|e| is_chosen(*e)).count();
        if distinct < top_k || scores.iter().any(|s| !s.is_finite()) {
            distances.push(f64::INFINITY);
            continue;
        }
        chosen.iter().for_each(|e| found[*e] += 1.0);
        let b: Vec<f64> = scores.iter().zip(&bias.data).map(|(s, bias)| s + bias).collect();
        let size = scores.iter().zip(&bias.data).map(|(s, bias)| s.abs() + bias.abs()).fold(0.0, f64::max);
        let unit = 4.0 * UNIT * size + 2f64.powi(-70);
        let group = |g: usize| g * members..(g + 1) * members;
        let score = |g: usize| descending(b[group(g)].iter().copied()).iter().take(2).sum::<f64>();
        let group_scores: Vec<f64> = (0..router.groups).map(score).collect();
        let order = descending(group_scores.iter().copied());
        let best = order.get(router.top_groups).copied().unwrap_or(f64::NEG_INFINITY);
        let used = |g: usize| group(g).any(is_chosen);
        let open = |g: usize| used(g) || group_scores[g] > best + 2.0 * unit;
        if (0..router.groups).filter(|g| used(*g)).count() > router.top_groups {
            distances.push(f64::INFINITY);
        }
        let least = chosen.iter().map(|e| b[*e]).fold(f64::INFINITY, f64::min);
        let left = (0..experts).filter(|e| !is_chosen(*e) && open(e / members)).map(|e| b[e]);
        distances.push(((left.fold(f64::NEG_INFINITY, f64::max) - least) / unit).max(0.0));
        let least = (0..router.groups).filter(|g| used(*g)).map(|g| group_scores[g]);
        let least = least.fold(f64::INFINITY, f64::min);
        distances.push(((order[router.top_groups - 1] - least) / (2.0 * unit)).max(0.0));
        let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
        let divisor = if router.normalize { sum + 1e-20 } else { 1.0 };
        for (weight, e) in weights.data[place].iter().zip(&chosen) {
            let want = scale * scores[*e] / divisor;
            distances.push(distance(weighted, *weight, want, want.abs()));
        }
    }
    let counted = counts.data.iter().zip(&found).map(|(a, b)| if a == b { 0.0 } else { f64::INFINITY });
    largest(distances.into_iter().chain(counted))
}
