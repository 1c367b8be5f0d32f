//! What is known of one instruction on each device.

use serde::{Deserialize, Serialize};
use toprope_conformance::judge::Judgement;
use toprope_conformance::verdict::Verdict;
use toprope_program::Range;

/// How one device did at one instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The device's name.
    pub device: String,
    /// The verdict.
    pub verdict: Outcome,
    /// What was found, in words; empty where it agrees.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub finding: String,
    /// The worst error in units of the contract's tolerance; none where nothing was compared or there is no number.
    pub units: Option<f64>,
    /// Effective bits of the typical element of its worst output.
    pub bits: Option<f64>,
    /// Those of exact arithmetic rounded once.
    pub control_bits: Option<f64>,
    /// Runs of the instruction.
    pub runs: u64,
    /// Runs among them that are outside of their tolerance.
    pub wrong_runs: u64,
    /// Runs among them whose bits are not those of the first.
    pub other_bits: u64,
}

/// What came of an instruction on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Within the tolerance.
    Agree,
    /// Outside of it.
    Differ,
    /// Nothing could be compared.
    Incomparable,
    /// The device lacks it: not run.
    Refused,
    /// The device failed.
    Failed,
}

/// The worst element of the subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The output's name in the program.
    pub output: String,
    /// Index along each axis.
    pub index: Vec<usize>,
    /// What the subject gave, as text: JSON has no infinity.
    pub got: String,
    /// The exact result.
    pub want: String,
    /// The distance; none where one of the two is no number.
    pub error: Option<f64>,
    /// The largest distance that is accepted; none for results that must be exact.
    pub tolerance: Option<f64>,
}

/// One instruction on all devices, each given the trusted device's operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which micro-batch, from 0.
    pub micro_batch: usize,
    /// The range.
    pub range: Range,
    /// Index in its range.
    pub index: usize,
    /// The operator's name.
    pub operator: String,
    /// The part of the model, such as `layers.3.attention`.
    pub layer: String,
    /// Dtypes and sizes of operands and outputs.
    pub shape: String,
    /// The subject first, the trusted device last.
    pub standings: Vec<Standing>,
    /// The subject's worst element.
    pub worst: Option<Place>,
    /// Share of the subject's elements that are outside of their bound.
    pub wrong_share: f64,
    /// What the oracle judged, where that is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled: Option<String>,
    /// What is told of two of three that agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vote: Option<String>,
}

/// The index along each axis of a row-major element.
pub(crate) fn coordinates(element: usize, sizes: &[usize]) -> Vec<usize> {
    let mut index = vec![0; sizes.len()];
    let mut rest = element;
    for (at, size) in index.iter_mut().zip(sizes).rev() {
        *at = rest % (*size).max(1);
        rest /= (*size).max(1);
    }
    index
}

impl Row {
    /// The subject's standing.
    pub fn subject(&self) -> &Standing {
        &self.standings[0]
    }

    /// The trusted device's standing.
    pub fn trusted(&self) -> &Standing {
        &self.standings[self.standings.len() - 1]
    }

    /// Whether the subject is wrong here.
    pub fn is_wrong(&self) -> bool {
        self.subject().is_wrong()
    }

    /// Whether the subject is right here, with bits that differ from run to run.
    pub fn is_unsteady(&self) -> bool {
        !self.is_wrong() && self.subject().other_bits > 0
    }
}

impl Standing {
    /// Whether the device is wrong here.
    pub fn is_wrong(&self) -> bool {
        matches!(self.verdict, Outcome::Differ | Outcome::Failed)
    }

    /// From a judgement of one run.
    pub(crate) fn judged(device: &str, judgement: &Judgement) -> Standing {
        let (verdict, finding) = match &judgement.verdict {
            Verdict::Agree => (Outcome::Agree, String::new()),
            Verdict::Differ(finding) => (Outcome::Differ, finding.clone()),
            Verdict::Incomparable(reason) => (Outcome::Incomparable, reason.clone()),
        };
        // The output that lost most against its control.
        let measured = judgement.accuracy.iter().flatten().filter(|accuracy| accuracy.subject.count > 0);
        let worst = measured.max_by(|a, b| {
            let lost = |x: &toprope_conformance::judge::Accuracy| {
                x.control.typical_bits() - x.subject.typical_bits()
            };
            lost(a).total_cmp(&lost(b))
        });
        Standing {
            device: device.into(),
            verdict,
            finding,
            units: judgement.worst.as_ref().map(|worst| worst.units.min(f64::MAX)),
            bits: worst.map(|accuracy| accuracy.subject.typical_bits()),
            control_bits: worst.map(|accuracy| accuracy.control.typical_bits()),
            runs: 1,
            wrong_runs: u64::from(verdict == Outcome::Differ),
            other_bits: 0,
        }
    }

    pub(crate) fn fault(device: &str, verdict: Outcome, finding: String) -> Standing {
        Standing {
            device: device.into(),
            verdict,
            finding,
            units: None,
            bits: None,
            control_bits: None,
            runs: u64::from(verdict == Outcome::Failed),
            wrong_runs: u64::from(verdict == Outcome::Failed),
            other_bits: 0,
        }
    }
}
