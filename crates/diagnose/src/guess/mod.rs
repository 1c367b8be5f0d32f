//! A guess at the kind of a defect, made only with the experiment that tells it from the others. Each file beside this one is
//! one idea: it runs something, says what it showed, and concludes or does not.

mod alteration; // the same operator with another attribute or operand explains what was seen
mod axes; // which sizes belong together
mod condition; // it fails only where something special is there
mod constant; // the same number whatever is read
mod dependence; // which part of an operand an element follows
mod elsewhere; // what goes in at one place comes out at another
mod fitted; // a constant is another one
mod fixed; // some elements are stuck
mod formula; // optimizers that leave a part of the formula out
mod lab; // runs trials and keeps the record
mod leftover; // what a run before left behind
mod mask; // who sees whom
mod misplaced; // an operand is read through a wrong index
mod model; // the formulas, step by step
mod permutation; // right numbers in another order
mod places; // wrong ways to count
mod precision; // how the error grows
mod prediction; // the right result, changed on the way out
mod proportional; // what the error is a multiple of
mod repeat; // the same run again
mod sizes; // which sizes fail
mod softmax; // large logits
mod sorted; // equals, tails and places of a sort
mod steps; // one step of the formula done otherwise
mod tail; // where the wrong elements lie

use crate::probe::{Outcome, Probe};
use lab::Lab;
use serde::{Deserialize, Serialize};
use std::fmt;
use toprope_conformance::Oracle;
use toprope_conformance::lockstep::Obstacle;
use toprope_program::{Device, Fault};

/// Kinds of defects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every element of an output is zero.
    AllZero,
    /// Every element of an output is NaN.
    AllNan,
    /// An output is the same whatever the operands are.
    ConstantOutput,
    /// Some elements are the same whatever the operands are.
    StuckElements,
    /// An output, or a part of it, is not written at all.
    NotWritten,
    /// An output is that of the run before.
    StaleBuffer,
    /// Memory outside of the outputs is written.
    WritesOutside,
    /// Bits differ from run to run, within the tolerance: the order of additions changes.
    OrderChanges,
    /// Some runs are wrong and others are not.
    Race,
    /// Bits differ where it runs in one span with other operators.
    DiffersInRange,
    /// Single bits are flipped in some runs.
    BitFlips,
    /// A size that does not divide by the width of a tile loses its rest.
    DroppedTail,
    /// Terms at the border of a sum do not count.
    MissingTerms,
    /// Sums are rounded on the way: the error grows with their length.
    LowPrecisionAccumulation,
    /// Operands are rounded before they are multiplied: the error does not grow.
    LowPrecisionOperands,
    /// Results are rounded to fewer bits than their type has.
    LowPrecisionStore,
    /// Results are cut where they must be rounded to nearest.
    TruncatingStore,
    /// Somebody sees what must be hidden, or does not see what must be seen.
    Mask,
    /// Large logits overflow: the largest is not taken off before `e` to it.
    SoftmaxOverflow,
    /// The right numbers in another order, or operands read in another order.
    Layout,
    /// The right result times a factor.
    WrongFactor,
    /// Epsilon is another one, or stands elsewhere.
    Epsilon,
    /// The moments' start at zero is not corrected, or otherwise than by the rates that were given.
    BiasCorrection,
    /// Weight decay goes another way than the contract says.
    WeightDecay,
    /// Another attribute of the operator than the one that was asked for.
    WrongAttribute,
    /// An operand is left out, or counts another number of times.
    WrongOperand,
    /// Equals are told apart in another order than by their index.
    TieBreak,
    /// The largest number in place of infinity.
    Saturation,
    /// Numbers below the normal ones are taken as zero.
    SubnormalsFlushed,
    /// NaN or infinity among the operands is treated otherwise than the contract says.
    SpecialValues,
    /// Indices outside of their range are treated otherwise than the contract says.
    StrayIndex,
    /// Of rows that go to the same place not all count.
    Collision,
    /// Groups or rows that nothing goes to keep what was there.
    EmptyGroup,
    /// Rows of a group that is larger than others do not count: there is no room for them.
    Capacity,
    /// Only operands that are exactly zero go wrong.
    EdgeValue,
    /// Only the first micro-batch, or only later ones, go wrong.
    FirstMicroBatch,
    /// Only operands that are read through a strided view go wrong.
    StridedView,
    /// No experiment tells.
    Unknown,
}

impl Kind {
    /// The name in reports.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experiment {
    /// What was run.
    pub ran: String,
    /// What it showed.
    pub showed: String,
}

/// A guess at the kind of a defect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guess {
    /// The kind.
    pub kind: Kind,
    /// What is wrong, in a sentence.
    pub sentence: String,
    /// What was tried; the last one is what tells this kind from the others, where one does.
    pub experiments: Vec<Experiment>,
}

impl Guess {
    /// The device failed before anything could be told.
    pub fn failed(fault: &Fault) -> Guess {
        let sentence = format!("The device fails in it, so that nothing can be tried: {fault}.");
        Guess::unknown(sentence, Vec::new())
    }

    /// What was seen of a defect that no experiment explains.
    fn unknown(sentence: String, experiments: Vec<Experiment>) -> Guess {
        Guess { kind: Kind::Unknown, sentence, experiments }
    }
}

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often the same run is repeated.
    pub repeats: usize,
    /// Where redrawn values come from.
    pub seed: u64,
    /// Floating-point operations of one run above which a smaller failing case is looked for first.
    pub flops_max: u64,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { repeats: 12, seed: 1, flops_max: 4_000_000 }
    }
}

/// What an idea comes to.
pub(crate) struct Conclusion {
    kind: Kind,
    sentence: String,
}

impl Conclusion {
    fn new(kind: Kind, sentence: impl Into<String>) -> Conclusion {
        Conclusion { kind, sentence: sentence.into() }
    }
}

/// The axes of a dense probe: how each is brought to another size, and the one that it has.
pub(crate) fn axes_of(probe: &Probe) -> Vec<(Resizer, usize)> {
    axes::axes(probe)
        .into_iter()
        .map(|axis| {
            let size = axis.size;
            let resizer: Resizer = Box::new(move |other| {
                let axis = axis.clone();
                Box::new(move |value, at, n| axis.map(other)(value, at, n))
            });
            (resizer, size)
        })
        .collect()
}

/// Makes the map that brings an axis to a size (see [`Probe::resized`]).
pub(crate) type Resizer = Box<dyn Fn(usize) -> SizeMap>;

/// From value, axis and size to another size.
pub(crate) type SizeMap = Box<dyn Fn(usize, usize, usize) -> usize>;

type Idea = fn(&mut Lab<'_>) -> Result<Option<Conclusion>, Obstacle>;

/// From what is certain by itself to what takes the others as ruled out.
const IDEAS: &[Idea] = &[
    leftover::leftover,
    repeat::repeat,
    sorted::sorted,
    sizes::sizes,
    tail::tail,
    constant::constant,
    condition::micro_batch,
    prediction::range,
    condition::condition,
    condition::overlap,
    prediction::store,
    prediction::factor,
    alteration::attribute,
    formula::optimizer,
    condition::closed_groups,
    condition::zeros,
    softmax::before_masks,
    mask::mask,
    alteration::operand,
    steps::changed,
    fitted::attribute,
    fitted::step,
    permutation::permutation,
    fixed::stuck,
    misplaced::operand,
    dependence::dependence,
    misplaced::output,
    elsewhere::rows,
    elsewhere::impulse,
    softmax::softmax,
    proportional::operand,
    precision::growth,
    steps::rounding,
    proportional::parts,
    precision::roughness,
];

/// Guesses at the kind of defect of a subject that gets this probe wrong. `observed` is what it gave when it was found wrong,
/// for defects that do not show every time.
///
/// # Errors
/// The oracle fails, or the subject does at its very first run.
pub fn guess(
    subject: &mut dyn Device,
    oracle: &mut Oracle,
    probe: &Probe,
    observed: Option<&Outcome>,
    effort: Effort,
) -> Result<Guess, Obstacle> {
    let mut lab = match Lab::open(subject, oracle, probe, observed, effort)? {
        lab::Opening::Ready(lab) => lab,
        lab::Opening::Concluded(guess) => return Ok(guess),
    };
    for idea in IDEAS {
        match idea(&mut lab) {
            Ok(Some(Conclusion { kind, sentence })) => {
                return Ok(Guess { kind, sentence, experiments: lab.experiments });
            }
            Ok(None) => {}
            Err(Obstacle::Subject(fault)) => {
                lab.note("the next experiment", format!("the device failed: {fault}"));
                break;
            }
            Err(obstacle) => return Err(obstacle),
        }
    }
    let sentence = lab.seen();
    Ok(Guess::unknown(sentence, lab.experiments))
}
