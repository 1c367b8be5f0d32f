//! Random schedules: several defects of several kinds in one run, drawn from a seed.

use super::matrix::told;
use super::run::{Disturbance, Switch};
use super::{Bench, STEPS, Trial};
use crate::CampaignError;
use toprope_ascend::code::RUNTIME;
use toprope_program::check::CheckLevel;
use toprope_program::philox;

/// Arithmetic defects whose operators the checks watch: `full` finds them before the commit.
const WRONG: &[&str] = &[
    "norm.gradient_mean",
    "norm.no_epsilon",
    "any.bit_flip@op=Matmul,bit=30",
    "any.stale_tile@op=RmsNormGrad",
];

/// The defects of one schedule.
pub fn draw(bench: &Bench, seed: u64) -> Disturbance {
    let mut turn = 0;
    let mut random = |below: usize| {
        turn += 1;
        let word = philox::block([turn, 0, 0, 0], [seed as u32, (seed >> 32) as u32])[0];
        word as usize % below.max(1)
    };
    let operators = bench.operators();
    let functions = toprope_ascend::runtime_functions();
    let mut switches = Vec::new();
    let mut lasting = false;
    for _ in 0..1 + random(3) {
        let on = Some(1 + random(STEPS as usize - 2) as u64);
        let operator = operators[random(operators.len())];
        let switch = match random(6) {
            0 | 1 => {
                let code = RUNTIME[random(RUNTIME.len())].code;
                let at = ["launch", "synchronise"][random(2)];
                let sticky = ["yes", "no"][random(2)];
                let delay = random(3);
                let rule = format!("runtime.{code}@op={operator},at={at},sticky={sticky},delay={delay}");
                Switch { rule, once: true, on, off: None }
            }
            2 => Switch { rule: format!("runtime.hang@op={operator}"), once: true, on, off: None },
            3 => {
                let function = functions[random(functions.len())];
                Switch { rule: format!("runtime.hang@op={function}"), once: true, on, off: None }
            }
            4 if !lasting => {
                lasting = true;
                let off = on.map(|on| on + 1 + random(2) as u64).filter(|off| *off < STEPS);
                Switch { rule: "runtime.device_lost@op=*".into(), once: false, on, off }
            }
            _ => {
                let wrong = WRONG[random(WRONG.len())];
                Switch { rule: wrong.into(), once: random(2) == 0, on, off: None }
            }
        };
        switches.push(switch);
    }
    Disturbance { switches, standby: random(2) == 0, checks: CheckLevel::Full }
}

/// One schedule's run.
///
/// # Errors
/// It could not be made.
pub fn trial(bench: &Bench, seed: &u64) -> Result<Trial, CampaignError> {
    let disturbance = draw(bench, *seed);
    let outcome = bench.run(&disturbance)?;
    let mut wrong = bench.whole(&outcome);
    let met = outcome.met.iter().any(|met| *met);
    if !wrong.is_empty() {
        wrong.push(format!("seen: {}", told(&outcome.faults)));
    }
    let rules = disturbance.switches.iter().map(|switch| {
        let until = switch.off.map(|off| format!(" to {off}")).unwrap_or_default();
        format!("{} from step {}{until}", switch.rule, switch.on.unwrap_or_default())
    });
    Ok(Trial {
        name: format!("seed {seed}: {}", rules.collect::<Vec<_>>().join("; ")),
        met,
        lost: outcome.proof.batches_lost,
        doubled: outcome.proof.batches_doubled,
        wrong,
        seconds: outcome.seconds,
    })
}
