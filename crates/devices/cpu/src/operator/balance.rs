//! The sequence-wise balance term: `balance_loss` and its gradient.

use super::parallel::Parts;
use super::{Execute, Sizes, Task};
use crate::pool::Pool;
use toprope_program::operator::{BalanceLoss, BalanceLossGradient};

/// How often each expert was chosen in a sequence, times `E/(K·S)`.
fn load(indices: &[i32], load: &mut [f32]) {
    let experts = load.len();
    load.fill(0.0);
    for expert in indices {
        if let Some(load) = usize::try_from(*expert).ok().and_then(|expert| load.get_mut(expert)) {
            *load += 1.0;
        }
    }
    let unit = experts as f32 / indices.len() as f32;
    load.iter_mut().for_each(|load| *load *= unit);
}

/// Calls `work(sequence, scratch)` with `each` f32 of a thread's own.
fn sequences(
    pool: &Pool,
    count: usize,
    each: usize,
    workspace: &mut [u8],
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    // SAFETY: every bit pattern is an f32, and the middle part is aligned for it.
    let (_, scratch, _) = unsafe { workspace.align_to_mut::<f32>() };
    let scratch = Parts::new(&mut scratch[..each * pool.threads()]);
    pool.for_each_thread(count, |thread, sequence| {
        // SAFETY: one thread's scratch memory.
        work(sequence, unsafe { scratch.part(thread * each, each) });
    });
}

impl Execute for BalanceLoss {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        (2 * sizes.inputs[0].shape.sizes()[1] * sizes.threads + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (experts, top_k) = (task.inputs[0].sizes()[1], task.inputs[1].sizes()[1]);
        let (scores, indices) = (task.inputs[0].f32(), task.inputs[1].i32());
        let (pool, length) = (task.context.pool, self.sequence);
        let loss = Parts::new(task.outputs[0].f32());
        sequences(
            pool,
            scores.len() / (length * experts),
            2 * experts,
            task.workspace,
            |sequence, scratch| {
                let (loads, affinity) = scratch.split_at_mut(experts);
                load(&indices[sequence * length * top_k..][..length * top_k], loads);
                affinity.fill(0.0);
                for scores in scores[sequence * length * experts..][..length * experts].chunks_exact(experts)
                {
                    // A quotient each: the reciprocal of a sum that is nearly subnormal is infinite.
                    let sum = scores.iter().sum::<f32>();
                    affinity.iter_mut().zip(scores).for_each(|(affinity, score)| *affinity += score / sum);
                }
                // SAFETY: one element for each sequence.
                let loss = unsafe { loss.part(sequence, 1) };
                let sum: f32 = loads.iter().zip(&*affinity).map(|(load, affinity)| load * affinity).sum();
                loss[0] = sum / length as f32;
            },
        );
    }
}

impl Execute for BalanceLossGradient {
    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        (sizes.inputs[0].shape.sizes()[1] * sizes.threads + 1) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let (experts, top_k) = (task.inputs[0].sizes()[1], task.inputs[1].sizes()[1]);
        let (scores, indices, dloss) = (task.inputs[0].f32(), task.inputs[1].i32(), task.inputs[2].f32());
        let (pool, length) = (task.context.pool, self.sequence);
        let dscores = Parts::new(task.outputs[0].f32());
        sequences(pool, dloss.len(), experts, task.workspace, |sequence, loads| {
            load(&indices[sequence * length * top_k..][..length * top_k], loads);
            let place = sequence * length * experts;
            // SAFETY: one part for each sequence.
            let dscores = unsafe { dscores.part(place, length * experts) };
            let scores = &scores[place..][..length * experts];
            for (dscores, scores) in dscores.chunks_exact_mut(experts).zip(scores.chunks_exact(experts)) {
                let sum: f32 = scores.iter().sum();
                let mean = loads.iter().zip(scores).map(|(load, score)| load * score).sum::<f32>() / sum;
                let factor = dloss[sequence] / (length as f32 * sum);
                dscores.iter_mut().zip(&*loads).for_each(|(dscore, load)| *dscore = factor * (load - mean));
            }
        });
    }
}
