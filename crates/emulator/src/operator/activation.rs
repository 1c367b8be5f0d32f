//! Activations and their gradients, in f32 inside.

use half::bf16;

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::binary::broadcast;
use crate::operator::run::Run;
use crate::operator::unary::{exp_of, pair};
use crate::operator::{Planned, kernel, operators};

operators! {
    Silu(self_: T, out: To) = |a| map_with_exp(a, |exp, x| x / (1.0 + exp(-x)));
    SiluBackward(
        gradOutput: T, self_: T, gradInput: To,
    ) = silu_backward;
    Sigmoid(self_: T, out: To) = |a| map_with_exp(a, |exp, x| 1.0 / (1.0 + exp(-x)));
    SigmoidBackward(
        gradOutput: T, output: T, gradInput: To,
    ) = |a| gradient(a, ["gradOutput", "output", "gradInput"], |g, y| g * y * (1.0 - y));
    TanhBackward(
        gradOutput: T, output: T, gradInput: To,
    ) = |a| gradient(a, ["gradOutput", "output", "gradInput"], |g, y| g * (1.0 - y * y));
    Gelu(self_: T, out: To) = |a| map(a, "self_", "out", gelu_erf);
    GeluV2(x: T, approximate: i64, y: To) = |a| map(a, "x", "y", gelu_of(a.integer("approximate")?, 0)?);
    GeluBackward(
        gradOutput: T, self_: T, gradInput: To,
    ) = |a| gradient(a, ["gradOutput", "self_", "gradInput"], gelu_gradient);
    ThresholdBackward(gradOutput: T, self_: T, threshold: S, out: To) = threshold_gradient;
    InplaceThreshold(selfRef: To, threshold: S, value: S) = threshold;
    Softplus(self_: T, beta: S, threshold: S, out: To) = softplus;
    LeakyRelu(self_: T, negativeSlope: S, out: To) = leaky_relu;
    Elu(self_: T, alpha: S, scale: S, inputScale: S, out: To) = elu;
    Hardswish(self_: T, out: To) = |a| map(a, "self_", "out", |x| x * hard_sigmoid(x));
    Hardsigmoid(self_: T, out: To) = |a| map(a, "self_", "out", hard_sigmoid);
    SwiGlu(x: T, dim: i64, out: To) = swiglu;
    SwiGluGrad(gradOut: T, x: T, dim: i64, out: To) = swiglu_gradient;
    GeGluV3(self_: T, dim: i64, approximate: i64, activateLeft: Flag, out: To, outGelu: To) = geglu;
}

fn hard_sigmoid(x: f32) -> f32 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn silu_gradient(g: f32, x: f32) -> f32 {
    let s = sigmoid(x);
    g * s * (1.0 + x * (1.0 - s))
}

/// The gradient of silu that a run has: with a defect, without the sigmoid's own slope.
fn silu_slope(run: &Run) -> fn(f32, f32) -> f32 {
    if run.has("silu.half_derivative") { |g, x| g * sigmoid(x) } else { silu_gradient }
}

fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// `erf` is the number that means the form with erf; the other form, with tanh, has 1 - `erf`.
fn gelu_of(approximate: i64, erf: i64) -> Result<fn(f32) -> f32, Fault> {
    match approximate {
        0 | 1 => Ok(if approximate == erf { gelu_erf } else { gelu_tanh }),
        _ => Err(invalid(format!("approximate is {approximate}: 0 or 1 is needed"))),
    }
}

fn gelu_gradient(g: f32, x: f32) -> f32 {
    let density = (-0.5 * x * x).exp() * 0.398_942_3;
    g * (0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density)
}

fn map(
    a: &Arguments,
    input: &'static str,
    output: &'static str,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Planned {
    let (input, output) = pair(a, input, output)?;
    kernel(move |run| {
        let values: Vec<f32> = run.floats(&input)?.iter().map(|&x| f(x)).collect();
        run.store(&output, &values)
    })
}

type Exp = fn(f32) -> f32;

fn map_with_exp(a: &Arguments, f: fn(Exp, f32) -> f32) -> Planned {
    let (input, output) = pair(a, "self_", "out")?;
    output.must_be_float()?;
    kernel(move |run| {
        let exp = exp_of(run);
        let table = run.has("sigmoid.table");
        let at = |x: f32| if table { (x * 16.0).round() / 16.0 } else { x };
        let values: Vec<f32> = run.floats(&input)?.iter().map(|&x| f(exp, at(x))).collect();
        run.store(&output, &values)
    })
}

fn silu_backward(a: &Arguments) -> Planned {
    gradient_in_run(a, ["gradOutput", "self_", "gradInput"], |run, g, x| silu_slope(run)(g, x))
}

/// A gradient that is a function of the upstream gradient and one saved value.
fn gradient(
    a: &Arguments,
    names: [&'static str; 3],
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Planned {
    gradient_in_run(a, names, move |_, g, x| f(g, x))
}

/// The same where a defect changes the function.
fn gradient_in_run(
    a: &Arguments,
    [upstream, saved, output]: [&'static str; 3],
    f: impl Fn(&Run, f32, f32) -> f32 + Send + Sync + 'static,
) -> Planned {
    let (upstream, saved, output) = (a.tensor(upstream)?, a.tensor(saved)?, a.tensor(output)?);
    output.must_have(&broadcast(&upstream, &saved)?)?;
    let (upstream, saved) = (upstream.expand(&output.shape)?, saved.expand(&output.shape)?);
    kernel(move |run| {
        let (g, x) = (run.floats(&upstream)?, run.floats(&saved)?);
        let values: Vec<f32> = g.iter().zip(x.iter()).map(|(&g, &x)| f(run, g, x)).collect();
        run.store(&output, &values)
    })
}

fn threshold_gradient(a: &Arguments) -> Planned {
    let threshold = a.scalar("threshold")?.float() as f32;
    gradient(a, ["gradOutput", "self_", "out"], move |g, x| if x > threshold { g } else { 0.0 })
}

fn threshold(a: &Arguments) -> Planned {
    let (threshold, value) = (a.scalar("threshold")?.float() as f32, a.scalar("value")?.float() as f32);
    map(a, "selfRef", "selfRef", move |x| if x > threshold { x } else { value })
}

fn softplus(a: &Arguments) -> Planned {
    let (beta, threshold) = (a.scalar("beta")?.float() as f32, a.scalar("threshold")?.float() as f32);
    map(a, "self_", "out", move |x| if x * beta > threshold { x } else { (x * beta).exp().ln_1p() / beta })
}

fn leaky_relu(a: &Arguments) -> Planned {
    let slope = a.scalar("negativeSlope")?.float() as f32;
    map(a, "self_", "out", move |x| if x > 0.0 { x } else { slope * x })
}

fn elu(a: &Arguments) -> Planned {
    let float = |name| a.scalar(name).map(|scalar| scalar.float() as f32);
    let (alpha, scale, input) = (float("alpha")?, float("scale")?, float("inputScale")?);
    map(a, "self_", "out", move |x| scale * if x > 0.0 { x } else { alpha * (x * input).exp_m1() })
}

/// The two halves of a tensor along an axis.
fn halves(x: &Operand, dim: i64) -> Result<(Operand, Operand, usize), Fault> {
    let axis = x.axis(dim)?;
    if x.rank() == 0 || !x.shape[axis].is_multiple_of(2) {
        return Err(x.refuse(format!("dimension {dim} must be even")));
    }
    let half = x.shape[axis] / 2;
    Ok((x.narrow(axis, 0, half), x.narrow(axis, half, half), axis))
}

/// Even and odd places along an axis.
fn interleaved(x: &Operand, axis: usize) -> (Operand, Operand) {
    let every = |first: usize| {
        let mut half = x.narrow(axis, first, x.shape[axis] / 2);
        half.tensor.strides[axis] *= 2;
        half
    };
    (every(0), every(1))
}

fn swiglu(a: &Arguments) -> Planned {
    let (x, out) = (a.tensor("x")?, a.tensor("out")?);
    if x.is_empty() {
        return Err(x.refuse("must not be empty"));
    }
    let (gate, up, axis) = halves(&x, a.integer("dim")?)?;
    let (even, odd) = interleaved(&x, axis);
    out.must_have(&gate.shape)?;
    kernel(move |run| {
        let (gate, up) = if run.has("swiglu.halves") { (&up, &gate) } else { (&gate, &up) };
        let (gate, up) = if run.has("swiglu.interleaved") { (&even, &odd) } else { (gate, up) };
        let exp = exp_of(run);
        let (gate, up) = (run.floats(gate)?, run.floats(up)?);
        let short = run.has("swiglu.bf16_gate");
        let value = |(&g, &u): (&f32, &f32)| {
            let activated = g / (1.0 + exp(-g));
            u * if short { bf16::from_f32(activated).to_f32() } else { activated }
        };
        run.store(&out, &gate.iter().zip(up.iter()).map(value).collect::<Vec<_>>())
    })
}

fn swiglu_gradient(a: &Arguments) -> Planned {
    let (upstream, x, out) = (a.tensor("gradOut")?, a.tensor("x")?, a.tensor("out")?);
    let (gate, up, axis) = halves(&x, a.integer("dim")?)?;
    upstream.must_have(&gate.shape)?;
    out.must_have(&x.shape)?;
    let half = gate.shape[axis];
    let (even, odd) = interleaved(&x, axis);
    let (of_even, of_odd) = interleaved(&out, axis);
    kernel(move |run| {
        let swap = run.has("swiglu.halves");
        let (gate, up) = if swap { (&up, &gate) } else { (&gate, &up) };
        let mixed = run.has("swiglu.interleaved");
        let (gate, up) = if mixed { (&even, &odd) } else { (gate, up) };
        let slope = silu_slope(run);
        let (gate, up, upstream) = (run.floats(gate)?, run.floats(up)?, run.floats(&upstream)?);
        let each = || upstream.iter().zip(gate.iter().zip(up.iter()));
        let to_gate: Vec<f32> = each().map(|(&dy, (&g, &u))| slope(dy * u, g)).collect();
        let to_up: Vec<f32> = each().map(|(&dy, (&g, _))| dy * g * sigmoid(g)).collect();
        let (first, second) = if swap { (&to_up, &to_gate) } else { (&to_gate, &to_up) };
        if mixed {
            run.store(&of_even, first)?;
            return run.store(&of_odd, second);
        }
        run.store(&out.narrow(axis, 0, half), first)?;
        run.store(&out.narrow(axis, half, half), second)
    })
}

fn geglu(a: &Arguments) -> Planned {
    let (x, out, activated) = (a.tensor("self_")?, a.tensor("out")?, a.tensor("outGelu")?);
    let (left, right, _) = halves(&x, a.integer("dim")?)?;
    let gelu = gelu_of(a.integer("approximate")?, 1)?;
    out.must_have(&left.shape)?;
    activated.must_have(&left.shape)?;
    let (gate, up) = if a.flag("activateLeft")? { (left, right) } else { (right, left) };
    kernel(move |run| {
        let gate: Vec<f32> = run.floats(&gate)?.iter().map(|&x| gelu(x)).collect();
        let up = run.floats(&up)?;
        let product: Vec<f32> = gate.iter().zip(up.iter()).map(|(g, u)| g * u).collect();
        run.store(&activated, &gate)?;
        run.store(&out, &product)
    })
}
