//! `attention_gradient`.
//!
//! Rows fall into runs that see nothing of each other (documents). One thread takes one key head of one run, so that no
//! sum is shared and its order is always the same.

use super::exact;
use super::softmax::{all_finite, gradient_row};
use super::{
    Heads, KEYS, Mask, QUERIES, aligned, chunks, inside, multiply, multiply_bytes, probabilities, take,
    thread_bytes, thread_part,
};
use crate::bind::Layout;
use crate::kernel::{Context, FloatsMut};
use crate::lanes::Element;
use crate::operator::narrow::narrow_row;
use crate::operator::parallel::Parts;
use crate::operator::{Execute, Sizes, Task};
use std::ops::Range;
use toprope_program::operator::AttentionGradient;

/// What one call computes on.
pub(super) struct Backward<'a> {
    pub(super) q: Heads<'a>,
    pub(super) k: Heads<'a>,
    pub(super) v: Heads<'a>,
    pub(super) out: Heads<'a>,
    pub(super) dout: Heads<'a>,
    pub(super) lse: &'a [f32],
    pub(super) mask: Mask<'a>,
    pub(super) scale: f32,
}

/// f32 values of a thread: the run's dk and dv, a block's scores, their gradients, and its dq.
fn values(keys: usize, columns: usize, value_columns: usize) -> usize {
    keys * (columns + value_columns) + QUERIES * (2 * keys.min(KEYS) + columns)
}

fn products(keys: usize, columns: usize, value_columns: usize) -> usize {
    let keys = keys.min(KEYS);
    let widest = columns.max(value_columns);
    multiply_bytes(QUERIES, keys, widest)
        .max(multiply_bytes(QUERIES, columns, keys))
        .max(multiply_bytes(keys, widest, QUERIES))
}

impl Backward<'_> {
    /// The query heads that share a key head.
    pub(super) fn query_heads(&self, key_head: usize) -> Range<usize> {
        let each = self.q.heads / self.k.heads;
        key_head * each..(key_head + 1) * each
    }

    /// One block of queries of one head: adds into dk and dv (rows counted from the run's first), gives dq and the sums of
    /// the probabilities' rows.
    fn block(
        &self,
        alone: &Context<'_>,
        (queries, head, key_head, first_key): (Range<usize>, usize, usize, usize),
        (dk, dv, dq, sums): (&mut [f32], &mut [f32], &mut [f32], &mut [f32]),
        scratch: &mut [f32],
        workspace: &mut [u8],
    ) {
        let rows = queries.len();
        let (columns, value_columns) = (self.q.columns, self.v.columns);
        dq.fill(0.0);
        sums.fill(0.0);
        let q = self.q.matrix(queries.clone(), head);
        let dout = self.dout.matrix(queries.clone(), head);
        let narrow = self.k.values.is_bf16();
        for keys in chunks(self.mask.reach(queries.clone())) {
            let count = keys.len();
            let (scores, slopes) = scratch.split_at_mut(rows * count);
            let slopes = &mut slopes[..rows * count];
            let (k, v) = (self.k.matrix(keys.clone(), key_head), self.v.matrix(keys.clone(), key_head));
            multiply(alone, q, k.transposed(), scores, false, workspace);
            multiply(alone, dout, v.transposed(), slopes, false, workspace);
            for (row, (scores, slopes)) in
                scores.chunks_exact_mut(count).zip(slopes.chunks_exact_mut(count)).enumerate()
            {
                let query = queries.start + row;
                let seen = inside(&self.mask.visible(query), &keys);
                for values in [&mut *scores, &mut *slopes] {
                    values[..seen.start].fill(0.0);
                    values[seen.end..].fill(0.0);
                }
                let along = self.dout.dot(query, head, &self.out, query, head);
                let lse = self.lse[query * self.q.heads + head];
                sums[row] += gradient_row(
                    alone.level,
                    &mut scores[seen.clone()],
                    &mut slopes[seen],
                    self.scale,
                    lse,
                    along,
                );
                if narrow {
                    narrow_row(alone.level, scores);
                    narrow_row(alone.level, slopes);
                }
            }
            let scores = probabilities(scores, rows, count, narrow);
            let slopes = probabilities(slopes, rows, count, narrow);
            let place = keys.start - first_key;
            multiply(alone, slopes, k, dq, true, workspace);
            multiply(
                alone,
                slopes.transposed(),
                q,
                &mut dk[place * columns..][..count * columns],
                true,
                workspace,
            );
            let dv = &mut dv[place * value_columns..][..count * value_columns];
            multiply(alone, scores.transposed(), dout, dv, true, workspace);
        }
    }
}

/// The first row of each run, and the end of the last: no row at or behind such a place sees a key before it.
pub(in crate::operator) fn runs(mask: &Mask<'_>, rows: usize, first: &mut [i32]) -> usize {
    let mut lowest = i64::MAX;
    let mut count = 0;
    for row in (0..rows).rev() {
        let visible = mask.visible(row);
        if !visible.is_empty() {
            lowest = lowest.min(visible.start as i64);
        }
        if lowest >= row as i64 {
            first[count] = row as i32;
            count += 1;
        }
    }
    first[..count].reverse();
    count
}

impl Execute for AttentionGradient {
    fn layout(&self, index: usize) -> Layout {
        if index < 4 || index == 5 { Layout::Any } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (k, v) = (sizes.inputs[1].shape.sizes(), sizes.inputs[2].shape.sizes());
        let rows = sizes.inputs[0].shape.sizes()[0];
        let each = thread_bytes(values(k[0], k[2], v[2]), products(k[0], k[2], v[2]));
        each * sizes.threads + (rows * size_of::<i32>()).next_multiple_of(64) + 64
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let [q, k, v, out] = [0, 1, 2, 3].map(|index: usize| Heads::new(&task.inputs[index]));
        let dout = Heads::new(&task.inputs[5]);
        let mask = Mask { segment_start: task.inputs[6].i32(), query_offset: 0, keys: k.rows as i64 };
        let it = Backward { q, k, v, out, dout, lse: task.inputs[4].f32(), mask, scale: self.scale as f32 };
        let count = values(k.rows, k.columns, v.columns);
        let each = thread_bytes(count, products(k.rows, k.columns, v.columns));
        let (pool, alone) = (task.context.pool, task.alone);
        let (starts, workspace) =
            aligned(task.workspace).split_at_mut((q.rows * size_of::<i32>()).next_multiple_of(64));
        // SAFETY: every bit pattern is an i32, and the workspace is aligned to 64 bytes.
        let (_, starts, _) = unsafe { starts.align_to_mut::<i32>() };
        let found = runs(&mask, q.rows, starts);
        let starts = &starts[..found];
        let workspace = Parts::new(workspace);
        let Some(([dq, dk, dv], rest)) = task.outputs.split_first_chunk_mut() else {
            panic!("attention_gradient has three outputs")
        };
        let all_sums = rest.first_mut().filter(|_| self.sums).map(|sums| Parts::new(sums.f32()));
        macro_rules! run {
            ($dq:expr, $dk:expr, $dv:expr) => {{
                let (all_dq, all_dk, all_dv) = (Parts::new($dq), Parts::new($dk), Parts::new($dv));
                pool.for_each_thread(found * k.heads, |thread, index| {
                    let (run, key_head) = (index / k.heads, index % k.heads);
                    let rows =
                        starts[run] as usize..starts.get(run + 1).map_or(q.rows, |next| *next as usize);
                    let keys = rows.start.min(k.rows)..rows.end.min(k.rows);
                    // SAFETY: a thread's own part of the workspace.
                    let part = unsafe { workspace.part(thread * each, each) };
                    let (mut scratch, products) = thread_part(part, count);
                    let dk = take(&mut scratch, keys.len() * k.columns);
                    let dv = take(&mut scratch, keys.len() * v.columns);
                    let dq = take(&mut scratch, QUERIES * q.columns);
                    dk.fill(0.0);
                    dv.fill(0.0);
                    let mut finite = true;
                    for head in it.query_heads(key_head) {
                        for start in rows.clone().step_by(QUERIES) {
                            let queries = start..rows.end.min(start + QUERIES);
                            let dq = &mut dq[..queries.len() * q.columns];
                            let place = (queries.clone(), head, key_head, keys.start);
                            let mut block_sums = [0.0; QUERIES];
                            let block_sums = &mut block_sums[..queries.len()];
                            it.block(&alone, place, (dk, dv, dq, block_sums), scratch, products);
                            if let Some(all_sums) = &all_sums {
                                for (query, sum) in queries.clone().zip(&*block_sums) {
                                    // SAFETY: each item writes sums of its own heads.
                                    unsafe { all_sums.part(query * q.heads + head, 1) }.fill(*sum);
                                }
                            }
                            finite &= all_finite(dq);
                            for (query, dq) in queries.zip(dq.chunks_exact(q.columns)) {
                                // SAFETY: each item writes rows of its own heads.
                                unsafe { store(&all_dq, (query * q.heads + head) * q.columns, dq) };
                            }
                        }
                    }
                    if !(finite && all_finite(dk) && all_finite(dv)) {
                        exact::backward(&it, rows, key_head, dk, dv, |query, head, sum, value| {
                            // SAFETY: each item writes rows of its own heads.
                            let dq = unsafe { all_dq.part((query * q.heads + head) * q.columns, q.columns) };
                            for (column, dq) in dq.iter_mut().enumerate() {
                                *dq = Element::from_f32(value(column));
                            }
                            if let Some(all_sums) = &all_sums {
                                // SAFETY: as above.
                                unsafe { all_sums.part(query * q.heads + head, 1) }.fill(sum);
                            }
                        });
                    }
                    for (row, key) in keys.enumerate() {
                        let place = key * k.heads + key_head;
                        // SAFETY: each item writes rows of its own key head.
                        unsafe {
                            store(&all_dk, place * k.columns, &dk[row * k.columns..][..k.columns]);
                            store(&all_dv, place * v.columns, &dv[row * v.columns..][..v.columns]);
                        }
                    }
                });
                // Keys behind every query are seen by none.
                for key in q.rows..k.rows {
                    // SAFETY: all threads are done.
                    unsafe {
                        let (width, value_width) = (k.heads * k.columns, k.heads * v.columns);
                        all_dk.part(key * width, width).fill(Element::from_f32(0.0));
                        all_dv.part(key * value_width, value_width).fill(Element::from_f32(0.0));
                    }
                }
            }};
        }
        match (dq.floats(), dk.floats(), dv.floats()) {
            (FloatsMut::F32(dq), FloatsMut::F32(dk), FloatsMut::F32(dv)) => run!(dq, dk, dv),
            (FloatsMut::Bf16(dq), FloatsMut::Bf16(dk), FloatsMut::Bf16(dv)) => run!(dq, dk, dv),
            _ => panic!("dq, dk and dv have one dtype"),
        }
    }
}

/// Stores a row, rounded.
///
/// # Safety
/// Nobody else uses the row.
unsafe fn store<X: Element>(all: &Parts<'_, X>, start: usize, values: &[f32]) {
    // SAFETY: the caller's promise.
    let row = unsafe { all.part(start, values.len()) };
    row.iter_mut().zip(values).for_each(|(x, value)| *x = X::from_f32(*value));
}
