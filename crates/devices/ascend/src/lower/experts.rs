//! Rows by expert, and back. The vendor's own permutations leave a slot outside the rows undefined, which the contract gives
//! a meaning; a product with 0 would let an infinity through.

use crate::call::{Argument, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::place::only_where;
use toprope_program::operator::ExpertSort;

pub(super) fn expert_sort(e: &mut Emit<'_>, it: &ExpertSort, x: &[View], y: &[View]) -> Lowered {
    let (experts, pairs, top_k) = (it.experts, x[0].elements(), x[0].sizes[1]);
    let (expert, _) = e.within(&x[0], experts)?;
    let expert = expert.flat();
    let (sorted, order) = (e.temporary(Element::I32, &[pairs]), e.temporary(Element::I64, &[pairs]));
    let (stable, descending) = (Argument::Bool(true), Argument::Bool(false));
    e.call(
        "Sort",
        vec![tensor(&expert), stable, Argument::I64(0), descending, tensor(&sorted), tensor(&order)],
    )?;
    let token = e.constant_i32((0..pairs).map(|pair| (pair / top_k.max(1)) as i32));
    let token = e.rows(&token, &order)?;
    e.copy(&y[0], &token)?;
    // The inverse of the order: pair `order[place]` has slot `place`.
    let place = e.ramp(pairs);
    e.call("InplaceIndexCopy", vec![tensor(&y[1].flat()), Argument::I64(0), tensor(&order), tensor(&place)])?;
    let number = e.ramp(experts + 1);
    let below = e.compare("LtTensor", &expert.unsqueeze(1), &number)?;
    let below = e.cast(&below, Element::F32)?;
    let offsets = e.sum(&below, &[0])?;
    e.copy(&y[2], &offsets)
}

/// The rows of y that pairs point to, `[T, K, D]` in f32 with zeros for those outside, and which are inside.
fn rows_of_pairs(e: &mut Emit<'_>, y: &View, slot: &View) -> Lowered<(View, View, View)> {
    let (slots, there) = e.within(slot, y.sizes[0])?;
    let rows = e.rows(y, &slots)?;
    let rows = e.wide(&rows)?.split(0, slot.sizes[0]);
    Ok((only_where(e, &there.unsqueeze(2), &rows)?, slots, there))
}

pub(super) fn combine(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (rows, _, there) = rows_of_pairs(e, &x[0], &x[1])?;
    let weights = only_where(e, &there, &x[2])?;
    let target = e.target(&y[0]);
    let terms = e.binary("Mul", &rows, &weights.unsqueeze(2))?;
    e.sum_into(&terms, &[1], &target)?;
    e.finish(&y[0], &target)
}

pub(super) fn combine_gradient(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (rows, slots, there) = rows_of_pairs(e, &x[0], &x[1])?;
    let dout = e.wide(&x[3])?.unsqueeze(1);
    let terms = e.binary("Mul", &rows, &dout)?;
    let dweights = e.sum(&terms, &[2])?;
    let dweights = only_where(e, &there, &dweights)?;
    e.copy(&y[1], &dweights)?;
    let target = e.target(&y[0]);
    e.zero(&target)?;
    let back = e.binary("Mul", &dout, &x[2].unsqueeze(2))?;
    let back = only_where(e, &there.unsqueeze(2), &back)?;
    let back = back.reshape(&[slots.elements(), target.last()]);
    e.add_rows(&target, &slots, &back)?;
    e.finish(&y[0], &target)
}
