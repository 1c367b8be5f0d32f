//! What was found out, stage by stage and operator by operator.

use serde::Serialize;
use toprope_conformance::judge::Accuracy;
use toprope_diagnose::Probe;
use toprope_program::{Concrete, DType};

/// How a stage ended. What did not run is never passed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing spoke against the device.
    Passed,
    /// Something did.
    Failed(String),
    /// It was not tried, and why.
    NotRun(String),
}

impl Outcome {
    /// Whether it speaks against the device.
    pub fn failed(&self) -> bool {
        matches!(self, Outcome::Failed(_))
    }

    /// Whether it speaks for the device.
    pub fn passed(&self) -> bool {
        *self == Outcome::Passed
    }
}

/// A stage that ran, or did not.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What was done, in a line.
    pub told: String,
    /// How often something was tried.
    pub tried: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Where a shape comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What the user will run.
    Asked,
    /// Shapes that kernels get wrong.
    Generated,
    /// Magnitudes swept over these powers of two.
    Swept,
}

/// How much of one of the user's shapes was run and judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Extent {
    /// Whether the device ran all of it.
    pub whole: bool,
    /// What was run and what of it was judged, in words; where it is a part, also why.
    pub told: String,
}

/// What came of one operator at one dtype and shape, or class of shapes.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorResult {
    /// The operator's name.
    pub name: String,
    /// The dtype that it computes on; none where it reads no floats.
    pub dtype: Option<DType>,
    /// The variant of the device: its level.
    pub variant: String,
    /// The shape, or the class of shapes.
    pub shape: String,
    /// Where the shape comes from.
    pub source: Source,
    /// Whether it agrees; none where it was not run or nothing could be compared.
    pub passed: Option<bool>,
    /// What was seen, where it does not agree; why it was not run, where it was not.
    pub finding: Option<String>,
    /// How much of it was run, where the user asked for it.
    pub extent: Option<Extent>,
    /// Whether the device refused it.
    pub refused: bool,
    /// Instructions judged.
    pub cases: u64,
    /// Instructions among them that differed.
    pub failures: u64,
    /// Elements looked at.
    pub elements: u64,
    /// Elements that could not be compared.
    pub incomparable: u64,
    /// Typical exactness, in bits: 24 for f32 rounded once.
    pub effective_bits: Option<f64>,
    /// The same of exact arithmetic rounded once.
    pub control_bits: Option<f64>,
    /// The same of the trusted device.
    pub trusted_bits: Option<f64>,
    /// The error of the element that is worst beside its bound.
    pub worst_error: Option<f64>,
    /// That element's bound.
    pub tolerance: Option<f64>,
    /// What kind of defect it looks like.
    pub defect_guess: Option<String>,
    /// The setting that explains it, where one does.
    pub setting: Option<String>,
    /// A program that shows it, in the printed form with its head.
    #[serde(skip)]
    pub reproducer: Option<String>,
    /// The first instruction that differed, with its values.
    #[serde(skip)]
    pub probe: Option<Probe>,
}

/// Counts behind a result.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Instructions that agreed.
    pub agree: u64,
    /// That differed.
    pub differ: u64,
    /// That could not be compared.
    pub incomparable: u64,
    /// Elements.
    pub elements: u64,
    /// Elements that could not be compared.
    pub incomparable_elements: u64,
    /// The subject's accuracy.
    pub accuracy: Accuracy,
    /// The trusted device's.
    pub trusted: Accuracy,
    /// Error and bound of the worst element, and the error in units of the bound.
    pub worst: Option<(f64, f64, f64)>,
    /// The first finding.
    pub finding: Option<String>,
    /// Why it was not run.
    pub refused: Option<String>,
    /// Whether that was the device's refusal.
    pub lacks: bool,
    /// The most of it that was run.
    pub extent: Option<Extent>,
    /// A program that shows the first finding.
    pub reproducer: Option<String>,
    /// The instruction of the first finding, with its values.
    pub probe: Option<Probe>,
}

impl Tally {
    /// Adds what is worst.
    pub fn worst(&mut self, error: f64, bound: f64, units: f64) {
        if self.worst.is_none_or(|(_, _, held)| units > held) {
            self.worst = Some((error, bound, units));
        }
    }

    /// Something that speaks against it.
    pub fn differs(
        &mut self,
        finding: String,
        reproducer: impl FnOnce() -> String,
        probe: impl FnOnce() -> Option<Probe>,
    ) {
        self.differ += 1;
        if self.finding.is_none() {
            self.finding = Some(finding);
            self.reproducer = Some(reproducer());
            self.probe = probe();
        }
    }

    /// As it is told.
    pub fn result(&self, key: &Key, variant: &str) -> OperatorResult {
        let bits = |spread: &toprope_conformance::judge::Spread| {
            (spread.count > 0).then(|| (spread.typical_bits() * 100.0).round() / 100.0)
        };
        let passed = match (self.differ, self.agree) {
            (0, 0) => None,
            (differ, _) => Some(differ == 0),
        };
        let untold = || match (passed, self.incomparable) {
            (None, 0) => Some("not run".to_string()),
            (None, _) => Some("nothing could be compared".to_string()),
            _ => None,
        };
        let finite = |x: f64| x.is_finite().then_some(x);
        OperatorResult {
            name: key.operator.clone(),
            dtype: DType::from_name(key.dtype),
            variant: variant.into(),
            shape: key.shape.clone(),
            source: key.source,
            passed,
            finding: self.finding.clone().or_else(|| self.refused.clone()).or_else(untold),
            refused: self.lacks,
            extent: self.extent.clone(),
            cases: self.agree + self.differ + self.incomparable,
            failures: self.differ,
            elements: self.elements,
            incomparable: self.incomparable_elements,
            effective_bits: bits(&self.accuracy.subject),
            control_bits: bits(&self.accuracy.control),
            trusted_bits: bits(&self.trusted.subject),
            worst_error: self.worst.and_then(|(error, _, _)| finite(error)),
            tolerance: self.worst.and_then(|(_, bound, _)| finite(bound)),
            defect_guess: None,
            setting: None,
            reproducer: self.reproducer.clone(),
            probe: self.probe.clone(),
        }
    }
}

/// The operators that multiply two matrices, which are their first operands.
const PRODUCTS: [&str; 3] = ["matmul", "grouped_matmul", "grouped_outer"];

/// What results are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Where the shape comes from.
    pub source: Source,
    /// The operator's name.
    pub operator: String,
    /// The name of the dtype that it computes on; empty where it reads no floats.
    pub dtype: &'static str,
    /// The shape, or the class of shapes.
    pub shape: String,
}

impl Key {
    /// The key of an instruction on these operands, in a class of shapes or at its own.
    pub fn new(source: Source, operator: &str, operands: &[Concrete], shape: String) -> Key {
        let mut floats = operands.iter().map(|operand| operand.dtype).filter(|dtype| dtype.is_float());
        // A product of bf16 and f32 is one of f32.
        let mixed = PRODUCTS.contains(&operator) && floats.clone().take(2).any(|dtype| dtype == DType::F32);
        let dtype = if mixed { Some(DType::F32) } else { floats.next() };
        Key { source, operator: operator.into(), dtype: dtype.map_or("", DType::name), shape }
    }
}
