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
}

/// Adds `x·y` and `(x·y)²` to two sums, lane by lane.
macro_rules! pair {
    ($lanes:ident, $x:expr, $y:expr, $sums:expr) => {{
        let (x, y) = ($x, $y);
        let count = x.len().min(y.len());
        let [mut sum, mut square] = $sums;
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            let product = unsafe {
                let x: $lanes = X::load_first(x.as_ptr().add(start), width);
                x.mul(X::load_first(y.as_ptr().add(start), width))
            };
            sum = sum.add(product);
            square = product.fused(product, square);
            start += WIDTH;
        }
        [sum, square]
    }};
}

/// `sum += sign·x`, `square += factor·x²`, column by column.
macro_rules! columns {
    ($lanes:ident, $x:expr, $sign:expr, $factor:expr, $sum:expr, $square:expr) => {{
        let (x, sum, square) = ($x, &mut *$sum, &mut *$square);
        let count = x.len().min(sum.len()).min(square.len());
        let (sign, factor) = ($lanes::splat($sign), $lanes::splat($factor));
        let mut start = 0;
        while start < count {
            let width = (count - start).min(WIDTH);
            // SAFETY: start + width ≤ count.
            unsafe {
                let x: $lanes = X::load_first(x.as_ptr().add(start), width);
                let (sums, squares) = (sum.as_mut_ptr().add(start), square.as_mut_ptr().add(start));
                let value = x.fused(sign, f32::load_first(sums, width));
                f32::store_first(value, sums, width);
                let value = x.mul(x).fused(factor, f32::load_first(squares, width));
                f32::store_first(value, squares, width);
            }
            start += WIDTH;
        }
    }};
}

kernel! {
    /// The largest distance of one key head of one run.
    fn run_distance[X: Element](
        it: &'a Parts<'a, X>, rows: std::ops::Range<usize>, key_head: usize, unit: f64, sums: &'a mut [f32]
    ) -> f64 {
        let (d, dv) = (it.q.columns, it.v.columns);
        sums.fill(0.0);
        let (value_sum, rest) = sums.split_at_mut(dv);
        let (value_have, rest) = rest.split_at_mut(dv);
        let (value_want, rest) = rest.split_at_mut(dv);
        let (key_sum, rest) = rest.split_at_mut(d);
        let (key_have, rest) = rest.split_at_mut(d);
        let (key_want, unused) = rest.split_at_mut(d);
        let none = [L::splat(0.0); 2];
        let [mut of_queries, mut of_keys, mut of_out, mut of_values] = [none; 4];
        let each = it.q.heads / it.k.heads;
        for row in rows.clone() {
            let sees = !it.mask.visible(row).is_empty();
            for head in key_head * each..(key_head + 1) * each {
                let dout = it.dout.row(row, head);
                let [sum, square] = pair!(L, it.out.row(row, head), dout, none);
                of_out = [of_out[0].add(sum), of_out[1].add(square)];
                if sees {
                    columns!(L, dout, -1.0, 1.0, value_sum, value_want);
                }
                let q = it.q.row(row, head);
                let factor = square.sum() * (it.scale * it.scale);
                columns!(L, q, 0.0, factor, &mut unused[..d], key_want);
                of_queries = pair!(L, q, it.dq.row(row, head), of_queries);
            }
            if row < it.mask.keys as usize {
                let (dk, dv) = (it.dk.row(row, key_head), it.dv.row(row, key_head));
                columns!(L, dv, 1.0, 1.0, value_sum, value_have);
                columns!(L, dk, 1.0, 1.0, key_sum, key_have);
                of_values = pair!(L, it.v.row(row, key_head), dv, of_values);
                of_keys = pair!(L, it.k.row(row, key_head), dk, of_keys);
            }
        }
        let unit = unit + 2f64.powi(-24) * (rows.len() as f64).sqrt();
        let mut largest = 0.0f64;
        let mut meet = |distance: f64, have: f64, want: f64| {
            let distance = distance.abs() / (unit * (have.sqrt() + want.sqrt()) + FLOOR);
            // Not below infinity: infinite or no number.
            largest = if distance < f64::INFINITY { largest.max(distance) } else { f64::INFINITY };
        };
        for (first, second) in [(of_queries, of_keys), (of_out, of_values)] {
            let [first, second] = [first, second].map(|sums| sums.map(|lanes| f64::from(lanes.sum())));
            meet(first[0] - second[0], first[1], second[1]);
        }
        for ((sum, have), want) in value_sum.iter().zip(&*value_have).zip(&*value_want) {
            meet(f64::from(*sum), f64::from(*have), f64::from(*want));
        }
        for ((sum, have), want) in key_sum.iter().zip(&*key_have).zip(&*key_want) {
            meet(f64::from(*sum), f64::from(*have), f64::from(*want));
        }
        largest
    }
}

/// f32 values of a thread.
fn values(columns: usize, value_columns: usize) -> usize {
    (4 * columns + 3 * value_columns).next_multiple_of(WIDTH)
}

impl Execute for AttentionCheck {
    fn layout(&self, index: usize) -> Layout {
        if index < 8 { Layout::Rows } else { Layout::Dense }
    }

    fn workspace_bytes(&self, sizes: &Sizes<'_>) -> usize {
        let (q, v) = (sizes.inputs[0].shape.sizes(), sizes.inputs[2].shape.sizes());
        (sizes.threads * values(q[2], v[2]) + q[0] + 2) * size_of::<f32>()
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
        let largest = AtomicU32::new(0);
        macro_rules! run {
            ($($operand:ident: $index:literal),*) => {{
                let it = Parts {
                    $($operand: Rows::new(&task.inputs[$index], $operand),)*
                    mask,
                    scale: self.scale as f32,
                };
                let each = values(it.q.columns, it.v.columns);
                let sums = super::parallel::Parts::new(sums);
                pool.for_each_thread(found * it.k.heads, |thread, index| {
                    let (run, key_head) = (index / it.k.heads, index % it.k.heads);
                    let end = starts.get(run + 1).map_or(rows, |next| *next as usize);
                    // SAFETY: a thread's own part.
                    let sums = unsafe { sums.part(thread * each, each) };
                    let distance = run_distance(level, &it, starts[run] as usize..end, key_head, unit, sums);
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
