//! The same bits from a fresh device, and while the chip works for somebody else: what was computed before is computed again.

use crate::bench::{Bench, Opener};
use crate::budget::Deadline;
use crate::cases::QualifyError;
use crate::product::Product;
use crate::result::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use toprope_conformance::generate::cases::Case;
use toprope_conformance::generate::programs;
use toprope_conformance::replay::{Manner, compare_bits, free_run};
use toprope_conformance::session::{Image, Session, all_checks};
use toprope_conformance::values::{Regime, draw};
use toprope_program::{DType, Device, Fault, FaultKind, Validated, Width};

/// Programs whose bits are known.
struct Kept {
    programs: Vec<(Case, Image)>,
}

impl Kept {
    /// Runs random programs, at most `count` of them, and keeps their bits.
    fn of(
        bench: &mut Bench<'_>,
        count: u64,
        deadline: &Deadline<'_>,
    ) -> Result<Result<Kept, Outcome>, QualifyError> {
        if !bench.describe().deterministic {
            let reason = "the device says that it is not deterministic";
            return Ok(Err(Outcome::NotRun(reason.into())));
        }
        let mut kept = Kept { programs: Vec::new() };
        for index in 0..count {
            let seed = bench.seed.wrapping_mul(69_069).wrapping_add(index);
            let generated = programs::program(seed)?;
            let name = format!("random program {seed}");
            let (program, symbols) = (generated.program, generated.symbols);
            let case = Case { name, program, symbols, seed: generated.seed };
            let ran = bits(bench.device.as_mut(), &case).and_then(|(session, image)| {
                session.close(bench.device.as_mut())?;
                Ok(image)
            });
            match ran {
                Ok(image) => kept.programs.push((case, image)),
                Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => {}
                Err(fault) => {
                    bench.revive(&fault);
                    return Ok(Err(Outcome::Failed(fault.to_string())));
                }
            }
            if deadline.passed() {
                break;
            }
        }
        if kept.programs.is_empty() {
            return Ok(Err(Outcome::NotRun("the device refuses every program".into())));
        }
        Ok(Ok(kept))
    }

    /// Runs one again: whether its bits are the same, in words where they are not.
    fn again(&self, device: &mut dyn Device, index: usize, when: &str) -> Result<Option<String>, Fault> {
        let Some((case, image)) = self.programs.get(index) else { return Ok(None) };
        let (session, again) = bits(device, case)?;
        let difference = compare_bits(&session, &case.symbols, image, &again, false);
        session.close(device)?;
        let told = |d: toprope_conformance::replay::BitDifference| {
            format!("{}: `{}` %{} differs at byte {} {when}", case.name, d.operator, d.value, d.byte)
        };
        Ok(difference.map(told))
    }
}

/// Runs random programs before and after a reset and compares their bits; gives the outcome and how many were compared.
pub fn same_after(
    bench: &mut Bench<'_>,
    count: u64,
    deadline: &Deadline<'_>,
) -> Result<(Outcome, u64), QualifyError> {
    let kept = match Kept::of(bench, count, deadline)? {
        Ok(kept) => kept,
        Err(outcome) => return Ok((outcome, 0)),
    };
    match bench.opened(bench.open) {
        Ok(device) => bench.device = device,
        Err(reason) => return Ok((Outcome::Failed(format!("it cannot be opened again: {reason}")), 0)),
    }
    let mut compared = 0;
    for index in 0..kept.programs.len() {
        match kept.again(bench.device.as_mut(), index, "after a reset") {
            Ok(difference) => {
                compared += 1;
                if let Some(finding) = difference {
                    return Ok((Outcome::Failed(finding), compared));
                }
            }
            Err(fault) => {
                bench.revive(&fault);
                return Ok((Outcome::Failed(format!("after a reset: {fault}")), compared));
            }
        }
    }
    Ok((Outcome::Passed, compared))
}

/// Runs random programs on the device and on another opening of it, such as on another stream, and compares their bits.
pub fn same_as(
    bench: &mut Bench<'_>,
    other: Opener<'_>,
    when: &str,
    count: u64,
    deadline: &Deadline<'_>,
) -> Result<(Outcome, u64), QualifyError> {
    let kept = match Kept::of(bench, count, &deadline.part(0.5, std::time::Duration::MAX))? {
        Ok(kept) => kept,
        Err(outcome) => return Ok((outcome, 0)),
    };
    let mut device = match bench.opened(other) {
        Ok(device) => device,
        Err(reason) => return Ok((Outcome::NotRun(reason), 0)),
    };
    let mut compared = 0;
    for turn in 0..ROUNDS * kept.programs.len() {
        if deadline.passed() && compared > 0 {
            break;
        }
        match kept.again(device.as_mut(), turn % kept.programs.len(), when) {
            Ok(None) => compared += 1,
            Ok(Some(finding)) => return Ok((Outcome::Failed(finding), compared)),
            Err(fault) => return Ok((Outcome::Failed(format!("{when}: {fault}")), compared)),
        }
    }
    Ok((Outcome::Passed, compared))
}

/// What ran beside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Programs that were compared.
    pub compared: u64,
    /// Products that the chip computed for somebody else meanwhile.
    pub neighbour: u64,
}

/// Side of the neighbour's products.
const SIDE: usize = 128;

/// Runs random programs alone, and again and again while the same chip, opened a second time, multiplies for somebody else:
/// another stream, context or process of its own. Their bits must be the same, and the neighbour's must repeat.
pub fn same_beside(
    bench: &mut Bench<'_>,
    count: u64,
    deadline: &Deadline<'_>,
) -> Result<(Outcome, Beside), QualifyError> {
    let mut beside = Beside::default();
    let kept = match Kept::of(bench, count, &deadline.part(0.3, std::time::Duration::MAX))? {
        Ok(kept) => kept,
        Err(outcome) => return Ok((outcome, beside)),
    };
    let mut neighbour = match bench.opened(bench.open) {
        Ok(device) => device,
        Err(reason) => {
            let reason = format!("it cannot be opened a second time: {reason}");
            return Ok((Outcome::NotRun(reason), beside));
        }
    };
    let product = Product::new([SIDE, SIDE, SIDE], DType::F32, DType::F32)?;
    let shared = Shared::default();
    let (found, ended) = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let ended = multiplies(neighbour.as_mut(), &product, &shared);
            shared.ended.store(true, Ordering::Relaxed);
            ended
        });
        let found = compares(bench, &kept, deadline, &shared, &mut beside.compared);
        shared.stop.store(true, Ordering::Relaxed);
        (found, busy.join())
    });
    beside.neighbour = shared.runs.load(Ordering::Relaxed);
    let ended = match ended {
        Ok(Ok(finding)) => finding,
        Ok(Err(fault)) => Some(format!("the neighbour: {fault}")),
        Err(_) => Some("the neighbour's thread ended".into()),
    };
    let outcome = match found {
        Err(fault) => {
            bench.revive(&fault);
            Outcome::Failed(format!("while the chip works for somebody else: {fault}"))
        }
        Ok(Some(finding)) => Outcome::Failed(finding),
        Ok(None) => match ended {
            Some(finding) => Outcome::Failed(finding),
            None if beside.neighbour == 0 || beside.compared == 0 => {
                Outcome::NotRun("the two never worked at the same time".into())
            }
            None => Outcome::Passed,
        },
    };
    Ok((outcome, beside))
}

/// What the two sides tell each other.
#[derive(Default)]
struct Shared {
    /// The neighbour may go.
    stop: AtomicBool,
    /// The neighbour's runs.
    runs: AtomicU64,
    /// The neighbour is gone.
    ended: AtomicBool,
}

/// Rounds of the kept programs that are enough.
const ROUNDS: usize = 8;

/// Runs the kept programs in turn, from when the neighbour is at work.
fn compares(
    bench: &mut Bench<'_>,
    kept: &Kept,
    deadline: &Deadline<'_>,
    shared: &Shared,
    compared: &mut u64,
) -> Result<Option<String>, Fault> {
    let ended = || deadline.passed() || shared.ended.load(Ordering::Relaxed);
    while shared.runs.load(Ordering::Relaxed) == 0 && !ended() {
        std::thread::yield_now();
    }
    for turn in 0..ROUNDS * kept.programs.len() {
        if ended() {
            break;
        }
        let index = turn % kept.programs.len();
        let when = "while the chip works for somebody else";
        let difference = kept.again(bench.device.as_mut(), index, when)?;
        *compared += 1;
        if difference.is_some() {
            return Ok(difference);
        }
    }
    Ok(None)
}

/// Multiplies until it is told to stop: what of it does not repeat.
fn multiplies(device: &mut dyn Device, product: &Product, shared: &Shared) -> Result<Option<String>, Fault> {
    let numbers: Vec<f64> = (0..SIDE * SIDE).map(|at| (at % 13) as f64 / 8.0 - 0.75).collect();
    let session = product.open(device, &numbers, &numbers)?;
    let first = product.run(device, &session)?;
    let mut finding = None;
    while !shared.stop.load(Ordering::Relaxed) && finding.is_none() {
        let again = product.run(device, &session)?;
        shared.runs.fetch_add(1, Ordering::Relaxed);
        if again != first {
            finding = Some("a product of the neighbour gives other bits than the first time".to_string());
        }
    }
    session.close(device)?;
    Ok(finding)
}

fn bits(device: &mut dyn Device, case: &Case) -> Result<(Session, Image), Fault> {
    let program: &Arc<Validated> = &case.program;
    let values = draw(program.program(), &case.symbols, case.seed, Regime::Normal);
    let session = Session::open(device, program, Width::Native)?;
    let checks = all_checks(program.program());
    let image = free_run(device, &session, &values, &case.symbols, Manner::Whole, &checks)?;
    Ok((session, image))
}
