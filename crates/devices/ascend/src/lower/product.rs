//! Products and sums.

use crate::call::{Argument, View};
use crate::emit::{Emit, Lacking, Lowered, tensor};
use crate::ffi::abi::Element;
use toprope_program::operator::{GroupedMatmul, GroupedOuter, Matmul};

pub(super) fn column_sum(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (wide, target) = (e.wide(&x[0])?, e.target(&y[0]));
    e.sum_into(&wide, &[0], &target)?;
    e.finish(&y[0], &target)
}

pub(super) fn dot(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let terms = e.binary("Mul", &x[0], &x[1])?;
    e.sum_into(&terms, &[0], &y[0])
}

pub(super) fn matmul(e: &mut Emit<'_>, it: &Matmul, x: &[View], y: &[View]) -> Lowered {
    let plain = x.len() == 2 && !it.row_sums;
    let bf16 = |view: &View| view.element == Element::Bf16;
    if plain && bf16(&x[0]) && bf16(&x[1]) && bf16(&y[0]) {
        // The cube units accumulate bf16 in f32 and round once.
        return e.product_into(&x[0], &x[1], &y[0]);
    }
    let (a, b) = (e.wide(&x[0])?, e.wide(&x[1])?);
    let product = if plain { e.target(&y[0]) } else { e.temporary(Element::F32, &y[0].sizes) };
    e.product_into(&a, &b, &product)?;
    if it.row_sums {
        e.sum_into(&product, &[1], &y[1])?;
    }
    match x.get(2) {
        Some(bias) => {
            let (bias, target) = (e.wide(bias)?, e.target(&y[0]));
            e.binary_into("Add", &product, &bias, &target)?;
            e.finish(&y[0], &target)
        }
        None => e.finish(&y[0], &product),
    }
}

/// Ends of groups as the grouped products take them: all offsets but the first, in i64.
fn ends(e: &mut Emit<'_>, offsets: &View) -> Lowered<View> {
    let ends = offsets.narrow(0, 1, offsets.sizes[0] - 1);
    e.cast(&ends, Element::I64)
}

/// One grouped product by the newest version that is there: `kind` 0 groups rows of x, 2 what is summed over.
fn grouped(e: &mut Emit<'_>, x: &View, weight: &View, ends: &View, kind: i64, y: &View) -> Lowered {
    let list = |view: &View| Argument::Tensors(vec![view.clone()]);
    let absent = |count: usize| vec![Argument::Absent; count];
    // One output; ends as running sums; no activation.
    let (split, sums, activation) = (Argument::I64(3), Argument::I64(0), Argument::I64(0));
    let kind = Argument::I64(kind);
    let mut arguments = vec![list(x), list(weight)];
    if e.has("GroupedMatmulV5") || e.has("GroupedMatmulV4") {
        arguments.extend(absent(6));
        arguments.push(tensor(ends));
        arguments.extend(absent(3));
        arguments.extend([split, kind, sums, activation]);
        let newest = e.has("GroupedMatmulV5");
        arguments.extend(absent(usize::from(newest)));
        arguments.push(list(y));
        arguments.extend(absent(2));
        return e.call(if newest { "GroupedMatmulV5" } else { "GroupedMatmulV4" }, arguments);
    }
    if !e.has("GroupedMatmulV3") {
        let reason =
            "this CANN has no aclnnGroupedMatmulV5, V4 or V3; older ones need the groups on the host";
        return Err(Lacking(reason.into()));
    }
    arguments.extend(absent(5));
    arguments.extend([tensor(ends), split, kind, list(y)]);
    e.call("GroupedMatmulV3", arguments)
}

fn store(e: &mut Emit<'_>, product: &View, row_sums: bool, y: &[View]) -> Lowered {
    if row_sums {
        e.sum_into(product, &[product.rank() - 1], &y[1])?;
    }
    e.finish(&y[0], product)
}

pub(super) fn grouped_matmul(e: &mut Emit<'_>, it: &GroupedMatmul, x: &[View], y: &[View]) -> Lowered {
    let ends = ends(e, &x[2])?;
    let bf16 = |view: &View| view.element == Element::Bf16;
    if !it.row_sums && bf16(&x[0]) && bf16(&x[1]) && bf16(&y[0]) {
        let a = e.dense(&x[0])?;
        return grouped(e, &a, &x[1], &ends, 0, &y[0]);
    }
    let (a, b, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(&y[0]));
    let a = e.dense(&a)?;
    grouped(e, &a, &b, &ends, 0, &target)?;
    store(e, &target, it.row_sums, y)
}

/// The left operand is handed over transposed, as a view; a group without rows is left alone, so zeros go first.
pub(super) fn grouped_outer(e: &mut Emit<'_>, it: &GroupedOuter, x: &[View], y: &[View]) -> Lowered {
    let ends = ends(e, &x[2])?;
    let (a, b, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(&y[0]));
    let (a, b) = (e.dense(&a)?, e.dense(&b)?);
    e.zero(&target)?;
    grouped(e, &a.permute(&[1, 0]), &b, &ends, 2, &target)?;
    store(e, &target, it.row_sums, y)
}
