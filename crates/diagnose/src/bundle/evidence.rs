//! What is run for a report: the smallest case that fails, on every device, before and after a reset, over shapes and dtypes.

use super::case::can_be_drawn;
use super::draw::draw;
use super::matrix::{Cell, matrix};
use crate::guess::{Effort, Guess, guess};
use crate::lockstep::Named;
use crate::probe::{Exact, Outcome, Probe, ProbeError};
use crate::row::Standing;
use toprope_conformance::Oracle;
use toprope_conformance::judge::Judgement;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::shrink::shrink;
use toprope_conformance::verdict::Verdict;
use toprope_program::{Description, Device, Tensor};

/// How one device did on the case.
#[derive(Clone, Debug)]
pub struct Juror {
    /// What it says of itself.
    pub description: Description,
    /// How it did.
    pub standing: Standing,
    /// What it gave; none where it failed.
    pub outcome: Option<Outcome>,
    /// Its figures as msprobe defines them, of the first output of numbers.
    pub ratios: Option<super::Ratios>,
}

/// Who looks at the case: the subject first, the trusted device last.
pub struct Jury<'a> {
    /// The devices.
    pub devices: Vec<Named<'a>>,
    /// Opens the subject anew, in a process of its own where it has one: a reset.
    pub reopen: &'a mut dyn FnMut() -> Option<Box<dyn Device>>,
}

/// What a report is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whether the run's own numbers may go into it, where drawn ones do not show the fault.
    pub include_data: bool,
    /// Runs before and after the reset.
    pub runs: u64,
    /// Where drawn operands come from.
    pub seed: u64,
}

/// All that a report says.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The smallest case that fails.
    pub probe: Probe,
    /// For each operand: drawn from the seed (and whether positive), or held.
    pub drawn: Vec<Option<bool>>,
    /// The seed.
    pub seed: u64,
    /// Whether held operands are the run's own numbers.
    pub own_data: bool,
    /// The exact result.
    pub exact: Exact,
    /// Every device; the subject first, the trusted device last.
    pub jury: Vec<Juror>,
    /// Wrong runs and runs, before a reset.
    pub before: (u64, u64),
    /// The same after it; none where the device could not be opened anew.
    pub after: Option<(u64, u64)>,
    /// The kind of defect.
    pub guess: Guess,
    /// Shape by dtype by device.
    pub matrix: Vec<Cell>,
    /// The case as a Toprope program.
    pub reproducer: String,
    /// The layer and shape that it was found at.
    pub found: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The case passes.
    #[error("`{operator}` is right on {device}, as often as it was run: there is nothing to report")]
    Passed {
        /// The operator.
        operator: &'static str,
        /// The device.
        device: String,
    },
    /// Only the run's numbers show it.
    #[error(
        "`{0}` goes wrong only on the run's own numbers\nhint: --include-data puts those of the smallest failing case into the report"
    )]
    OwnData(&'static str),
    /// A device or the oracle failed.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// The case is no program.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Runs all that a report says of a failing probe.
///
/// # Errors
/// The probe passes, or shows its fault only on numbers that must not be sent; a device or the oracle fails.
pub fn gather(
    jury: &mut Jury<'_>,
    oracle: &mut Oracle,
    probe: &Probe,
    observed: Option<&Outcome>,
    found: &str,
    request: Request,
) -> Result<Evidence, BundleError> {
    let operator = probe.operator().name();
    let subject_name = jury.devices[0].name.clone();
    let subject = &mut *jury.devices[0].device;
    let guess = guess(subject, oracle, probe, observed, Effort::default())?;
    let Some(chosen) = choose(subject, oracle, probe, request)? else {
        return Err(if fails(subject, oracle, probe)? {
            BundleError::OwnData(operator)
        } else {
            BundleError::Passed { operator, device: subject_name }
        });
    };
    let Chosen { probe, drawn, own_data } = chosen;
    let exact = probe.exact(oracle)?;
    let mut jurors = Vec::new();
    for (at, named) in jury.devices.iter_mut().enumerate() {
        let runs = if at == 0 { request.runs } else { 1 };
        jurors.push(juror(named, &probe, &exact, runs));
    }
    let before = (jurors[0].standing.wrong_runs, jurors[0].standing.runs);
    let after = (jury.reopen)().map(|mut device| {
        let mut named = Named { name: subject_name.clone(), device: device.as_mut() };
        let standing = juror(&mut named, &probe, &exact, request.runs).standing;
        (standing.wrong_runs, standing.runs)
    });
    let matrix = matrix(&mut jury.devices, oracle, &probe, request.seed)?;
    let finding = jurors[0].standing.finding.clone();
    let reproducer = probe.reproducer(&subject_name, &finding).to_string();
    Ok(Evidence {
        probe,
        drawn,
        seed: request.seed,
        own_data,
        exact,
        jury: jurors,
        before,
        after,
        guess,
        matrix,
        reproducer,
        found: found.to_string(),
    })
}

struct Chosen {
    probe: Probe,
    drawn: Vec<Option<bool>>,
    own_data: bool,
}

/// Above this a case is not made smaller by trying: each try runs on both devices.
const SHRUNK_ELEMENTS_MAX: usize = 20_000;

/// Above this a case is too large to send.
const SENT_ELEMENTS_MAX: usize = 200_000;

/// The smallest case that can be sent: drawn numbers at the shrunk sizes, at the sizes of the run, then the run's own.
fn choose(
    subject: &mut dyn Device,
    oracle: &mut Oracle,
    probe: &Probe,
    request: Request,
) -> Result<Option<Chosen>, BundleError> {
    let dense = probe.dense()?;
    let mut candidates = Vec::new();
    if dense.elements() <= SHRUNK_ELEMENTS_MAX && fails(subject, oracle, &dense)? {
        let shrunk = shrink(subject, oracle, dense.reproducer("any", ""));
        if let Ok(values) = shrunk.values(shrunk.seeds.first().copied().unwrap_or(0)) {
            let symbols = shrunk.binding();
            candidates.extend(Probe::new(shrunk.program, symbols, values, shrunk.first));
        }
    }
    // Sizes that keep what they leave when divided by 32, from small to large.
    for cap in [32usize, 64, 128] {
        let map = move |_: usize, _: usize, n: usize| if n > cap + 31 { cap + n % 32 } else { n };
        candidates.extend(dense.resized(&map, request.seed, toprope_conformance::values::Regime::Normal));
    }
    candidates.push(dense.clone());
    candidates.retain(|candidate| candidate.elements() <= SENT_ELEMENTS_MAX);
    // What shrinking left of the numbers may be nobody's data by itself: zeros and ones.
    let plain =
        |tensor: &Tensor| !tensor.dtype.is_float() || tensor.data.iter().all(|x| *x == 0.0 || x.abs() == 1.0);
    if let Some(shrunk) = candidates.first().filter(|probe| probe.operands().iter().all(plain))
        && fails(subject, oracle, shrunk)?
    {
        let drawn = vec![None; shrunk.operands().len()];
        return Ok(Some(Chosen { probe: shrunk.clone(), drawn, own_data: false }));
    }
    for candidate in &candidates {
        let (drawn, probe) = drawn(candidate, request.seed);
        if drawn.iter().any(Option::is_some) && fails(subject, oracle, &probe)? {
            return Ok(Some(Chosen { probe, drawn, own_data: false }));
        }
    }
    // What is computed from drawn numbers, as gradients read of their forward pass, is nobody's data either.
    for candidate in &candidates {
        let (_, probe) = drawn(candidate, request.seed);
        let Ok(probe) = probe.made_consistent(oracle) else { continue };
        if fails(subject, oracle, &probe)? {
            let drawn = vec![None; probe.operands().len()];
            return Ok(Some(Chosen { probe, drawn, own_data: false }));
        }
    }
    if request.include_data {
        for candidate in candidates {
            if fails(subject, oracle, &candidate)? {
                let drawn = vec![None; candidate.operands().len()];
                return Ok(Some(Chosen { probe: candidate, drawn, own_data: true }));
            }
        }
    }
    Ok(None)
}

/// The same with drawn floats; what is drawn, and whether as positive numbers.
fn drawn(probe: &Probe, seed: u64) -> (Vec<Option<bool>>, Probe) {
    let mut changed = probe.clone();
    let mut drawn = Vec::new();
    for (at, tensor) in probe.operands().iter().enumerate() {
        if !can_be_drawn(tensor) {
            drawn.push(None);
            continue;
        }
        let positive = tensor.data.iter().all(|x| *x >= 0.0) && tensor.data.iter().any(|x| *x > 0.0);
        let data = (0..tensor.data.len() as u64).map(|i| draw(seed, at as u64, i, positive));
        changed.set_operand(at, Tensor::rounded(tensor.dtype, &tensor.sizes, data));
        drawn.push(Some(positive));
    }
    (drawn, changed)
}

/// Whether a probe fails in one of a few runs, behind one on other numbers.
fn fails(subject: &mut dyn Device, oracle: &mut Oracle, probe: &Probe) -> Result<bool, BundleError> {
    let exact = probe.exact(oracle)?;
    let opened = match probe.open(subject) {
        Ok(opened) => opened,
        Err(fault) => return Err(Obstacle::Subject(fault).into()),
    };
    let mut other = probe.clone();
    other.rotate_floats();
    let mut wrong = false;
    for turn in 0..4 {
        let fed = if turn == 0 { &other } else { probe };
        let outcome = opened.run(subject, fed)?;
        wrong |= turn > 0 && is_wrong(&probe.judge(&exact, &outcome));
    }
    opened.close(subject).map_err(Obstacle::Subject)?;
    Ok(wrong)
}

fn is_wrong(judgement: &Judgement) -> bool {
    matches!(judgement.verdict, Verdict::Differ(_))
}

/// Runs the case on a device.
fn juror(named: &mut Named<'_>, probe: &Probe, exact: &Exact, runs: u64) -> Juror {
    let description = named.device.describe();
    let mut other = probe.clone();
    other.rotate_floats();
    let mut run = || -> Result<(Standing, Outcome), Obstacle> {
        let opened = probe.open(named.device).map_err(Obstacle::Subject)?;
        opened.run(named.device, &other)?;
        let mut kept: Option<(Standing, Outcome)> = None;
        let (mut wrong, mut others) = (0, 0);
        for _ in 0..runs.max(1) {
            let outcome = opened.run(named.device, probe)?;
            let judgement = probe.judge(exact, &outcome);
            wrong += u64::from(is_wrong(&judgement));
            let standing = Standing::judged(&named.name, &judgement);
            match &kept {
                Some((held, first)) => {
                    others += u64::from(!first.same_bits(&outcome));
                    if standing.is_wrong() && !held.is_wrong() {
                        kept = Some((standing, outcome));
                    }
                }
                None => kept = Some((standing, outcome)),
            }
        }
        opened.close(named.device).map_err(Obstacle::Subject)?;
        let (standing, outcome) = kept.ok_or_else(|| Obstacle::Place("output".into()))?;
        Ok((Standing { runs: runs.max(1), wrong_runs: wrong, other_bits: others, ..standing }, outcome))
    };
    match run() {
        Ok((standing, outcome)) => {
            let ratios = super::ratios(&exact.want, &outcome.outputs);
            Juror { description, standing, outcome: Some(outcome), ratios }
        }
        Err(obstacle) => {
            let verdict = match obstacle.refused() {
                Some(_) => crate::row::Outcome::Refused,
                None => crate::row::Outcome::Failed,
            };
            let standing = Standing::fault(&named.name, verdict, obstacle.to_string());
            Juror { description, standing, outcome: None, ratios: None }
        }
    }
}
