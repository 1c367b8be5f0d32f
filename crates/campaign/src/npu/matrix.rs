//! Every code of the runtime × {launch, synchronise} × {passing, sticky}, and a hang at every call of the runtime: each once,
//! in a run of its own.

use super::run::{Disturbance, Outcome, Seen, Switch};
use super::{Bench, STEPS, Trial};
use crate::CampaignError;
use toprope_ascend::code::{RUNTIME, Record, Remedy};
use toprope_guard::decide::FaultKind;

/// One defect of the matrix.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// A code.
    Code {
        /// Which.
        code: &'static Record,
        /// At the launch, or at the next wait.
        at_launch: bool,
        /// Whether every later call fails too.
        sticky: bool,
        /// The operator whose call fails.
        operator: &'static str,
        /// Before which step.
        step: u64,
    },
    /// A call of the runtime that does not come back.
    Hang {
        /// Which.
        function: &'static str,
        /// From the start on, or before a step.
        step: Option<u64>,
    },
    /// An operator that does not end.
    HangIn {
        /// Which.
        operator: &'static str,
        /// Before which step.
        step: u64,
    },
}

/// Runs for which the device waits for each operator, so that an error names the true one: see docs/ascend.md.
const CAREFUL_STEPS: u64 = 4;

/// A step in which it waits, and one in which it does not any more.
const EARLY: u64 = 2;
/// See [`EARLY`].
const LATE: u64 = STEPS - 2;

/// All of it.
pub fn cells(bench: &Bench) -> Vec<Cell> {
    let operators = bench.operators();
    let mut cells = Vec::new();
    for (turn, code) in RUNTIME.iter().enumerate() {
        for (which, (at_launch, sticky)) in
            [(true, false), (true, true), (false, false), (false, true)].into_iter().enumerate()
        {
            let step = if (turn + which).is_multiple_of(2) { EARLY } else { LATE };
            let operator = operators[(turn * 4 + which) % operators.len()];
            cells.push(Cell::Code { code, at_launch, sticky, operator, step });
        }
    }
    for function in toprope_ascend::runtime_functions() {
        cells.push(Cell::Hang { function, step: None });
        cells.push(Cell::Hang { function, step: Some(EARLY) });
    }
    for (turn, operator) in operators.iter().enumerate() {
        let step = if turn.is_multiple_of(2) { EARLY } else { LATE };
        cells.push(Cell::HangIn { operator, step });
    }
    cells
}

impl Cell {
    /// In words.
    pub fn name(&self) -> String {
        match self {
            Cell::Code { code, at_launch, sticky, operator, step } => format!(
                "{} at {} of {operator}, {}, step {step}",
                code.code,
                if *at_launch { "launch" } else { "synchronisation" },
                if *sticky { "sticky" } else { "passing" },
            ),
            Cell::Hang { function, step: None } => format!("hang in the first {function}"),
            Cell::Hang { function, step: Some(step) } => format!("hang in {function}, step {step}"),
            Cell::HangIn { operator, step } => format!("hang in {operator}, step {step}"),
        }
    }

    fn switch(&self) -> Switch {
        let (rule, on) = match self {
            Cell::Code { code, at_launch, sticky, operator, step } => {
                let at = if *at_launch { "launch" } else { "synchronise" };
                let sticky = if *sticky { "yes" } else { "no" };
                (format!("runtime.{}@op={operator},at={at},sticky={sticky}", code.code), Some(*step))
            }
            Cell::Hang { function, step } => (format!("runtime.hang@op={function}"), *step),
            Cell::HangIn { operator, step } => (format!("runtime.hang@op={operator}"), Some(*step)),
        };
        Switch { rule, once: true, on, off: None }
    }
}

/// One run.
///
/// # Errors
/// It could not be made.
pub fn trial(bench: &Bench, cell: &Cell) -> Result<Trial, CampaignError> {
    let outcome = bench.run(&Disturbance::one(cell.switch()))?;
    let met = outcome.met.iter().all(|met| *met);
    let mut wrong = Vec::new();
    if met {
        wrong.extend(named(bench, cell, &outcome));
    } else if !outcome.faults.is_empty() {
        wrong.push(format!("nothing was met, and this was seen: {}", told(&outcome.faults)));
    }
    wrong.extend(bench.whole(&outcome));
    Ok(Trial {
        name: cell.name(),
        met,
        lost: outcome.proof.batches_lost,
        doubled: outcome.proof.batches_doubled,
        wrong,
        seconds: outcome.seconds,
    })
}

pub(super) fn told(faults: &[Seen]) -> String {
    let one = |seen: &Seen| match &seen.place {
        Some(place) => format!("{} at `{}`", seen.kind, place.operator),
        None => seen.kind.to_string(),
    };
    faults.iter().map(one).collect::<Vec<_>>().join(" | ")
}

/// Why the fault was not named as what it was.
fn named(bench: &Bench, cell: &Cell, outcome: &Outcome) -> Option<String> {
    let Some(first) = outcome.faults.first() else { return Some("nothing was seen of it".into()) };
    // The same may be met again by what was queued behind; another one may not.
    if let Some(other) = outcome.faults.iter().find(|seen| !is(cell, &seen.kind)) {
        return Some(format!("also seen: {}", told(std::slice::from_ref(other))));
    }
    let (operator, exact) = match cell {
        Cell::Code { operator, at_launch, step, .. } => (operator, *at_launch || *step < CAREFUL_STEPS),
        Cell::HangIn { operator, step } => (operator, *step < CAREFUL_STEPS),
        Cell::Hang { .. } => return None,
    };
    let Some(place) = &first.place else { return Some(format!("no operator is named: {}", first.kind)) };
    let callers = bench.callers.get(operator);
    let right = callers.is_some_and(|callers| callers.contains(place.operator.as_str()));
    // An error that is met late names the first operator that had not ended, and says so.
    let said =
        matches!(&first.kind, FaultKind::Hang { .. }) || first.kind.to_string().contains("launch=sync");
    (!right && (exact || !said)).then(|| {
        format!("`{}` is named, which does not call aclnn{operator}: {}", place.operator, first.kind)
    })
}

/// Whether a fault is the cell's.
fn is(cell: &Cell, kind: &FaultKind) -> bool {
    match cell {
        Cell::Code { code, .. } => {
            let told = kind.to_string();
            let numbered = told.contains(&format!("{} {}", code.code, code.name));
            match kind {
                FaultKind::Driver { code: number, .. } => {
                    code.remedy != Remedy::Replace && *number == i64::from(code.code)
                }
                FaultKind::Lost { for_good, .. } => code.remedy == Remedy::Replace && *for_good && numbered,
                _ => false,
            }
        }
        Cell::Hang { .. } | Cell::HangIn { .. } => matches!(kind, FaultKind::Hang { .. }),
    }
}

/// Losses of steps on another device lie this close, relatively: the curve tolerance of bf16.
const CURVE_TOLERANCE: f64 = 2e-3;

impl Bench {
    /// What was lost by a run beside the undisturbed one.
    pub(super) fn whole(&self, outcome: &Outcome) -> Vec<String> {
        let mut wrong = Vec::new();
        wrong.extend(outcome.proof.violation.as_ref().map(ToString::to_string));
        if outcome.proof.committed != STEPS {
            wrong.push(format!("{} of {STEPS} steps are in the ledger", outcome.proof.committed));
        }
        match &outcome.state {
            Err(reason) => wrong.push(reason.clone()),
            Ok(state) if !outcome.left && outcome.moved.is_empty() && *state != self.calm.state => {
                wrong.push("the state is not the undisturbed run's".into());
            }
            Ok(_) => {}
        }
        let apart = |(got, want): &(&f64, &f64)| {
            let distance = (*got - *want).abs() / want.abs();
            distance.is_nan() || distance > CURVE_TOLERANCE
        };
        if let Some((got, want)) = outcome.losses.iter().zip(&self.calm.losses).find(apart) {
            wrong.push(format!("a loss is {got:.5}, undisturbed {want:.5}"));
        }
        wrong
    }
}
