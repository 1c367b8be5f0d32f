//! What checking costs when nothing fails: the same step without checks, with `sampled` and with `full`, in turn, in one
//! process.

use crate::CampaignError;
use crate::scene::{checked, device, draw_state, inputs, write_batch};
use crate::statistics::{Median, median};
use serde::Serialize;
use std::time::Duration;
use toprope_program::check::{CheckLevel, CheckSite, judge, mask};
use toprope_program::shape::sizes;
use toprope_program::{CheckMask, Device, Fault, Range, Session, StateLayout, Tensor, Width};
use toprope_train::recipe::Recipe;

/// The cost of a level.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Recipe and dtype.
    pub scene: String,
    /// `sampled` or `full`.
    pub level: &'static str,
    /// Time with the level over time without, pair by pair, minus 1.
    pub overhead: Median,
    /// Seconds of a step without checks.
    pub step_seconds: Median,
    /// Checks in the program.
    pub checks: usize,
}

struct Timed {
    session: Session,
    sites: Vec<CheckSite>,
}

/// Measures a recipe: `pairs` pairs for each level. `clock` is the world's.
///
/// # Errors
/// A recipe that does not build, a device that fails.
pub fn measure(
    recipe: &Recipe,
    threads: usize,
    pairs: usize,
    seed: u64,
    clock: &dyn Fn() -> Duration,
) -> Result<Vec<Cost>, CampaignError> {
    let mut device = device(threads)?;
    let device = &mut *device;
    let batch = inputs(recipe)?.step(0);
    let mut timed = Vec::new();
    for level in [CheckLevel::Off, CheckLevel::Full] {
        let (program, sites) = checked(recipe, level)?;
        let mut session = Session::open(device, program, Width::Native, StateLayout::Double)?;
        draw_state(&session, device, recipe.seed)?;
        write_batch(&mut session, device, &batch, 0)?;
        timed.push(Timed { session, sites });
    }
    let levels = [(0, CheckLevel::Off), (1, CheckLevel::Sampled), (1, CheckLevel::Full)];
    let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
    // The first turn warms caches and threads and is not counted.
    for turn in 0..=pairs {
        for place in 0..levels.len() {
            // Each takes each place in its turn, so that drift hits all alike.
            let which = (place + turn) % levels.len();
            let (session, level) = levels[which];
            let Timed { session, sites } = &mut timed[session];
            let fires = mask(sites, level, turn as u64, seed);
            session.set_checks(fires.clone());
            let started = clock();
            session.run(device, Range::Accumulate)?;
            session.run(device, Range::Update)?;
            let alarms = read(session, device, sites, &fires)?;
            let took = clock().saturating_sub(started).as_secs_f64();
            if alarms > 0 {
                return Err(CampaignError::Recipe {
                    recipe: recipe.name.clone(),
                    reason: format!("{alarms} checks alarmed in a clean step"),
                });
            }
            if turn > 0 {
                seconds[which].push(took);
            }
        }
    }
    let scene = format!("{} {}", recipe.name, recipe.training.dtype);
    let checks = timed[1].sites.len();
    let mut costs = Vec::new();
    for (which, level) in [(1, "sampled"), (2, "full")] {
        let ratios: Vec<f64> =
            seconds[which].iter().zip(&seconds[0]).map(|(on, off)| on / off - 1.0).collect();
        if let (Some(overhead), Some(step_seconds)) = (median(&ratios), median(&seconds[0])) {
            costs.push(Cost { scene: scene.clone(), level, overhead, step_seconds, checks });
        }
    }
    Ok(costs)
}

/// Reads and judges the results of the checks that fired, as the guard does. Checks of bits at rest need the step before
/// and are read only.
fn read(
    session: &Session,
    device: &mut dyn Device,
    sites: &[CheckSite],
    fires: &CheckMask,
) -> Result<usize, Fault> {
    let mut alarms = 0;
    for site in sites.iter().filter(|site| fires.fires(site.bit)) {
        let mut results = Vec::new();
        for id in site.results.iter().chain(&site.against) {
            let value = session.program().program().value(*id);
            let bytes = session.read(device, &value.name)?;
            let shape = sizes(&value.shape, &session.bindings().symbols);
            results.extend(Tensor::from_bytes(value.dtype, &shape, Width::Native, &bytes));
        }
        alarms += usize::from(site.against.is_empty() && judge(site, &results).is_some());
    }
    Ok(alarms)
}
