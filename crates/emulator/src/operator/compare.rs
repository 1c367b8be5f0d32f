//! Comparisons and logic: booleans out.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand};
use crate::operator::binary::broadcast;
use crate::operator::run::Values;
use crate::operator::{Planned, kernel, operators};
use crate::tensor::{Domain, Scalar};

operators! {
    EqTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Eq);
    EqScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Eq);
    NeTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Ne);
    NeScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Ne);
    GtTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Gt);
    GtScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Gt);
    GeTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Ge);
    GeScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Ge);
    LtTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Lt);
    LtScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Lt);
    LeTensor(self_: T, other: T, out: To) = |a| tensors(a, Relation::Le);
    LeScalar(self_: T, other: S, out: To) = |a| scalar(a, Relation::Le);
    LogicalNot(self_: T, out: To) = |a| test(a, |x| x == 0.0, |x| x == 0);
    LogicalAnd(self_: T, other: T, out: To) = |a| logic(a, |x, y| x && y);
    LogicalOr(self_: T, other: T, out: To) = |a| logic(a, |x, y| x || y);
    IsFinite(self_: T, out: To) = |a| test(a, f64::is_finite, |_| true);
    IsNegInf(self_: T, out: To) = |a| test(a, |x| x == f64::NEG_INFINITY, |_| false);
}

#[derive(Clone, Copy)]
enum Relation {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

impl Relation {
    fn holds<T: PartialOrd>(self, x: &T, y: &T) -> bool {
        match self {
            Relation::Eq => x == y,
            Relation::Ne => x != y,
            Relation::Gt => x > y,
            Relation::Ge => x >= y,
            Relation::Lt => x < y,
            Relation::Le => x <= y,
        }
    }

    fn all(self, x: &Values, y: &Values) -> Vec<bool> {
        fn zip<T: PartialOrd>(relation: Relation, x: &[T], y: &[T]) -> Vec<bool> {
            match y {
                [y] => x.iter().map(|x| relation.holds(x, y)).collect(),
                _ => x.iter().zip(y).map(|(x, y)| relation.holds(x, y)).collect(),
            }
        }
        match (x, y) {
            (Values::Single(x), Values::Single(y)) => zip(self, x, y),
            (Values::Double(x), Values::Double(y)) => zip(self, x, y),
            (Values::Integer(x), Values::Integer(y)) => zip(self, x, y),
            // Both were read in one domain.
            _ => Vec::new(),
        }
    }
}

fn operands(a: &Arguments) -> Result<(Operand, Operand, Operand), Fault> {
    let (x, y, out) = (a.tensor("self_")?, a.tensor("other")?, a.tensor("out")?);
    out.must_have(&broadcast(&x, &y)?)?;
    Ok((x.expand(&out.shape)?, y.expand(&out.shape)?, out))
}

fn tensors(a: &Arguments, relation: Relation) -> Planned {
    let (x, y, out) = operands(a)?;
    let domain = x.dtype.domain().max(y.dtype.domain());
    kernel(move |run| {
        run.store_bools(&out, &relation.all(&run.values(&x, domain)?, &run.values(&y, domain)?))
    })
}

fn scalar(a: &Arguments, relation: Relation) -> Planned {
    let (x, y, out) = (a.tensor("self_")?, a.scalar("other")?, a.tensor("out")?);
    out.must_have(&x.shape)?;
    let (domain, y) = match (x.dtype.domain(), y) {
        (Domain::Integer, Scalar::Integer(y)) => (Domain::Integer, Values::Integer(vec![y])),
        (Domain::Integer, Scalar::Float(y)) => (Domain::Double, Values::Double(vec![y])),
        (Domain::Single, y) => (Domain::Single, Values::Single(vec![y.float() as f32])),
        (Domain::Double, y) => (Domain::Double, Values::Double(vec![y.float()])),
    };
    kernel(move |run| run.store_bools(&out, &relation.all(&run.values(&x, domain)?, &y)))
}

fn test(a: &Arguments, float: fn(f64) -> bool, integer: fn(i64) -> bool) -> Planned {
    let (x, out) = (a.tensor("self_")?, a.tensor("out")?);
    out.must_have(&x.shape)?;
    kernel(move |run| {
        let values: Vec<bool> = match run.values(&x, x.dtype.domain())? {
            Values::Single(v) => v.iter().map(|&x| float(f64::from(x))).collect(),
            Values::Double(v) => v.iter().map(|&x| float(x)).collect(),
            Values::Integer(v) => v.iter().map(|&x| integer(x)).collect(),
        };
        run.store_bools(&out, &values)
    })
}

fn logic(a: &Arguments, f: fn(bool, bool) -> bool) -> Planned {
    let (x, y, out) = operands(a)?;
    kernel(move |run| {
        let (x, y) = (run.bools(&x)?, run.bools(&y)?);
        run.store_bools(&out, &x.iter().zip(&y).map(|(&x, &y)| f(x, y)).collect::<Vec<_>>())
    })
}
