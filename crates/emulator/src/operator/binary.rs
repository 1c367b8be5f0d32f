//! Functions of two elements, with broadcasting, type promotion and scalars of a type of their own.

use half::{bf16, f16};

use crate::code;
use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand, invalid};
use crate::operator::indexing::pick;
use crate::operator::run::{Run, Values};
use crate::operator::{Planned, kernel, operators};
use crate::tensor::{DataType, Domain, Scalar};

operators! {
    Add(self_: T, other: T, alpha: S, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Add);
    Adds(self_: T, other: S, alpha: S, out: To) = |a| scalar(a, ["self_", "other", "out"], Op::Add);
    InplaceAdd(selfRef: To, other: T, alpha: S) = |a| tensors(a, ["selfRef", "other", "selfRef"], Op::Add);
    InplaceAdds(selfRef: To, other: S, alpha: S) = |a| scalar(a, ["selfRef", "other", "selfRef"], Op::Add);
    Sub(self_: T, other: T, alpha: S, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Sub);
    Subs(self_: T, other: S, alpha: S, out: To) = |a| scalar(a, ["self_", "other", "out"], Op::Sub);
    InplaceSub(selfRef: To, other: T, alpha: S) = |a| tensors(a, ["selfRef", "other", "selfRef"], Op::Sub);
    InplaceSubs(selfRef: To, other: S, alpha: S) = |a| scalar(a, ["selfRef", "other", "selfRef"], Op::Sub);
    Mul(self_: T, other: T, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Mul);
    Muls(self_: T, other: S, out: To) = |a| scalar(a, ["self_", "other", "out"], Op::Mul);
    InplaceMul(selfRef: To, other: T) = |a| tensors(a, ["selfRef", "other", "selfRef"], Op::Mul);
    InplaceMuls(selfRef: To, other: S) = |a| scalar(a, ["selfRef", "other", "selfRef"], Op::Mul);
    Div(self_: T, other: T, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Div);
    Divs(self_: T, other: S, out: To) = |a| scalar(a, ["self_", "other", "out"], Op::Div);
    DivMod(self_: T, other: T, mode: i32, out: To) = |a| tensors(a, ["self_", "other", "out"], division(a)?);
    InplaceDiv(selfRef: To, other: T) = |a| tensors(a, ["selfRef", "other", "selfRef"], Op::Div);
    InplaceDivs(selfRef: To, other: S) = |a| scalar(a, ["selfRef", "other", "selfRef"], Op::Div);
    Maximum(self_: T, other: T, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Max);
    Minimum(self_: T, other: T, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::Min);
    PowTensorScalar(self_: T, exponent: S, out: To) = |a| scalar(a, ["self_", "exponent", "out"], Op::Pow);
    PowTensorTensor(self_: T, exponent: T, out: To) = |a| tensors(a, ["self_", "exponent", "out"], Op::Pow);
    InplacePowTensorTensor(self_: To, exponent: T) = |a| tensors(a, ["self_", "exponent", "self_"], Op::Pow);
    PowScalarTensor(self_: S, exponent: T, out: To) = power_of_scalar;
    BitwiseAndTensor(self_: T, other: T, out: To) = |a| tensors(a, ["self_", "other", "out"], Op::And);
    Addcmul(
        self_: T, tensor1: T, tensor2: T, value: S, out: To,
    ) = |a| add_scaled(a, ["self_", "out"], Op::Mul);
    InplaceAddcmul(
        selfRef: To, tensor1: T, tensor2: T, value: S,
    ) = |a| add_scaled(a, ["selfRef", "selfRef"], Op::Mul);
    Addcdiv(
        self_: T, tensor1: T, tensor2: T, value: S, out: To,
    ) = |a| add_scaled(a, ["self_", "out"], Op::Div);
    InplaceAddcdiv(
        selfRef: To, tensor1: T, tensor2: T, value: S,
    ) = |a| add_scaled(a, ["selfRef", "selfRef"], Op::Div);
    Lerps(self_: T, end: T, weight: S, out: To) = |a| lerp(a, "self_", "out");
    InplaceLerps(selfRef: To, end: T, weight: S) = |a| lerp(a, "selfRef", "selfRef");
    Clamp(
        self_: T, clipValueMin: S, clipValueMax: S, out: To,
    ) = |a| clamp(a, "self_", Some("clipValueMin"), Some("clipValueMax"), "out");
    ClampMin(self_: T, clipValueMin: S, out: To) = |a| clamp(a, "self_", Some("clipValueMin"), None, "out");
    InplaceClampMax(
        selfRef: To, clipValueMax: S,
    ) = |a| clamp(a, "selfRef", None, Some("clipValueMax"), "selfRef");
}

/// The vector unit's lanes, and the one that the defect `add.stuck_lane` is about.
const LANES: usize = 64;
const LANE: usize = 5;

/// A function of two elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    DivTruncate,
    DivFloor,
    Max,
    Min,
    Pow,
    And,
}

fn division(a: &Arguments) -> Result<Op, Fault> {
    match a.integer("mode")? {
        0 => Ok(Op::Div),
        1 => Ok(Op::DivTruncate),
        2 => Ok(Op::DivFloor),
        mode => Err(invalid(format!("mode {mode}: 0 divides, 1 cuts off, 2 rounds down"))),
    }
}

macro_rules! floats {
    ($op:expr, $x:expr, $y:expr, $type:ty) => {
        match $op {
            Op::Add => $x + $y,
            Op::Sub => $x - $y,
            Op::Mul => $x * $y,
            Op::Div => $x / $y,
            Op::DivTruncate => ($x / $y).trunc(),
            Op::DivFloor => ($x / $y).floor(),
            Op::Max => {
                if $x.is_nan() || $x > $y {
                    $x
                } else {
                    $y
                }
            }
            Op::Min => {
                if $x.is_nan() || $x < $y {
                    $x
                } else {
                    $y
                }
            }
            Op::Pow => $x.powf($y),
            Op::And => <$type>::NAN,
        }
    };
}

fn integers(op: Op, x: i64, y: i64) -> i64 {
    match op {
        Op::Add => x.wrapping_add(y),
        Op::Sub => x.wrapping_sub(y),
        Op::Mul => x.wrapping_mul(y),
        // The chip gives no defined number for a division by 0.
        Op::Div | Op::DivTruncate => {
            if y == 0 {
                -1
            } else {
                x.wrapping_div(y)
            }
        }
        Op::DivFloor if y == 0 => -1,
        Op::DivFloor => {
            let quotient = x.wrapping_div(y);
            if x.wrapping_rem(y) != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
        }
        Op::Max => x.max(y),
        Op::Min => x.min(y),
        Op::Pow => x.wrapping_pow(u32::try_from(y).unwrap_or(0)),
        Op::And => x & y,
    }
}

/// The function on values of one domain; `y` has one element or as many as `x`.
fn apply(run: &Run, op: Op, x: Values, y: Values) -> Values {
    fn zip<T: Copy>(mut x: Vec<T>, y: &[T], f: impl Fn(T, T) -> T) -> Vec<T> {
        if let [y] = *y {
            x.iter_mut().for_each(|x| *x = f(*x, y));
        } else {
            x.iter_mut().zip(y).for_each(|(x, &y)| *x = f(*x, y));
        }
        x
    }
    match (x, y) {
        (Values::Single(x), Values::Single(y)) => Values::Single(match op {
            // The common ones as loops of their own, which the compiler makes fast.
            Op::Add => zip(x, &y, |x, y| x + y),
            Op::Sub => zip(x, &y, |x, y| x - y),
            Op::Mul => zip(x, &y, |x, y| x * y),
            Op::Div if run.has("div.reciprocal") => {
                zip(x, &y, |x, y| x * f32::from_bits((1.0 / y).to_bits() & !0xFFF))
            }
            op => zip(x, &y, |x, y| floats!(op, x, y, f32)),
        }),
        (Values::Double(x), Values::Double(y)) => Values::Double(zip(x, &y, |x, y| floats!(op, x, y, f64))),
        (Values::Integer(x), Values::Integer(y)) => Values::Integer(zip(x, &y, |x, y| integers(op, x, y))),
        // Both were read in one domain.
        (x, _) => x,
    }
}

fn domain_of(op: Op, x: Domain, y: Domain) -> Domain {
    match (op, x.max(y)) {
        (Op::Div, Domain::Integer) => Domain::Single,
        (_, domain) => domain,
    }
}

/// The shape of two operands broadcast against each other.
pub fn broadcast(x: &Operand, y: &Operand) -> Result<Vec<usize>, Fault> {
    let rank = x.rank().max(y.rank());
    let at = |operand: &Operand, axis: usize| {
        (axis + operand.rank()).checked_sub(rank).map_or(1, |axis| operand.shape[axis])
    };
    let mut shape = Vec::new();
    for axis in 0..rank {
        shape.push(match (at(x, axis), at(y, axis)) {
            (one, other) if one == other => one,
            (1, size) | (size, 1) => size,
            _ => return Err(y.refuse(format!("does not broadcast with {:?} of {}", x.shape, x.label()))),
        });
    }
    Ok(shape)
}

/// A scalar as values of a domain.
fn one(scalar: Scalar, domain: Domain) -> Values {
    match domain {
        Domain::Single => Values::Single(vec![scalar.float() as f32]),
        Domain::Double => Values::Double(vec![scalar.float()]),
        Domain::Integer => Values::Integer(vec![scalar.integer()]),
    }
}

/// A scalar as a run has it: with a defect, of a shorter type.
fn rounded(run: &Run, scalar: Values) -> Values {
    let short = match (run.has("adds.fp16_scalar"), run.has("muls.bf16_scalar")) {
        (true, _) => |x: &f32| f16::from_f32(*x).to_f32(),
        (_, true) => |x: &f32| bf16::from_f32(*x).to_f32(),
        _ => return scalar,
    };
    match scalar {
        Values::Single(values) => Values::Single(values.iter().map(short).collect()),
        other => other,
    }
}

/// `alpha` of sums; 1 for functions that have none.
fn alpha(a: &Arguments) -> Result<Scalar, Fault> {
    if a.0.iter().any(|argument| argument.name == "alpha") {
        a.scalar("alpha")
    } else {
        Ok(Scalar::Integer(1))
    }
}

fn is_one(scalar: Scalar) -> bool {
    scalar == Scalar::Integer(1) || scalar == Scalar::Float(1.0)
}

fn scalar_domain(scalar: Scalar) -> Domain {
    match scalar {
        Scalar::Integer(_) => Domain::Integer,
        Scalar::Float(_) => Domain::Single,
    }
}

/// An operand that has one column where the result has several, for the defect `mul.broadcast`.
fn one_column(operand: &Operand, out: &Operand) -> Option<Operand> {
    let one = operand.shape.last() == Some(&1) && out.shape.last().is_some_and(|&columns| columns > 1);
    (one && operand.len() > 1).then(|| operand.clone())
}

fn tensors(a: &Arguments, [x, y, out]: [&'static str; 3], op: Op) -> Planned {
    let (x, y, out) = (a.tensor(x)?, a.tensor(y)?, a.tensor(out)?);
    let alpha = alpha(a)?;
    out.must_have(&broadcast(&x, &y)?)?;
    let domain = domain_of(op, x.dtype.domain(), y.dtype.domain());
    if op == Op::And && domain != Domain::Integer {
        return Err(x.refuse("must be of an integer type"));
    }
    if domain > out.dtype.domain() && out.dtype.domain() == Domain::Integer {
        return Err(out.refuse("cannot hold the result, which is a float"));
    }
    let columns = [one_column(&x, &out), one_column(&y, &out)];
    let (x, y) = (x.expand(&out.shape)?, y.expand(&out.shape)?);
    kernel(move |run| {
        let read = |operand: &Operand, column: &Option<Operand>| match column {
            Some(column) if run.has("mul.broadcast") => {
                let dealt = (0..out.len()).map(|element| element % column.len());
                Ok(pick(&run.values(column, domain)?, dealt))
            }
            _ => run.values(operand, domain),
        };
        let mut right = read(&y, &columns[1])?;
        if !is_one(alpha) {
            right = apply(run, Op::Mul, right, one(alpha, domain));
        }
        let left = read(&x, &columns[0])?;
        let mut values = if run.has("accumulate.twice") {
            let first = apply(run, op, left, right.clone());
            apply(run, op, first, right)
        } else if run.has("accumulate.overwrites") {
            right
        } else {
            apply(run, op, left, right)
        };
        if let (Values::Single(values), true) = (&mut values, run.has("add.stuck_lane")) {
            values.iter_mut().skip(LANE).step_by(LANES).for_each(|value| *value = 0.0);
        }
        if let (Values::Single(values), DataType::F32, true) =
            (&mut values, out.dtype, run.has("add.bf16_out"))
        {
            values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        run.store_values(&out, &values)
    })
}

fn scalar(a: &Arguments, [x, y, out]: [&'static str; 3], op: Op) -> Planned {
    let (x, y, out) = (a.tensor(x)?, a.scalar(y)?, a.tensor(out)?);
    let alpha = alpha(a)?;
    out.must_have(&x.shape)?;
    // A float scalar makes an integer tensor a float one; it does not widen a float tensor.
    let domain = domain_of(op, x.dtype.domain(), scalar_domain(y));
    kernel(move |run| {
        let right = apply(run, Op::Mul, rounded(run, one(y, domain)), one(alpha, domain));
        run.store_values(&out, &apply(run, op, run.values(&x, domain)?, right))
    })
}

fn power_of_scalar(a: &Arguments) -> Planned {
    let (base, exponent, out) = (a.scalar("self_")?, a.tensor("exponent")?, a.tensor("out")?);
    out.must_have(&exponent.shape)?;
    let domain = exponent.dtype.domain().max(scalar_domain(base));
    kernel(move |run| {
        let values = match (run.values(&exponent, domain)?, base) {
            (Values::Single(y), base) => {
                Values::Single(y.iter().map(|y| (base.float() as f32).powf(*y)).collect())
            }
            (Values::Double(y), base) => Values::Double(y.iter().map(|y| base.float().powf(*y)).collect()),
            (Values::Integer(y), base) => {
                Values::Integer(y.iter().map(|&y| integers(Op::Pow, base.integer(), y)).collect())
            }
        };
        run.store_values(&out, &values)
    })
}

/// self + value·(tensor1 op tensor2).
fn add_scaled(a: &Arguments, [x, out]: [&'static str; 2], op: Op) -> Planned {
    let (x, one_, two, out) = (a.tensor(x)?, a.tensor("tensor1")?, a.tensor("tensor2")?, a.tensor(out)?);
    let value = a.scalar("value")?;
    let domain = domain_of(op, x.dtype.domain(), one_.dtype.domain().max(two.dtype.domain()));
    let (x, one_, two) = (x.expand(&out.shape)?, one_.expand(&out.shape)?, two.expand(&out.shape)?);
    kernel(move |run| {
        let inner = apply(run, op, run.values(&one_, domain)?, run.values(&two, domain)?);
        let scaled = apply(run, Op::Mul, inner, one(value, domain));
        run.store_values(&out, &apply(run, Op::Add, run.values(&x, domain)?, scaled))
    })
}

/// self + weight·(end - self).
fn lerp(a: &Arguments, x: &'static str, out: &'static str) -> Planned {
    let (x, end, out) = (a.tensor(x)?, a.tensor("end")?, a.tensor(out)?);
    let weight = a.scalar("weight")?;
    let (x, end) = (x.expand(&out.shape)?, end.expand(&out.shape)?);
    kernel(move |run| {
        let start = run.values(&x, Domain::Single)?;
        let way = apply(run, Op::Sub, run.values(&end, Domain::Single)?, start.clone());
        let way = apply(run, Op::Mul, way, one(weight, Domain::Single));
        run.store_values(&out, &apply(run, Op::Add, start, way))
    })
}

fn clamp(
    a: &Arguments,
    x: &'static str,
    least: Option<&'static str>,
    most: Option<&'static str>,
    out: &'static str,
) -> Planned {
    let (x, out) = (a.tensor(x)?, a.tensor(out)?);
    out.must_have(&x.shape)?;
    // One of the two may be null, not both.
    let bound = |name: Option<&'static str>| name.and_then(|name| a.scalar(name).ok());
    let (least, most) = (bound(least), bound(most));
    if least.is_none() && most.is_none() {
        return Err(Fault::new(code::PARAM_NULLPTR, "both bounds are null"));
    }
    let domain = x.dtype.domain();
    kernel(move |run| {
        let mut values = run.values(&x, domain)?;
        // NaN stays: it is neither below nor above.
        for (bound, op) in [(least, Op::Max), (most, Op::Min)] {
            if let Some(bound) = bound {
                values = apply(run, op, values, one(bound, domain));
            }
        }
        run.store_values(&out, &values)
    })
}
