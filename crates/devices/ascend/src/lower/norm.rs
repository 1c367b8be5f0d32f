//! Root-mean-square normalisation.

use crate::call::{Argument, Number, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use toprope_program::operator::RmsNorm;

pub(super) fn rms_norm(e: &mut Emit<'_>, it: &RmsNorm, x: &[View], y: &[View]) -> Lowered {
    let (wide, weight, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(&y[0]));
    let rstd = y[1].unsqueeze(y[1].rank());
    if e.settings.fused && e.has("RmsNorm") {
        let (wide, weight) = (e.dense(&wide)?, e.dense(&weight)?);
        e.call(
            "RmsNorm",
            vec![
                tensor(&wide),
                tensor(&weight),
                Argument::F64(f64::from(it.epsilon as f32)),
                tensor(&target),
                tensor(&rstd),
            ],
        )?;
    } else {
        let scale = root_mean_square(e, &wide, it.epsilon as f32)?;
        e.copy(&y[1], &scale)?;
        let scaled = e.binary("Mul", &wide, &rstd)?;
        e.binary_into("Mul", &scaled, &weight, &target)?;
    }
    e.finish(&y[0], &target)
}

/// `1/√(mean(x²) + epsilon)` over the last axis, which is left out.
fn root_mean_square(e: &mut Emit<'_>, x: &View, epsilon: f32) -> Lowered<View> {
    let square = e.binary("Mul", x, x)?;
    let sum = e.sum(&square, &[x.rank() - 1])?;
    let mean = e.scaled(&sum, 1.0 / x.last() as f32)?;
    let shifted = e.plus(&mean, Number::F32(epsilon))?;
    let root = e.unary("Sqrt", &shifted)?;
    let one = e.constant_f32(1.0);
    e.binary("Div", &one, &root)
}

pub(super) fn rms_norm_gradient(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (wide, weight, dy) = (e.wide(&x[0])?, e.wide(&x[1])?, e.wide(&x[3])?);
    let rstd = x[2].unsqueeze(x[2].rank());
    let (dx, dweight) = (e.target(&y[0]), e.target(&y[1]));
    if e.settings.fused && e.has("RmsNormGrad") {
        let (wide, weight, dy, rstd) = (e.dense(&wide)?, e.dense(&weight)?, e.dense(&dy)?, e.dense(&rstd)?);
        e.call(
            "RmsNormGrad",
            vec![tensor(&dy), tensor(&wide), tensor(&rstd), tensor(&weight), tensor(&dx), tensor(&dweight)],
        )?;
    } else {
        // dx = rstd·(dy·w - x·rstd²·Σ(dy·w·x)/D).
        let along = e.binary("Mul", &dy, &weight)?;
        let terms = e.binary("Mul", &along, &wide)?;
        let axis = wide.rank() - 1;
        let mean = e.sum(&terms, &[axis])?;
        let mean = e.scaled(&mean, 1.0 / wide.last() as f32)?;
        let square = e.binary("Mul", &x[2], &x[2])?;
        let factor = e.binary("Mul", &mean, &square)?.unsqueeze(axis);
        let back = e.binary("Mul", &wide, &factor)?;
        let inner = e.binary("Sub", &along, &back)?;
        e.binary_into("Mul", &inner, &rstd, &dx)?;
        let normed = e.binary("Mul", &wide, &rstd)?;
        let terms = e.binary("Mul", &normed, &dy)?;
        let rows: Vec<usize> = (0..axis).collect();
        e.sum_into(&terms, &rows, &dweight)?;
    }
    debug_assert_eq!(dweight.element, Element::F32);
    e.finish(&y[0], &dx)?;
    e.finish(&y[1], &dweight)
}
