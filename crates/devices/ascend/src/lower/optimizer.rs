//! The update: norm, AdamW, the experts' bias, counters; and accumulation before it. The vendor's fused AdamW takes its bias
//! corrections from a step number; the contract's come from the host, and its operations in a written order.

use crate::call::{Number, View};
use crate::emit::{CHUNK_ELEMENTS, Emit, Lowered, number, tensor};
use crate::ffi::abi::Element;
use crate::lower::bits::digest;
use toprope_program::operator::{Adamw, AdamwDigest, BiasUpdate, GlobalNorm, Increment};

pub(super) fn global_norm(e: &mut Emit<'_>, it: &GlobalNorm, x: &[View], y: &[View]) -> Lowered {
    let total = e.zeros(&[1])?;
    for gradient in x {
        let mark = e.mark();
        let square = e.binary("Mul", gradient, gradient)?;
        let axes: Vec<usize> = (0..square.rank()).collect();
        let sum = e.sum(&square, &axes)?;
        e.binary_into("Add", &total, &sum, &total)?;
        e.forget(mark);
    }
    e.unary_into("Sqrt", &total, &y[0])?;
    let factor = if it.clip > 0.0 {
        let clip = e.filled(&[1], it.clip as f32)?;
        let shifted = e.plus(&y[0], Number::F32(1e-6))?;
        let factor = e.binary("Div", &clip, &shifted)?;
        e.call("InplaceClampMax", vec![tensor(&factor), number(1.0)])?;
        factor
    } else {
        e.filled(&[1], 1.0)?
    };
    let finite = e.temporary(Element::Bool, &[1]);
    e.unary_into("IsFinite", &y[0], &finite)?;
    let nothing = e.constant_f32(0.0);
    e.choose_into(&finite, &factor, &nothing, &y[1])
}

/// Elements of a parameter that are computed at once.
const AT_ONCE: usize = CHUNK_ELEMENTS / 4;

/// One f32 operation at a time, in the order that the contract writes; `y` may be where w, m and v are.
fn next(e: &mut Emit<'_>, it: &Adamw, x: &[View], y: &[View]) -> Lowered {
    let [beta1, beta2, rest1, rest2, epsilon, decay] =
        [it.beta1, it.beta2, 1.0 - it.beta1, 1.0 - it.beta2, it.epsilon, it.weight_decay].map(|x| x as f32);
    let rate = e.dense(&x[5].narrow(0, 0, 1))?;
    let [c1, c2] = [1, 2].map(|at| x[5].narrow(0, at, 1));
    let decay = e.scaled(&rate, decay)?;
    let dense: Vec<View> = x[..4].iter().map(|view| e.dense(view)).collect::<Lowered<_>>()?;
    let count = dense[0].elements();
    for from in (0..count).step_by(AT_ONCE) {
        let mark = e.mark();
        let size = AT_ONCE.min(count - from);
        let cut = |view: &View| view.flat().narrow(0, from, size);
        let [w, gradient, m, v] = [0, 1, 2, 3].map(|at: usize| cut(&dense[at]));
        let [next_w, next_m, next_v] = [0, 1, 2].map(|at: usize| cut(&y[at]));
        let g = e.binary("Mul", &gradient, &x[4])?;
        let kept = e.scaled(&m, beta1)?;
        let part = e.scaled(&g, rest1)?;
        e.binary_into("Add", &kept, &part, &next_m)?;
        e.scale_into(&v, beta2, &kept)?;
        e.scale_into(&g, rest2, &part)?;
        e.binary_into("Mul", &part, &g, &part)?;
        e.binary_into("Add", &kept, &part, &next_v)?;
        // kept: w - lr·λ·w; part: the step.
        e.binary_into("Mul", &w, &decay, &kept)?;
        e.binary_into("Sub", &w, &kept, &kept)?;
        e.binary_into("Div", &next_v, &c2, &part)?;
        let root = e.unary("Sqrt", &part)?;
        let root = e.plus(&root, Number::F32(epsilon))?;
        e.binary_into("Div", &next_m, &c1, &part)?;
        e.binary_into("Div", &part, &root, &part)?;
        e.binary_into("Mul", &part, &rate, &part)?;
        e.binary_into("Sub", &kept, &part, &next_w)?;
        e.forget(mark);
    }
    Ok(())
}

pub(super) fn adamw(e: &mut Emit<'_>, it: &Adamw, x: &[View], y: &[View]) -> Lowered {
    if it.digests {
        // Before the next state takes the old one's place.
        digest(e, &[x[0].clone(), x[2].clone(), x[3].clone()], &y[4])?;
        digest(e, &x[1..2], &y[5])?;
    }
    next(e, it, x, &y[..3])?;
    if it.digests { digest(e, &y[..3], &y[3]) } else { Ok(()) }
}

pub(super) fn adamw_digest(e: &mut Emit<'_>, it: &AdamwDigest, x: &[View], y: &[View]) -> Lowered {
    let made = [0; 3].map(|_| e.temporary(Element::F32, &x[0].sizes));
    next(e, &it.adamw(), x, &made)?;
    digest(e, &made, &y[0])
}

pub(super) fn bias_update(e: &mut Emit<'_>, it: &BiasUpdate, x: &[View], y: &[View]) -> Lowered {
    let counts = e.cast(&x[1], Element::I64)?;
    let total = e.sum(&counts, &[0])?;
    let experts = e.constant_i64([counts.elements() as i64].into_iter());
    let share = e.binary("Mul", &counts, &experts)?;
    let under = e.compare("GtTensor", &total, &share)?;
    let over = e.compare("LtTensor", &total, &share)?;
    let (under, over) = (e.cast(&under, Element::F32)?, e.cast(&over, Element::F32)?);
    let sign = e.binary("Sub", &under, &over)?;
    let change = e.scaled(&sign, it.rate as f32)?;
    e.binary_into("Add", &x[0], &change, &y[0])
}

/// `a + b` modulo 2^32, by way of i64.
fn wrapping(e: &mut Emit<'_>, a: &View, b: &View, y: &View) -> Lowered {
    let (a, b) = (e.cast(a, Element::I64)?, e.cast(b, Element::I64)?);
    let sum = e.binary("Add", &a, &b)?;
    e.copy(y, &sum.words(0))
}

pub(super) fn increment(e: &mut Emit<'_>, it: &Increment, x: &[View], y: &[View]) -> Lowered {
    let by = e.constant_i64([i64::from(it.by)].into_iter());
    wrapping(e, &x[0], &by, &y[0])
}

pub(super) fn accumulate(e: &mut Emit<'_>, first: bool, x: &[View], y: &[View]) -> Lowered {
    if first {
        return e.copy(&y[0], &x[1]);
    }
    if y[0].element.is_float() {
        return e.binary_into("Add", &y[0], &x[1], &y[0]);
    }
    let target = e.dense(&y[0])?;
    wrapping(e, &target, &x[1], &y[0])
}

/// The largest of distances, never NaN: into one element.
pub(super) fn worst(e: &mut Emit<'_>, distances: &[View], y: &View) -> Lowered {
    for (at, distance) in distances.iter().enumerate() {
        let mark = e.mark();
        let distance = e.nan_is_infinite(distance)?;
        let floor = e.constant_f32(0.0);
        let distance = e.binary("Maximum", &distance, &floor)?;
        let axes: Vec<usize> = (0..distance.rank()).collect();
        let top = e.largest(&distance, &axes)?;
        if at == 0 {
            e.copy(y, &top)?
        } else {
            e.binary_into("Maximum", y, &top, y)?
        }
        e.forget(mark);
    }
    Ok(())
}
