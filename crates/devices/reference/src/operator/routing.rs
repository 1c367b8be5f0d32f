//! Experts: their choice, the order of their rows, and their balance.

use super::elementwise::sigmoid;
use super::{add_scaled, attribute, inner, tensor, within};
use toprope_program::operator::{
    BalanceLoss, BalanceLossGradient, Combine, CombineGradient, ExpertSort, Router, RouterGradient, Scoring,
};
use toprope_program::{DType, Tensor, Width};

/// The places of the `count` largest, in descending order, ties to the lower index. A NaN comes behind every number.
fn largest(values: &[f64], candidates: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = candidates.collect();
    let key = |i: &usize| (values[*i].is_nan(), -values[*i]);
    // The sort is stable, and candidates come in ascending order.
    order.sort_by(|a, b| {
        let ((a_nan, a), (b_nan, b)) = (key(a), key(b));
        a_nan.cmp(&b_nan).then(a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal))
    });
    order.truncate(count);
    order
}

fn scores(scoring: Scoring, logits: &[f64]) -> Vec<f64> {
    match scoring {
        Scoring::Sigmoid => logits.iter().map(|x| sigmoid(*x)).collect(),
        Scoring::Softmax => {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
            logits.iter().map(|x| (x - largest).exp() / sum).collect()
        }
    }
}

/// Chooses by scores as they are stored, and by sums rounded to f32, so that a tie in f32 is a tie here.
pub(crate) fn router(attributes: &Router, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let (logits, bias) = (&operands[0], &operands[1]);
    let (rows, experts, top_k) = (logits.sizes[0], logits.sizes[1], attributes.top_k);
    let group_size = experts / attributes.groups;
    let scale = attribute(attributes.scale, width);
    let mut all_scores = Vec::with_capacity(rows * experts);
    let mut indices = Vec::with_capacity(rows * top_k);
    let mut weights = Vec::with_capacity(rows * top_k);
    let mut counts = vec![0.0; experts];
    for logits in logits.data.chunks_exact(experts) {
        let scores: Vec<f64> =
            scores(attributes.scoring, logits).into_iter().map(|s| attribute(s, width)).collect();
        let biased: Vec<f64> =
            scores.iter().zip(&bias.data).map(|(s, bias)| attribute(s + bias, width)).collect();
        let members = |group: usize| group * group_size..(group + 1) * group_size;
        let group_scores: Vec<f64> = (0..attributes.groups)
            .map(|group| {
                let best = largest(&biased, members(group), 2);
                attribute(best.iter().map(|e| biased[*e]).sum(), width)
            })
            .collect();
        let mut groups = largest(&group_scores, 0..attributes.groups, attributes.top_groups);
        groups.sort_unstable();
        let chosen = largest(&biased, groups.into_iter().flat_map(members), top_k);
        let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
        let divisor = if attributes.normalize { sum + 1e-20 } else { 1.0 };
        for e in chosen {
            indices.push(e as f64);
            weights.push(scale * scores[e] / divisor);
            counts[e] += 1.0;
        }
        all_scores.extend(scores);
    }
    vec![
        tensor(DType::F32, &logits.sizes, all_scores),
        tensor(DType::I32, &[rows, top_k], indices),
        tensor(DType::F32, &[rows, top_k], weights),
        tensor(DType::I32, &[experts], counts),
    ]
}

pub(crate) fn router_gradient(attributes: &RouterGradient, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let (scores, indices, weights, dweights) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let (rows, experts, top_k) = (scores.sizes[0], scores.sizes[1], indices.sizes[1]);
    let scale = attribute(attributes.scale, width);
    let mut dlogits = Vec::with_capacity(rows * experts);
    for t in 0..rows {
        let s = &scores.data[t * experts..][..experts];
        let chosen: Vec<Option<usize>> =
            indices.data[t * top_k..][..top_k].iter().map(|e| within(*e, experts)).collect();
        let (weights, dweights) = (&weights.data[t * top_k..][..top_k], &dweights.data[t * top_k..][..top_k]);
        let mut g = match operands.get(4) {
            Some(dscores) => dscores.data[t * experts..][..experts].to_vec(),
            None => vec![0.0; experts],
        };
        let (divisor, along) = if attributes.normalize {
            let sum: f64 = chosen.iter().flatten().map(|e| s[*e]).sum();
            (sum + 1e-20, inner(dweights, weights))
        } else {
            (1.0, 0.0)
        };
        for (e, dweight) in chosen.iter().zip(dweights) {
            if let Some(e) = e {
                g[*e] += (scale * dweight - along) / divisor;
            }
        }
        match attributes.scoring {
            Scoring::Sigmoid => dlogits.extend(g.iter().zip(s).map(|(g, s)| g * s * (1.0 - s))),
            Scoring::Softmax => {
                let mean = inner(&g, s);
                dlogits.extend(g.iter().zip(s).map(|(g, s)| s * (g - mean)));
            }
        }
    }
    vec![tensor(DType::F32, &scores.sizes, dlogits)]
}

/// How often each expert was chosen in a sequence, times `E/(K·S)`.
pub(crate) fn load(indices: &[f64], experts: usize) -> Vec<f64> {
    let mut load = vec![0.0; experts];
    for e in indices.iter().filter_map(|e| within(*e, experts)) {
        load[e] += 1.0;
    }
    load.iter().map(|count| count * experts as f64 / indices.len() as f64).collect()
}

pub(crate) fn balance_loss(attributes: &BalanceLoss, operands: &[Tensor]) -> Vec<Tensor> {
    let (scores, indices) = (&operands[0], &operands[1]);
    let (experts, top_k, length) = (scores.sizes[1], indices.sizes[1], attributes.sequence);
    let mut loss = Vec::new();
    for (scores, indices) in
        scores.data.chunks_exact(length * experts).zip(indices.data.chunks_exact(length * top_k))
    {
        let mut affinity = vec![0.0; experts];
        for scores in scores.chunks_exact(experts) {
            let sum: f64 = scores.iter().sum();
            for (affinity, score) in affinity.iter_mut().zip(scores) {
                *affinity += score / sum / length as f64;
            }
        }
        loss.push(inner(&load(indices, experts), &affinity));
    }
    vec![tensor(DType::F32, &[loss.len()], loss)]
}

pub(crate) fn balance_loss_gradient(attributes: &BalanceLossGradient, operands: &[Tensor]) -> Vec<Tensor> {
    let (scores, indices, dloss) = (&operands[0], &operands[1], &operands[2]);
    let (experts, top_k, length) = (scores.sizes[1], indices.sizes[1], attributes.sequence);
    let mut dscores = Vec::with_capacity(scores.data.len());
    for (n, &dloss) in dloss.data.iter().enumerate() {
        let load = load(&indices.data[n * length * top_k..][..length * top_k], experts);
        for scores in scores.data[n * length * experts..][..length * experts].chunks_exact(experts) {
            let sum: f64 = scores.iter().sum();
            let mean = inner(&load, scores) / sum;
            dscores.extend(load.iter().map(|load| dloss / (length as f64 * sum) * (load - mean)));
        }
    }
    vec![tensor(DType::F32, &scores.sizes, dscores)]
}

pub(crate) fn expert_sort(attributes: &ExpertSort, operands: &[Tensor]) -> Vec<Tensor> {
    let indices = &operands[0];
    let (experts, top_k, pairs) = (attributes.experts, indices.sizes[1], indices.data.len());
    let expert = |pair: usize| indices.data[pair].clamp(0.0, experts as f64 - 1.0) as usize;
    let mut offsets = vec![0usize; experts + 1];
    for pair in 0..pairs {
        offsets[expert(pair) + 1] += 1;
    }
    for e in 0..experts {
        offsets[e + 1] += offsets[e];
    }
    let mut next = offsets.clone();
    let (mut token, mut slot) = (vec![0.0; pairs], vec![0.0; pairs]);
    for pair in 0..pairs {
        let place = &mut next[expert(pair)];
        slot[pair] = *place as f64;
        token[*place] = (pair / top_k) as f64;
        *place += 1;
    }
    let offsets = offsets.into_iter().map(|offset| offset as f64).collect();
    vec![
        tensor(DType::I32, &[pairs], token),
        tensor(DType::I32, &indices.sizes, slot),
        tensor(DType::I32, &[experts + 1], offsets),
    ]
}

pub(crate) fn combine(_: &Combine, operands: &[Tensor]) -> Vec<Tensor> {
    let (y, slots, weights) = (&operands[0], &operands[1], &operands[2]);
    let (rows, columns, top_k) = (y.sizes[0], y.sizes[1], slots.sizes[1]);
    let mut out = vec![0.0; slots.sizes[0] * columns];
    for (pair, slot) in slots.data.iter().enumerate() {
        if let Some(row) = within(*slot, rows) {
            let out = &mut out[pair / top_k * columns..][..columns];
            add_scaled(out, weights.data[pair], &y.data[row * columns..][..columns]);
        }
    }
    vec![tensor(y.dtype, &[slots.sizes[0], columns], out)]
}

pub(crate) fn combine_gradient(_: &CombineGradient, operands: &[Tensor]) -> Vec<Tensor> {
    let (y, slots, weights, dout) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let (rows, columns, top_k) = (y.sizes[0], y.sizes[1], slots.sizes[1]);
    let mut dy = vec![0.0; y.data.len()];
    let mut dweights = vec![0.0; weights.data.len()];
    for (pair, slot) in slots.data.iter().enumerate() {
        if let Some(row) = within(*slot, rows) {
            let place = row * columns..(row + 1) * columns;
            let dout = &dout.data[pair / top_k * columns..][..columns];
            add_scaled(&mut dy[place.clone()], weights.data[pair], dout);
            dweights[pair] = inner(&y.data[place], dout);
        }
    }
    vec![tensor(y.dtype, &y.sizes, dy), tensor(DType::F32, &weights.sizes, dweights)]
}
