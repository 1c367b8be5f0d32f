//! The experts' choice by its certificate, its gradient and balance in f64, the order of the rows by counting up.

use super::{FLOOR, Unit, Worst};
use crate::bind::View;
use crate::kernel::Context;
use crate::level::kernel;
use crate::operator::parallel::Parts;
use toprope_program::operator::{ExpertSort, Router, RouterGradient, Scoring};

/// Tokens that one thread takes at a time.
const TOKENS: usize = 64;

/// Numbers that are looked at together.
const LANES: usize = 16;

/// `e^x` with an error below 2^-32, by another route than the operators': base 2, in f64, the power of two put together
/// from bits. Beyond ±700 that of ±700.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // 1.5·2^52: what is added to it is rounded to an integer, which stands in its lowest bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let x = x.clamp(-700.0, 700.0);
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let rest = x - (shifted - SHIFT) * std::f64::consts::LN_2;
    let mut series = 1.0 / 362_880.0;
    for factor in
        [1.0 / 40_320.0, 1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
    {
        series = series * rest + factor;
    }
    series * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52))
}

/// The larger of a held distance and a new one, which may be no number.
#[inline(always)]
fn larger(held: f64, new: f64) -> f64 {
    if new < f64::INFINITY { held.max(new) } else { f64::INFINITY }
}

/// `over / under` where that is above 1, else 0: divisions are for what is wrong.
#[inline(always)]
fn beyond(over: f64, under: f64) -> f64 {
    if over <= under { 0.0 } else { larger(0.0, over / under) }
}

kernel! {
    /// The largest distance of scores from the logistic function of these logits.
    fn logistic[](logits: &'a [f32], scores: &'a [f32], unit: f64) -> f64 {
        let _ = std::marker::PhantomData::<L>;
        let mut worst = [0.0f64; LANES];
        for (logits, scores) in logits.chunks(LANES).zip(scores.chunks(LANES)) {
            let (mut x, mut got) = ([0.0f64; LANES], [0.5f64; LANES]);
            for (lane, (logit, score)) in logits.iter().zip(scores).enumerate() {
                (x[lane], got[lane]) = (f64::from(*logit), f64::from(*score));
            }
            for lane in 0..LANES {
                let want = 1.0 / (1.0 + exp(-x[lane]));
                worst[lane] = larger(worst[lane], (got[lane] - want).abs() / (unit * want + f64::from(FLOOR)));
            }
        }
        worst.into_iter().fold(0.0, larger)
    }
}

/// The largest distance of one token's scores from the softmax of its logits.
fn softmax(logits: &[f32], scores: &[f32], unit: f64) -> f64 {
    let top = logits.iter().fold(f64::NEG_INFINITY, |top, x| top.max(f64::from(*x)));
    let sum: f64 = logits.iter().map(|x| exp(f64::from(*x) - top)).sum();
    let distance = |(logit, score): (&f32, &f32)| {
        let below = top - f64::from(*logit);
        let want = exp(-below) / sum;
        (f64::from(*score) - want).abs() / (unit * want * (1.0 + below) + f64::from(FLOOR))
    };
    logits.iter().zip(scores).map(distance).fold(0.0, larger)
}

/// Values of scratch memory for the choice: of each thread b, the groups' scores, which are used; and counts.
pub(super) fn choice_values(experts: usize, groups: usize, threads: usize) -> usize {
    threads * (experts + 2 * groups) + experts
}

pub(super) fn router(
    context: &Context<'_>,
    router: &Router,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let [logits, bias, scores, indices, weights, counts] = inputs else { return worst.demand(false) };
    let (logits, bias, scores) = (logits.f32(), bias.f32(), scores.f32());
    let (indices, weights, counts) = (indices.i32(), weights.f32(), counts.i32());
    let (experts, top_k) = (bias.len(), router.top_k);
    let tokens = logits.len() / experts;
    let each = experts + 2 * router.groups;
    let (own, found) = scratch.split_at_mut(each * context.pool.threads());
    let own = Parts::new(own);
    context.pool.for_each_thread(tokens.div_ceil(TOKENS), |thread, block| {
        // SAFETY: one thread's scratch memory.
        let scratch = unsafe { own.part(thread * each, each) };
        let tokens = block * TOKENS..tokens.min((block + 1) * TOKENS);
        let place = tokens.start * experts..tokens.end * experts;
        let (logits, scores) = (&logits[place.clone()], &scores[place]);
        let unit = units[0].relative + units[0].accumulated;
        let mut largest = match router.scoring {
            Scoring::Sigmoid => logistic(context.level, logits, scores, unit),
            Scoring::Softmax => {
                let rows = logits.chunks_exact(experts).zip(scores.chunks_exact(experts));
                rows.map(|(logits, scores)| softmax(logits, scores, unit)).fold(0.0, larger)
            }
        };
        let place = tokens.start * top_k..tokens.end * top_k;
        let (indices, weights) = (&indices[place.clone()], &weights[place]);
        let all = Chosen { scores, bias, indices, weights };
        largest = larger(largest, choices(context.level, all, router, units[2], scratch));
        worst.meet(largest as f32);
    });
    let found = &mut found[..experts];
    found.fill(0.0);
    for expert in indices {
        match usize::try_from(*expert).ok().and_then(|expert| found.get_mut(expert)) {
            Some(count) => *count += 1.0,
            None => worst.demand(false),
        }
    }
    worst.demand(counts.iter().zip(&*found).all(|(count, found)| f64::from(*count) == *found));
}

kernel! {
    /// The largest distance of any of some tokens' choices.
    fn choices[](all: Chosen<'a>, router: &'a Router, weighted: Unit, scratch: &'a mut [f64]) -> f64 {
        let _ = std::marker::PhantomData::<L>;
        let mut largest = 0.0;
        let chosen = all.indices.chunks_exact(router.top_k).zip(all.weights.chunks_exact(router.top_k));
        for (scores, (indices, weights)) in all.scores.chunks_exact(all.bias.len()).zip(chosen) {
            let one = Chosen { scores, bias: all.bias, indices, weights };
            largest = larger(largest, one.distance(router, weighted, scratch));
        }
        largest
    }
}

/// Tokens' choices.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    scores: &'a [f32],
    bias: &'a [f32],
    indices: &'a [i32],
    weights: &'a [f32],
}

impl Chosen<'_> {
    /// What one token's certificate lacks, as the contract defines it.
    #[inline(always)]
    fn distance(&self, router: &Router, weighted: Unit, scratch: &mut [f64]) -> f64 {
        let experts = self.scores.len();
        let (b, rest) = scratch.split_at_mut(experts);
        let (group_scores, used) = rest.split_at_mut(router.groups);
        let mut size = 0.0f64;
        for ((b, score), bias) in b.iter_mut().zip(self.scores).zip(self.bias) {
            *b = f64::from(*score) + f64::from(*bias);
            size = size.max(f64::from(score.abs()) + f64::from(bias.abs()));
        }
        let unit = size * 2f64.powi(-22) + f64::from(FLOOR);
        let members = experts / router.groups;
        let grouped = router.groups > 1;
        if grouped {
            for (score, b) in group_scores.iter_mut().zip(b.chunks_exact(members)) {
                let [mut first, mut second] = [f64::NEG_INFINITY; 2];
                for b in b {
                    second = second.max(first.min(*b));
                    first = first.max(*b);
                }
                *score = if members > 1 { first + second } else { first };
            }
            used.fill(0.0);
        }
        let (mut least, mut sum) = (f64::INFINITY, 0.0f64);
        for expert in self.indices {
            let Some(expert) = usize::try_from(*expert).ok().filter(|expert| *expert < experts) else {
                return f64::INFINITY;
            };
            // What was chosen is taken away: a second time it is not there any more.
            let value = std::mem::replace(&mut b[expert], f64::NEG_INFINITY);
            if value == f64::NEG_INFINITY || !value.is_finite() {
                return f64::INFINITY;
            }
            least = least.min(value);
            sum += f64::from(self.scores[expert]);
            if grouped {
                used[expert / members] = 1.0;
            }
        }
        let mut largest = 0.0f64;
        let left = if grouped {
            let (last, best) = borders(group_scores, router.top_groups);
            let mut left = f64::NEG_INFINITY;
            let mut count = 0;
            for ((score, used), b) in group_scores.iter().zip(&*used).zip(b.chunks_exact(members)) {
                if *used != 0.0 {
                    count += 1;
                    largest = larger(largest, (last - score) / (2.0 * unit));
                }
                if *used != 0.0 || *score > best + 2.0 * unit {
                    left = b.iter().fold(left, |left, b| left.max(*b));
                }
            }
            if count > router.top_groups {
                return f64::INFINITY;
            }
            left
        } else {
            b.iter().fold(f64::NEG_INFINITY, |left, b| left.max(*b))
        };
        if left > least {
            largest = larger(largest, (left - least) / unit);
        }
        let divisor = if router.normalize { sum + 1e-20 } else { 1.0 };
        let scale = f64::from(router.scale as f32) / divisor;
        for (weight, expert) in self.weights.iter().zip(self.indices) {
            let want = scale * f64::from(self.scores[*expert as usize]);
            let over = (f64::from(*weight) - want).abs();
            largest = larger(largest, beyond(over, weighted.bound(want, want.abs())));
        }
        largest
    }
}

/// The scores of the last group of the best `count`, and of the best behind them: -∞ where there is none.
fn borders(scores: &[f64], count: usize) -> (f64, f64) {
    let above = |score: f64| scores.iter().filter(|other| **other > score).count();
    let (mut last, mut best) = (f64::INFINITY, f64::NEG_INFINITY);
    for score in scores {
        let higher = above(*score);
        let same = scores.iter().filter(|other| *other == score).count();
        if higher < count {
            last = last.min(*score);
        }
        if higher + same > count {
            best = best.max(*score);
        }
    }
    (last, best)
}

/// Elements of a few tokens of the router's gradient.
#[derive(Clone, Copy)]
struct Slopes<'a> {
    scores: &'a [f32],
    indices: &'a [i32],
    weights: &'a [f32],
    dweights: &'a [f32],
    dscores: Option<&'a [f32]>,
    dlogits: &'a [f32],
    experts: usize,
}

kernel! {
    /// The largest distance of some tokens' dlogits; `g` and `size` are scratch memory.
    fn slopes[](it: Slopes<'a>, router: &'a RouterGradient, unit: Unit, g: &'a mut [f64], size: &'a mut [f64]) -> f64 {
        let _ = std::marker::PhantomData::<L>;
        let (experts, scale) = (it.experts, f64::from(router.scale as f32));
        let tokens = it.scores.len() / experts.max(1);
        let top_k = it.indices.len() / tokens.max(1);
        let softmax = router.scoring == Scoring::Softmax;
        let mut largest = 0.0f64;
        for token in 0..tokens {
            let (row, place) = (token * experts..(token + 1) * experts, token * top_k..(token + 1) * top_k);
            let (scores, dlogits) = (&it.scores[row.clone()], &it.dlogits[row.clone()]);
            let (indices, dweights) = (&it.indices[place.clone()], &it.dweights[place.clone()]);
            match it.dscores {
                Some(dscores) => {
                    for ((g, size), d) in g.iter_mut().zip(&mut *size).zip(&dscores[row]) {
                        (*g, *size) = (f64::from(*d), f64::from(d.abs()));
                    }
                }
                None => {
                    g.fill(0.0);
                    size.fill(0.0);
                }
            }
            let inside = |expert: &i32| usize::try_from(*expert).ok().filter(|expert| *expert < experts);
            let [mut divisor, mut along, mut along_size] = [1.0, 0.0, 0.0];
            if router.normalize {
                divisor = 1e-20;
                for ((expert, dweight), weight) in indices.iter().zip(dweights).zip(&it.weights[place]) {
                    divisor += inside(expert).map_or(0.0, |expert| f64::from(scores[expert]));
                    let product = f64::from(*dweight) * f64::from(*weight);
                    along += product;
                    along_size += product.abs();
                }
            }
            let share = 1.0 / divisor;
            for (expert, dweight) in indices.iter().zip(dweights) {
                if let Some(expert) = inside(expert) {
                    let first = scale * f64::from(*dweight);
                    g[expert] += (first - along) * share;
                    size[expert] += (first.abs() + along_size) * share;
                }
            }
            let [mut mean, mut most] = [0.0f64; 2];
            if softmax {
                for ((score, g), size) in scores.iter().zip(&*g).zip(&*size) {
                    mean += g * f64::from(*score);
                    most += size * f64::from(*score);
                }
            }
            let mut worst = 0.0f64;
            for (((score, got), g), size) in scores.iter().zip(dlogits).zip(&*g).zip(&*size) {
                let s = f64::from(*score);
                let want = if softmax { s * (g - mean) } else { (s - s * s) * g };
                let over = (f64::from(*got) - want).abs();
                worst = larger(worst, beyond(over, unit.bound(want, s * (size + most))));
            }
            largest = larger(largest, worst);
        }
        largest
    }
}

pub(super) fn gradient(
    context: &Context<'_>,
    router: &RouterGradient,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let (scores, indices) = (inputs[0], inputs[1]);
    let (experts, top_k) = (scores.sizes()[1], indices.sizes()[1]);
    let (scores, indices) = (scores.f32(), indices.i32());
    let (weights, dweights) = (inputs[2].f32(), inputs[3].f32());
    let dscores = if inputs.len() > 5 { Some(inputs[4].f32()) } else { None };
    let dlogits = inputs[inputs.len() - 1].f32();
    let tokens = scores.len() / experts;
    let own = Parts::new(&mut scratch[..2 * experts * context.pool.threads()]);
    context.pool.for_each_thread(tokens.div_ceil(TOKENS), |thread, block| {
        // SAFETY: one thread's scratch memory.
        let scratch = unsafe { own.part(2 * thread * experts, 2 * experts) };
        let (g, size) = scratch.split_at_mut(experts);
        let tokens = block * TOKENS..tokens.min((block + 1) * TOKENS);
        let rows = tokens.start * experts..tokens.end * experts;
        let place = tokens.start * top_k..tokens.end * top_k;
        let it = Slopes {
            scores: &scores[rows.clone()],
            indices: &indices[place.clone()],
            weights: &weights[place.clone()],
            dweights: &dweights[place],
            dscores: dscores.map(|dscores| &dscores[rows.clone()]),
            dlogits: &dlogits[rows],
            experts,
        };
        worst.meet(slopes(context.level, it, router, units[0], g, size) as f32);
    });
}

/// One sequence of the balance term, or of its gradient.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    scores: &'a [f32],
    /// The gradient of this sequence's loss and dscores, where it is the gradient.
    gradient: Option<(f32, &'a [f32])>,
    loss: f32,
    length: f64,
    unit: Unit,
}

kernel! {
    /// Its largest distance, from the experts' loads; `affinity` is scratch memory.
    fn sequence_distance[](it: Sequence<'a>, load: &'a [f64], affinity: &'a mut [f64]) -> f64 {
        let _ = std::marker::PhantomData::<L>;
        let experts = load.len();
        let mut worst = 0.0f64;
        affinity.fill(0.0);
        for (row, scores) in it.scores.chunks_exact(experts).enumerate() {
            let [mut sum, mut mean] = [0.0f64; 2];
            for (score, load) in scores.iter().zip(load) {
                sum += f64::from(*score);
                mean += f64::from(*score) * load;
            }
            let share = 1.0 / sum;
            let Some((dloss, got)) = it.gradient else {
                affinity.iter_mut().zip(scores).for_each(|(all, score)| *all += f64::from(*score) * share);
                continue;
            };
            let (mean, factor) = (mean * share, f64::from(dloss) / it.length * share);
            for (got, load) in got[row * experts..][..experts].iter().zip(load) {
                let want = factor * (load - mean);
                let bound = it.unit.bound(want, factor.abs() * (load + mean));
                worst = larger(worst, beyond((f64::from(*got) - want).abs(), bound));
            }
        }
        if it.gradient.is_none() {
            let sum: f64 = load.iter().zip(&*affinity).map(|(load, affinity)| load * affinity).sum();
            let want = sum / it.length;
            worst = larger(worst, beyond((f64::from(it.loss) - want).abs(), it.unit.bound(want, want)));
        }
        worst
    }
}

/// The balance term of each sequence, or its gradient.
pub(super) fn balance(
    context: &Context<'_>,
    length: usize,
    is_gradient: bool,
    inputs: &[View<'_>],
    units: &[Unit],
    scratch: &mut [f64],
    worst: &Worst,
) {
    let (experts, top_k) = (inputs[0].sizes()[1], inputs[1].sizes()[1]);
    let (scores, indices) = (inputs[0].f32(), inputs[1].i32());
    let (third, last) = (inputs[2].f32(), inputs[inputs.len() - 1].f32());
    let own = Parts::new(&mut scratch[..2 * experts * context.pool.threads()]);
    context.pool.for_each_thread(scores.len() / (length * experts), |thread, sequence| {
        // SAFETY: one thread's scratch memory.
        let scratch = unsafe { own.part(2 * thread * experts, 2 * experts) };
        let (load, affinity) = scratch.split_at_mut(experts);
        load.fill(0.0);
        for expert in &indices[sequence * length * top_k..][..length * top_k] {
            if let Some(load) = usize::try_from(*expert).ok().and_then(|expert| load.get_mut(expert)) {
                *load += 1.0;
            }
        }
        let each = experts as f64 / (top_k * length) as f64;
        load.iter_mut().for_each(|load| *load *= each);
        let place = sequence * length * experts..(sequence + 1) * length * experts;
        let it = Sequence {
            scores: &scores[place.clone()],
            gradient: is_gradient.then(|| (third[sequence], &last[place])),
            loss: if is_gradient { 0.0 } else { third[sequence] },
            length: length as f64,
            unit: units[0],
        };
        worst.meet(sequence_distance(context.level, it, load, affinity) as f32);
    });
}

/// Each pair in turn lies at the next place of its expert's, which begins where it is said to and ends where the next begins.
pub(super) fn sort(sort: &ExpertSort, inputs: &[View<'_>], scratch: &mut [f64], worst: &Worst) {
    let [indices, token, slot, offsets] = inputs else { return worst.demand(false) };
    let top_k = indices.sizes()[1];
    let (indices, token, slot, offsets) = (indices.i32(), token.i32(), slot.i32(), offsets.i32());
    let next = &mut scratch[..sort.experts];
    next.iter_mut().zip(offsets).for_each(|(next, offset)| *next = f64::from(*offset));
    let mut holds = offsets[0] == 0 && offsets[sort.experts] as usize == indices.len();
    for (pair, (expert, slot)) in indices.iter().zip(slot).enumerate() {
        let next = &mut next[(*expert).clamp(0, sort.experts as i32 - 1) as usize];
        holds &= f64::from(*slot) == *next;
        holds &=
            usize::try_from(*slot).ok().and_then(|slot| token.get(slot)) == Some(&((pair / top_k) as i32));
        *next += 1.0;
    }
    holds &= next.iter().zip(&offsets[1..]).all(|(next, offset)| *next == f64::from(*offset));
    worst.demand(holds);
}
