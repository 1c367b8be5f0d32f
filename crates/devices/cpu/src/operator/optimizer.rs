//! `adamw`, in the written order of f32 operations, so that every device has the same bits.

use super::digest::words;
use super::parallel::Parts;
use super::{Execute, Task};
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use std::sync::atomic::{AtomicU64, Ordering};
use toprope_program::operator::{Adamw, AdamwDigest, DIGEST_BLOCK, DIGEST_KEYS, digest_factor};

/// Elements that one thread updates at a time: whole blocks of a digest.
const PART: usize = 1 << 12;

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

/// What a pass over the elements does; a type, so that each is compiled by itself.
trait Pass: Copy + 'static {
    /// Whether what is read is digested.
    const READ: bool;
    /// Whether what is computed is digested.
    const TOLD: bool;
    /// Whether it is stored.
    const STORED: bool;
}

macro_rules! pass {
    ($(#[$meta:meta])* $name:ident: $read:literal, $told:literal, $stored:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        struct $name;

        impl Pass for $name {
            const READ: bool = $read;
            const TOLD: bool = $told;
            const STORED: bool = $stored;
        }
    };
}

pass!(
    /// The update.
    Update: false, false, true
);
pass!(
    /// The update with its digests.
    Digested: true, true, true
);
pass!(
    /// The digest of an update that is not stored.
    DigestOnly: false, true, false
);

kernel! {
    /// Updates elements of which the first has index `first`, the beginning of a block of digests. Gives the digests of the
    /// next state, of the state and of the gradient, as far as the pass takes them; `next` may be where the state lies.
    fn update_part[P: Pass](
        rates: Rates,
        state: [&'a [f32]; 4],
        next: [*mut f32; 3],
        first: usize,
        pass: P,
    ) -> [u64; 3] {
        let _ = pass;
        let count = state[0].len();
        let [weight, gradient, m, v] = state.map(|values| values[..count].as_ptr());
        let [beta1, beta2] = rates.beta.map(L::splat);
        let [rest1, rest2] = rates.rest.map(L::splat);
        let [correction1, correction2] = rates.correction.map(L::splat);
        let mut digests = [0u64; 3];
        for (block, begin) in (first / DIGEST_BLOCK..).zip((0..count).step_by(DIGEST_BLOCK)) {
            let end = count.min(begin + DIGEST_BLOCK);
            let mut sums = [L::NO_WORDS; 3];
            let mut start = begin;
            while start < end {
                let width = (end - start).min(WIDTH);
                // SAFETY: start + width ≤ count, the length of every slice and what `next` is writable for. There are
                // keys for whole vectors of a block.
                unsafe {
                    let load = |values: *const f32| f32::load_first::<L>(values.add(start), width);
                    let keys = DIGEST_KEYS.as_ptr().add(start - begin);
                    let (w, g, m, v) = (load(weight), load(gradient), load(m), load(v));
                    if P::READ {
                        sums[1] = v.add_words(keys, m.add_words(keys, w.add_words(keys, sums[1])));
                        sums[2] = g.add_words(keys, sums[2]);
                    }
                    let g = g.mul(L::splat(rates.factor));
                    let m = beta1.mul(m).add(rest1.mul(g));
                    let v = beta2.mul(v).add(rest2.mul(g).mul(g));
                    let decayed = w.sub(L::splat(rates.decay).mul(w));
                    let step = m.div(correction1).div(v.div(correction2).sqrt().add(L::splat(rates.epsilon)));
                    let w = decayed.sub(L::splat(rates.rate).mul(step));
                    if P::TOLD {
                        // Lanes behind the last element are no numbers: 0 / 0.
                        let [w, m, v] = [w, m, v].map(|x| if width < WIDTH { x.first(width, 0.0) } else { x });
                        sums[0] = v.add_words(keys, m.add_words(keys, w.add_words(keys, sums[0])));
                    }
                    if P::STORED {
                        for (next, value) in next.iter().zip([w, m, v]) {
                            f32::store_first::<L>(value, next.add(start), width);
                        }
                    }
                }
                start += WIDTH;
            }
            for (digest, sum) in digests.iter_mut().zip(sums) {
                *digest = digest.wrapping_add(L::sum_words(sum).wrapping_mul(digest_factor(block as u64)));
            }
        }
        digests
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

/// One pass over all elements: to `next`, where it is stored.
fn update<P: Pass + Sync>(
    adamw: &Adamw,
    task: &Task<'_, '_>,
    next: Option<[Parts<'_, f32>; 3]>,
    pass: P,
) -> [u64; 3] {
    let state = [0, 1, 2, 3].map(|index: usize| task.inputs[index].f32());
    let rates = Rates::new(adamw, task);
    let (pool, level) = (task.context.pool, task.context.level);
    let count = state[0].len();
    let digests = [const { AtomicU64::new(0) }; 3];
    pool.for_each(count.div_ceil(PART), |index| {
        let start = index * PART;
        let part = state.map(|values| &values[start..count.min(start + PART)]);
        let next = next.as_ref().map_or([std::ptr::null_mut(); 3], |next| {
            // SAFETY: each index is handed out once, and parts of different indices don't meet.
            [0, 1, 2].map(|output: usize| unsafe { next[output].part(start, PART) }.as_mut_ptr())
        });
        let sums = update_part(level, rates, part, next, start, pass);
        digests.iter().zip(sums).for_each(|(digest, sum)| {
            digest.fetch_add(sum, Ordering::Relaxed);
        });
    });
    digests.map(AtomicU64::into_inner)
}

impl Execute for AdamwDigest {
    fn run(&self, task: &mut Task<'_, '_>) {
        let [digest, ..] = update(&self.adamw(), task, None, DigestOnly);
        task.outputs[0].u32().copy_from_slice(&words(digest));
    }
}

impl Execute for Adamw {
    fn run(&self, task: &mut Task<'_, '_>) {
        let outputs = std::mem::take(&mut task.outputs);
        let Some(([weight, m, v], digests)) = outputs.split_first_chunk_mut() else {
            panic!("adamw has three outputs")
        };
        let next = Some([weight, m, v].map(|next| Parts::new(next.f32())));
        if self.digests {
            let told = update(self, task, next, Digested);
            for (output, digest) in digests.iter_mut().zip(told) {
                output.u32().copy_from_slice(&words(digest));
            }
        } else {
            update(self, task, next, Update);
        }
    }
}
