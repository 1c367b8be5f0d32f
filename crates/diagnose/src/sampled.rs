//! Large instructions judged by parts of them that the oracle can afford: the same operator on the rows, columns or heads that
//! decide some elements. Each sum of a part has the same terms as in the whole, so the same tolerance holds.

mod parts; // which rows, columns and heads, operator by operator

use crate::consistent::ConsistentError;
use crate::probe::{Exact, Outcome, Probe};
use parts::{Attended, heads, parts};
use std::borrow::Cow;
use toprope_conformance::Oracle;
use toprope_conformance::judge::{Judgement, WRONG_MAX, Worst};
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::random::Random;
use toprope_conformance::verdict::Verdict;
use toprope_program::operator::Attention;
use toprope_program::tensor::round;
use toprope_program::{Operator, Tensor};

/// Parts of a probe: at least one.
#[derive(Clone, Debug)]
pub struct Sampled {
    first: Part,
    others: Vec<Part>,
}

/// What the parts should give.
#[derive(Clone, Debug)]
pub struct Exacts {
    first: Exact,
    others: Vec<Exact>,
}

#[derive(Clone, Debug)]
struct Part {
    probe: Probe,
    /// For each output, which elements of the whole's the part's are; none for an output that needs more than the part has.
    elements: Vec<Option<Vec<usize>>>,
    what: String,
}

impl Sampled {
    /// A sample of a probe; none where no part of it can be computed by itself.
    pub fn of(probe: &Probe, seed: u64) -> Option<Sampled> {
        if !probe.symbols().is_empty() {
            return Sampled::of(&probe.dense().ok()?, seed);
        }
        let mut random = Random::new(seed, "sample");
        let seen: Vec<Cow<'_, Tensor>> = probe.seen();
        let operands: Vec<&Tensor> = seen.iter().map(AsRef::as_ref).collect();
        Sampled::made(probe, parts(probe.operator(), &operands, &mut random))
    }

    /// A sample of a gradient of attention whose results of the forward pass are made to follow from the other operands where
    /// the sample reads them: whole, they are more than an oracle can afford. None where no part stands alone.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn of_attention_gradient(
        probe: Probe,
        seed: u64,
        oracle: &mut Oracle,
    ) -> Result<Option<(Probe, Sampled)>, ConsistentError> {
        let Operator::AttentionGradient(gradient) = probe.operator() else { return Ok(None) };
        let forward = Attention { scale: gradient.scale }.into();
        let mut probe = if probe.has_views() { probe.dense()? } else { probe };
        let seen = probe.seen();
        let operands: Vec<&Tensor> = seen.iter().map(AsRef::as_ref).collect();
        let Some(attended) = Attended::choose(&operands, &mut Random::new(seed, "sample")) else {
            return Ok(None);
        };
        let part = [0, 1, 2, 6].map(|at: usize| attended.of(at, &operands)).to_vec();
        let mut made = probe.altered(&forward, part)?.exact(oracle)?.want;
        let (lse, out) = (made.pop(), made.pop());
        let places = [attended.places(3, &operands), attended.places(4, &operands)];
        drop(operands);
        drop(seen);
        for ((at, made), places) in [(3, out), (4, lse)].into_iter().zip(places) {
            for (place, x) in places.into_iter().zip(made.into_iter().flat_map(|tensor| tensor.data)) {
                probe.set_number(at, place, |dtype| round(dtype, x));
            }
        }
        let seen = probe.seen();
        let operands: Vec<&Tensor> = seen.iter().map(AsRef::as_ref).collect();
        let sampled = Sampled::made(&probe, vec![heads(&operands, &attended)]);
        drop(operands);
        drop(seen);
        Ok(sampled.map(|sampled| (probe, sampled)))
    }

    fn made(probe: &Probe, parts: Vec<parts::Part>) -> Option<Sampled> {
        let outputs = probe.instruction().outputs.len();
        let part = |mut part: parts::Part| {
            part.elements.truncate(outputs);
            let operator = part.operator.as_ref().unwrap_or(probe.operator());
            let probe = probe.altered(operator, part.operands).ok()?;
            Some(Part { probe, elements: part.elements, what: part.what })
        };
        let mut parts = parts.into_iter().filter_map(part);
        Some(Sampled { first: parts.next()?, others: parts.collect() })
    }

    /// Floating-point operations of the parts.
    pub fn flops(&self) -> u64 {
        self.parts().map(|part| crate::lockstep::flops(&part.probe)).fold(0, u64::saturating_add)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// What was sampled, in words.
    pub fn what(&self) -> String {
        let told: Vec<&str> = self.parts().map(|part| part.what.as_str()).collect();
        told.join(", ")
    }

    /// Whether some elements of an output are judged.
    pub fn covers(&self, output: usize) -> bool {
        self.parts().any(|part| part.elements.get(output).is_some_and(Option::is_some))
    }

    /// The exact results of the parts.
    ///
    /// # Errors
    /// The oracle fails.
    pub fn exact(&self, oracle: &mut Oracle) -> Result<Exacts, Obstacle> {
        let first = self.first.probe.exact(oracle)?;
        let others = self.others.iter().map(|part| part.probe.exact(oracle)).collect::<Result<_, _>>()?;
        Ok(Exacts { first, others })
    }

    /// Judges the parts of what a device gave. Elements are told by their place in the whole.
    pub fn judge(&self, exact: &Exacts, outcome: &Outcome) -> Judgement {
        let mut all = self.first.judge(&exact.first, outcome);
        for (part, exact) in self.others.iter().zip(&exact.others) {
            join(&mut all, part.judge(exact, outcome));
        }
        all
    }
}

impl Part {
    fn judge(&self, exact: &Exact, outcome: &Outcome) -> Judgement {
        let part = |(at, want): (usize, &Tensor)| match self.elements.get(at).and_then(Option::as_ref) {
            Some(places) => {
                let given = outcome.outputs.get(at);
                let one = |place: &usize| given.and_then(|t| t.data.get(*place)).copied().unwrap_or(f64::NAN);
                Tensor { data: places.iter().map(one).collect(), ..want.clone() }
            }
            // Not judged: it is taken as right.
            None => Tensor::rounded(want.dtype, &want.sizes, want.data.iter().copied()),
        };
        let outputs = exact.want.iter().enumerate().map(part).collect();
        let mut judgement = self.probe.judge(exact, &Outcome { outputs, stray: outcome.stray.clone() });
        for (at, want) in exact.want.iter().enumerate() {
            if self.elements.get(at).is_none_or(Option::is_none) {
                judgement.elements = judgement.elements.saturating_sub(want.data.len() as u64);
                if let Some(accuracy) = judgement.accuracy.get_mut(at) {
                    *accuracy = None;
                }
            }
        }
        for (output, element) in &mut judgement.wrong {
            *element = self.place(*output, *element);
        }
        if let Some(Worst { output, element, .. }) = &mut judgement.worst {
            *element = self.place(*output, *element);
        }
        judgement
    }

    /// Where an element of the part lies in the whole.
    fn place(&self, output: usize, element: usize) -> usize {
        let places = self.elements.get(output).and_then(Option::as_ref);
        places.and_then(|places| places.get(element)).copied().unwrap_or(element)
    }
}

/// Takes another part's judgement in. What is wrong in one is wrong in all.
fn join(all: &mut Judgement, other: Judgement) {
    all.verdict = match (std::mem::replace(&mut all.verdict, Verdict::Agree), other.verdict) {
        (Verdict::Differ(finding), _) | (_, Verdict::Differ(finding)) => Verdict::Differ(finding),
        (Verdict::Agree, _) | (_, Verdict::Agree) => Verdict::Agree,
        (incomparable, _) => incomparable,
    };
    all.worst = match (all.worst.take(), other.worst) {
        (Some(one), Some(two)) => Some(if two.units > one.units { two } else { one }),
        (one, two) => one.or(two),
    };
    all.wrong.extend(other.wrong);
    all.wrong.truncate(WRONG_MAX);
    all.wrong_count += other.wrong_count;
    all.elements += other.elements;
    for (reason, count) in other.incomparable {
        *all.incomparable.entry(reason).or_default() += count;
    }
    all.routed_rows += other.routed_rows;
    all.tied_rows += other.tied_rows;
    for (held, accuracy) in all.accuracy.iter_mut().zip(other.accuracy) {
        match (&mut *held, accuracy) {
            (Some(held), Some(accuracy)) => held.merge(&accuracy),
            (None, accuracy) => *held = accuracy,
            (Some(_), None) => {}
        }
    }
}
