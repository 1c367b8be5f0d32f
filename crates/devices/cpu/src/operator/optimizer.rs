//! `adamw`, in the written order of f32 operations, so that every device has the same bits.

use super::digest::{digest_part, words};
use super::parallel::Parts;
use super::{Execute, Task};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::{Adamw, AdamwDigest};

/// Elements that one thread updates at a time.
const PART: usize = 1 << 12;

/// Elements of which a thread digests the update at a time: their results stay in the nearest cache.
const DIGEST_PART: usize = 1 << 10;

/// What all elements share, each rounded to f32.
#[derive(Clone, Copy)]
struct Rates {
    beta: [f32; 2],
    rest: [f32; 2],
    epsilon: f32,
    /// `lr·λ`.
    decay: f32,
    factor: f32,
    rate: f32,
    correction: [f32; 2],
}

kernel! {
    fn update_part[](rates: Rates, state: [&'a [f32]; 4], next: [&'a mut [f32]; 3]) {
        let [weight, gradient, m, v] = state;
        let [next_weight, next_m, next_v] = next;
        let count = next_weight.len();
        let [weight, gradient, m, v] = [weight, gradient, m, v].map(|values| values[..count].as_ptr());
        let [next_weight, next_m, next_v] =
            [next_weight, next_m, next_v].map(|values| values[..count].as_mut_ptr());
        let [beta1, beta2] = rates.beta.map(L::splat);
        let [rest1, rest2] = rates.rest.map(L::splat);
        let [correction1, correction2] = rates.correction.map(L::splat);
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count, the length of every slice.
            unsafe {
                let load = |values: *const f32| f32::load_first::<L>(values.add(start), width);
                let g = load(gradient).mul(L::splat(rates.factor));
                let m = beta1.mul(load(m)).add(rest1.mul(g));
                let v = beta2.mul(load(v)).add(rest2.mul(g).mul(g));
                let w = load(weight);
                let decayed = w.sub(L::splat(rates.decay).mul(w));
                let step = m.div(correction1).div(v.div(correction2).sqrt().add(L::splat(rates.epsilon)));
                let w = decayed.sub(L::splat(rates.rate).mul(step));
                f32::store_first::<L>(w, next_weight.add(start), width);
                f32::store_first::<L>(m, next_m.add(start), width);
                f32::store_first::<L>(v, next_v.add(start), width);
            }
            start += WIDTH;
        }
    }
}

impl Rates {
    fn new(adamw: &Adamw, task: &Task<'_, '_>) -> Rates {
        let rates = task.inputs[5].f32();
        let (rate, decay) = (rates[0], adamw.weight_decay as f32);
        Rates {
            beta: [adamw.beta1 as f32, adamw.beta2 as f32],
            rest: [(1.0 - adamw.beta1) as f32, (1.0 - adamw.beta2) as f32],
            epsilon: adamw.epsilon as f32,
            decay: rate * decay,
            factor: task.inputs[4].f32()[0],
            rate,
            correction: [rates[1], rates[2]],
        }
    }
}

impl Execute for AdamwDigest {
    fn run(&self, task: &mut Task<'_, '_>) {
        let state = [0, 1, 2, 3].map(|index: usize| task.inputs[index].f32());
        let rates = Rates::new(&self.adamw(), task);
        let (pool, level) = (task.context.pool, task.context.level);
        let count = state[0].len();
        let digest = AtomicU64::new(0);
        pool.for_each(count.div_ceil(DIGEST_PART), |index| {
            let start = index * DIGEST_PART;
            let part = state.map(|values| &values[start..count.min(start + DIGEST_PART)]);
            let mut next = [[0.0f32; DIGEST_PART]; 3];
            let [weight, m, v] = next.each_mut().map(|values| &mut values[..part[0].len()]);
            update_part(level, rates, part, [&mut *weight, &mut *m, &mut *v]);
            let sums = [weight, m, v].map(|values| digest_part(level, &*values, start as u64));
            digest.fetch_add(sums.into_iter().fold(0, u64::wrapping_add), Ordering::Relaxed);
        });
        task.outputs[0].u32().copy_from_slice(&words(digest.into_inner()));
    }
}

impl Execute for Adamw {
    fn run(&self, task: &mut Task<'_, '_>) {
        let state = [0, 1, 2, 3].map(|index: usize| task.inputs[index].f32());
        let rates = Rates::new(self, task);
        let (pool, level) = (task.context.pool, task.context.level);
        let Some([weight, m, v]) = task.outputs.first_chunk_mut() else { panic!("adamw has three outputs") };
        let count = weight.elements();
        let digest = AtomicU64::new(0);
        {
            let next = [Parts::new(weight.f32()), Parts::new(m.f32()), Parts::new(v.f32())];
            pool.for_each(count.div_ceil(PART), |index| {
                let start = index * PART;
                let part = state.map(|values| &values[start..count.min(start + PART)]);
                // SAFETY: each index is handed out once, and parts of different indices don't meet.
                let next = [0, 1, 2].map(|output: usize| unsafe { next[output].part(start, PART) });
                let [weight, m, v] = next;
                update_part(level, rates, part, [&mut *weight, &mut *m, &mut *v]);
                if self.digest {
                    let sums = [weight, m, v].map(|values| digest_part(level, &*values, start as u64));
                    digest.fetch_add(sums.into_iter().fold(0, u64::wrapping_add), Ordering::Relaxed);
                }
            });
        }
        if self.digest {
            task.outputs[3].u32().copy_from_slice(&words(digest.into_inner()));
        }
    }
}
