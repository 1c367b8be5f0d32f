//! Functions of single elements.

use crate::call::{Argument, Number, View};
use crate::emit::{Emit, Lowered, tensor};
use crate::ffi::abi::Element;
use toprope_program::operator::{Activation, ActivationGradient, ActivationKind, Scale};

/// Both operands and the result have one type: the vendor computes that in f32 and rounds once.
fn alike(x: &[View], y: &View) -> bool {
    x.iter().all(|x| x.element == y.element)
}

fn two(e: &mut Emit<'_>, name: &str, x: &[View], y: &View) -> Lowered {
    if alike(x, y) {
        return e.binary_into(name, &x[0], &x[1], y);
    }
    let (a, b, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(y));
    e.binary_into(name, &a, &b, &target)?;
    e.finish(y, &target)
}

pub(super) fn add(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    two(e, "Add", x, &y[0])
}

pub(super) fn multiply(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    two(e, "Mul", x, &y[0])
}

/// In f32 even for bf16: the vendor rounds a scalar to the tensor's type first.
pub(super) fn scale(e: &mut Emit<'_>, it: &Scale, x: &[View], y: &[View]) -> Lowered {
    let (wide, target) = (e.wide(&x[0])?, e.target(&y[0]));
    e.scale_into(&wide, it.factor as f32, &target)?;
    e.finish(&y[0], &target)
}

pub(super) fn activation(e: &mut Emit<'_>, it: &Activation, x: &[View], y: &[View]) -> Lowered {
    let (wide, target) = (e.wide(&x[0])?, e.target(&y[0]));
    match it.kind {
        ActivationKind::Silu => e.unary_into("Silu", &wide, &target)?,
        // 1 is the form with tanh; GeGluV3 counts the other way round.
        ActivationKind::Gelu => {
            e.call("GeluV2", vec![tensor(&wide), Argument::I64(1), tensor(&target)])?;
        }
        ActivationKind::Relu => e.unary_into("Relu", &wide, &target)?,
        ActivationKind::Sigmoid => e.unary_into("Sigmoid", &wide, &target)?,
        ActivationKind::Tanh => e.unary_into("Tanh", &wide, &target)?,
    }
    e.finish(&y[0], &target)
}

pub(super) fn activation_gradient(
    e: &mut Emit<'_>,
    it: &ActivationGradient,
    x: &[View],
    y: &[View],
) -> Lowered {
    let (wide, dy, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(&y[0]));
    match it.kind {
        ActivationKind::Silu => e.binary_into("SiluBackward", &dy, &wide, &target)?,
        ActivationKind::Sigmoid => {
            let s = e.unary("Sigmoid", &wide)?;
            e.binary_into("SigmoidBackward", &dy, &s, &target)?;
        }
        ActivationKind::Tanh => {
            let t = e.unary("Tanh", &wide)?;
            e.binary_into("TanhBackward", &dy, &t, &target)?;
        }
        ActivationKind::Relu => {
            let above = e.compare_with("GtScalar", &wide, Number::F32(0.0))?;
            let slope = e.cast(&above, Element::F32)?;
            // A NaN is neither above 0 nor not.
            let bad = e.is_nan(&wide)?;
            let slope = e.choose(&bad, &wide, &slope)?;
            e.binary_into("Mul", &dy, &slope, &target)?;
        }
        ActivationKind::Gelu => gelu_gradient(e, &wide, &dy, &target)?,
    }
    e.finish(&y[0], &target)
}

/// `dy·(½(1 + t) + ½·x·(1 - t²)·u')` with `t = tanh(u)`, `u = √(2/π)(x + 0.044715 x³)`: the vendor's own gradient does not
/// say which form of gelu it belongs to.
fn gelu_gradient(e: &mut Emit<'_>, x: &View, dy: &View, dx: &View) -> Lowered {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let square = e.binary("Mul", x, x)?;
    // u = x·(root + 0.044715·root·x²), u' = root + 3·0.044715·root·x².
    let part = e.scaled(&square, (0.044715 * root) as f32)?;
    let inner = e.plus(&part, Number::F32(root as f32))?;
    let inner = e.binary("Mul", &inner, x)?;
    let t = e.unary("Tanh", &inner)?;
    let slope = e.scaled(&square, (3.0 * 0.044715 * root) as f32)?;
    let slope = e.plus(&slope, Number::F32(root as f32))?;
    // 1 - t² by (1 - t)(1 + t), which does not cancel twice.
    let less = e.scaled(&t, -1.0)?;
    let less = e.plus(&less, Number::F32(1.0))?;
    let more = e.plus(&t, Number::F32(1.0))?;
    let bell = e.binary("Mul", &less, &more)?;
    let bell = e.binary("Mul", &bell, x)?;
    let bell = e.binary("Mul", &bell, &slope)?;
    let sum = e.binary("Add", &bell, &more)?;
    let half = e.scaled(&sum, 0.5)?;
    e.binary_into("Mul", &half, dy, dx)
}

pub(super) fn swiglu(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (wide, target) = (e.wide(&x[0])?, e.target(&y[0]));
    if e.settings.fused && e.has("SwiGlu") {
        let wide = e.dense(&wide)?;
        e.call("SwiGlu", vec![tensor(&wide), Argument::I64(-1), tensor(&target)])?;
    } else {
        let (gate, up) = halves(&wide);
        let gate = e.unary("Silu", &gate)?;
        e.binary_into("Mul", &gate, &up, &target)?;
    }
    e.finish(&y[0], &target)
}

fn halves(x: &View) -> (View, View) {
    let columns = x.sizes[1] / 2;
    (x.narrow(1, 0, columns), x.narrow(1, columns, columns))
}

pub(super) fn swiglu_gradient(e: &mut Emit<'_>, x: &[View], y: &[View]) -> Lowered {
    let (wide, dy, target) = (e.wide(&x[0])?, e.wide(&x[1])?, e.target(&y[0]));
    if e.settings.fused && e.has("SwiGluGrad") {
        let (wide, dy) = (e.dense(&wide)?, e.dense(&dy)?);
        e.call("SwiGluGrad", vec![tensor(&dy), tensor(&wide), Argument::I64(-1), tensor(&target)])?;
    } else {
        let (gate, up) = halves(&wide);
        let (of_gate, of_up) = halves(&target);
        let along = e.binary("Mul", &dy, &up)?;
        let of_along = e.binary("SiluBackward", &along, &gate)?;
        e.copy(&of_gate, &of_along)?;
        let gate = e.unary("Silu", &gate)?;
        let by_gate = e.binary("Mul", &dy, &gate)?;
        e.copy(&of_up, &by_gate)?;
    }
    e.finish(&y[0], &target)
}
