//! Everything that a device must satisfy, in one call.

use crate::generate::cases::{Case, case};
use crate::generate::exemplars::exemplars;
use crate::generate::special::{Special, special};
use crate::generate::{GenerateError, programs};
use crate::lockstep::{Lockstep, Obstacle, Step};
use crate::memory::{self, Trial};
use crate::oracle::Oracle;
use crate::replay::{self, PROPERTIES};
use crate::reproducer::Reproducer;
use crate::shrink::shrink;
use crate::values::{Regime, draw};
use crate::verdict::{Difference, Floor, Report, Verdict};
use toprope_program::shape::sizes;
use toprope_program::{Device, Fault, FaultKind, Range, Tensor, validate};

/// How much is tried.
#[derive(Clone, Debug)]
pub struct Options {
    /// Repeats everything.
    pub seed: u64,
    /// One-operator cases of each operator; each runs with two kinds of values.
    pub cases_per_operator: u64,
    /// The operators whose cases run; all where not given.
    pub operators: Option<Vec<&'static str>>,
    /// Whether operators are given what is no ordinary number, where their formulas say what comes of it. Not by default: a
    /// device that multiplies masked pairs by 0 differs, and whoever tests it says where.
    pub special: bool,
    /// Random programs.
    pub programs: u64,
    /// Whether to leave off at the first difference.
    pub stop_at_first: bool,
    /// Whether the first difference of each operator is shrunk.
    pub shrink: bool,
    /// What must hold besides no difference.
    pub floor: Floor,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 1,
            cases_per_operator: 24,
            operators: None,
            special: false,
            programs: 200,
            stop_at_first: false,
            shrink: true,
            floor: Floor::default(),
        }
    }
}

/// Why a suite could not be run: never the subject's fault.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// A generator made something invalid.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The oracle failed.
    #[error("the oracle failed: {0}")]
    Oracle(Fault),
}

/// Runs the whole suite. An `Err` says that the suite is broken; what is wrong with the subject stands in the report.
pub fn run_suite(
    subject: &mut dyn Device,
    oracle: &mut Oracle,
    options: &Options,
) -> Result<Report, SuiteError> {
    let report = Report::new(subject.describe(), oracle.device.describe(), options.seed, options.floor);
    let mut suite = Suite { subject, oracle, options, report };
    for operator in exemplars() {
        let wanted = |names: &Vec<&str>| names.contains(&operator.name());
        if !options.operators.as_ref().is_none_or(wanted) {
            continue;
        }
        for index in 0..options.cases_per_operator {
            let case = case(&operator, options.seed, index)?;
            // Ordinary values, and in turn each of the other kinds.
            let other = Regime::ALL[1 + (index as usize) % (Regime::ALL.len() - 1)];
            suite.case(&case, &[Regime::Normal, other])?;
            suite.report.cases += 1;
            if index % 4 == 0 {
                suite.properties(&case)?;
            }
            if suite.is_over() {
                return Ok(suite.report);
            }
        }
        for case in if options.special { special(&operator)? } else { Vec::new() } {
            suite.special(&case)?;
            suite.report.special += 1;
            if suite.is_over() {
                return Ok(suite.report);
            }
        }
    }
    for index in 0..options.programs {
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(index);
        let generated = programs::program(seed)?;
        let case = Case {
            name: format!("random program {seed}"),
            program: generated.program,
            symbols: generated.symbols,
            seed: generated.seed,
        };
        suite.program(&case)?;
        suite.report.programs += 1;
        if index % 2 == 0 {
            suite.properties(&case)?;
        }
        if index % 16 == 0 {
            suite.memory(&case)?;
        }
        if suite.is_over() {
            return Ok(suite.report);
        }
    }
    Ok(suite.report)
}

struct Suite<'a> {
    subject: &'a mut dyn Device,
    oracle: &'a mut Oracle,
    options: &'a Options,
    report: Report,
}

impl Suite<'_> {
    fn is_over(&self) -> bool {
        self.options.stop_at_first && !self.report.differences.is_empty()
    }

    /// One operator with several kinds of values, first and later micro-batches in turn.
    fn case(&mut self, case: &Case, regimes: &[Regime]) -> Result<(), SuiteError> {
        let program = case.program.program();
        let values = draw(program, &case.symbols, case.seed, regimes[0]);
        let Some(mut lockstep) = self.open(case, values)? else { return Ok(()) };
        for (turn, regime) in regimes.iter().enumerate() {
            let seed = case.seed.wrapping_add(turn as u64);
            lockstep.feed(draw(program, &case.symbols, seed, *regime));
            let first = turn % 2 == 0;
            let mut whole = Reproducer::new(program.clone(), case.symbols.clone(), seed, *regime);
            whole.first = first;
            for index in 0..program.accumulate.len() {
                let name = format!("{} ({})", case.name, regime.name());
                let place = (Range::Accumulate, index);
                if !self.step(&mut lockstep, place, first, &name, &whole)? {
                    return Ok(());
                }
            }
        }
        self.close(lockstep)
    }

    /// An operator with values that are no ordinary numbers, judged by what they are.
    fn special(&mut self, special: &Special) -> Result<(), SuiteError> {
        let whole = &special.whole;
        let invalid = |defects| GenerateError::Invalid { seed: 0, defects };
        let program = std::sync::Arc::new(validate(whole.program.clone()).map_err(invalid)?);
        let case = Case { name: whole.program.name.clone(), program, symbols: Vec::new(), seed: 0 };
        let mut values = draw(&whole.program, &[], 0, Regime::Normal);
        for (name, data) in &whole.values {
            if let Some(id) = whole.program.find(name) {
                let value = whole.program.value(id);
                let tensor = Tensor::rounded(value.dtype, &sizes(&value.shape, &[]), data.iter().copied());
                values[id.0 as usize] = Some(tensor);
            }
        }
        let Some(mut lockstep) = self.open(&case, values)? else { return Ok(()) };
        lockstep.judge_by_class(special.open);
        for (index, instruction) in whole.program.accumulate.iter().enumerate() {
            let operator = instruction.operator.name();
            let step = match lockstep.step(self.subject, self.oracle, Range::Accumulate, index, true) {
                Ok(step) => step,
                Err(obstacle) => return self.obstacle(obstacle, operator, &case.name),
            };
            let tally = self.report.tally(operator);
            let Verdict::Differ(finding) = step.judgement.verdict else {
                tally.agree += 1;
                continue;
            };
            tally.differ += 1;
            let mut text = whole.clone();
            text.devices = vec![self.report.device.name.clone()];
            text.level.clone_from(&self.report.device.level);
            // A replay judges by size, where nearly everything is incomparable beside such operands.
            text.found = format!("{operator}, judged by what kind of number comes: {finding}");
            self.report.differences.push(Difference {
                operator: operator.into(),
                case: case.name.clone(),
                finding,
                text: text.to_string(),
            });
        }
        self.close(lockstep)
    }

    /// Two micro-batches and the update.
    fn program(&mut self, case: &Case) -> Result<(), SuiteError> {
        let program = case.program.program();
        let regime = if case.seed.is_multiple_of(8) { Regime::Wide } else { Regime::Normal };
        let values = draw(program, &case.symbols, case.seed, regime);
        let Some(mut lockstep) = self.open(case, values)? else { return Ok(()) };
        let mut whole = Reproducer::new(program.clone(), case.symbols.clone(), case.seed, regime);
        for (range, first) in [(Range::Accumulate, true), (Range::Accumulate, false), (Range::Update, false)]
        {
            if range == Range::Accumulate && !first {
                let seed = case.seed.wrapping_add(1);
                lockstep.feed_inputs(&draw(program, &case.symbols, seed, regime));
                whole.seeds = vec![seed];
            }
            whole.first = first;
            for index in 0..program.range(range).len() {
                if !self.step(&mut lockstep, (range, index), first, &case.name, &whole)? {
                    return Ok(());
                }
            }
        }
        self.close(lockstep)
    }

    /// Prepares on both; a refusal is counted and gives none.
    fn open(&mut self, case: &Case, values: crate::values::Values) -> Result<Option<Lockstep>, SuiteError> {
        match Lockstep::open(self.subject, self.oracle, &case.program, &case.symbols, values) {
            Ok(lockstep) => Ok(Some(lockstep)),
            Err(obstacle) => {
                if let Some(operator) = obstacle.refused() {
                    let operator = operator.to_string();
                    self.report.tally(&operator).refused += 1;
                    return Ok(None);
                }
                self.obstacle(obstacle, "prepare", &case.name)?;
                Ok(None)
            }
        }
    }

    fn close(&mut self, lockstep: Lockstep) -> Result<(), SuiteError> {
        match lockstep.close(self.subject, self.oracle) {
            Ok(()) => Ok(()),
            Err(obstacle) => self.obstacle(obstacle, "release", "any"),
        }
    }

    /// Runs and counts one instruction; false where the subject failed and the program cannot go on.
    fn step(
        &mut self,
        lockstep: &mut Lockstep,
        place: (Range, usize),
        first: bool,
        case: &str,
        whole: &Reproducer,
    ) -> Result<bool, SuiteError> {
        let operator = whole.program.range(place.0)[place.1].operator.name();
        match lockstep.step(self.subject, self.oracle, place.0, place.1, first) {
            Ok(step) => {
                self.record(&step, case, whole);
                Ok(true)
            }
            Err(obstacle) => {
                if obstacle.refused().is_some() {
                    // Refusals belong to `prepare`.
                    self.property("refuses before a run, never in it", false);
                }
                self.obstacle(obstacle, operator, case)?;
                Ok(false)
            }
        }
    }

    fn record(&mut self, step: &Step, case: &str, whole: &Reproducer) {
        let judgement = &step.judgement;
        let tally = self.report.tally(step.operator);
        tally.elements += judgement.elements;
        tally.routed_rows += judgement.routed_rows;
        tally.tied_rows += judgement.tied_rows;
        for (reason, count) in &judgement.incomparable {
            *tally.incomparable_elements.entry(reason.clone()).or_default() += count;
        }
        if let Some(worst) = &judgement.worst {
            // JSON has no infinity.
            tally.worst = tally.worst.max(worst.units.min(f64::MAX));
        }
        match &judgement.verdict {
            Verdict::Agree => tally.agree += 1,
            Verdict::Incomparable(_) => tally.incomparable += 1,
            Verdict::Differ(finding) => {
                tally.differ += 1;
                if tally.differ > 3 {
                    return;
                }
                let fresh = tally.differ == 1;
                let mut text = String::new();
                if self.options.shrink && fresh {
                    let mut failing = whole.clone();
                    failing.devices = vec![self.report.device.name.clone()];
                    failing.level.clone_from(&self.report.device.level);
                    text = shrink(self.subject, self.oracle, failing).to_string();
                }
                self.report.differences.push(Difference {
                    operator: step.operator.into(),
                    case: case.into(),
                    finding: finding.clone(),
                    text,
                });
            }
        }
    }

    /// A failure of the subject is a difference; one of the oracle ends the suite.
    fn obstacle(&mut self, obstacle: Obstacle, operator: &str, case: &str) -> Result<(), SuiteError> {
        if let Obstacle::Oracle(fault) = obstacle {
            return Err(SuiteError::Oracle(fault));
        }
        self.report.tally(operator).differ += 1;
        self.report.differences.push(Difference {
            operator: operator.into(),
            case: case.into(),
            finding: obstacle.to_string(),
            text: String::new(),
        });
        Ok(())
    }

    fn property(&mut self, name: &str, held: bool) {
        let property = self.report.property(name);
        property.tried += 1;
        property.failed += u64::from(!held);
    }

    /// Bits that must repeat.
    fn properties(&mut self, case: &Case) -> Result<(), SuiteError> {
        let values = draw(case.program.program(), &case.symbols, case.seed, Regime::Normal);
        match replay::repeats(self.subject, &case.program, &values, &case.symbols) {
            Ok(found) => {
                let deterministic = self.report.device.deterministic;
                for (name, difference) in PROPERTIES.iter().zip(found) {
                    if !deterministic {
                        let reason = "the device says that it is not deterministic".to_string();
                        self.report.property(name).absent = Some(reason);
                        continue;
                    }
                    self.property(name, difference.is_none());
                    if let Some(d) = difference {
                        let finding = format!("{name}: %{} differs at byte {}", d.value, d.byte);
                        self.differs(d.operator, &case.name, finding, case);
                    }
                }
            }
            Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => {}
            Err(fault) => self.obstacle(Obstacle::Subject(fault), "run", &case.name)?,
        }
        Ok(())
    }

    /// What the device promises of memory.
    fn memory(&mut self, case: &Case) -> Result<(), SuiteError> {
        let values = draw(case.program.program(), &case.symbols, case.seed, Regime::Normal);
        type Try = fn(
            &mut dyn Device,
            &std::sync::Arc<toprope_program::Validated>,
            &crate::values::Values,
            &[usize],
        ) -> Result<Trial, Fault>;
        let tries: [(&str, Try); 3] = [
            ("computes in adopted memory", memory::adopted),
            ("copies out what a read gives", memory::copied_out),
            ("same state in place", memory::in_place),
        ];
        for (name, attempt) in tries {
            match attempt(self.subject, &case.program, &values, &case.symbols) {
                Ok(Trial::Held) => self.property(name, true),
                Ok(Trial::Failed(finding)) => {
                    self.property(name, false);
                    self.differs("memory", &case.name, format!("{name}: {finding}"), case);
                }
                Ok(Trial::Absent(reason)) => self.report.property(name).absent = Some(reason),
                Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => {}
                Err(fault) => self.obstacle(Obstacle::Subject(fault), "memory", &case.name)?,
            }
        }
        Ok(())
    }

    fn differs(&mut self, operator: &str, name: &str, finding: String, case: &Case) {
        if self.report.differences.len() > 100 {
            return;
        }
        let whole =
            Reproducer::new(case.program.program().clone(), case.symbols.clone(), case.seed, Regime::Normal);
        self.report.differences.push(Difference {
            operator: operator.into(),
            case: name.into(),
            finding,
            text: whole.to_string(),
        });
    }
}
