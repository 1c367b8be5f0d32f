//! The speed of dies side by side: a die that is slower than its sisters is told, for a chip that is right and slow loses as
//! many hours as one that is wrong.

use crate::budget::{Clock, Deadline};
use crate::cases::QualifyError;
use crate::dies::Die;
use crate::shapes::{Shape, probe_of};
use crate::speed::{self, Speed};
use serde::Serialize;
use std::time::Duration;

/// How fast a die is among its sisters.
#[derive(Clone, Debug, Serialize)]
pub struct Pace {
    /// The name that opens it.
    pub name: String,
    /// The median, over everything that was timed, of its time over the median of its sisters' times.
    pub times_sisters: Option<f64>,
    /// Where it is slower than they are: the worst first.
    pub slow: Option<String>,
    /// What was timed.
    pub speed: Speed,
}

/// Times everything this often on each die in turn, and takes the fastest: what else the machine does comes and goes.
const ROUNDS: usize = 3;

/// Slower than its sisters by this, over all that was timed, is told.
const TIMES: f64 = 1.25;

/// Time for one shape on one die in one round, at most.
const BUDGET: Duration = Duration::from_millis(40);

/// Times shapes on all dies in turn until the deadline. A die that fails is left out; the vote tells of it.
pub fn measure(
    dies: &mut [Die],
    shapes: &[&Shape],
    seed: u64,
    clock: Clock<'_>,
    deadline: &Deadline<'_>,
) -> Result<Vec<Pace>, QualifyError> {
    let mut paces: Vec<Pace> = dies
        .iter()
        .map(|die| Pace { name: die.name.clone(), times_sisters: None, slow: None, speed: Speed::default() })
        .collect();
    let peaks = deadline.part(0.4, Duration::MAX);
    let share = 1.0 / dies.len().max(1) as f64;
    for (die, pace) in dies.iter_mut().zip(&mut paces) {
        let part = Deadline::within(clock, peaks.left().mul_f64(share.max(0.02)).min(Duration::from_secs(4)));
        if let Err(fault) = speed::roofline(die.device.as_mut(), clock, &part, &mut pace.speed)? {
            pace.speed.not_run = Some(fault.to_string());
        }
    }
    for shape in shapes {
        if deadline.passed() {
            break;
        }
        let Some(probe) = probe_of(shape, seed) else { continue };
        let mut best = vec![f64::INFINITY; dies.len()];
        for _ in 0..ROUNDS {
            for (die, best) in dies.iter_mut().zip(&mut best) {
                if let Ok(seconds) = speed::time(die.device.as_mut(), &probe, clock, BUDGET) {
                    *best = best.min(seconds);
                }
            }
        }
        for (pace, seconds) in paces.iter_mut().zip(best).filter(|(_, seconds)| seconds.is_finite()) {
            let told = speed::told(&pace.speed, &shape.told, &probe, seconds, None);
            pace.speed.operators.push(told);
        }
    }
    compare(&mut paces);
    Ok(paces)
}

/// Puts each die beside the median of the others.
fn compare(paces: &mut [Pace]) {
    let mut speeds: Vec<Speed> = paces.iter().map(|pace| pace.speed.clone()).collect();
    speed::beside_sisters(&mut speeds);
    let peaks = |speed: &Speed| {
        [
            ("products in f32", speed.f32_flops_per_second),
            ("products in bf16", speed.bf16_flops_per_second),
            ("copies", speed.bytes_per_second),
        ]
    };
    let all: Vec<[(&str, f64); 3]> = speeds.iter().map(peaks).collect();
    for (own, (pace, speed)) in paces.iter_mut().zip(speeds).enumerate() {
        let mut ratios: Vec<(String, f64)> = speed
            .operators
            .iter()
            .filter_map(|operator| {
                Some((format!("`{}` {}", operator.name, operator.shape), operator.beside_sisters?))
            })
            .collect();
        for (at, (name, rate)) in all[own].iter().enumerate() {
            let others =
                all.iter().enumerate().filter(|(index, _)| *index != own).map(|(_, list)| list[at].1);
            if let Some(median) = speed::median(others.filter(|rate| *rate > 0.0))
                && *rate > 0.0
            {
                ratios.push(((*name).to_string(), median / rate));
            }
        }
        pace.speed = speed;
        pace.times_sisters = speed::median(ratios.iter().map(|(_, ratio)| *ratio));
        let worst = ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some(times), Some((what, most))) = (pace.times_sisters, worst) {
            let single = pace.speed.operators.iter().any(|operator| operator.slow.is_some());
            if times > TIMES || single {
                pace.slow = Some(format!(
                    "{times:.2} times its sisters' time over {} things timed; the worst is {what}, {most:.1} times",
                    ratios.len()
                ));
            }
        }
    }
}
