//! `attention`.

use super::exact;
use super::softmax::{all_finite, scale_row, step};
use super::{
    Heads, KEYS, Mask, QUERIES, aligned, chunks, inside, multiply, multiply_bytes, probabilities, take,
    thread_bytes, thread_part,
};
use crate::bind::Layout;
use crate::kernel::FloatsMut;
use crate::lanes::{Element, ln};
use crate::operator::narrow::narrow_row;
use crate::operator::parallel::Parts;
use crate::operator::{Execute, Sizes, Task};
use std::ops::Range;
use toprope_program::operator::Attention;

/// f32 values of a thread: scores, sums of values, maxima, sums.
fn values(keys: usize, columns: usize) -> usize {
    QUERIES * (keys.min(KEYS) + columns + 2)
}

fn products(keys: usize, columns: usize, value_columns: usize) -> usize {
    let keys = keys.min(KEYS);
    multiply_bytes(QUERIES, keys, columns).max(multiply_bytes(QUERIES, value_columns, keys))
}

/// What one call computes on.
pub(super) struct Forward<'a> {
    pub(super) q: Heads<'a>,
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
    pub(super) mask: Mask<'a>,
    pub(super) scale: f32,
}

/// Which rows a block is of; one of both has one element.
struct Place {
    queries: Range<usize>,
    heads: Range<usize>,
}

impl Forward<'_> {
    pub(super) fn key_head(&self, head: usize) -> usize {
        head * self.k.heads / self.q.heads
    }

    /// Heads that go through a block together: with one query, those that share a key head, whose keys and values are then
    /// met once; fewer where threads would be left without work. Each row has the bits that it has alone.
    fn heads_together(&self, threads: usize) -> usize {
        if self.q.rows != 1 {
            return 1;
        }
        let share = self.q.heads / self.k.heads.max(1);
        let fits = |heads: &usize| share.is_multiple_of(*heads) && self.q.heads / heads >= threads;
        (1..=share.min(QUERIES)).rev().find(fits).unwrap_or(1)
    }

    /// One block: some queries of one head, or one query of some heads. `out` and `lse` in f32, a row for each.
    fn block(
        &self,
        task: &crate::kernel::Context<'_>,
        Place { queries, heads }: Place,
        scratch: (&mut [f32], &mut [u8]),
        lse: &mut [f32],
    ) -> usize {
        let (mut scratch, workspace) = scratch;
        let rows = queries.len() * heads.len();
        let visible = |row: usize| {
            self.mask.visible(if heads.len() == 1 { queries.start + row } else { queries.start })
        };
        let columns = self.v.columns;
        let out = take(&mut scratch, rows * columns);
        let largest = take(&mut scratch, rows);
        let sums = take(&mut scratch, rows);
        out.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        let key_head = self.key_head(heads.start);
        let q = match heads.len() {
            1 => self.q.matrix(queries.clone(), heads.start),
            _ => self.q.heads_of(queries.start, heads.clone()),
        };
        let narrow = self.v.values.is_bf16();
        for keys in chunks(self.mask.reach(queries.clone())) {
            let scores = &mut scratch[..rows * keys.len()];
            multiply(task, q, self.k.matrix(keys.clone(), key_head).transposed(), scores, false, workspace);
            for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
                let seen = inside(&visible(row), &keys);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                if !seen.is_empty() {
                    let correction =
                        step(task.level, &mut scores[seen], self.scale, &mut largest[row], &mut sums[row]);
                    if correction != 1.0 {
                        scale_row(task.level, &mut out[row * columns..][..columns], correction);
                    }
                }
                if narrow {
                    narrow_row(task.level, scores);
                }
            }
            let v = self.v.matrix(keys.clone(), key_head);
            multiply(task, probabilities(scores, rows, keys.len(), narrow), v, out, true, workspace);
        }
        for row in 0..rows {
            let visible = !visible(row).is_empty();
            lse[row] = if visible { largest[row] + ln(sums[row]) } else { f32::NEG_INFINITY };
            let factor = if visible { 1.0 / sums[row] } else { 1.0 };
            scale_row(task.level, &mut out[row * columns..][..columns], factor);
        }
        let each = queries.len();
        for (at, head) in heads.enumerate() {
            let out = &mut out[at * each * columns..][..each * columns];
            if !all_finite(out) {
                exact::forward(self, queries.clone(), head, out, &mut lse[at * each..][..each]);
            }
        }
        rows * columns
    }
}

impl Execute for Attention {
    fn layout(&self, index: usize) -> Layout {
        if index < 3 { Layout::Any } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (k, v) = (sizes.inputs[1].shape.sizes(), sizes.inputs[2].shape.sizes());
        let each = thread_bytes(values(k[0], v[2]), products(k[0], k[2], v[2]));
        each * sizes.threads + 64
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let [q, k, v] = [0, 1, 2].map(|index: usize| Heads::new(&task.inputs[index]));
        let scalar = |index: usize| task.inputs.get(index).map(|scalar| i64::from(scalar.i32()[0]));
        let all = k.rows as i64;
        let mask = Mask {
            segment_start: task.inputs[3].i32(),
            query_offset: scalar(4).unwrap_or(0),
            keys: scalar(5).unwrap_or(all).min(all),
        };
        let forward = Forward { q, k, v, mask, scale: self.scale as f32 };
        let values = values(k.rows, v.columns);
        let each = thread_bytes(values, products(k.rows, k.columns, v.columns));
        let (pool, alone) = (task.context.pool, task.alone);
        let workspace = Parts::new(aligned(task.workspace));
        let Some([out, lse]) = task.outputs.first_chunk_mut() else { panic!("attention has two outputs") };
        let lse = Parts::new(lse.f32());
        let together = forward.heads_together(pool.threads());
        let (blocks, shares) = (q.rows.div_ceil(QUERIES), q.heads / together);
        macro_rules! run {
            ($out:expr) => {{
                let out = Parts::new($out);
                pool.for_each_thread(blocks * shares, |thread, index| {
                    let head = index % shares * together;
                    let start = index / shares * QUERIES;
                    let queries = start..q.rows.min(start + QUERIES);
                    // SAFETY: a thread's own part of the workspace.
                    let part = unsafe { workspace.part(thread * each, each) };
                    let (scratch, products) = thread_part(part, values);
                    let mut logs = [0.0; QUERIES];
                    let block = Place { queries: queries.clone(), heads: head..head + together };
                    let count = forward.block(&alone, block, (&mut *scratch, products), &mut logs);
                    for (row, (values, log)) in scratch[..count].chunks_exact(v.columns).zip(logs).enumerate()
                    {
                        let place = match together {
                            1 => (queries.start + row) * q.heads + head,
                            _ => queries.start * q.heads + head + row,
                        };
                        // SAFETY: each block writes rows of its own head.
                        let out = unsafe { out.part(place * v.columns, v.columns) };
                        // SAFETY: as above.
                        let lse = unsafe { lse.part(place, 1) };
                        out.iter_mut().zip(values).for_each(|(out, value)| *out = Element::from_f32(*value));
                        lse[0] = log;
                    }
                });
            }};
        }
        match out.floats() {
            FloatsMut::F32(out) => run!(out),
            FloatsMut::Bf16(out) => run!(out),
        }
    }
}
