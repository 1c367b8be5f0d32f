//! Sums of products against products of sums, and the loss by another way.

use crate::call::{Number, View};
use crate::emit::{Emit, Lowered};
use crate::ffi::abi::Element;
use crate::lower::optimizer::worst;
use toprope_program::operator::{ProductCheck, ProductForm};

const UNIT: f32 = 1.0 / (1u32 << 24) as f32;
/// 2^-70.
const LEAST: f32 = 8.470_329_5e-22;

/// `|a - b| / (size + 2^-70)`; the size has its unit already.
pub(super) fn distance(e: &mut Emit<'_>, a: &View, b: &View, size: &View) -> Lowered<View> {
    let bound = e.plus(size, Number::F32(LEAST))?;
    let gap = e.binary("Sub", a, b)?;
    let gap = e.unary("Abs", &gap)?;
    e.binary("Div", &gap, &bound)
}

/// `(Σ, √Σ²)` over the last axis.
fn sum_and_norm(e: &mut Emit<'_>, x: &View) -> Lowered<(View, View)> {
    let axis = x.rank() - 1;
    let sum = e.sum(x, &[axis])?;
    let square = e.binary("Mul", x, x)?;
    let square = e.sum(&square, &[axis])?;
    Ok((sum, e.unary("Sqrt", &square)?))
}

/// The expert of each of `rows` rows, and which rows have one.
fn expert_of_row(e: &mut Emit<'_>, offsets: &View, rows: usize) -> Lowered<(View, View)> {
    let experts = offsets.sizes[0] - 1;
    let row = e.ramp(rows).unsqueeze(1);
    // How many experts end at or before the row; rows before the first expert's belong to none.
    let ended = e.compare("GeTensor", &row, &offsets.narrow(0, 1, experts))?;
    let ended = e.cast(&ended, Element::F32)?;
    let expert = e.sum(&ended, &[1])?;
    let expert = e.cast(&expert, Element::I32)?;
    let (expert, in_time) = e.within(&expert, experts)?;
    let begun = e.compare("GeTensor", &row.select(1, 0), &offsets.narrow(0, 0, 1))?;
    Ok((expert, e.binary("LogicalAnd", &begun, &in_time)?))
}

pub(super) fn product_check(e: &mut Emit<'_>, it: &ProductCheck, x: &[View], y: &[View]) -> Lowered {
    let (a, b, row_sums) = (e.wide(&x[0])?, e.wide(&x[1])?, &x[2]);
    let (rows, depth, columns) = (a.sizes[0], a.sizes[1], b.last());
    let (sum, norm) = sum_and_norm(e, &b)?;
    let size = e.unary("Abs", &a)?;
    let (want, bound) = match it.form {
        ProductForm::Matmul => {
            let want = e.product(&a, &sum.unsqueeze(1))?.select(1, 0);
            let bound = e.product(&size, &norm.unsqueeze(1))?.select(1, 0);
            (want, e.scaled(&bound, UNIT * ((depth + columns) as f32).sqrt())?)
        }
        ProductForm::GroupedMatmul => {
            let (expert, there) = expert_of_row(e, &x[3], rows)?;
            let mut found = Vec::new();
            for (left, right) in [(&a, &sum), (&size, &norm)] {
                let of_row = e.rows(right, &expert)?;
                let terms = e.binary("Mul", left, &of_row)?;
                found.push(e.sum(&terms, &[1])?);
            }
            let bound = e.scaled(&found[1], UNIT * ((depth + columns) as f32).sqrt())?;
            // A row of no expert is not judged.
            let want = e.choose(&there, &found[0], row_sums)?;
            (want, bound)
        }
        ProductForm::GroupedOuter => {
            let experts = x[3].sizes[0] - 1;
            let (expert, there) = expert_of_row(e, &x[3], rows)?;
            let mut found = Vec::new();
            for (left, right) in [(&a, &sum), (&size, &norm)] {
                let terms = e.binary("Mul", left, &right.unsqueeze(1))?;
                let terms = super::place::only_where(e, &there.unsqueeze(1), &terms)?;
                let table = e.zeros(&[experts, depth])?;
                e.add_rows(&table, &expert, &terms)?;
                found.push(table);
            }
            let count = e.binary("Sub", &x[3].narrow(0, 1, experts), &x[3].narrow(0, 0, experts))?;
            let count = e.cast(&count, Element::F32)?;
            let count = e.plus(&count, Number::F32(columns as f32))?;
            let root = e.unary("Sqrt", &count)?;
            let root = e.scaled(&root, UNIT)?;
            let bound = e.binary("Mul", &found[1], &root.unsqueeze(1))?;
            (found.swap_remove(0), bound)
        }
    };
    let far = distance(e, row_sums, &want, &bound)?;
    worst(e, &[far], &y[0])
}

pub(super) fn loss_check(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (loss, rows, words) = (&x[0], &x[1], &x[2]);
    let column = |view: &View, at: usize| view.select(1, at);
    let mut found = Vec::new();
    for (table, unit) in [(rows, UNIT), (words, UNIT)] {
        let size = e.scaled(&column(table, 2), unit)?;
        found.push(distance(e, &column(table, 0), &column(table, 1), &size)?);
    }
    let size = e.scaled(&column(rows, 4), 32.0 * UNIT)?;
    let gap = e.binary("Sub", loss, &column(rows, 3))?;
    let gap = e.unary("Abs", &gap)?;
    found.push(e.binary("Div", &gap, &size)?);
    worst(e, &found, &y[0])
}
