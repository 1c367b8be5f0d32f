//! Root-mean-square normalisation.

use super::{attribute, inner, tensor};
use toprope_program::operator::{RmsNorm, RmsNormGradient};
use toprope_program::{DType, Tensor, Width};

pub(crate) fn rms_norm(attributes: &RmsNorm, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let (x, weight) = (&operands[0], &operands[1]);
    let columns = weight.data.len();
    let epsilon = attribute(attributes.epsilon, width);
    let mut y = Vec::with_capacity(x.data.len());
    let mut rstd = Vec::new();
    for row in x.data.chunks_exact(columns) {
        let scale = 1.0 / (inner(row, row) / columns as f64 + epsilon).sqrt();
        y.extend(row.iter().zip(&weight.data).map(|(x, weight)| x * scale * weight));
        rstd.push(scale);
    }
    let rows = &x.sizes[..x.sizes.len() - 1];
    vec![tensor(x.dtype, &x.sizes, y), tensor(DType::F32, rows, rstd)]
}

pub(crate) fn rms_norm_gradient(attributes: &RmsNormGradient, operands: &[Tensor]) -> Vec<Tensor> {
    let (x, weight, rstd, dy) = (&operands[0], &operands[1], &operands[2], &operands[3]);
    let columns = weight.data.len();
    let mut dx = vec![0.0; x.data.len()];
    let mut dweight = vec![0.0; columns];
    for (row, &rstd) in rstd.data.iter().enumerate() {
        let place = row * columns..(row + 1) * columns;
        let (x, dy, dx) = (&x.data[place.clone()], &dy.data[place.clone()], &mut dx[place]);
        let mut c = 0.0;
        for d in 0..columns {
            c += dy[d] * weight.data[d] * x[d] / columns as f64;
        }
        for d in 0..columns {
            dx[d] = rstd * (dy[d] * weight.data[d] - x[d] * rstd * rstd * c);
            dweight[d] += dy[d] * x[d] * rstd;
        }
    }
    vec![tensor(x.dtype, &x.sizes, dx), tensor(attributes.weight_output, &[columns], dweight)]
}
