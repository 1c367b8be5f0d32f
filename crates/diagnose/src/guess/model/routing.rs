//! Experts: their choice, their weights, their balance.

use super::{Outputs, within};
use crate::guess::steps::{Steps, row};
use toprope_program::Tensor;
use toprope_program::operator::{Router, RouterGradient, Scoring};

const CHOICE: &str = "the choice of the best";

pub(super) fn router(router: &Router, o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, experts) = (o[0].sizes[0], o[0].sizes[1]);
    let (mut all, mut indices, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts = vec![0.0; experts];
    for at in 0..rows {
        let logits = row(o[0], at);
        let scores: Vec<f64> = match router.scoring {
            Scoring::Sigmoid => {
                let one = |x: &f64| {
                    steps.over(
                        "the sigmoid's reciprocal",
                        1.0,
                        1.0 + steps.value("the exponentials", steps.exponential("the exponents", Some(-x))),
                    )
                };
                logits.iter().map(|x| steps.value("the scores", one(x))).collect()
            }
            Scoring::Softmax => {
                let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exponential = |x: &f64| {
                    steps.value("the exponentials", steps.exponential("the exponents", Some(x - most)))
                };
                let e: Vec<f64> = logits.iter().map(exponential).collect();
                let sum = steps.sum("the sum of exponentials", experts, |i| e[i]);
                e.iter()
                    .map(|e| steps.value("the scores", steps.over("the reciprocal of the sum", *e, sum)))
                    .collect()
            }
        };
        // Choices are made in f32, so that a tie there is a tie here.
        let narrow = |x: f64| f64::from(x as f32);
        let biased: Vec<f64> = scores
            .iter()
            .zip(&o[1].data)
            .map(|(s, bias)| narrow(narrow(*s) + steps.addend("the bias", *bias)))
            .collect();
        let size = experts / router.groups.max(1);
        let members = |group: usize| group * size..(group + 1) * size;
        let of_group = |group: usize| {
            let best = steps.best(CHOICE, &biased, members(group).collect(), 2);
            narrow(steps.sum("the sum of a group's two best", best.len(), |i| biased[best[i]]))
        };
        let groups: Vec<f64> = (0..router.groups).map(of_group).collect();
        let chosen_groups = steps.best(CHOICE, &groups, (0..router.groups).collect(), router.top_groups);
        let candidates: Vec<usize> = chosen_groups.into_iter().flat_map(members).collect();
        let of_candidates = |e: usize| if candidates.contains(&e) { biased[e] } else { f64::NEG_INFINITY };
        let masked: Vec<f64> = (0..experts).map(of_candidates).collect();
        let chosen = steps.best(CHOICE, &masked, (0..experts).collect(), router.top_k);
        let sum = steps.sum("the sum of the chosen scores", chosen.len(), |i| scores[chosen[i]]);
        let divisor = if router.normalize { sum + 1e-20 } else { 1.0 };
        for expert in chosen {
            indices.push(expert as f64);
            let weight = steps.factor("the scale", router.scale) * scores[expert];
            weights.push(steps.over("the reciprocal of the sum of the chosen", weight, divisor));
            counts[expert] += 1.0;
        }
        all.extend(scores);
    }
    vec![Some(all), Some(indices), Some(weights), Some(counts)]
}

pub(super) fn router_gradient(router: &RouterGradient, o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, experts) = (o[0].sizes[0], o[0].sizes[1]);
    let mut dlogits = Vec::with_capacity(o[0].data.len());
    for at in 0..rows {
        let (s, weights, dweights) = (row(o[0], at), row(o[2], at), row(o[3], at));
        let chosen: Vec<Option<usize>> = row(o[1], at).iter().map(|e| within(*e, experts)).collect();
        let mut g: Vec<f64> = match o.get(4) {
            Some(dscores) => {
                row(dscores, at).iter().map(|x| steps.addend("the scores' own gradient", *x)).collect()
            }
            None => vec![0.0; experts],
        };
        let (divisor, along) = if router.normalize {
            let sum: f64 = chosen.iter().flatten().map(|e| s[*e]).sum();
            let along = steps
                .sum("the sum of weights and their gradients", weights.len(), |i| weights[i] * dweights[i]);
            (sum + 1e-20, steps.term("the divisor's term", along))
        } else {
            (1.0, 0.0)
        };
        for (expert, dweight) in chosen.iter().zip(dweights) {
            if let Some(expert) = expert {
                let own = steps.factor("the scale", router.scale) * dweight - along;
                g[*expert] += steps.over("the reciprocal of the sum of the chosen", own, divisor);
            }
        }
        match router.scoring {
            Scoring::Sigmoid => {
                let slope = |s: f64| s * steps.factor("one less the score", 1.0 - s);
                dlogits.extend(g.iter().zip(s).map(|(g, s)| g * slope(*s)));
            }
            Scoring::Softmax => {
                let mean =
                    steps.term("the mean's term", steps.sum("the mean's sum", experts, |i| g[i] * s[i]));
                dlogits.extend(g.iter().zip(s).map(|(g, s)| s * (g - mean)));
            }
        }
    }
    vec![Some(dlogits)]
}

/// How often each expert was chosen in a sequence, times `E/(K·S)`.
fn load(indices: &[f64], experts: usize, steps: &Steps) -> Vec<f64> {
    let mut load = vec![0.0; experts];
    indices.iter().filter_map(|e| within(*e, experts)).for_each(|e| load[e] += 1.0);
    let factor = steps.factor("the number of experts", experts as f64);
    let divisor = steps.count("the number of choices", indices.len());
    load.into_iter().map(|count| count * factor / divisor).collect()
}

/// A sequence's scores and choices.
fn sequences<'a>(o: &'a [&Tensor], length: usize) -> impl Iterator<Item = (&'a [f64], &'a [f64])> {
    let (experts, k) = (o[0].sizes[1], o[1].sizes[1]);
    o[0].data.chunks_exact((length * experts).max(1)).zip(o[1].data.chunks_exact((length * k).max(1)))
}

pub(super) fn balance_loss(length: usize, o: &[&Tensor], steps: &Steps) -> Outputs {
    let experts = o[0].sizes[1];
    let mut loss = Vec::new();
    for (scores, indices) in sequences(o, length) {
        let load = load(indices, experts, steps);
        let sums: Vec<f64> = scores
            .chunks_exact(experts)
            .map(|row| steps.sum("a token's sum of scores", experts, |i| row[i]))
            .collect();
        let affinity = |e: usize| {
            steps.sum("the sum over tokens", length, |t| {
                steps.over("the reciprocal of a token's sum", scores[t * experts + e], sums[t])
            }) / steps.count("the number of tokens", length)
        };
        let affinity: Vec<f64> = (0..experts).map(affinity).collect();
        loss.push(steps.sum("the sum over experts", experts, |e| load[e] * affinity[e]));
    }
    vec![Some(loss)]
}

pub(super) fn balance_loss_gradient(length: usize, o: &[&Tensor], steps: &Steps) -> Outputs {
    let experts = o[0].sizes[1];
    let mut dscores = Vec::with_capacity(o[0].data.len());
    for ((scores, indices), dloss) in sequences(o, length).zip(&o[2].data) {
        let load = load(indices, experts, steps);
        for scores in scores.chunks_exact(experts) {
            let sum = steps.sum("a token's sum of scores", experts, |i| scores[i]);
            let mean = steps.sum("the mean's sum", experts, |i| load[i] * scores[i]);
            let mean = steps.over("the reciprocal of a token's sum", mean, sum);
            let mean = steps.term("the mean's term", mean);
            let divisor = steps.count("the number of tokens", length) * sum;
            let dloss = steps.factor("the loss's gradient", *dloss);
            dscores.extend(
                load.iter()
                    .map(|load| steps.over("the reciprocal of the divisor", dloss, divisor) * (load - mean)),
            );
        }
    }
    vec![Some(dscores)]
}

pub(super) fn combine(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, width, k) = (o[0].sizes[0], o[0].sizes[1], o[1].sizes[1]);
    let one = |i: usize| {
        let (token, d) = (i / width, i % width);
        steps.sum("the sum over a token's experts", k, |at| {
            let pair = token * k + at;
            let weight = steps.factor("the weights", o[2].data[pair]);
            within(o[1].data[pair], rows).map_or(0.0, |slot| weight * o[0].data[slot * width + d])
        })
    };
    vec![Some((0..o[1].sizes[0] * width).map(one).collect())]
}

pub(super) fn combine_gradient(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (rows, width, k) = (o[0].sizes[0], o[0].sizes[1], o[1].sizes[1]);
    let mut dy = vec![0.0; o[0].data.len()];
    let mut dweights = vec![0.0; o[2].data.len()];
    for (pair, slot) in o[1].data.iter().enumerate() {
        let Some(slot) = within(*slot, rows) else { continue };
        let dout = row(o[3], pair / k);
        if steps.covers("a token's experts", pair % k, k) {
            let weight = steps.factor("the weights", o[2].data[pair]);
            (0..width).for_each(|d| dy[slot * width + d] += weight * dout[d]);
        }
        let y = row(o[0], slot);
        dweights[pair] = steps.sum("a weight's sum", width, |d| y[d] * dout[d]);
    }
    vec![Some(dy), Some(dweights)]
}
