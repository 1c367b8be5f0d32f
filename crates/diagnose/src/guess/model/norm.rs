//! Norms of rows and of all gradients.

use super::Outputs;
use crate::guess::steps::{Steps, row};
use toprope_program::Tensor;
use toprope_program::operator::{GlobalNorm, RmsNorm};

pub(super) fn rms_norm(norm: &RmsNorm, o: &[&Tensor], steps: &Steps) -> Outputs {
    let width = o[1].data.len();
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    for at in 0..o[0].data.len() / width.max(1) {
        let x = row(o[0], at);
        let mean = steps.sum("a row's sum of squares", width, |i| x[i] * x[i])
            / steps.count("the width of a row", width);
        let mean = steps.value("the mean square", mean);
        let root = steps.value("the root", (mean + norm.epsilon).sqrt());
        let scale = steps.over("the reciprocal root", 1.0, root);
        y.extend(x.iter().zip(&o[1].data).map(|(x, w)| steps.value("the normed row", x * scale) * w));
        rstd.push(scale);
    }
    vec![Some(y), Some(rstd)]
}

pub(super) fn rms_norm_gradient(o: &[&Tensor], steps: &Steps) -> Outputs {
    let (x, weight, rstd, dy) = (o[0], &o[1].data, &o[2].data, o[3]);
    let width = weight.len();
    let mut dx = Vec::with_capacity(x.data.len());
    for (at, rstd) in rstd.iter().enumerate() {
        let (x, dy) = (row(x, at), row(dy, at));
        let inner = |i: usize| steps.operand("the weight within the mean", weight[i]);
        let mean = steps.sum("a row's sum of dy·weight·x", width, |i| dy[i] * inner(i) * x[i])
            / steps.count("the width of a row", width);
        let mean = steps.value("a row's mean of dy·weight·x", mean);
        let cube = steps.factor("the square of rstd", rstd * rstd);
        let one = |i: usize| {
            let outer = steps.operand("the weight outside of the mean", weight[i]);
            let own = steps.value("dy·weight", dy[i] * outer);
            steps.factor("rstd", *rstd) * (own - steps.term("the term of the mean", x[i] * cube * mean))
        };
        dx.extend((0..width).map(one));
    }
    let one = |d: usize| {
        steps.sum("the weight's sum over rows", rstd.len(), |at| {
            let normed = steps.value("x·rstd", x.data[at * width + d] * rstd[at]);
            dy.data[at * width + d] * normed
        })
    };
    vec![Some(dx), Some((0..width).map(one).collect())]
}

pub(super) fn global_norm(norm: &GlobalNorm, o: &[&Tensor], steps: &Steps) -> Outputs {
    let of = |at: usize| {
        let data = &o[at].data;
        steps.sum("a gradient's sum of squares", data.len(), |i| data[i] * data[i])
    };
    let squares = steps.value("the sum of squares", steps.sum("the sum over gradients", o.len(), of));
    let length = squares.sqrt();
    let factor = match () {
        () if !(length as f32).is_finite() => 0.0,
        () if norm.clip > 0.0 => steps.over("the reciprocal of the norm", norm.clip, length + 1e-6).min(1.0),
        () => 1.0,
    };
    vec![Some(vec![length]), Some(vec![factor])]
}
