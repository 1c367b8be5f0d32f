//! Functions of one element.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand};
use crate::operator::run::{Run, Values};
use crate::operator::{Planned, kernel, operators};
use crate::tensor::Domain;

operators! {
    Neg(self_: T, out: To) = |a| any(a, "self_", "out", |x| -x, |x| -x, i64::wrapping_neg);
    Abs(self_: T, out: To) = |a| any(a, "self_", "out", f32::abs, f64::abs, i64::wrapping_abs);
    Sign(self_: T, result: To) = |a| any(a, "self_", "result", sign32, sign64, i64::signum);
    Exp(self_: T, out: To) = |a| exponential(a, "self_", "out");
    InplaceExp(selfRef: To) = |a| exponential(a, "selfRef", "selfRef");
    Log(self_: T, out: To) = logarithm;
    Sqrt(self_: T, out: To) = |a| root(a, f32::sqrt, f64::sqrt);
    Rsqrt(self_: T, out: To) = |a| root(a, |x| 1.0 / x.sqrt(), |x| 1.0 / x.sqrt());
    Reciprocal(self_: T, out: To) = |a| float(a, "self_", "out", |x| 1.0 / x, |x| 1.0 / x);
    Sin(self_: T, out: To) = |a| float(a, "self_", "out", f32::sin, f64::sin);
    Cos(input: T, out: To) = |a| float(a, "input", "out", f32::cos, f64::cos);
    InplaceSin(selfRef: To) = |a| float(a, "selfRef", "selfRef", f32::sin, f64::sin);
    InplaceCos(inputRef: To) = |a| float(a, "inputRef", "inputRef", f32::cos, f64::cos);
    Tanh(self_: T, out: To) = |a| float(a, "self_", "out", f32::tanh, f64::tanh);
    Floor(self_: T, out: To) = |a| any(a, "self_", "out", f32::floor, f64::floor, |x| x);
    Round(self_: T, out: To) = |a| any(a, "self_", "out", f32::round_ties_even, f64::round_ties_even, |x| x);
    Relu(
        self_: T, out: To,
    ) = |a| any(a, "self_", "out", relu32, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0));
}

fn relu32(x: f32) -> f32 {
    // NaN stays NaN.
    if x < 0.0 { 0.0 } else { x }
}

fn sign32(x: f32) -> f32 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

fn sign64(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

/// The operands of a function of one element.
pub fn pair(a: &Arguments, input: &'static str, output: &'static str) -> Result<(Operand, Operand), Fault> {
    let (input, output) = (a.tensor(input)?, a.tensor(output)?);
    output.must_have(&input.shape)?;
    Ok((input, output))
}

/// For floats and integers, each with a function of its own.
fn any(
    a: &Arguments,
    input: &'static str,
    output: &'static str,
    single: fn(f32) -> f32,
    double: fn(f64) -> f64,
    integer: fn(i64) -> i64,
) -> Planned {
    let (input, output) = pair(a, input, output)?;
    kernel(move |run| {
        let values = match run.values(&input, input.dtype.domain())? {
            Values::Single(v) => Values::Single(v.into_iter().map(single).collect()),
            Values::Double(v) => Values::Double(v.into_iter().map(double).collect()),
            Values::Integer(v) => Values::Integer(v.into_iter().map(integer).collect()),
        };
        run.store_values(&output, &values)
    })
}

/// A logarithm, which a defect cuts to 10 bits in f32.
fn logarithm(a: &Arguments) -> Planned {
    let cut = |run: &Run, x: f32| {
        let log = x.ln();
        if run.has("log.low_precision") { f32::from_bits(log.to_bits() & !0x1FFF) } else { log }
    };
    float_in_run(a, "self_", "out", cut, f64::ln)
}

/// A root, which a defect cuts to 11 bits in f32 or takes for no number at 0.
fn root(a: &Arguments, single: fn(f32) -> f32, double: fn(f64) -> f64) -> Planned {
    let cut = move |run: &Run, x: f32| {
        let root = if x == 0.0 && run.has("sqrt.zero") { f32::NAN } else { single(x) };
        if run.has("sqrt.low_precision") { f32::from_bits(root.to_bits() & !0x1FFF) } else { root }
    };
    float_in_run(a, "self_", "out", cut, double)
}

/// For floats; integers are converted to f32.
fn float(
    a: &Arguments,
    input: &'static str,
    output: &'static str,
    single: fn(f32) -> f32,
    double: fn(f64) -> f64,
) -> Planned {
    float_in_run(a, input, output, move |_, x| single(x), double)
}

/// The same where a defect changes the function.
fn float_in_run(
    a: &Arguments,
    input: &'static str,
    output: &'static str,
    single: impl Fn(&Run, f32) -> f32 + Send + Sync + 'static,
    double: fn(f64) -> f64,
) -> Planned {
    let (input, output) = pair(a, input, output)?;
    output.must_be_float()?;
    kernel(move |run| {
        if input.dtype.domain() == Domain::Double {
            let values: Vec<f64> = run.doubles(&input)?.into_iter().map(double).collect();
            return run.store_doubles(&output, &values);
        }
        let values: Vec<f32> = run.floats(&input)?.iter().map(|&x| single(run, x)).collect();
        run.store(&output, &values)
    })
}

/// The exponential that a run has: with a defect, of 10 bits or of a clamped argument.
pub fn exp_of(run: &Run) -> fn(f32) -> f32 {
    if run.has("exp.low_precision") {
        return |x| f32::from_bits(x.exp().to_bits() & !0x1FFF);
    }
    if run.has("exp.clamp") {
        // NaN stays NaN.
        return |x| if x < -10.0 { (-10.0f32).exp() } else { x.exp() };
    }
    f32::exp
}

fn exponential(a: &Arguments, input: &'static str, output: &'static str) -> Planned {
    let (input, output) = pair(a, input, output)?;
    output.must_be_float()?;
    kernel(move |run| {
        if input.dtype.domain() == Domain::Double {
            let values: Vec<f64> = run.doubles(&input)?.into_iter().map(f64::exp).collect();
            return run.store_doubles(&output, &values);
        }
        let exp = exp_of(run);
        let values: Vec<f32> = run.floats(&input)?.iter().map(|&x| exp(x)).collect();
        run.store(&output, &values)
    })
}
