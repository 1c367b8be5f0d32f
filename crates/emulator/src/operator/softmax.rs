//! Softmax and its logarithm, along any axis.

use half::f16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand};
use crate::operator::run::Run;
use crate::operator::unary::exp_of;
use crate::operator::{Planned, kernel_with_workspace, operators};

operators! {
    Softmax(self_: T, dim: i64, out: To) = |a| forward(a, false);
    LogSoftmax(self_: T, dim: i64, out: To) = |a| forward(a, true);
    SoftmaxBackward(gradOutput: T, output: T, dim: i64, out: To) = |a| backward(a, false);
    LogSoftmaxBackward(gradOutput: T, output: T, dim: i64, out: To) = |a| backward(a, true);
}

/// With an axis last, so that rows lie one behind the other.
pub fn along(operand: &Operand, dim: i64) -> Result<Operand, Fault> {
    if operand.rank() == 0 {
        return Ok(operand.view(vec![1], vec![1], operand.offset));
    }
    let axis = operand.axis(dim)?;
    let mut order: Vec<usize> = (0..operand.rank()).filter(|&other| other != axis).collect();
    order.push(axis);
    Ok(operand.permute(&order))
}

/// The softmax of a row, in place.
fn softmax(run: &Run, row: &mut [f32], logarithm: bool) {
    let counted = if run.has("softmax.tail") { row.len() - row.len() % 16 } else { row.len() };
    if run.has("softmax.no_maximum") {
        let half = |value: f32| f16::from_f32(value).to_f32();
        let sum: f32 = half(row[..counted].iter().map(|&x| half(x.exp())).sum());
        for x in row {
            *x = if logarithm { *x - sum.ln() } else { half(x.exp()) / sum };
        }
        return;
    }
    let exp = exp_of(run);
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if logarithm {
        let sum: f32 = row[..counted].iter().map(|&x| (x - most).exp()).sum();
        row.iter_mut().for_each(|x| *x = *x - most - sum.ln());
        return;
    }
    row.iter_mut().for_each(|x| *x = exp(*x - most));
    let sum: f32 = row[..counted].iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

fn forward(a: &Arguments, logarithm: bool) -> Planned {
    let (x, out, dim) = (a.tensor("self_")?, a.tensor("out")?, a.integer("dim")?);
    out.must_have(&x.shape)?;
    out.must_be_float()?;
    let (x, out) = (along(&x, dim)?, along(&out, dim)?);
    let width = x.shape[x.rank() - 1].max(1);
    kernel_with_workspace(x.len(), move |run| {
        let mut values = run.floats(&x)?.into_vec();
        values.chunks_mut(width).for_each(|row| softmax(run, row, logarithm));
        run.store(&out, &values)
    })
}

fn backward(a: &Arguments, logarithm: bool) -> Planned {
    let (dy, y, out) = (a.tensor("gradOutput")?, a.tensor("output")?, a.tensor("out")?);
    let dim = a.integer("dim")?;
    dy.must_have(&y.shape)?;
    out.must_have(&y.shape)?;
    let (dy, y, out) = (along(&dy, dim)?, along(&y, dim)?, along(&out, dim)?);
    let width = y.shape[y.rank() - 1].max(1);
    kernel_with_workspace(y.len(), move |run| {
        let (dy, y) = (run.floats(&dy)?, run.floats(&y)?);
        let mut values = Vec::with_capacity(y.len());
        for (dy, y) in dy.chunks(width).zip(y.chunks(width)) {
            if logarithm {
                let sum: f32 = dy.iter().sum();
                values.extend(dy.iter().zip(y).map(|(dy, y)| dy - y.exp() * sum));
            } else {
                let sum: f32 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
                values.extend(dy.iter().zip(y).map(|(dy, y)| y * (dy - sum)));
            }
        }
        run.store(&out, &values)
    })
}
