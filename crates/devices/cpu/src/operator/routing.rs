//! The experts' choice and the order of their rows: `router`, its gradient, `expert_sort`.

use super::parallel::{Parts, parts};
use super::{Execute, Sizes, Task};
use crate::lanes::{Element, WIDTH, exp, exp_scalar};
use crate::level::kernel;
use toprope_program::operator::{ExpertSort, Router, RouterGradient, Scoring};

/// Tokens that one thread routes at a time.
const TOKENS: usize = 64;

/// Whether score `a` is preferred to `b`, each with its place: larger first, then the lower place, NaN last.
fn preferred(a: (f32, usize), b: (f32, usize)) -> bool {
    match (a.0.is_nan(), b.0.is_nan()) {
        (false, true) => true,
        (true, false) => false,
        (true, true) => a.1 < b.1,
        (false, false) => a.0 > b.0 || (a.0 == b.0 && a.1 < b.1),
    }
}

/// Writes the places of the largest candidates into `best`, in descending order; there are at least `best.len()`.
fn largest(values: &[f32], candidates: impl Iterator<Item = usize>, best: &mut [i32]) {
    let mut found = 0;
    for candidate in candidates {
        let better =
            |place: i32| preferred((values[candidate], candidate), (values[place as usize], place as usize));
        let at = best[..found].iter().position(|place| better(*place)).unwrap_or(found);
        if at < best.len() {
            found = (found + 1).min(best.len());
            best[at..found].rotate_right(1);
            best[at] = candidate as i32;
        }
    }
}

kernel! {
    /// `sigmoid`, each branch accurate where its result is small.
    fn sigmoid[](logits: &'a [f32], scores: &'a mut [f32]) {
        let count = logits.len().min(scores.len());
        let (one, zero) = (L::splat(1.0), L::splat(0.0));
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let x: L = f32::load_first(logits.as_ptr().add(start), width);
                let small = exp(zero.sub(x.abs()));
                let score = x.select_less(zero, small, one).div(one.add(small));
                f32::store_first(score, scores.as_mut_ptr().add(start), width);
            }
            start += WIDTH;
        }
    }
}

/// Scores of one token's logits, unless they were made for a block of tokens.
fn score(scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
    match scoring {
        Scoring::Sigmoid => {}
        Scoring::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (score, x) in scores.iter_mut().zip(logits) {
                // The difference's rounding counts where it is large: it is found exactly (Knuth's two-sum) and put back.
                let difference = x - largest;
                let part = difference - x;
                let rest = (x - (difference - part)) - (largest + part);
                *score = exp_scalar(difference);
                if rest.is_finite() {
                    *score += *score * rest;
                }
                sum += *score;
            }
            scores.iter_mut().for_each(|score| *score /= sum);
        }
    }
}

/// Scratch of a thread: biased scores of all experts, scores of all groups, the best groups, which are chosen.
fn thread_values(experts: usize, router: &Router) -> usize {
    experts + 3 * router.groups
}

impl Execute for Router {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let experts = sizes.inputs[1].shape.elements();
        sizes.threads * thread_values(experts, self) * size_of::<f32>() + size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (logits, bias) = (task.inputs[0].f32(), task.inputs[1].f32());
        let experts = bias.len();
        let each = thread_values(experts, self);
        let (pool, level) = (task.context.pool, task.context.level);
        // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
        let (_, scratch, _) = unsafe { task.workspace.align_to_mut::<f32>() };
        let scratch = Parts::new(&mut scratch[..each * pool.threads()]);
        let Some([scores, indices, weights, counts]) = task.outputs.first_chunk_mut() else {
            panic!("router has four outputs");
        };
        let tokens = logits.len() / experts;
        let all_indices = indices.i32();
        {
            let (scores, weights) = (Parts::new(scores.f32()), Parts::new(weights.f32()));
            let indices = Parts::new(all_indices);
            pool.for_each_thread(tokens.div_ceil(TOKENS), |thread, block| {
                // SAFETY: one thread's scratch memory.
                let scratch = unsafe { scratch.part(thread * each, each) };
                let place = block * TOKENS..((block + 1) * TOKENS).min(tokens);
                if self.scoring == Scoring::Sigmoid {
                    let place = place.start * experts..place.end * experts;
                    // SAFETY: each token's parts belong to the one block that it is in.
                    sigmoid(level, &logits[place.clone()], unsafe { scores.part(place.start, place.len()) });
                }
                for token in place {
                    // SAFETY: each token's parts belong to the one block that it is in.
                    let (scores, indices, weights) = unsafe {
                        (
                            scores.part(token * experts, experts),
                            indices.part(token * self.top_k, self.top_k),
                            weights.part(token * self.top_k, self.top_k),
                        )
                    };
                    score(self.scoring, &logits[token * experts..][..experts], scores);
                    self.choose(scores, bias, scratch, indices);
                    self.weigh(scores, indices, weights);
                }
            });
        }
        let counts = counts.i32();
        counts.fill(0);
        for expert in all_indices.iter() {
            counts[*expert as usize] += 1;
        }
    }
}

/// Chooses and weighs experts for one token.
trait Choice {
    fn choose(&self, scores: &[f32], bias: &[f32], scratch: &mut [f32], indices: &mut [i32]);
    fn weigh(&self, scores: &[f32], indices: &[i32], weights: &mut [f32]);
}

impl Choice for Router {
    fn choose(&self, scores: &[f32], bias: &[f32], scratch: &mut [f32], indices: &mut [i32]) {
        let experts = scores.len();
        let group_size = experts / self.groups;
        let (biased, rest) = scratch.split_at_mut(experts);
        for ((biased, score), bias) in biased.iter_mut().zip(scores).zip(bias) {
            *biased = score + bias;
        }
        let biased = &*biased;
        if self.groups == 1 || self.top_groups == self.groups {
            return largest(biased, 0..experts, indices);
        }
        let (group_scores, taken) = rest.split_at_mut(self.groups);
        for (group, score) in group_scores.iter_mut().enumerate() {
            let members = group * group_size..(group + 1) * group_size;
            let mut best = [0i32; 2];
            let best = &mut best[..group_size.min(2)];
            largest(biased, members, best);
            *score = best.iter().map(|expert| biased[*expert as usize]).sum();
        }
        let group_scores = &*group_scores;
        // The best groups' places take turns in the rest of the scratch memory: chosen ones are marked by 1.
        taken.fill(0.0);
        for _ in 0..self.top_groups {
            let mut best: Option<usize> = None;
            for group in (0..self.groups).filter(|group| taken[*group] == 0.0) {
                let beats = |best: usize| preferred((group_scores[group], group), (group_scores[best], best));
                if best.is_none_or(beats) {
                    best = Some(group);
                }
            }
            if let Some(best) = best {
                taken[best] = 1.0;
            }
        }
        let taken = &*taken;
        largest(biased, (0..experts).filter(|expert| taken[expert / group_size] != 0.0), indices);
    }

    fn weigh(&self, scores: &[f32], indices: &[i32], weights: &mut [f32]) {
        let chosen = |expert: &i32| scores[*expert as usize];
        let sum: f32 = indices.iter().map(chosen).sum();
        let divisor = if self.normalize { sum + 1e-20 } else { 1.0 };
        let scale = self.scale as f32;
        for (weight, expert) in weights.iter_mut().zip(indices) {
            *weight = scale * chosen(expert) / divisor;
        }
    }
}

impl Execute for RouterGradient {
    fn run(&self, task: &mut Task<'_, '_>) {
        let (scores, indices) = (task.inputs[0], task.inputs[1]);
        let (experts, top_k) = (scores.sizes()[1], indices.sizes()[1]);
        let (scores, indices) = (scores.f32(), indices.i32());
        let (weights, dweights) = (task.inputs[2].f32(), task.inputs[3].f32());
        let dscores = task.inputs.get(4).map(|dscores| dscores.f32());
        let scale = self.scale as f32;
        let pool = task.context.pool;
        let [dlogits] = task.outputs();
        parts(pool, dlogits.f32(), TOKENS * experts, |block, part| {
            for (token, g) in part.chunks_exact_mut(experts).enumerate() {
                let token = block * TOKENS + token;
                let scores = &scores[token * experts..][..experts];
                let place = token * top_k..(token + 1) * top_k;
                let (indices, weights) = (&indices[place.clone()], &weights[place.clone()]);
                let dweights = &dweights[place];
                match dscores {
                    Some(dscores) => g.copy_from_slice(&dscores[token * experts..][..experts]),
                    None => g.fill(0.0),
                }
                let inside = |expert: i32| usize::try_from(expert).ok().filter(|expert| *expert < experts);
                let (mut divisor, mut along) = (1.0, 0.0);
                if self.normalize {
                    divisor =
                        indices.iter().filter_map(|e| inside(*e)).map(|e| scores[e]).sum::<f32>() + 1e-20;
                    along = dweights.iter().zip(weights).map(|(d, w)| d * w).sum();
                }
                for (expert, dweight) in indices.iter().zip(dweights) {
                    if let Some(expert) = inside(*expert) {
                        g[expert] += (scale * dweight - along) / divisor;
                    }
                }
                match self.scoring {
                    Scoring::Sigmoid => {
                        g.iter_mut().zip(scores).for_each(|(g, s)| *g = *g * s * (1.0 - s));
                    }
                    Scoring::Softmax => {
                        let mean: f32 = g.iter().zip(scores).map(|(g, s)| g * s).sum();
                        g.iter_mut().zip(scores).for_each(|(g, s)| *g = s * (*g - mean));
                    }
                }
            }
        });
    }
}

impl Execute for ExpertSort {
    fn run(&self, task: &mut Task<'_, '_>) {
        let indices = task.inputs[0];
        let top_k = indices.sizes()[1];
        let indices = indices.i32();
        let last = self.experts as i32 - 1;
        let expert = |pair: usize| indices[pair].clamp(0, last) as usize;
        let [token, slot, offsets] = task.outputs();
        let (token, slot, offsets) = (token.i32(), slot.i32(), offsets.i32());
        offsets.fill(0);
        for pair in 0..indices.len() {
            offsets[expert(pair) + 1] += 1;
        }
        for index in 0..self.experts {
            offsets[index + 1] += offsets[index];
        }
        // Each expert's offset serves as its next free place, and is one expert further on at the end.
        for pair in 0..indices.len() {
            let place = &mut offsets[expert(pair)];
            slot[pair] = *place;
            token[*place as usize] = (pair / top_k) as i32;
            *place += 1;
        }
        offsets.copy_within(0..self.experts, 1);
        offsets[0] = 0;
    }
}
