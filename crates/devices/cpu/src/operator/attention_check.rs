//! `attention_check`: sums over a run's rows, a key head of a run at a time.

use super::attention::{Mask, runs};
use super::{Execute, Sizes, Task};
use crate::bind::{Layout, View};
use crate::kernel::Floats;
use crate::lanes::{Element, WIDTH};
use crate::level::kernel;
use std::sync::atomic::{AtomicU32, Ordering};
use toprope_program::DType;
use toprope_program::operator::AttentionCheck;

/// 2^-70 of the bound.
const FLOOR: f64 = f64::from_bits((1023 - 70) << 52);

/// Rows with one distance between neighbours: row `row·heads + head` holds that head's columns.
#[derive(Clone, Copy)]
struct Rows<'a, X> {
    values: &'a [X],
    heads: usize,
    columns: usize,
    stride: usize,
}

impl<'a, X> Rows<'a, X> {
    fn new(view: &View<'_>, values: &'a [X]) -> Rows<'a, X> {
        let (_, columns, stride) = view.rows();
        Rows { values, heads: view.sizes()[1], columns, stride }
    }

    #[inline(always)]
    fn row(&self, row: usize, head: usize) -> &'a [X] {
        &self.values[(row * self.heads + head) * self.stride..][..self.columns]
    }
}

/// The eight floats of the check.
struct Parts<'a, X> {
    q: Rows<'a, X>,
    k: Rows<'a, X>,
    v: Rows<'a, X>,
    out: Rows<'a, X>,
    dout: Rows<'a, X>,
    dq: Rows<'a, X>,
    dk: Rows<'a, X>,
    dv: Rows<'a, X>,
    mask: Mask<'a>,
    scale: f32,
    sums: &'a [f32],
}

/// Vectors of columns that are summed in registers at once.
const TILE: usize = 2;

/// Calls `body(start, width, vector)` for the vectors of one tile of columns.
macro_rules! tile {
    ($columns:expr, $from:expr, |$start:ident, $width:ident, $vector:ident| $body:block) => {
        for $vector in 0..TILE {
            let $start = $from + $vector * WIDTH;
            if $start < $columns {
                let $width = ($columns - $start).min(WIDTH);
                $body
            }
        }
    };
}

kernel! {
    /// The largest distance of one key head of one run. `along` has a value for each row and query head of the key head.
    ///
    /// A tile of columns at a time, so that sums stay in registers while rows pass by.
    fn run_distance[X: Element](
        it: &'a Parts<'a, X>, rows: std::ops::Range<usize>, key_head: usize, unit: f64, along: &'a mut [f32]
    ) -> f64 {
        let (d, dv) = (it.q.columns, it.v.columns);
        let each = it.q.heads / it.k.heads;
        let heads = key_head * each..(key_head + 1) * each;
        let keys = rows.start..rows.end.min(it.mask.keys as usize).max(rows.start);
        let root = (rows.len() as f64).sqrt();
        let unit = unit + 2f64.powi(-24) * root;
        let mut largest = 0.0f64;
        let mut meet = |distance: f64, have: f64, want: f64| {
            let distance = distance.abs() / (unit * (have.sqrt() + want.sqrt()) + FLOOR);
            // Not below infinity: infinite or no number.
            largest = if distance < f64::INFINITY { largest.max(distance) } else { f64::INFINITY };
        };
        let zero = L::splat(0.0);
        along.fill(0.0);
        let [mut of_out, mut of_values, mut of_queries, mut of_keys] = [[zero; 2]; 4];
        let mut from = 0;
        while from < dv {
            let [mut sum, mut have, mut want, mut top_out, mut top] = [[zero; TILE]; 5];
            let mut squares = along.iter_mut();
            for row in rows.clone() {
                let sees = if it.mask.visible(row).is_empty() { 0.0 } else { 1.0 };
                for head in heads.clone() {
                    let (dout, out) = (it.dout.row(row, head).as_ptr(), it.out.row(row, head).as_ptr());
                    let mut square = zero;
                    tile!(dv, from, |start, width, vector| {
                        // SAFETY: start + width ≤ columns of each row.
                        let (dout, out): (L, L) =
                            unsafe { (X::load_first(dout.add(start), width), X::load_first(out.add(start), width)) };
                        let product = dout.mul(out);
                        of_out[0] = of_out[0].add(product);
                        square = product.fused(product, square);
                        top_out[vector] = out.abs().max(top_out[vector]);
                        let seen = dout.mul(L::splat(sees));
                        sum[vector] = sum[vector].sub(seen);
                        want[vector] = seen.fused(seen, want[vector]);
                    });
                    of_out[1] = of_out[1].add(square);
                    if let Some(along) = squares.next() {
                        *along += square.sum();
                    }
                }
            }
            for row in keys.clone() {
                let (v, dvalue) = (it.v.row(row, key_head).as_ptr(), it.dv.row(row, key_head).as_ptr());
                tile!(dv, from, |start, width, vector| {
                    // SAFETY: as above.
                    let (v, dvalue): (L, L) =
                        unsafe { (X::load_first(v.add(start), width), X::load_first(dvalue.add(start), width)) };
                    let product = v.mul(dvalue);
                    of_values = [of_values[0].add(product), product.fused(product, of_values[1])];
                    top[vector] = v.abs().max(top[vector]);
                    sum[vector] = sum[vector].add(dvalue);
                    have[vector] = dvalue.fused(dvalue, have[vector]);
                });
            }
            tile!(dv, from, |start, width, vector| {
                let _ = start;
                let [sum, have, want] = [sum[vector], have[vector], want[vector]].map(|lanes| lanes.to_array());
                let [top_out, top] = [top_out[vector], top[vector]].map(|lanes| lanes.to_array());
                for lane in 0..width {
                    // A mean is not larger than the largest of what it is of.
                    let above = f64::from(top_out[lane]) - f64::from(top[lane]);
                    meet(above.max(0.0), f64::from(top[lane]).powi(2), 0.0);
                    meet(f64::from(sum[lane]), f64::from(have[lane]), f64::from(want[lane]));
                }
            });
            from += TILE * WIDTH;
        }
        let factor = it.scale * it.scale;
        along.iter_mut().for_each(|along| *along *= factor);
        let [mut most_query, mut most_key] = [zero; 2];
        let mut from = 0;
        while from < d {
            let [mut sum, mut have, mut want] = [[zero; TILE]; 3];
            let mut squares = along.iter();
            for row in rows.clone() {
                for head in heads.clone() {
                    let (q, dq) = (it.q.row(row, head).as_ptr(), it.dq.row(row, head).as_ptr());
                    let along = L::splat(squares.next().copied().unwrap_or(f32::INFINITY));
                    tile!(d, from, |start, width, vector| {
                        // SAFETY: as above.
                        let (q, dq): (L, L) =
                            unsafe { (X::load_first(q.add(start), width), X::load_first(dq.add(start), width)) };
                        let product = q.mul(dq);
                        of_queries = [of_queries[0].add(product), product.fused(product, of_queries[1])];
                        want[vector] = q.mul(q).fused(along, want[vector]);
                        most_query = q.abs().max(most_query);
                    });
                }
            }
            for row in keys.clone() {
                let (k, dk) = (it.k.row(row, key_head).as_ptr(), it.dk.row(row, key_head).as_ptr());
                tile!(d, from, |start, width, vector| {
                    // SAFETY: as above.
                    let (k, dk): (L, L) =
                        unsafe { (X::load_first(k.add(start), width), X::load_first(dk.add(start), width)) };
                    let product = k.mul(dk);
                    of_keys = [of_keys[0].add(product), product.fused(product, of_keys[1])];
                    sum[vector] = sum[vector].add(dk);
                    have[vector] = dk.fused(dk, have[vector]);
                    most_key = k.abs().max(most_key);
                });
            }
            tile!(d, from, |start, width, vector| {
                let _ = start;
                let [sum, have, want] = [sum[vector], have[vector], want[vector]].map(|lanes| lanes.to_array());
                for lane in 0..width {
                    meet(f64::from(sum[lane]), f64::from(have[lane]), f64::from(want[lane]));
                }
            });
            from += TILE * WIDTH;
        }
        for (first, second) in [(of_queries, of_keys), (of_out, of_values)] {
            let [first, second] = [first, second].map(|sums| sums.map(|lanes| f64::from(lanes.sum())));
            meet(first[0] - second[0], first[1], second[1]);
        }
        let size = f64::from(it.scale) * d as f64 * f64::from(most_query.largest()) * f64::from(most_key.largest());
        let bound = 2f64.powi(-24) * (1.0 + root + size);
        for row in rows.filter(|row| !it.mask.visible(*row).is_empty()) {
            for sum in &it.sums[row * it.q.heads..][heads.clone()] {
                let distance = (f64::from(*sum) - 1.0).abs() / bound;
                largest = if distance < f64::INFINITY { largest.max(distance) } else { f64::INFINITY };
            }
        }
        largest
    }
}

/// f32 values of a thread: one for each row of the longest run and query head of a key head.
fn values(rows: usize, heads: usize, key_heads: usize) -> usize {
    (rows * heads / key_heads.max(1)).next_multiple_of(WIDTH)
}

impl Execute for AttentionCheck {
    fn layout(&self, index: usize) -> Layout {
        if index < 8 { Layout::Rows } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (q, k) = (sizes.inputs[0].shape.sizes(), sizes.inputs[1].shape.sizes());
        (sizes.threads * values(q[0], q[1], k[1]) + q[0] + 2) * size_of::<f32>()
    }

    fn run(&self, task: &mut Task<'_, '_>) {
        let rows = task.inputs[0].sizes()[0];
        let keys = task.inputs[1].sizes()[0];
        let mask = Mask { segment_start: task.inputs[8].i32(), query_offset: 0, keys: keys as i64 };
        // SAFETY: every bit pattern is an i32, and the middle part is aligned for it.
        let (_, workspace, _) = unsafe { task.workspace.align_to_mut::<i32>() };
        let (starts, sums) = workspace.split_at_mut(rows);
        let found = runs(&mask, rows, starts);
        let starts = &starts[..found];
        // SAFETY: every bit pattern is an f32 too.
        let (_, sums, _) = unsafe { sums.align_to_mut::<f32>() };
        let (pool, level) = (task.context.pool, task.context.level);
        let unit = task.inputs[0].dtype.unit_roundoff();
        let row_sums = task.inputs[9].f32();
        let largest = AtomicU32::new(0);
        macro_rules! run {
            ($($operand:ident: $index:literal),*) => {{
                let it = Parts {
                    $($operand: Rows::new(&task.inputs[$index], $operand),)*
                    mask,
                    scale: self.scale as f32,
                    sums: row_sums,
                };
                let each = values(rows, it.q.heads, it.k.heads);
                let group = it.q.heads / it.k.heads;
                let sums = super::parallel::Parts::new(sums);
                pool.for_each_thread(found * it.k.heads, |thread, index| {
                    let (run, key_head) = (index / it.k.heads, index % it.k.heads);
                    let end = starts.get(run + 1).map_or(rows, |next| *next as usize);
                    let run = starts[run] as usize..end;
                    // SAFETY: a thread's own part.
                    let along = unsafe { sums.part(thread * each, run.len() * group) };
                    let distance = run_distance(level, &it, run, key_head, unit, along);
                    // Distances are not negative, so their bits are in their order.
                    largest.fetch_max((distance as f32).to_bits(), Ordering::Relaxed);
                });
            }};
        }
        let floats = [0, 1, 2, 3, 4, 5, 6, 7].map(|index: usize| task.inputs[index].floats());
        match floats {
            [
                Floats::F32(q),
                Floats::F32(k),
                Floats::F32(v),
                Floats::F32(out),
                Floats::F32(dout),
                Floats::F32(dq),
                Floats::F32(dk),
                Floats::F32(dv),
            ] => run!(q: 0, k: 1, v: 2, out: 3, dout: 4, dq: 5, dk: 6, dv: 7),
            [
                Floats::Bf16(q),
                Floats::Bf16(k),
                Floats::Bf16(v),
                Floats::Bf16(out),
                Floats::Bf16(dout),
                Floats::Bf16(dq),
                Floats::Bf16(dk),
                Floats::Bf16(dv),
            ] => run!(q: 0, k: 1, v: 2, out: 3, dout: 4, dq: 5, dk: 6, dv: 7),
            _ => panic!("the floats of attention_check have one dtype"),
        }
        debug_assert_eq!(task.outputs[0].dtype, DType::F32);
        task.outputs[0].f32()[0] = f32::from_bits(largest.into_inner());
    }
}
