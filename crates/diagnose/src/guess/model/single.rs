//! Single elements and pairs.

use super::{Outputs, within};
use crate::guess::steps::{Steps, row};
use toprope_program::Tensor;
use toprope_program::operator::{ActivationKind, Rope};

fn sigmoid(x: f64, steps: &Steps) -> f64 {
    let e = steps.value("the exponential", steps.exponential("the exponent", Some(-x)));
    steps.value("the sigmoid", steps.over("the sigmoid's reciprocal", 1.0, 1.0 + e))
}

pub(super) fn activation(kind: ActivationKind, o: &[&Tensor], steps: &Steps) -> Outputs {
    let one = |x: &f64| {
        let x = *x;
        match kind {
            ActivationKind::Silu => x * sigmoid(x, steps),
            ActivationKind::Sigmoid => sigmoid(x, steps),
            ActivationKind::Tanh => x.tanh(),
            ActivationKind::Relu if x.is_nan() => x,
            ActivationKind::Relu => x.max(0.0),
            ActivationKind::Gelu => {
                let cube = steps.term("the cubic term", 0.044715 * x * x * x);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + cube);
                0.5 * x * (1.0 + steps.value("the hyperbolic tangent", inner.tanh()))
            }
        }
    };
    vec![Some(o[0].data.iter().map(one).collect())]
}

/// None for kinds whose slope is no sum.
pub(super) fn activation_gradient(kind: ActivationKind, o: &[&Tensor], steps: &Steps) -> Option<Outputs> {
    let slope = |x: f64| {
        let s = sigmoid(x, steps);
        match kind {
            ActivationKind::Silu => Some(s + steps.term("the slope's second term", x * s * (1.0 - s))),
            ActivationKind::Sigmoid => Some(s * steps.factor("one less the sigmoid", 1.0 - s)),
            ActivationKind::Tanh => Some(1.0 - steps.term("the square of the tangent", x.tanh().powi(2))),
            ActivationKind::Gelu => {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                let t = (root * (x + 0.044715 * x * x * x)).tanh();
                let inner = root * (1.0 + steps.term("the cubic term's slope", 3.0 * 0.044715 * x * x));
                let second = steps.term("the slope's second term", 0.5 * x * (1.0 - t * t) * inner);
                Some(0.5 * (1.0 + t) + second)
            }
            ActivationKind::Relu => None,
        }
    };
    let one = |(x, dy): (&f64, &f64)| slope(*x).map(|slope| dy * slope);
    let data: Option<Vec<f64>> = o[0].data.iter().zip(&o[1].data).map(one).collect();
    data.map(|data| vec![Some(data)])
}

pub(super) fn swiglu(o: &[&Tensor], steps: &Steps) -> Outputs {
    let half = o[0].sizes[1] / 2;
    let one = |i: usize| {
        let x = row(o[0], i / half);
        let (gate, up) = (x[i % half], x[half + i % half]);
        steps.value("the gate's silu", gate * sigmoid(gate, steps)) * up
    };
    vec![Some((0..o[0].sizes[0] * half).map(one).collect())]
}

pub(super) fn swiglu_gradient(o: &[&Tensor], steps: &Steps) -> Outputs {
    let half = o[0].sizes[1] / 2;
    let mut dx = Vec::with_capacity(o[0].data.len());
    for at in 0..o[0].sizes[0] {
        let (x, dy) = (row(o[0], at), row(o[1], at));
        let gate = |f: usize| {
            let s = sigmoid(x[f], steps);
            let second = steps.term("the slope's second term", x[f] * s * (1.0 - s));
            steps.factor("the value", x[half + f]) * dy[f] * (s + second)
        };
        dx.extend((0..half).map(gate));
        let up = |f: usize| dy[f] * steps.value("the gate's silu", x[f] * sigmoid(x[f], steps));
        dx.extend((0..half).map(up));
    }
    vec![Some(dx)]
}

pub(super) fn rope(rope: &Rope, o: &[&Tensor], steps: &Steps) -> Outputs {
    let (heads, width) = (o[0].sizes[1], o[0].sizes[2]);
    let (positions, pairs) = (o[2].sizes[0], o[2].sizes[2]);
    let mut y = o[0].data.clone();
    for (token, position) in y.chunks_exact_mut(heads * width).zip(&o[1].data) {
        let Some(p) = within(*position, positions) else {
            token.chunks_exact_mut(width).for_each(|head| head[rope.start..].fill(0.0));
            continue;
        };
        let (cosines, sines) = o[2].data[p * 2 * pairs..][..2 * pairs].split_at(pairs);
        for (h, head) in token.chunks_exact_mut(width).enumerate() {
            if !steps.covers("the heads that are rotated", h, heads) {
                continue;
            }
            for i in 0..pairs {
                if !steps.covers("the pairs that are rotated", i, pairs) {
                    continue;
                }
                let (first, second) = match rope.interleaved {
                    true => (rope.start + 2 * i, rope.start + 2 * i + 1),
                    false => (rope.start + i, rope.start + pairs + i),
                };
                let (a, b) = (head[first], head[second]);
                let cosine = steps.value("the cosines", cosines[i]);
                let sine = steps.value("the sines", if rope.inverse { -sines[i] } else { sines[i] });
                head[first] = a * cosine - steps.term("the first one's sine", b * sine);
                head[second] = steps.term("the second one's sine", a * sine) + b * cosine;
            }
        }
    }
    vec![Some(y)]
}
