//! Rotary position embedding: the vendor's fused operator takes one angle per column and knows no positions, so that its
//! operands are gathered first.

use crate::call::{Argument, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use crate::lower::place::only_where;
use toprope_program::operator::Rope;

/// The widest head that the fused operator takes.
const COLUMNS_MAX: usize = 895;

/// The two columns of each pair.
fn pairs(it: &Rope, turned: &View) -> (View, View) {
    let count = turned.sizes[2] / 2;
    if it.interleaved {
        (turned.every(2, 0, 2), turned.every(2, 1, 2))
    } else {
        (turned.narrow(2, 0, count), turned.narrow(2, count, count))
    }
}

pub(super) fn rope(e: &mut Emit<'_>, it: &Rope, x: &[View], y: &[View]) -> Lowered {
    let (wide, target) = (e.wide(&x[0])?, e.target(&y[0]));
    let (positions, there) = e.within(&x[1], x[2].sizes[0])?;
    let table = e.rows(&x[2], &positions)?;
    let columns = wide.sizes[2] - it.start;
    let behind = |view: &View| view.narrow(2, it.start, columns);
    let there = there.unsqueeze(1).unsqueeze(2);
    let turned = if e.settings.fused && columns <= COLUMNS_MAX && e.has("RotaryPositionEmbedding") {
        fused(e, it, &behind(&wide), &table)?
    } else {
        plain(e, it, &behind(&wide), &table)?
    };
    let turned = only_where(e, &there, &turned)?;
    if it.start > 0 {
        e.copy(&target.narrow(2, 0, it.start), &wide.narrow(2, 0, it.start))?;
    }
    e.copy(&behind(&target), &turned)?;
    e.finish(&y[0], &target)
}

/// By the fused operator: `x·cos + turned(x)·sin`, each angle once for both columns of its pair.
fn fused(e: &mut Emit<'_>, it: &Rope, x: &View, table: &View) -> Lowered<View> {
    let [tokens, _, columns] = [x.sizes[0], x.sizes[1], x.sizes[2]];
    let angles = [0, 1].map(|part| table.select(1, part).unsqueeze(1));
    let mut spread = Vec::new();
    for (part, angle) in angles.iter().enumerate() {
        let all = e.temporary(Element::F32, &[tokens, 1, columns]);
        let angle = if part == 1 && it.inverse { e.scaled(angle, -1.0)? } else { angle.clone() };
        let (first, second) = pairs(it, &all);
        e.copy(&first, &angle)?;
        e.copy(&second, &angle)?;
        spread.push(all.unsqueeze(0));
    }
    let x = e.dense(x)?.unsqueeze(0);
    let out = e.temporary(Element::F32, &x.sizes);
    let mode = Argument::I64(i64::from(it.interleaved));
    e.call(
        "RotaryPositionEmbedding",
        vec![tensor(&x), tensor(&spread[0]), tensor(&spread[1]), mode, tensor(&out)],
    )?;
    Ok(out.select(0, 0))
}

fn plain(e: &mut Emit<'_>, it: &Rope, x: &View, table: &View) -> Lowered<View> {
    // [T, 1, pairs], the same for each head.
    let [cosine, sine] = [0, 1].map(|part| table.select(1, part).unsqueeze(1));
    let turned = e.temporary(Element::F32, &x.sizes);
    let ((a, b), (first, second)) = (pairs(it, x), pairs(it, &turned));
    let (plus, minus) = if it.inverse { ("Sub", "Add") } else { ("Add", "Sub") };
    let (ac, bs) = (e.binary("Mul", &a, &cosine)?, e.binary("Mul", &b, &sine)?);
    let made = e.binary(minus, &ac, &bs)?;
    e.copy(&first, &made)?;
    // b·c ± a·s: the same sum either way round, up to the sign of a zero.
    let (as_, bc) = (e.binary("Mul", &a, &sine)?, e.binary("Mul", &b, &cosine)?);
    let made = e.binary(plus, &bc, &as_)?;
    e.copy(&second, &made)?;
    Ok(turned)
}
