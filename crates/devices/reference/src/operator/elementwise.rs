//! Functions of single elements.

use super::{attribute, tensor};
use toprope_program::operator::{
    Activation, ActivationGradient, ActivationKind, Add, Cast, Multiply, Scale, Swiglu, SwigluGradient,
};
use toprope_program::{Tensor, Width};

pub(crate) fn cast(attributes: &Cast, operands: &[Tensor]) -> Vec<Tensor> {
    let x = &operands[0];
    vec![tensor(attributes.output, &x.sizes, x.data.clone())]
}

pub(crate) fn add(attributes: &Add, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b) = (&operands[0], &operands[1]);
    let data = a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect();
    vec![tensor(attributes.output, &a.sizes, data)]
}

pub(crate) fn multiply(attributes: &Multiply, operands: &[Tensor]) -> Vec<Tensor> {
    let (a, b) = (&operands[0], &operands[1]);
    let data = a.data.iter().zip(&b.data).map(|(a, b)| a * b).collect();
    vec![tensor(attributes.output, &a.sizes, data)]
}

pub(crate) fn scale(attributes: &Scale, operands: &[Tensor], width: Width) -> Vec<Tensor> {
    let x = &operands[0];
    let factor = attribute(attributes.factor, width);
    vec![tensor(x.dtype, &x.sizes, x.data.iter().map(|x| factor * x).collect())]
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The inner function of gelu, `√(2/π)(x + 0.044715 x³)`, and its derivative.
fn gelu_inner(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    (root * (x + 0.044715 * x * x * x), root * (1.0 + 3.0 * 0.044715 * x * x))
}

pub(crate) fn function(kind: ActivationKind, x: f64) -> f64 {
    match kind {
        ActivationKind::Silu => x * sigmoid(x),
        ActivationKind::Gelu => x / 2.0 * (1.0 + gelu_inner(x).0.tanh()),
        ActivationKind::Relu if x.is_nan() => x,
        ActivationKind::Relu => x.max(0.0) + 0.0,
        ActivationKind::Sigmoid => sigmoid(x),
        ActivationKind::Tanh => x.tanh(),
    }
}

pub(crate) fn derivative(kind: ActivationKind, x: f64) -> f64 {
    match kind {
        ActivationKind::Silu => sigmoid(x) * (1.0 + x * sigmoid(-x)),
        ActivationKind::Gelu => {
            let (inner, slope) = gelu_inner(x);
            // sech² by cosh, which does not cancel; it overflows to a right 0.
            let square = 1.0 / (inner.cosh() * inner.cosh());
            0.5 * (1.0 + inner.tanh()) + 0.5 * x * square * slope
        }
        ActivationKind::Relu if x.is_nan() => x,
        ActivationKind::Relu => f64::from(u8::from(x > 0.0)),
        ActivationKind::Sigmoid => sigmoid(x) * sigmoid(-x),
        ActivationKind::Tanh => 1.0 / (x.cosh() * x.cosh()),
    }
}

pub(crate) fn activation(attributes: &Activation, operands: &[Tensor]) -> Vec<Tensor> {
    let x = &operands[0];
    vec![tensor(x.dtype, &x.sizes, x.data.iter().map(|x| function(attributes.kind, *x)).collect())]
}

pub(crate) fn activation_gradient(attributes: &ActivationGradient, operands: &[Tensor]) -> Vec<Tensor> {
    let (x, dy) = (&operands[0], &operands[1]);
    let data = x.data.iter().zip(&dy.data).map(|(x, dy)| dy * derivative(attributes.kind, *x)).collect();
    vec![tensor(x.dtype, &x.sizes, data)]
}

pub(crate) fn swiglu(_: &Swiglu, operands: &[Tensor]) -> Vec<Tensor> {
    let x = &operands[0];
    let (rows, columns) = (x.sizes[0], x.sizes[1] / 2);
    let mut y = Vec::with_capacity(rows * columns);
    for row in x.data.chunks_exact(2 * columns) {
        let (gate, up) = row.split_at(columns);
        y.extend(gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up));
    }
    vec![tensor(x.dtype, &[rows, columns], y)]
}

pub(crate) fn swiglu_gradient(_: &SwigluGradient, operands: &[Tensor]) -> Vec<Tensor> {
    let (x, dy) = (&operands[0], &operands[1]);
    let columns = x.sizes[1] / 2;
    let mut dx = vec![0.0; x.data.len()];
    for ((dx, x), dy) in dx
        .chunks_exact_mut(2 * columns)
        .zip(x.data.chunks_exact(2 * columns))
        .zip(dy.data.chunks_exact(columns))
    {
        for f in 0..columns {
            let (gate, up, dy) = (x[f], x[columns + f], dy[f]);
            let s = sigmoid(gate);
            dx[f] = dy * up * s * (1.0 + gate * sigmoid(-gate));
            dx[columns + f] = dy * gate * s;
        }
    }
    vec![tensor(x.dtype, &x.sizes, dx)]
}
