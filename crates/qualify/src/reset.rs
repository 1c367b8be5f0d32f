//! The same bits from a fresh device: what was computed before a reset is computed after it.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::cases::QualifyError;
use crate::result::Outcome;
use std::sync::Arc;
use toprope_conformance::generate::cases::Case;
use toprope_conformance::generate::programs;
use toprope_conformance::replay::{Manner, compare_bits, free_run};
use toprope_conformance::session::{Image, Session, all_checks};
use toprope_conformance::values::{Regime, draw};
use toprope_program::{Device, Fault, FaultKind, Validated, Width};

/// Runs random programs before and after a reset and compares their bits; gives the outcome and how many were compared.
pub fn same_after(
    bench: &mut Bench<'_>,
    count: u64,
    deadline: &Deadline<'_>,
) -> Result<(Outcome, u64), QualifyError> {
    if !bench.describe().deterministic {
        return Ok((Outcome::NotRun("the device says that it is not deterministic".into()), 0));
    }
    let mut before: Vec<(Case, Image)> = Vec::new();
    for index in 0..count {
        let seed = bench.seed.wrapping_mul(69_069).wrapping_add(index);
        let generated = programs::program(seed)?;
        let name = format!("random program {seed}");
        let (program, symbols) = (generated.program, generated.symbols);
        let case = Case { name, program, symbols, seed: generated.seed };
        match bits(bench.device.as_mut(), &case) {
            Ok((session, image)) => {
                let closed = session.close(bench.device.as_mut());
                before.push((case, image));
                if let Err(fault) = closed {
                    bench.revive(&fault);
                    return Ok((Outcome::Failed(fault.to_string()), 0));
                }
            }
            Err(Fault { kind: FaultKind::Unsupported { .. }, .. }) => {}
            Err(fault) => {
                bench.revive(&fault);
                return Ok((Outcome::Failed(fault.to_string()), 0));
            }
        }
        if deadline.passed() {
            break;
        }
    }
    if before.is_empty() {
        return Ok((Outcome::NotRun("the device refuses every program".into()), 0));
    }
    match (bench.open)() {
        Ok(device) => bench.device = device,
        Err(reason) => return Ok((Outcome::Failed(format!("it cannot be opened again: {reason}")), 0)),
    }
    let mut compared = 0;
    for (case, image) in before {
        match bits(bench.device.as_mut(), &case) {
            Ok((session, again)) => {
                compared += 1;
                let difference = compare_bits(&session, &case.symbols, &image, &again, false);
                if let Err(fault) = session.close(bench.device.as_mut()) {
                    bench.revive(&fault);
                    return Ok((Outcome::Failed(fault.to_string()), compared));
                }
                if let Some(d) = difference {
                    let finding = format!(
                        "{}: `{}` %{} differs at byte {} after a reset",
                        case.name, d.operator, d.value, d.byte
                    );
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

fn bits(device: &mut dyn Device, case: &Case) -> Result<(Session, Image), Fault> {
    let program: &Arc<Validated> = &case.program;
    let values = draw(program.program(), &case.symbols, case.seed, Regime::Normal);
    let session = Session::open(device, program, Width::Native)?;
    let checks = all_checks(program.program());
    let image = free_run(device, &session, &values, &case.symbols, Manner::Whole, &checks)?;
    Ok((session, image))
}
