//! Tensors filled with one value, under a mask, or by counting.

use crate::fault::Fault;
use crate::operator::arguments::{Arguments, Operand};
use crate::operator::movement::copy;
use crate::operator::run::{Run, Values};
use crate::operator::{Planned, kernel, operators};
use crate::tensor::{Domain, Scalar};

operators! {
    InplaceFillScalar(selfRef: To, value: S) = |a| fill(a.tensor("selfRef")?, a.scalar("value")?);
    InplaceFillTensor(selfRef: To, value: T) = fill_tensor;
    InplaceZero(selfRef: To) = |a| fill(a.tensor("selfRef")?, Scalar::Integer(0));
    InplaceOne(selfRef: To) = |a| fill(a.tensor("selfRef")?, Scalar::Integer(1));
    InplaceMaskedFillScalar(selfRef: To, mask: T, value: S) = masked_fill;
    InplaceMaskedFillTensor(selfRef: To, mask: T, value: T) = masked_fill_tensor;
    Arange(start: S, end: S, step: S, out: To) = arange;
    Range(start: S, end: S, step: S, out: To) = arange;
    Eye(n: i64, m: i64, out: To) = eye;
}

fn fill(x: Operand, value: Scalar) -> Planned {
    kernel(move |run| match value {
        Scalar::Integer(value) => run.store_ints(&x, &vec![value; x.len()]),
        Scalar::Float(value) => run.store_doubles(&x, &vec![value; x.len()]),
    })
}

fn fill_tensor(a: &Arguments) -> Planned {
    let (x, value) = (a.tensor("selfRef")?, a.tensor("value")?);
    copy(value.expand(&x.shape)?, x)
}

/// Writes `value`, broadcast, where the mask is set.
fn masked(
    x: Operand,
    mask: Operand,
    value: impl Fn(&Run) -> Result<Values, Fault> + Send + Sync + 'static,
) -> Planned {
    let mask = mask.expand(&x.shape)?;
    kernel(move |run| {
        fn set<T: Copy>(values: &mut [T], mask: &[bool], value: Option<&T>) {
            if let Some(&value) = value {
                values.iter_mut().zip(mask).filter(|(_, set)| **set).for_each(|(x, _)| *x = value);
            }
        }
        let mask = run.bools(&mask)?;
        let mut values = run.values(&x, x.dtype.domain())?;
        match (&mut values, value(run)?) {
            (Values::Single(x), Values::Single(value)) => set(x, &mask, value.first()),
            (Values::Double(x), Values::Double(value)) => set(x, &mask, value.first()),
            (Values::Integer(x), Values::Integer(value)) => set(x, &mask, value.first()),
            // `value` is made in the domain of x.
            _ => {}
        }
        run.store_values(&x, &values)
    })
}

fn masked_fill(a: &Arguments) -> Planned {
    let (x, mask, value) = (a.tensor("selfRef")?, a.tensor("mask")?, a.scalar("value")?);
    let domain = x.dtype.domain();
    masked(x, mask, move |_| {
        Ok(match domain {
            Domain::Single => Values::Single(vec![value.float() as f32]),
            Domain::Double => Values::Double(vec![value.float()]),
            Domain::Integer => Values::Integer(vec![value.integer()]),
        })
    })
}

fn masked_fill_tensor(a: &Arguments) -> Planned {
    let (x, mask, value) = (a.tensor("selfRef")?, a.tensor("mask")?, a.tensor("value")?);
    if value.len() != 1 {
        return Err(value.refuse("must have one element"));
    }
    let domain = x.dtype.domain();
    masked(x, mask, move |run| run.values(&value, domain))
}

fn arange(a: &Arguments) -> Planned {
    let (start, step, out) = (a.scalar("start")?, a.scalar("step")?, a.tensor("out")?);
    kernel(move |run| match (start, step) {
        (Scalar::Integer(start), Scalar::Integer(step)) => {
            run.store_ints(&out, &(0..out.len() as i64).map(|i| start + i * step).collect::<Vec<_>>())
        }
        _ => {
            let value = |i: usize| start.float() + i as f64 * step.float();
            run.store_doubles(&out, &(0..out.len()).map(value).collect::<Vec<_>>())
        }
    })
}

fn eye(a: &Arguments) -> Planned {
    let out = a.tensor("out")?;
    let (rows, columns) = (a.integer("n")?.max(0) as usize, a.integer("m")?.max(0) as usize);
    out.must_have(&[rows, columns])?;
    kernel(move |run| {
        let value = |place: usize| i64::from(place / columns.max(1) == place % columns.max(1));
        run.store_ints(&out, &(0..rows * columns).map(value).collect::<Vec<_>>())
    })
}
