//! Magnitudes of operators that are not sums of products.

use super::{absolute, add_absolute, inner_absolute};
use crate::operator::elementwise::{derivative, function};
use crate::operator::rotary::pair;
use crate::operator::routing::load;
use crate::operator::{inner, within};
use toprope_program::Tensor;
use toprope_program::operator::{
    Activation, ActivationKind, Adamw, BalanceLossGradient, BiasUpdate, Rope, Router, RouterGradient, Scoring,
};

/// `|a| + |b|`.
pub(super) fn sum(a: &Tensor, b: &Tensor) -> Vec<f64> {
    a.data.iter().zip(&b.data).map(|(a, b)| a.abs() + b.abs()).collect()
}

/// `|f(x)| + |x·f'(x)|`, for silu and gelu `|x|` at least, and for sigmoid 2^-104: where e^-x overflows an f32, a device gives 0
/// and is off by 2^-128.
pub(super) fn activation(attributes: &Activation, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let kind = attributes.kind;
    let floor = |x: f64| match kind {
        ActivationKind::Silu | ActivationKind::Gelu => x.abs(),
        ActivationKind::Sigmoid => 2f64.powi(-104),
        ActivationKind::Relu | ActivationKind::Tanh => 0.0,
    };
    let size = |x: &f64| (function(kind, *x).abs() + (x * derivative(kind, *x)).abs()).max(floor(*x));
    vec![operands[0].data.iter().map(size).collect()]
}

/// `|dy|·(1 + |x|)`.
pub(super) fn activation_gradient(operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (x, dy) = (&operands[0], &operands[1]);
    vec![x.data.iter().zip(&dy.data).map(|(x, dy)| dy.abs() * (1.0 + x.abs())).collect()]
}

/// `|dy·u|·(1 + |g|)` and `|dy·g|`.
/// Where e^-gate overflows an f32, a device gives 0 and is off by |gate·up|·2^-128.
pub(super) fn swiglu(operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let columns = outputs[0].sizes[1];
    let products = operands[0].data.chunks_exact(2 * columns).flat_map(|x| {
        let (gate, up) = x.split_at(columns);
        gate.iter().zip(up).map(|(gate, up)| (gate * up).abs() * 2f64.powi(-104)).collect::<Vec<f64>>()
    });
    vec![outputs[0].data.iter().zip(products).map(|(y, least)| y.abs().max(least)).collect()]
}

pub(super) fn swiglu_gradient(operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (x, dy) = (&operands[0], &operands[1]);
    let columns = x.sizes[1] / 2;
    let mut dx = Vec::with_capacity(x.data.len());
    for (x, dy) in x.data.chunks_exact(2 * columns).zip(dy.data.chunks_exact(columns)) {
        let (gate, up) = x.split_at(columns);
        dx.extend((0..columns).map(|f| (dy[f] * up[f]).abs() * (1.0 + gate[f].abs())));
        dx.extend((0..columns).map(|f| (dy[f] * gate[f]).abs()));
    }
    vec![dx]
}

/// Of dx `rstd·(|dy·weight| + |x|·rstd²·Σ|dy·weight·x|/D)`, of dweight `Σ|dy·x·rstd|`.
pub(super) fn rms_norm_gradient(operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (x, weight, rstd, dy) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let columns = weight.data.len();
    let mut dx = Vec::with_capacity(x.data.len());
    let mut dweight = vec![0.0; columns];
    let rows = x.data.chunks_exact(columns).zip(dy.data.chunks_exact(columns));
    for ((x, dy), rstd) in rows.zip(&rstd.data) {
        let scaled: Vec<f64> = dy.iter().zip(&weight.data).map(|(dy, weight)| dy * weight).collect();
        let c = inner_absolute(&scaled, x) / columns as f64;
        dx.extend(scaled.iter().zip(x).map(|(s, x)| rstd * (s.abs() + x.abs() * rstd * rstd * c)));
        let products: Vec<f64> = dy.iter().zip(x).map(|(dy, x)| dy * x).collect();
        add_absolute(&mut dweight, *rstd, &products);
    }
    vec![dx, dweight]
}

/// `|a·c| + |b·s|` and `|a·s| + |b·c|`; columns that are copied have their own size.
pub(super) fn rope(attributes: &Rope, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (x, positions, table) = (absolute(&operands[0]), &operands[1], absolute(&operands[2]));
    let (heads, columns) = (x.sizes[1], x.sizes[2]);
    let (rows, pairs) = (table.sizes[0], table.sizes[2]);
    let mut y = x.data;
    for (token, position) in y.chunks_exact_mut(heads * columns).zip(&positions.data) {
        let Some(p) = within(*position, rows) else { continue };
        let (cosines, sines) = table.data[p * 2 * pairs..][..2 * pairs].split_at(pairs);
        for head in token.chunks_exact_mut(columns) {
            for i in 0..pairs {
                let (first, second) = pair(attributes, i, pairs);
                let (a, b) = (head[first], head[second]);
                head[first] = a * cosines[i] + b * sines[i];
                head[second] = a * sines[i] + b * cosines[i];
            }
        }
    }
    vec![y]
}

/// `|scores|` and `|weights|`; for softmax `|scores|·(1 + d)` and `|weights|·(1 + 2·max d)`, `d` the distance of a logit
/// from the row's largest: it is rounded before the exponential.
pub(super) fn router(attributes: &Router, operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let mut magnitudes: Vec<Vec<f64>> =
        outputs.iter().map(|output| output.data.iter().map(|y| y.abs()).collect()).collect();
    if attributes.scoring == Scoring::Sigmoid {
        return magnitudes;
    }
    let (experts, top_k) = (operands[0].sizes[1], attributes.top_k);
    for (t, logits) in operands[0].data.chunks_exact(experts).enumerate() {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (e, logit) in logits.iter().enumerate() {
            magnitudes[0][t * experts + e] *= 1.0 + (most - logit);
        }
        let chosen = outputs[1].data[t * top_k..(t + 1) * top_k].iter();
        let farthest = chosen
            .filter_map(|e| within(*e, experts))
            .fold(0.0, |farthest: f64, e| farthest.max(most - logits[e]));
        for weight in &mut magnitudes[2][t * top_k..(t + 1) * top_k] {
            *weight *= 1.0 + 2.0 * farthest;
        }
    }
    magnitudes
}

/// With every term of g taken absolute: sigmoid `|g|·s`, softmax `s·(|g| + Σ|g|·s)`.
pub(super) fn router_gradient(attributes: &RouterGradient, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (scores, indices, weights, dweights) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let (experts, top_k) = (scores.sizes[1], indices.sizes[1]);
    let mut dlogits = Vec::with_capacity(scores.data.len());
    for (t, s) in scores.data.chunks_exact(experts).enumerate() {
        let row = t * top_k..(t + 1) * top_k;
        let chosen: Vec<Option<usize>> =
            indices.data[row.clone()].iter().map(|e| within(*e, experts)).collect();
        let (weights, dweights) = (&weights.data[row.clone()], &dweights.data[row]);
        let mut g = vec![0.0; experts];
        if let Some(dscores) = operands.get(4) {
            add_absolute(&mut g, 1.0, &dscores.data[t * experts..][..experts]);
        }
        let (divisor, along) = if attributes.normalize {
            let sum: f64 = chosen.iter().flatten().map(|e| s[*e]).sum();
            (sum + 1e-20, inner_absolute(dweights, weights))
        } else {
            (1.0, 0.0)
        };
        for (e, dweight) in chosen.iter().zip(dweights) {
            if let Some(e) = e {
                g[*e] += (attributes.scale * dweight.abs() + along) / divisor;
            }
        }
        match attributes.scoring {
            Scoring::Sigmoid => dlogits.extend(g.iter().zip(s).map(|(g, s)| g * s)),
            Scoring::Softmax => {
                let mean = inner(&g, s);
                dlogits.extend(g.iter().zip(s).map(|(g, s)| s * (g + mean)));
            }
        }
    }
    vec![dlogits]
}

/// `|dloss|/(S·n)·(f[e] + Σ f·scores/n)`.
pub(super) fn balance_loss_gradient(attributes: &BalanceLossGradient, operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (scores, indices, dloss) = (&operands[0], &operands[1], &operands[2]);
    let (experts, top_k, length) = (scores.sizes[1], indices.sizes[1], attributes.sequence);
    let mut dscores = Vec::with_capacity(scores.data.len());
    let sequences = scores.data.chunks_exact(length * experts).zip(indices.data.chunks_exact(length * top_k));
    for ((scores, indices), dloss) in sequences.zip(&dloss.data) {
        let load = load(indices, experts);
        for scores in scores.chunks_exact(experts) {
            let sum: f64 = scores.iter().sum();
            let mean = inner(&load, scores) / sum;
            dscores.extend(load.iter().map(|load| dloss.abs() / (length as f64 * sum) * (load + mean)));
        }
    }
    vec![dscores]
}

/// `|weights·dout|` and `Σ|y·dout|`.
pub(super) fn combine_gradient(operands: &[Tensor]) -> Vec<Vec<f64>> {
    let (y, slots, weights, dout) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let (rows, columns, top_k) = (y.sizes[0], y.sizes[1], slots.sizes[1]);
    let mut dy = vec![0.0; y.data.len()];
    let mut dweights = vec![0.0; weights.data.len()];
    for (pair, slot) in slots.data.iter().enumerate() {
        if let Some(row) = within(*slot, rows) {
            let place = row * columns..(row + 1) * columns;
            let dout = &dout.data[pair / top_k * columns..][..columns];
            add_absolute(&mut dy[place.clone()], weights.data[pair].abs(), dout);
            dweights[pair] = inner_absolute(&y.data[place], dout);
        }
    }
    vec![dy, dweights]
}

/// Of m' `β1|m| + (1-β1)|g|`, of v' itself, of w' `|w| + lr·((|m'|magnitude/c1)/(√(v'/c2) + ε))`; a digest is exact.
pub(super) fn adamw(attributes: &Adamw, operands: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let [weight, gradient, m, factor, rates] = [0, 1, 2, 4, 5].map(|index| &operands[index].data);
    let next_v = absolute(&outputs[2]).data;
    let (mut w_size, mut m_size) = (Vec::with_capacity(weight.len()), Vec::with_capacity(weight.len()));
    for i in 0..weight.len() {
        let g = gradient[i] * factor[0];
        let moment = attributes.beta1 * m[i].abs() + (1.0 - attributes.beta1) * g.abs();
        let root = (next_v[i] / rates[2]).sqrt() + attributes.epsilon;
        w_size.push(weight[i].abs() + rates[0] * (moment / rates[1] / root));
        m_size.push(moment);
    }
    let mut sizes = vec![w_size, m_size, next_v];
    sizes.extend(outputs.iter().skip(3).map(|digest| vec![0.0; digest.data.len()]));
    sizes
}

/// `|bias| + rate`.
pub(super) fn bias_update(attributes: &BiasUpdate, operands: &[Tensor]) -> Vec<Vec<f64>> {
    vec![operands[0].data.iter().map(|bias| bias.abs() + attributes.rate).collect()]
}
