//! What a device that fails now and then is worth: training steps that it commits, beside what it would commit if it did not
//! fail. Every fault is followed by what a guard does: the device is opened again, the last committed state is put back, and the
//! step is taken once more.

use crate::bench::{Bench, is_loss};
use crate::budget::Deadline;
use crate::speed::median;
use crate::training::{Trainee, TrainingCase};
use serde::Serialize;
use toprope_program::{Device, Fault};

/// Steps that were taken through faults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Steps that were committed.
    pub steps: u64,
    /// Faults on the way, each with the device opened again.
    pub faults: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// Seconds of so many undisturbed steps over all seconds.
    pub share: f64,
}

/// More steps than these tell no more.
const STEPS_MAX: u64 = 400;

/// Trains through faults until the deadline; none where not one step was committed.
pub fn measure(bench: &mut Bench<'_>, case: &TrainingCase, deadline: &Deadline<'_>) -> Option<Goodput> {
    let began = deadline.now();
    let mut run: Option<Trainee> = None;
    let mut committed: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut times, mut faults) = (Vec::new(), 0);
    while !deadline.passed() && (times.len() as u64) < STEPS_MAX && !bench.is_gone() {
        let started = deadline.now();
        let index = times.len() % case.steps.len().max(1);
        match step(bench.device.as_mut(), case, index, &mut run, &committed) {
            Ok(state) => {
                committed = state;
                // The first step also prepares the program.
                times.push(deadline.now().saturating_sub(started).as_secs_f64());
                bench.held();
            }
            Err(fault) => {
                run = None;
                faults += 1;
                if !is_loss(&fault) || !bench.revive(&fault) {
                    break;
                }
            }
        }
    }
    if let Some(run) = run {
        // Its buffers go with it where they cannot be given back.
        let _ = run.close(bench.device.as_mut());
    }
    let seconds = deadline.now().saturating_sub(began).as_secs_f64();
    let undisturbed = median(times.iter().copied())?;
    let steps = times.len() as u64;
    let share = (undisturbed * steps as f64 / seconds.max(f64::MIN_POSITIVE)).min(1.0);
    Some(Goodput { steps, faults, seconds, share })
}

/// Takes a step from the last committed state, which is put back where the device is a fresh one; gives the state behind it.
fn step(
    device: &mut dyn Device,
    case: &TrainingCase,
    index: usize,
    run: &mut Option<Trainee>,
    committed: &[(String, Vec<u8>)],
) -> Result<Vec<(String, Vec<u8>)>, Fault> {
    let trainee = match run {
        Some(trainee) => trainee,
        None => {
            let trainee = Trainee::open(device, case)?;
            trainee.restore(device, committed)?;
            run.insert(trainee)
        }
    };
    trainee.step(device, &case.steps[index])?;
    trainee.state(device)
}
