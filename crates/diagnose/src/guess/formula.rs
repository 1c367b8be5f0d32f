//! Formulas that differ from the contract's in a part that is neither attribute nor operand: where epsilon stands, which moments
//! are corrected, which way weight decay goes, which terms a gradient has.

use super::lab::{Lab, Sample};
use super::steps::row;
use super::{Conclusion, Kind};
use toprope_conformance::lockstep::Obstacle;
use toprope_program::operator::{Adamw, Router, Scoring};
use toprope_program::tensor::round;
use toprope_program::{Operator, Tensor};

/// Ways to differ from AdamW: Loshchilov and Hutter, arXiv 1711.05101; what other implementations do.
#[derive(Clone, Copy, PartialEq)]
enum Slip {
    NoCorrection,
    FirstUncorrected,
    SecondUncorrected,
    StepEarlier,
    StepLater,
    EpsilonInRoot,
    EpsilonBeforeCorrection,
    NoEpsilon,
    RootOverWhole,
    AlwaysFirst,
    FirstUnclipped,
    SecondUnclipped,
    DecayThroughMoments,
    DecayAfterStep,
    DecayWithoutRate,
    OldMoments,
    FactorIgnored,
}

const SLIPS: [(Slip, Kind, &str); 17] = [
    (Slip::NoCorrection, Kind::BiasCorrection, "without correcting the moments for their start at zero"),
    (Slip::FirstUncorrected, Kind::BiasCorrection, "without correcting the first moment"),
    (Slip::SecondUncorrected, Kind::BiasCorrection, "without correcting the second moment"),
    (Slip::StepEarlier, Kind::BiasCorrection, "with the corrections of the step before"),
    (Slip::StepLater, Kind::BiasCorrection, "with the corrections of the step after"),
    (Slip::EpsilonInRoot, Kind::Epsilon, "with epsilon inside the root"),
    (
        Slip::EpsilonBeforeCorrection,
        Kind::Epsilon,
        "with epsilon added before the second moment is corrected",
    ),
    (Slip::NoEpsilon, Kind::Epsilon, "without epsilon"),
    (
        Slip::RootOverWhole,
        Kind::BiasCorrection,
        "with the second moment's root over its correction, not over the root of that",
    ),
    (Slip::AlwaysFirst, Kind::BiasCorrection, "with the correction of the first step in each"),
    (Slip::FirstUnclipped, Kind::WrongOperand, "with a first moment that the clipping factor does not enter"),
    (
        Slip::SecondUnclipped,
        Kind::WrongOperand,
        "with a second moment that the clipping factor does not enter",
    ),
    (
        Slip::DecayThroughMoments,
        Kind::WeightDecay,
        "with weight decay through the moments (L2 regularization)",
    ),
    (Slip::DecayAfterStep, Kind::WeightDecay, "with weight decay of the weight after the step"),
    (Slip::DecayWithoutRate, Kind::WeightDecay, "with weight decay that is not times the learning rate"),
    (Slip::OldMoments, Kind::WrongOperand, "with the moments before this step"),
    (Slip::FactorIgnored, Kind::WrongOperand, "without the clipping factor"),
];

pub(super) fn optimizer(lab: &mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle> {
    let operator = lab.base.probe.operator().clone();
    match &operator {
        Operator::Adamw(adamw) => {
            // Both digests are outputs: that of the state behind the step must not be that of the state before.
            let old = |sample: &Sample| {
                let outputs = &sample.outcome.outputs;
                outputs.len() > 4 && outputs[3].data == outputs[4].data && sample.wrong_outputs().contains(&3)
            };
            if lab.failing().count() > 0 && lab.failing().all(old) {
                let sentence =
                    "The digest is taken of the state before the step: what the step wrote is not read.";
                let ran = "both digests of the step";
                return Ok(lab.conclude(Kind::StaleBuffer, sentence, ran, "they are the same"));
            }
            for (slip, kind, what) in SLIPS {
                let holds = |sample: &Sample| {
                    let mut want = slipped(adamw, sample, slip);
                    let steps = |output: &usize| want[*output].dtype.is_float();
                    if !sample.wrong_outputs().iter().any(steps) {
                        return false;
                    }
                    // A digest of another state is another digest.
                    for (want, got) in want.iter_mut().zip(&sample.outcome.outputs) {
                        if !want.dtype.is_float() {
                            want.data.clone_from(&got.data);
                        }
                    }
                    sample.explained_by_outputs(want)
                };
                if lab.failing().count() > 0 && lab.failing().all(holds) {
                    let draws = lab.failing().count();
                    let ran = format!("the optimizer {what}, on {draws} draws");
                    return Ok(lab.conclude(kind, format!("It steps {what}."), ran, "it is what was given"));
                }
            }
            lab.note(
                format!("the optimizer with a part of its formula changed, {} ways", SLIPS.len()),
                "is not what was given",
            );
        }
        Operator::Router(router) => {
            let holds = |sample: &Sample| sample.explained_by_outputs(weighted_with_bias(router, sample));
            if lab.failing().count() > 0 && lab.failing().all(holds) {
                let sentence =
                    "Its weights are those of the scores with the bias; the bias is for the choice alone.";
                let ran = "the weights from scores with the bias";
                return Ok(lab.conclude(Kind::WrongOperand, sentence, ran, "they are what was given"));
            }
            let by_best = lab.failing().all(|sample| chosen_by_best(router, sample));
            if lab.failing().count() > 0 && by_best {
                let sentence = "A group of experts counts by its best score alone, not by its two best.";
                let ran = "the choice where a group's score is its best one";
                return Ok(lab.conclude(Kind::MissingTerms, sentence, ran, "it is what was given"));
            }
            let holds = |sample: &Sample| sample.explained_by_outputs(weighted_otherwise(router, sample));
            if lab.failing().count() > 0 && lab.failing().all(holds) {
                let sentence =
                    "Its weights are those of the other scoring; the choice is that of the one asked for.";
                let ran = "the weights from a softmax in place of sigmoids, or the other way round";
                return Ok(lab.conclude(Kind::WrongAttribute, sentence, ran, "they are what was given"));
            }
            let holds = |sample: &Sample| sample.explained_by_outputs(weighted_alone(router, sample));
            if lab.failing().count() > 0 && lab.failing().all(holds) {
                let sentence = "Chosen scores are divided by their sum without its epsilon.";
                let ran = "the weights without epsilon";
                return Ok(lab.conclude(Kind::Epsilon, sentence, ran, "they are what was given"));
            }
        }
        Operator::Activation(activation) => {
            for (what, function) in FUNCTIONS {
                let holds = |sample: &Sample| sample.explained_by_outputs(activated(sample, function));
                if lab.failing().count() > 0 && lab.failing().all(holds) {
                    let asked = format!("{:?}", activation.kind).to_lowercase();
                    let ran = format!("{what} of the operand");
                    let sentence = format!("It computes {what}; {asked} was asked for.");
                    return Ok(lab.conclude(Kind::WrongAttribute, sentence, ran, "it is what was given"));
                }
            }
        }
        Operator::LinearCrossEntropyGradient(_) => {
            let holds = |sample: &Sample| sample.explained_by_outputs(without_targets(sample));
            if lab.failing().count() > 0 && lab.failing().all(holds) {
                let sentence = "The target's own term is missing: the gradient is that of the softmax alone.";
                let ran = "the gradients without the targets' terms";
                return Ok(lab.conclude(Kind::MissingTerms, sentence, ran, "they are what was given"));
            }
        }
        Operator::RmsNorm(norm) => {
            let epsilon = f64::from(norm.epsilon as f32);
            let outside = |square: f64| 1.0 / (square.sqrt() + epsilon);
            let largest = |square: f64| 1.0 / square.max(epsilon).sqrt();
            let ways: [(&str, &dyn Fn(f64) -> f64); 2] = [
                ("with epsilon outside of the root", &outside),
                ("with epsilon as the least mean square", &largest),
            ];
            for (what, rstd) in ways {
                let holds = |sample: &Sample| sample.explained_by_outputs(normed(sample, rstd));
                if lab.failing().count() > 0 && lab.failing().all(holds) {
                    let ran = format!("the norm {what}");
                    return Ok(lab.conclude(
                        Kind::Epsilon,
                        format!("It norms {what}."),
                        ran,
                        "it is what was given",
                    ));
                }
            }
        }
        _ => {}
    }
    Ok(None)
}

/// A function, by name.
type Function = (&'static str, fn(f64) -> f64);

/// What kernels compute in place of the function that was asked for, where the contract has no name for it.
const FUNCTIONS: [Function; 6] = [
    ("gelu by the error function", |x| 0.5 * x * (1.0 + error_function(x / std::f64::consts::SQRT_2))),
    ("gelu by a sigmoid of 1.702 x", |x| x / (1.0 + (-1.702 * x).exp())),
    ("the sigmoid in straight pieces", |x| (x / 6.0 + 0.5).clamp(0.0, 1.0)),
    ("silu by a sigmoid in straight pieces", |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
    ("relu with a slope of 0.01", |x| if x < 0.0 { 0.01 * x } else { x }),
    ("relu that ends at 6", |x| x.clamp(0.0, 6.0)),
];

/// erf(x) by its series, and by the continued fraction of its complement beyond 3 (Abramowitz and Stegun, 7.1.5 and 7.1.14).
fn error_function(x: f64) -> f64 {
    let size = x.abs();
    let value = if size < 3.0 {
        let (mut term, mut sum) = (size, size);
        for n in 1..80 {
            term *= -size * size / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(size, |below, n| size + f64::from(n) / 2.0 / below);
        1.0 - (-size * size).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn activated(sample: &Sample, function: fn(f64) -> f64) -> Vec<Tensor> {
    let (operands, mut want) = (sample.probe.operands(), sample.exact.want.clone());
    want[0].data = operands[0].data.iter().map(|x| function(*x)).collect();
    want
}

/// The head's gradients with `g = dloss·p` in place of `dloss·(p - [v = target])`.
fn without_targets(sample: &Sample) -> Vec<Tensor> {
    let (operands, mut want) = (sample.probe.operands(), sample.exact.want.clone());
    let width = operands[0].sizes.last().copied().unwrap_or(1);
    let words = operands[1].sizes.first().copied().unwrap_or(0) as f64;
    for (row, target) in operands[2].data.iter().enumerate() {
        if !(0.0..words).contains(target) {
            continue;
        }
        let (word, dloss) = (*target as usize, operands[3].data[row]);
        for d in 0..width {
            want[1].data[row * width + d] += dloss * operands[1].data[word * width + d];
            want[2].data[word * width + d] += dloss * operands[0].data[row * width + d];
        }
    }
    want
}

/// What the sum of the chosen scores has added to it (the contract's formula).
const LEAST_SUM: f64 = 1e-20;

/// The weights of the chosen experts, from the scores that `score` gives (row, expert); `epsilon` keeps their sum from zero.
fn weighted(
    router: &Router,
    sample: &Sample,
    epsilon: f64,
    score: impl Fn(usize, usize) -> f64,
) -> Vec<Tensor> {
    let mut want = sample.exact.want.clone();
    let (experts, k) = (want[0].sizes.last().copied().unwrap_or(1).max(1), router.top_k.max(1));
    for row in 0..want[1].data.len() / k {
        let of = |at: usize| score(row, (want[1].data[row * k + at] as usize).min(experts - 1));
        let scores: Vec<f64> = (0..k).map(of).collect();
        let sum = if router.normalize { scores.iter().sum::<f64>() + epsilon } else { 1.0 };
        for (at, score) in scores.into_iter().enumerate() {
            want[2].data[row * k + at] = router.scale * score / sum;
        }
    }
    want
}

fn weighted_with_bias(router: &Router, sample: &Sample) -> Vec<Tensor> {
    let (scores, bias) = (&sample.exact.want[0].data, sample.probe.operands().swap_remove(1).data);
    weighted(router, sample, LEAST_SUM, |row, expert| scores[row * bias.len() + expert] + bias[expert])
}

/// The weights of the scoring that was not asked for.
fn weighted_otherwise(router: &Router, sample: &Sample) -> Vec<Tensor> {
    let logits = sample.probe.operands().swap_remove(0);
    weighted(router, sample, LEAST_SUM, |at, expert| {
        let logits = row(&logits, at);
        match router.scoring {
            Scoring::Softmax => 1.0 / (1.0 + (-logits[expert]).exp()),
            Scoring::Sigmoid => {
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
                (logits[expert] - largest).exp() / sum
            }
        }
    })
}

/// The weights of the scores as they are stored, divided by their sum alone: where all vanish there that is 0 by 0.
fn weighted_alone(router: &Router, sample: &Sample) -> Vec<Tensor> {
    let scores = &sample.exact.want[0];
    weighted(router, sample, 0.0, |at, expert| round(scores.dtype, row(scores, at)[expert]))
}

/// Rows of a choice that must be as predicted, of all: margins may lie within a rounding.
const CHOSEN_SHARE: f64 = 0.97;

/// Whether the choice is what it is where a group of experts counts by its best score alone.
fn chosen_by_best(router: &Router, sample: &Sample) -> bool {
    let operands = sample.probe.operands();
    let (bias, experts, k) = (&operands[1].data, operands[1].data.len().max(1), router.top_k.max(1));
    let each = experts / router.groups.max(1);
    if router.top_groups >= router.groups || each < 2 || !sample.wrong_outputs().contains(&1) {
        return false;
    }
    let (scores, got) = (&sample.exact.want[0].data, &sample.outcome.outputs[1].data);
    let best = |list: &mut Vec<(usize, f64)>, count: usize| {
        list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        list.truncate(count);
    };
    let rows = scores.len() / experts;
    let as_predicted = |row: &usize| {
        let biased = |expert: usize| scores[row * experts + expert] + bias[expert];
        let of_group = |group: usize| (group * each..(group + 1) * each).map(biased).fold(f64::MIN, f64::max);
        let mut groups: Vec<(usize, f64)> =
            (0..router.groups).map(|group| (group, of_group(group))).collect();
        best(&mut groups, router.top_groups);
        let open = |expert: &usize| groups.iter().any(|(group, _)| *group == expert / each);
        let mut chosen: Vec<(usize, f64)> = (0..experts).filter(open).map(|e| (e, biased(e))).collect();
        best(&mut chosen, k);
        chosen.iter().zip(&got[row * k..]).all(|((expert, _), got)| *expert as f64 == *got)
    };
    (0..rows).filter(as_predicted).count() as f64 >= CHOSEN_SHARE * rows as f64
}

fn normed(sample: &Sample, rstd: &dyn Fn(f64) -> f64) -> Vec<Tensor> {
    let (operands, mut want) = (sample.probe.operands(), sample.exact.want.clone());
    let columns = operands[0].sizes.last().copied().unwrap_or(1).max(1);
    for (row, x) in operands[0].data.chunks(columns).enumerate() {
        let r = rstd(x.iter().map(|x| x * x).sum::<f64>() / columns as f64);
        want[1].data[row] = r;
        for (d, x) in x.iter().enumerate() {
            want[0].data[row * columns + d] = x * r * operands[1].data[d];
        }
    }
    want
}

fn slipped(adamw: &Adamw, sample: &Sample, slip: Slip) -> Vec<Tensor> {
    let (operands, mut want) = (sample.probe.operands(), sample.exact.want.clone());
    let narrow = |x: f64| f64::from(x as f32);
    let (beta1, beta2, epsilon) = (narrow(adamw.beta1), narrow(adamw.beta2), narrow(adamw.epsilon));
    let (rest1, rest2) = (narrow(1.0 - adamw.beta1), narrow(1.0 - adamw.beta2));
    let decay = narrow(adamw.weight_decay);
    let factor = if slip == Slip::FactorIgnored { 1.0 } else { operands[4].data[0] };
    let (rate, mut c1, mut c2) = (operands[5].data[0], operands[5].data[1], operands[5].data[2]);
    // 1 - β^(t±1), from 1 - β^t.
    let at = |c: f64, beta: f64, later: bool| 1.0 - (1.0 - c) * if later { beta } else { 1.0 / beta };
    match slip {
        Slip::NoCorrection => (c1, c2) = (1.0, 1.0),
        Slip::FirstUncorrected => c1 = 1.0,
        Slip::SecondUncorrected => c2 = 1.0,
        Slip::AlwaysFirst => (c1, c2) = (1.0 - adamw.beta1, 1.0 - adamw.beta2),
        Slip::StepEarlier => (c1, c2) = (at(c1, adamw.beta1, false), at(c2, adamw.beta2, false)),
        Slip::StepLater => (c1, c2) = (at(c1, adamw.beta1, true), at(c2, adamw.beta2, true)),
        _ => {}
    }
    for i in 0..operands[0].data.len() {
        let (w, m, v) = (operands[0].data[i], operands[2].data[i], operands[3].data[i]);
        let mut g = operands[1].data[i] * factor;
        if slip == Slip::DecayThroughMoments {
            g += decay * w;
        }
        let whole = operands[1].data[i];
        let first = if slip == Slip::FirstUnclipped { whole } else { g };
        let second = if slip == Slip::SecondUnclipped { whole } else { g };
        let (next_m, next_v) = (beta1 * m + rest1 * first, beta2 * v + rest2 * second * second);
        let (m, v) = if slip == Slip::OldMoments { (m, v) } else { (next_m, next_v) };
        let step = match slip {
            Slip::EpsilonInRoot => (m / c1) / (v / c2 + epsilon).sqrt(),
            Slip::NoEpsilon => (m / c1) / (v / c2).sqrt(),
            Slip::RootOverWhole => (m / c1) / (v.sqrt() / c2 + epsilon),
            Slip::EpsilonBeforeCorrection => (m / c1) / ((v.sqrt() + epsilon) / c2.sqrt()),
            _ => (m / c1) / ((v / c2).sqrt() + epsilon),
        };
        want[0].data[i] = match slip {
            Slip::DecayThroughMoments => w - rate * step,
            Slip::DecayAfterStep => (w - rate * step) * (1.0 - rate * decay),
            Slip::DecayWithoutRate => w - decay * w - rate * step,
            _ => w - rate * decay * w - rate * step,
        };
        (want[1].data[i], want[2].data[i]) = (next_m, next_v);
    }
    want
}
