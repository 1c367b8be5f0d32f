//! What attention and its gradient must satisfy together, over runs of rows that see nothing of each other. Where runs begin
//! is data, so every sum over a run goes into a table with a row for each run that there could be.

use crate::call::{Argument, Number, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::attention::mask;
use crate::lower::check::distance;
use crate::lower::optimizer::worst;
use crate::lower::place::only_where;
use toprope_program::operator::AttentionCheck;

const UNIT: f32 = 1.0 / (1u32 << 24) as f32;
/// Above every row, and exact in f32.
const FAR: f32 = 16_777_216.0;

/// The run of each row, `[T]` in i32: a run begins where no later row that sees a key sees one before it.
fn runs(e: &mut Emit<'_>, segment_start: &View, blind: &View) -> Lowered<View> {
    let rows = segment_start.sizes[0];
    let start = e.cast(segment_start, Element::F32)?;
    let start = e.dense(&start)?;
    let far = e.constant_f32(FAR);
    let start = e.choose(blind, &far, &start)?;
    let floor = e.constant_f32(0.0);
    let start = e.binary("Maximum", &start, &floor)?;
    let row = e.ramp(rows);
    let later = e.compare("GeTensor", &row.unsqueeze(0), &row.unsqueeze(1))?;
    let starts = e.choose(&later, &start.unsqueeze(0), &far)?;
    let least = e.extreme("Amin", &starts, &[1])?;
    let number = e.cast(&row, Element::F32)?;
    let begins = e.compare("GeTensor", &least, &number)?;
    let begins = e.cast(&begins, Element::F32)?;
    let count = e.temporary(Element::F32, &[rows]);
    e.call("Cumsum", vec![tensor(&begins), Argument::I64(0), Argument::Type(Element::F32), tensor(&count)])?;
    let index = e.plus(&count, Number::F32(-1.0))?;
    e.cast(&index, Element::I32)
}

/// Everything by run.
struct Tables {
    run: View,
    rows: usize,
}

impl Tables {
    /// The sum over each run's rows of `[n, ..]`, `n` at most the rows.
    fn sum(&self, e: &mut Emit<'_>, x: &View) -> Lowered<View> {
        let mut sizes = x.sizes.clone();
        sizes[0] = self.rows;
        let table = e.zeros(&sizes)?;
        e.add_rows(&table, &self.run.narrow(0, 0, x.sizes[0]), x)?;
        Ok(table)
    }

    /// The largest of each run's rows of `[T, W]`, none of them negative; `x` is used up.
    fn largest(&self, e: &mut Emit<'_>, x: &View) -> Lowered<View> {
        let mut step = 1;
        // After each turn a row holds the largest of the last 2·step rows of its run.
        while step < self.rows {
            let mark = e.mark();
            let rest = self.rows - step;
            let (early, late) = (self.run.narrow(0, 0, rest), self.run.narrow(0, step, rest));
            let same = e.compare("EqTensor", &early, &late)?;
            let before = only_where(e, &same.unsqueeze(1), &x.narrow(0, 0, rest))?;
            let more = e.binary("Maximum", &x.narrow(0, step, rest), &before)?;
            e.copy(&x.narrow(0, step, rest), &more)?;
            e.forget(mark);
            step *= 2;
        }
        // The last row of each run has it.
        let last = e.temporary(Element::Bool, &[self.rows]);
        let rest = self.rows - 1;
        let end = e.compare_with("GeScalar", &self.run.narrow(0, rest, 1), Number::I64(0))?;
        e.copy(&last.narrow(0, rest, 1), &end)?;
        if rest > 0 {
            let ends = e.compare("NeTensor", &self.run.narrow(0, 0, rest), &self.run.narrow(0, 1, rest))?;
            e.copy(&last.narrow(0, 0, rest), &ends)?;
        }
        let only = only_where(e, &last.unsqueeze(1), x)?;
        self.sum(e, &only)
    }
}

/// `Σ x` and `Σ x²` over axes.
fn moments(e: &mut Emit<'_>, x: &View, axes: &[usize]) -> Lowered<(View, View)> {
    let square = e.binary("Mul", x, x)?;
    Ok((e.sum(x, axes)?, e.sum(&square, axes)?))
}

pub(super) fn attention_check(e: &mut Emit<'_>, it: &AttentionCheck, x: &[View], y: &[View]) -> Lowered {
    let (rows, heads, columns) = (x[0].sizes[0], x[1].sizes[1], x[0].sizes[2]);
    let (keys, values) = (x[1].sizes[0].min(rows), x[2].sizes[2]);
    let scale = it.scale as f32;
    let unit = if x[3].element == Element::Bf16 { 1.0 / 256.0 } else { UNIT };
    let mask = mask(e, x[1].sizes[0], &x[8], None, None)?;
    let tables = Tables { run: runs(e, &x[8], &mask.blind)?, rows };
    let seen = e.unary("LogicalNot", &mask.blind)?;

    // [T, Hk, G, ·] and [keys, Hk, ·] in f32.
    let mut query = |at: usize| -> Lowered<View> { e.wide(&x[at].split(1, heads)) };
    let (q, out, dout, dq) = (query(0)?, query(3)?, query(4)?, query(5)?);
    let mut key = |at: usize| -> Lowered<View> { e.wide(&x[at].narrow(0, 0, keys)) };
    let (k, v, dk, dv) = (key(1)?, key(2)?, key(6)?, key(7)?);

    // (u + 2^-24·√rows) of each run.
    let ones = e.filled(&[rows, 1], 1.0)?;
    let count = tables.sum(e, &ones)?;
    let root = e.unary("Sqrt", &count)?;
    let here = e.scaled(&root, UNIT)?;
    let here = e.plus(&here, Number::F32(unit))?;
    let mut found = Vec::new();
    let mut meet = |e: &mut Emit<'_>, first: (View, View), second: (View, View)| -> Lowered {
        let size = e.unary("Sqrt", &first.1)?;
        let other = e.unary("Sqrt", &second.1)?;
        let size = e.binary("Add", &size, &other)?;
        let mut unit = here.clone();
        while unit.rank() < size.rank() {
            unit = unit.unsqueeze(unit.rank());
        }
        let size = e.binary("Mul", &size, &unit)?;
        found.push(distance(e, &first.0, &second.0, &size)?);
        Ok(())
    };
    let by_run = |e: &mut Emit<'_>, pair: (View, View)| -> Lowered<(View, View)> {
        Ok((tables.sum(e, &pair.0)?, tables.sum(e, &pair.1)?))
    };

    // (1) column sums of dv against those of dout.
    let square = e.binary("Mul", &dv, &dv)?;
    let of_dv = by_run(e, (dv.clone(), square))?;
    let given = only_where(e, &seen.unsqueeze(1).unsqueeze(2).unsqueeze(3), &dout)?;
    let given = moments(e, &given, &[2])?;
    let of_dout = by_run(e, given)?;
    meet(e, of_dv, of_dout)?;
    // (2) column sums of dk.
    let along = e.binary("Mul", &dout, &out)?;
    let along = moments(e, &along, &[3])?.1;
    let part = e.scaled(&q, scale)?;
    let part = e.binary("Mul", &part, &part)?;
    let part = e.binary("Mul", &part, &along.unsqueeze(3))?;
    let part = e.sum(&part, &[2])?;
    let errors = tables.sum(e, &part)?;
    let square = e.binary("Mul", &dk, &dk)?;
    let of_dk = by_run(e, (dk.clone(), square))?;
    let nothing = e.zeros(&of_dk.0.sizes)?;
    meet(e, of_dk, (nothing, errors))?;
    // (3) and (4): inner products on either side.
    for (left, right) in [((&q, &dq), (&k, &dk)), ((&out, &dout), (&v, &dv))] {
        let product = e.binary("Mul", left.0, left.1)?;
        let product = moments(e, &product, &[2, 3])?;
        let first = by_run(e, product)?;
        let product = e.binary("Mul", right.0, right.1)?;
        let product = moments(e, &product, &[2])?;
        let second = by_run(e, product)?;
        meet(e, first, second)?;
    }

    // Largest sizes by run: of out and v by column, of q and k by head.
    let width = heads * values;
    let sizes = e.zeros(&[rows, 2 * width + 2 * heads])?;
    let mut from = 0;
    for (view, axes, wide) in
        [(&out, vec![2], true), (&v, vec![], true), (&q, vec![2, 3], false), (&k, vec![2], false)]
    {
        let size = e.unary("Abs", view)?;
        let size = if axes.is_empty() { size } else { e.largest(&size, &axes)? };
        let count = if wide { width } else { heads };
        let size = size.reshape(&[size.sizes[0], count]);
        e.copy(&sizes.narrow(1, from, count).narrow(0, 0, size.sizes[0]), &size)?;
        from += count;
    }
    let sizes = tables.largest(e, &sizes)?;
    let (of_out, of_v) = (sizes.narrow(1, 0, width), sizes.narrow(1, width, width));
    let (of_q, of_k) = (sizes.narrow(1, 2 * width, heads), sizes.narrow(1, 2 * width + heads, heads));
    // (6) an average leaves no more than the largest value.
    let over = e.binary("Maximum", &of_out, &of_v)?;
    let of_v = e.dense(&of_v)?;
    let bound = e.binary("Mul", &of_v, &here)?;
    found.push(distance(e, &over, &of_v, &bound)?);
    // (5) probabilities sum to one.
    let reach = e.binary("Mul", &of_q, &of_k)?;
    let reach = e.scaled(&reach, scale * columns as f32)?;
    let reach = e.binary("Add", &reach, &root)?;
    let reach = e.plus(&reach, Number::F32(1.0))?;
    let reach = e.scaled(&reach, UNIT)?;
    let of_row = e.rows(&reach, &tables.run)?;
    let sums = e.dense(&x[9])?.split(1, heads);
    let gap = e.plus(&sums, Number::F32(-1.0))?;
    let gap = e.unary("Abs", &gap)?;
    let far = e.binary("Div", &gap, &of_row.unsqueeze(2))?;
    found.push(only_where(e, &seen.unsqueeze(1).unsqueeze(2), &far)?);
    worst(e, &found, &y[0])
}
