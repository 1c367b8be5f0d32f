//! The linear head with its cross-entropy: some rows of logits at a time, thrown away when they were used.

use crate::call::{Argument, Number, View};
use crate::emit::{CHUNK_ELEMENTS, Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::place::only_where;
use toprope_program::operator::LinearCrossEntropyGradient;

/// Rows whose logits are held at once, as `(first, count)`.
fn chunks(x: &View, weight: &View) -> impl Iterator<Item = (usize, usize)> {
    let (rows, words) = (x.sizes[0], weight.sizes[0].max(1));
    let step = (CHUNK_ELEMENTS / words).clamp(1, rows.max(1));
    (0..rows).step_by(step).map(move |from| (from, step.min(rows - from)))
}

/// What is known of some rows; `[t]` each, where not said otherwise.
struct Rows {
    /// `[t, V]`.
    logits: View,
    /// The largest logit.
    top: View,
    /// The log-sum-exp.
    lse: View,
    /// The target's logit; any where there is no target.
    of_target: View,
    /// Whether there is a target.
    there: View,
    /// 0 where there is no target.
    loss: View,
}

fn rows(e: &mut Emit<'_>, x: &View, weight: &View, targets: &View) -> Lowered<Rows> {
    let logits = e.product(x, &weight.permute(&[1, 0]))?;
    let (target, there) = e.within(targets, weight.sizes[0])?;
    let target = e.cast(&target, Element::I64)?;
    let of_target = e.temporary(Element::F32, &[x.sizes[0], 1]);
    e.call(
        "Gather",
        vec![tensor(&logits), Argument::I64(1), tensor(&target.unsqueeze(1)), tensor(&of_target)],
    )?;
    let of_target = of_target.select(1, 0);
    let top = e.largest(&logits, &[1])?;
    let exponentials = e.binary("Sub", &logits, &top.unsqueeze(1))?;
    e.unary_into("Exp", &exponentials, &exponentials)?;
    let sum = e.sum(&exponentials, &[1])?;
    let log = e.unary("Log", &sum)?;
    let lse = e.binary("Add", &top, &log)?;
    let loss = e.binary("Sub", &lse, &of_target)?;
    let loss = only_where(e, &there, &loss)?;
    Ok(Rows { logits, top, lse, of_target, there, loss })
}

pub(super) fn linear_cross_entropy(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (wide, weight) = (e.wide(&x[0])?, e.wide(&x[1])?);
    for (from, count) in chunks(&wide, &weight) {
        let mark = e.mark();
        let rows = rows(e, &wide.narrow(0, from, count), &weight, &x[2].narrow(0, from, count))?;
        e.copy(&y[0].narrow(0, from, count), &rows.loss)?;
        e.copy(&y[1].narrow(0, from, count), &rows.lse)?;
        e.forget(mark);
    }
    Ok(())
}

/// `(Σ row, √Σ row²)` of each row.
fn sum_and_norm(e: &mut Emit<'_>, x: &View) -> Lowered<(View, View)> {
    let sum = e.sum(x, &[1])?;
    let square = e.binary("Mul", x, x)?;
    let square = e.sum(&square, &[1])?;
    Ok((sum, e.unary("Sqrt", &square)?))
}

/// `matrix · vector`.
fn times(e: &mut Emit<'_>, matrix: &View, vector: &View) -> Lowered<View> {
    Ok(e.product(matrix, &vector.unsqueeze(1))?.select(1, 0))
}

pub(super) fn linear_cross_entropy_gradient(
    e: &mut Emit<'_>,
    it: &LinearCrossEntropyGradient,
    x: &[View],
    y: &[View],
) -> Lowered {
    let (wide, weight) = (e.wide(&x[0])?, e.wide(&x[1])?);
    let (all_rows, words, columns) = (wide.sizes[0], weight.sizes[0], wide.sizes[1]);
    let (dx, dweight) = (e.target(&y[1]), e.target(&y[2]));
    let of_words = if it.sums { Some(sum_and_norm(e, &weight)?) } else { None };
    // For each word what its sum of dweight must be, and its size.
    let want = if it.sums { Some([e.zeros(&[words])?, e.zeros(&[words])?]) } else { None };
    let word = e.ramp(words).unsqueeze(0);
    for (turn, (from, count)) in chunks(&wide, &weight).enumerate() {
        let mark = e.mark();
        let [part, targets, dloss] = [&wide, &x[2], &x[3]].map(|view| view.narrow(0, from, count));
        let dx = dx.narrow(0, from, count);
        let rows = rows(e, &part, &weight, &targets)?;
        e.copy(&y[0].narrow(0, from, count), &rows.loss)?;
        let g = e.binary("Sub", &rows.logits, &rows.lse.unsqueeze(1))?;
        e.unary_into("Exp", &g, &g)?;
        let hit = e.compare("EqTensor", &targets.unsqueeze(1), &word)?;
        let hit = e.cast(&hit, Element::F32)?;
        e.binary_into("Sub", &g, &hit, &g)?;
        let dloss = only_where(e, &rows.there, &dloss)?;
        e.binary_into("Mul", &g, &dloss.unsqueeze(1), &g)?;
        e.product_into(&g, &weight, &dx)?;
        if turn == 0 {
            e.product_into(&g.permute(&[1, 0]), &part, &dweight)?;
        } else {
            let more = e.product(&g.permute(&[1, 0]), &part)?;
            e.binary_into("Add", &dweight, &more, &dweight)?;
        }
        if let (Some(of_words), Some(want)) = (&of_words, &want) {
            let size = g_size(e, &g)?;
            let (part_sum, part_norm) = sum_and_norm(e, &part)?;
            for (want, more) in [(&want[0], (&g, &part_sum)), (&want[1], (&size, &part_norm))] {
                let more = times(e, &more.0.permute(&[1, 0]), more.1)?;
                e.binary_into("Add", want, &more, want)?;
            }
            let along = times(e, &g, &of_words.0)?;
            let bound = times(e, &size, &of_words.1)?;
            let bound = e.scaled(&bound, ((words + columns) as f32).sqrt())?;
            row_sums(e, &rows, [&dx, &along, &bound], &y[3].narrow(0, from, count))?;
        }
        e.forget(mark);
    }
    if let Some(want) = &want {
        e.sum_into(&dweight, &[1], &y[4].select(1, 0))?;
        e.copy(&y[4].select(1, 1), &want[0])?;
        e.scale_into(&want[1], ((all_rows + columns) as f32).sqrt(), &want[1])?;
        e.copy(&y[4].select(1, 2), &want[1])?;
    }
    e.finish(&y[1], &dx)?;
    e.finish(&y[2], &dweight)
}

fn g_size(e: &mut Emit<'_>, g: &View) -> Lowered<View> {
    e.unary("Abs", g)
}

/// `(Σ dx, Σ g·W, bound, the loss by another way, 1 + |max z| + |z_target| + |loss|)`; zeros and a 1 without a target.
fn row_sums(e: &mut Emit<'_>, rows: &Rows, [dx, along, bound]: [&View; 3], y: &View) -> Lowered {
    let sum = e.sum(dx, &[1])?;
    // The other way: logarithms of softmax's probabilities, the largest of which needs no exponential.
    let below = e.binary("Sub", &rows.logits, &rows.of_target.unsqueeze(1))?;
    let lowest = e.largest(&below, &[1])?;
    e.binary_into("Sub", &below, &lowest.unsqueeze(1), &below)?;
    e.unary_into("Exp", &below, &below)?;
    let total = e.sum(&below, &[1])?;
    let total = e.unary("Log", &total)?;
    let other = e.binary("Add", &lowest, &total)?;
    let mut size = e.plus(&rows.loss, Number::F32(1.0))?;
    for part in [&rows.top, &rows.of_target] {
        let part = e.unary("Abs", part)?;
        size = e.binary("Add", &size, &part)?;
    }
    let one = e.constant_f32(1.0);
    for (column, number) in [&sum, along, bound, &other].into_iter().enumerate() {
        let number = only_where(e, &rows.there, number)?;
        e.copy(&y.select(1, column), &number)?;
    }
    let size = e.choose(&rows.there, &size, &one)?;
    e.copy(&y.select(1, 4), &size)
}
