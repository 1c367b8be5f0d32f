//! Judges one instruction's outputs against the oracle's, element by element, at the contract's tolerance.

mod accuracy; // errors as effective bits, beside exact arithmetic rounded once
mod router;
mod slack;

pub use accuracy::{Accuracy, Spread};

use crate::oracle::Oracle;
use crate::verdict::Verdict;
use std::collections::BTreeMap;
use toprope_program::operator::{Adamw, Operator, digest_mix};
use toprope_program::tensor::round;
use toprope_program::{Concrete, DType, Tensor, Tolerance};

/// The element that lies farthest outside or least inside its bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    /// Which output of the instruction.
    pub output: usize,
    /// Row-major index of the element.
    pub element: usize,
    /// What the subject gave.
    pub got: f64,
    /// What the oracle gave, not rounded.
    pub want: f64,
    /// The error in units of the bound; infinite where there is no bound to measure by.
    pub units: f64,
}

/// How many wrong elements a judgement names.
pub const WRONG_MAX: usize = 1 << 16;

/// What came of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Agree, differ or incomparable.
    pub verdict: Verdict,
    /// The worst element, where any was compared.
    pub worst: Option<Worst>,
    /// Elements outside of their bounds: output and row-major index; the first [`WRONG_MAX`] of them.
    pub wrong: Vec<(usize, usize)>,
    /// How many elements are outside of their bounds.
    pub wrong_count: u64,
    /// Elements looked at.
    pub elements: u64,
    /// Elements that could not be compared, by reason.
    pub incomparable: BTreeMap<String, u64>,
    /// Rows of a router.
    pub routed_rows: u64,
    /// Rows among them whose choice hangs on less than the tolerance.
    pub tied_rows: u64,
    /// How exact each output is; none for those that are not numbers with a tolerance.
    pub accuracy: Vec<Option<Accuracy>>,
}

/// Collects elements into a judgement.
struct Court {
    /// Magnitudes without infinite terms.
    finite: Vec<Vec<f64>>,
    /// Why any output may be far off, where the operands are such.
    wild: Option<&'static str>,
    worst: Option<Worst>,
    wrong: Vec<(usize, usize)>,
    wrong_count: u64,
    finding: Option<String>,
    elements: u64,
    incomparable: BTreeMap<String, u64>,
    routed_rows: u64,
    tied_rows: u64,
    accuracy: Vec<Option<Accuracy>>,
}

impl Court {
    fn new(finite: Vec<Vec<f64>>, wild: Option<&'static str>, outputs: usize) -> Court {
        Court {
            finite,
            wild,
            worst: None,
            wrong: Vec::new(),
            wrong_count: 0,
            finding: None,
            elements: 0,
            incomparable: BTreeMap::new(),
            routed_rows: 0,
            tied_rows: 0,
            accuracy: vec![None; outputs],
        }
    }

    fn differs(&mut self, finding: impl FnOnce() -> String) {
        self.finding.get_or_insert_with(finding);
    }

    fn cannot_compare(&mut self, reason: &str) {
        self.elements += 1;
        *self.incomparable.entry(reason.to_string()).or_default() += 1;
    }

    fn element(&mut self, output: usize, element: usize, got: f64, want: f64, units: f64, accepted: bool) {
        self.elements += 1;
        if self.worst.as_ref().is_none_or(|worst| units > worst.units || !accepted && worst.units <= 1.0) {
            self.worst = Some(Worst { output, element, got, want, units });
        }
        if !accepted {
            self.wrong_count += 1;
            if self.wrong.len() < WRONG_MAX {
                self.wrong.push((output, element));
            }
            self.differs(|| {
                format!("output {output} element {element}: got {got:e}, want {want:e}, {units:.3} times the bound")
            });
        }
    }

    fn close(self) -> Judgement {
        let incomparable: u64 = self.incomparable.values().sum();
        let verdict = match self.finding {
            Some(finding) => Verdict::Differ(finding),
            None if incomparable == self.elements && incomparable > 0 => {
                Verdict::Incomparable(self.incomparable.keys().cloned().collect::<Vec<_>>().join(", "))
            }
            None => Verdict::Agree,
        };
        Judgement {
            verdict,
            worst: self.worst,
            wrong: self.wrong,
            wrong_count: self.wrong_count,
            elements: self.elements,
            incomparable: self.incomparable,
            routed_rows: self.routed_rows,
            tied_rows: self.tied_rows,
            accuracy: self.accuracy,
        }
    }
}

/// What tolerances are relative to, an entry for each element of each output.
#[derive(Clone, Copy, Debug)]
pub struct Magnitudes<'a> {
    /// From the operands as they are.
    pub whole: &'a [Vec<f64>],
    /// From the operands with infinities taken as 0; empty where there are none.
    pub finite: &'a [Vec<f64>],
}

/// [`Magnitudes`] that are held rather than lent.
#[derive(Clone, Debug)]
pub struct Measured {
    /// From the operands as they are.
    pub whole: Vec<Vec<f64>>,
    /// From the operands with infinities taken as 0; empty where there are none.
    pub finite: Vec<Vec<f64>>,
}

impl Measured {
    /// With room for an error of `allowance` times the magnitude beside what the contract allows.
    fn allowing(mut self, allowance: f64, tolerances: &[Tolerance]) -> Measured {
        for magnitudes in [&mut self.whole, &mut self.finite] {
            for (output, tolerance) in magnitudes.iter_mut().zip(tolerances) {
                if tolerance.accumulated > 0.0 {
                    let factor = 1.0 + allowance / tolerance.accumulated;
                    output.iter_mut().for_each(|magnitude| *magnitude *= factor);
                }
            }
        }
        self
    }

    /// As [`judge`] takes them.
    pub fn borrowed(&self) -> Magnitudes<'_> {
        Magnitudes { whole: &self.whole, finite: &self.finite }
    }
}

/// What the errors of an operator on these operands are measured by. What stood in the target of an `accumulate` does not
/// enter the result of a first micro-batch. What the oracle lets through beside the bound is in it.
pub fn measure(
    oracle: &Oracle,
    operator: &Operator,
    operands: &[Tensor],
    want: &[Tensor],
    first: bool,
) -> Measured {
    let magnitudes = oracle.magnitudes;
    let fresh = first && matches!(operator, Operator::Accumulate(_));
    let of = |operands: &[Tensor]| {
        if !fresh {
            return magnitudes(operator, operands, want);
        }
        let mut operands = operands.to_vec();
        operands[0].data.fill(0.0);
        magnitudes(operator, &operands, want)
    };
    let infinite = |tensor: &Tensor| tensor.data.iter().any(|x| x.is_infinite());
    let finite = if operands.iter().any(infinite) {
        of(&operands.iter().map(finite_part).collect::<Vec<_>>())
    } else {
        Vec::new()
    };
    let measured = Measured { whole: of(operands), finite };
    if oracle.allowance == 0.0 {
        return measured;
    }
    measured.allowing(oracle.allowance, &tolerances(operator, operands, want))
}

/// The contract's tolerances of an operator's outputs on these operands.
fn tolerances(operator: &Operator, operands: &[Tensor], want: &[Tensor]) -> Vec<Tolerance> {
    let concrete = |tensors: &[Tensor]| -> Vec<Concrete> {
        tensors.iter().map(|t| Concrete { dtype: t.dtype, sizes: t.sizes.clone() }).collect()
    };
    operator.definition().tolerances(&concrete(operands), &concrete(want))
}

/// The tensor with its infinities taken as 0.
fn finite_part(tensor: &Tensor) -> Tensor {
    let data = tensor.data.iter().map(|x| if x.is_infinite() { 0.0 } else { *x }).collect();
    Tensor { data, ..tensor.clone() }
}

/// Judges the outputs of an operator on these operands. `want` is the oracle's answer, not rounded.
pub fn judge(
    operator: &Operator,
    operands: &[Tensor],
    want: &[Tensor],
    got: &[Tensor],
    magnitudes: Magnitudes<'_>,
) -> Judgement {
    let wild = slack::wildness(operator, operands);
    let mut court = Court::new(magnitudes.finite.to_vec(), wild, want.len());
    let tolerances = tolerances(operator, operands, want);
    let slack = slack::slack(operator, operands, want, &tolerances);
    let widened = slack::widened(magnitudes.whole, &slack, &tolerances);
    let magnitudes = widened.as_slice();
    match operator {
        Operator::Router(router) => {
            router::judge(&mut court, router, operands, want, got, magnitudes, &tolerances);
        }
        Operator::AdamwDigest(it) => own_digest(&mut court, 0, &adamw(&it.adamw(), operands), &got[0]),
        Operator::ProductCheck(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::Verify(_) => {
            check(&mut court, tolerances[0].absolute, want[0].data[0], got[0].data[0]);
        }
        Operator::Adamw(adamw) if adamw.digests => {
            compare(&mut court, &want[..3], &got[..3], magnitudes, &tolerances);
            own_digest(&mut court, 3, &got[..3], &got[3]);
            own_digest(&mut court, 4, &[0, 2, 3].map(|index: usize| operands[index].clone()), &got[4]);
            own_digest(&mut court, 5, &operands[1..2], &got[5]);
        }
        _ => compare(&mut court, want, got, magnitudes, &tolerances),
    }
    court.close()
}

/// Judges outputs whose operands are such that only few of them are numbers: what must be NaN, or infinite with a sign, is
/// so, and numbers are within their bounds, as far as these are numbers too. Nothing is excused but `open` outputs, which
/// are not looked at.
pub fn judge_classes(
    operator: &Operator,
    operands: &[Tensor],
    want: &[Tensor],
    got: &[Tensor],
    magnitudes: Magnitudes<'_>,
    open: &[usize],
) -> Judgement {
    let tolerances = tolerances(operator, operands, want);
    let mut court = Court::new(Vec::new(), None, want.len());
    let pairs = want.iter().zip(got).enumerate();
    for (output, (want, got)) in pairs.filter(|(output, _)| !open.contains(output)) {
        let tolerance = tolerances.get(output).copied().unwrap_or(Tolerance::EXACT);
        for (element, (want_one, got_one)) in want.data.iter().zip(&got.data).enumerate() {
            let stored = round(want.dtype, *want_one);
            let at = |m: &[Vec<f64>]| m.get(output).and_then(|m| m.get(element)).copied();
            // Where an infinity of no weight drowns it, the other operands' magnitude is what a number is held against.
            let magnitude = at(magnitudes.whole)
                .filter(|m| m.is_finite())
                .or_else(|| at(magnitudes.finite))
                .or_else(|| at(magnitudes.whole))
                .unwrap_or(0.0);
            let bound = tolerance.bound(*want_one, magnitude);
            let accepted = if !stored.is_finite() {
                stored == *got_one || stored.is_nan() && got_one.is_nan()
            } else if bound.is_finite() {
                (got_one - stored).abs() <= bound || (got_one - want_one).abs() <= bound
            } else {
                got_one.is_finite()
            };
            let units = if accepted { 0.0 } else { f64::INFINITY };
            court.element(output, element, *got_one, stored, units, accepted);
        }
    }
    court.close()
}

/// Why an element cannot be compared where an f32 accumulator may have overflowed.
const OVERFLOWS: &str = "an f32 intermediate may overflow on the way";

fn compare(
    court: &mut Court,
    want: &[Tensor],
    got: &[Tensor],
    magnitudes: &[Vec<f64>],
    tolerances: &[Tolerance],
) {
    for (output, (want, got)) in want.iter().zip(got).enumerate() {
        let tolerance = tolerances.get(output).copied().unwrap_or(Tolerance::EXACT);
        let magnitude = magnitudes.get(output).map_or(&[][..], Vec::as_slice);
        for (element, (&want_one, &got_one)) in want.data.iter().zip(&got.data).enumerate() {
            let magnitude = magnitude.get(element).copied().unwrap_or(0.0);
            one(court, (output, element), want.dtype, got_one, want_one, magnitude, tolerance);
        }
    }
}

/// Above this an f32 accumulator may have overflowed on the way to a result that does not.
const OVERFLOW: f64 = f32::MAX as f64 * (1.0 - 1.0 / 512.0);

fn one(
    court: &mut Court,
    place: (usize, usize),
    dtype: DType,
    got: f64,
    want: f64,
    magnitude: f64,
    tolerance: Tolerance,
) {
    let (output, element) = place;
    if tolerance == Tolerance::EXACT {
        // An exact result is rounded once, by the store.
        let want = round(dtype, want);
        let same = if want.is_nan() {
            got.is_nan()
        } else {
            got == want && (want != 0.0 || got.is_sign_negative() == want.is_sign_negative())
        };
        court.element(output, element, got, want, if same { 0.0 } else { f64::INFINITY }, same);
        return;
    }
    if let Some(accuracy) = court.accuracy.get_mut(output) {
        accuracy.get_or_insert_default().element(dtype, got, want, magnitude);
    }
    let accepted = tolerance.accepts(got, want, magnitude);
    let overflows = || may_overflow(court, place, want, magnitude).then_some(OVERFLOWS);
    // A NaN may spread; one that was swallowed is excused by nothing.
    let wild = court.wild.filter(|reason| *reason != slack::SPREADS || got.is_nan());
    if let Some(reason) = wild.or_else(overflows).filter(|_| !accepted) {
        court.cannot_compare(reason);
        return;
    }
    let bound = tolerance.bound(want, magnitude);
    let units = if got == want || want.is_nan() && got.is_nan() {
        0.0
    } else if (got - want).is_finite() && bound > 0.0 {
        (got - want).abs() / bound
    } else if accepted {
        1.0
    } else {
        f64::INFINITY
    };
    court.element(output, element, got, want, units, accepted);
}

/// Whether finite terms of either sign may have left f32 before they met. An infinite term is no excuse by itself: next to
/// it only finite ones that overflow the other way are.
fn may_overflow(court: &Court, place: (usize, usize), want: f64, magnitude: f64) -> bool {
    if want.is_nan() {
        return false;
    }
    if want.is_infinite() {
        let finite = court.finite.get(place.0).and_then(|magnitudes| magnitudes.get(place.1));
        return finite.is_some_and(|finite| finite.is_nan() || *finite >= OVERFLOW);
    }
    // Where all terms have one sign the result leaves f32 with them.
    let one_sign = want.abs() >= magnitude * (1.0 - 1e-12) && magnitude < 1e50;
    magnitude.is_nan() || magnitude >= OVERFLOW && !one_sign
}

/// What is healthy must stay below the limit, what is sick above it; between, the check's own rounding decides.
fn check(court: &mut Court, limit: f64, want: f64, got: f64) {
    // A report has finite numbers only; NaN stays what it is and fails.
    let (want, got) = (want.clamp(-f64::MAX, f64::MAX), got.clamp(-f64::MAX, f64::MAX));
    if want <= limit / 2.0 {
        court.element(0, 0, got, want, got / limit, got <= limit);
    } else if want >= 2.0 * limit || want.is_nan() {
        court.element(0, 0, got, want, 0.0, got > limit);
    } else {
        court.cannot_compare("the check stands within its own rounding of the limit");
    }
}

/// The optimizer in the contract's f32 operations, which give the same bits everywhere.
fn adamw(attributes: &Adamw, operands: &[Tensor]) -> [Tensor; 3] {
    let at = |operand: usize, index: usize| operands[operand].data[index] as f32;
    let [beta1, beta2, epsilon, decay, rest1, rest2] = [
        attributes.beta1,
        attributes.beta2,
        attributes.epsilon,
        attributes.weight_decay,
        1.0 - attributes.beta1,
        1.0 - attributes.beta2,
    ]
    .map(|x| x as f32);
    let (factor, rate, c1, c2) = (at(4, 0), at(5, 0), at(5, 1), at(5, 2));
    let mut next = [0; 3].map(|_| Tensor { data: Vec::new(), ..operands[0].clone() });
    for index in 0..operands[0].data.len() {
        let g = at(1, index) * factor;
        let m = beta1 * at(2, index) + rest1 * g;
        let v = beta2 * at(3, index) + rest2 * g * g;
        let w = at(0, index);
        let w = (w - rate * decay * w) - rate * ((m / c1) / ((v / c2).sqrt() + epsilon));
        next.iter_mut().zip([w, m, v]).for_each(|(next, x)| next.data.push(f64::from(x)));
    }
    next
}

/// A digest that follows from other outputs is judged by those that the subject itself gave.
fn own_digest(court: &mut Court, output: usize, stored: &[Tensor], digest: &Tensor) {
    let mut sum = 0u64;
    for tensor in stored {
        for (index, x) in tensor.data.iter().enumerate() {
            sum = sum.wrapping_add(digest_mix((*x as f32).to_bits(), index as u64));
        }
    }
    for (element, want) in [sum & 0xFFFF_FFFF, sum >> 32].into_iter().enumerate() {
        let got = digest.data[element];
        if stored.iter().any(|tensor| tensor.data.iter().any(|x| x.is_nan())) {
            court.cannot_compare("a NaN has many bit patterns");
        } else {
            let same = got == want as f64;
            let units = if same { 0.0 } else { f64::INFINITY };
            court.element(output, element, got, want as f64, units, same);
        }
    }
}
