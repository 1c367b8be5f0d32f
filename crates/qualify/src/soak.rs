//! The same product again and again under a full memory, at work and at rest in turn, every result compared: what n clean
//! runs say of the rate of faults.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::cases::QualifyError;
use crate::product::Product;
use crate::result::Outcome;
use serde::Serialize;
use std::time::Duration;
use toprope_conformance::random::Random;
use toprope_program::tensor::round;
use toprope_program::{DType, Device, Fault, Session};

/// What a soak came to.
#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Products that were run and compared.
    pub runs: u64,
    /// Operations in them.
    pub flops: f64,
    /// Bytes that they read and wrote.
    pub bytes: f64,
    /// Runs whose result differed.
    pub faults: u64,
    /// Rests between bouts of work.
    pub rests: u64,
    /// Seconds.
    pub seconds: f64,
    /// With 95 % confidence, at most this share of runs is faulty.
    pub rate_per_run: f64,
    /// The same for each byte read or written.
    pub rate_per_byte: f64,
    /// What is wrong with the very first results: no matter of a rate, and of their repeating.
    pub wrong: Option<String>,
    /// Whether bits were compared (where the device says that they repeat), or values within their bounds.
    pub by_bits: bool,
}

/// With 95 % confidence, the most that a rate is after `n` runs, `faults` of them faulty: `-ln 0.05 / n` where none is
/// (the rule of three); else Wilson's upper bound at z = 1.645 (Wilson 1927).
pub fn rate_bound(faults: u64, n: f64) -> f64 {
    if n <= 0.0 {
        return 1.0;
    }
    if faults == 0 {
        return (-(0.05f64).ln() / n).min(1.0);
    }
    const Z: f64 = 1.645;
    let share = faults as f64 / n;
    let middle = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).max(0.0).sqrt();
    ((middle + spread) / (1.0 + Z * Z / n)).min(1.0)
}

/// A product with its operands on the device and what it must give.
struct Round {
    product: Product,
    session: Session,
    want: Vec<f64>,
    bound: Vec<f64>,
    first: Vec<u8>,
}

impl Round {
    fn open(
        device: &mut dyn Device,
        size: usize,
        dtype: DType,
        seed: u64,
    ) -> Result<Result<Round, Fault>, QualifyError> {
        let product = Product::new([size, size, size], dtype, dtype)?;
        let mut random = Random::new(seed, "soak");
        let mut draw = || -> Vec<f64> { (0..size * size).map(|_| round(dtype, random.normal())).collect() };
        let (a, b) = (draw(), draw());
        let tolerance = toprope_program::Tolerance::product(dtype, dtype == DType::Bf16, size);
        let (mut want, mut bound) = (vec![0.0; size * size], vec![0.0; size * size]);
        for row in 0..size {
            let (want, magnitude) = (&mut want[row * size..][..size], &mut bound[row * size..][..size]);
            for k in 0..size {
                let x = a[row * size + k];
                for (column, y) in b[k * size..][..size].iter().enumerate() {
                    want[column] += x * y;
                    magnitude[column] += (x * y).abs();
                }
            }
            for (magnitude, want) in magnitude.iter_mut().zip(want) {
                *magnitude = tolerance.bound(*want, *magnitude);
            }
        }
        let opened = product.open(device, &a, &b).and_then(|session| {
            let first = product.run(device, &session)?;
            Ok((session, first))
        });
        Ok(opened.map(|(session, first)| Round { product, session, want, bound, first }))
    }

    /// What is wrong with a result.
    fn wrong(&self, bytes: &[u8], by_bits: bool) -> Option<String> {
        let size = self.product.columns;
        if by_bits && bytes == self.first {
            return None;
        }
        let got = self.product.numbers(bytes);
        let outside = |(got, (want, bound)): (&f64, (&f64, &f64))| {
            let error = (got - want).abs();
            error.is_nan() || error > *bound
        };
        if let Some(at) = got.iter().zip(self.want.iter().zip(&self.bound)).position(outside) {
            return Some(format!(
                "{} product of {size}: element {at} is {:e}, exact {:e}, bound {:e}",
                self.product.dtype, got[at], self.want[at], self.bound[at]
            ));
        }
        if by_bits {
            let at = bytes.iter().zip(&self.first).position(|(a, b)| a != b).unwrap_or(0);
            return Some(format!(
                "{} product of {size}: byte {at} differs from the first run's, within the bound",
                self.product.dtype
            ));
        }
        None
    }
}

/// A bout of work before each rest, and the rest.
const WORK: Duration = Duration::from_millis(1800);
const REST: Duration = Duration::from_millis(200);

/// Runs products until the deadline. The first result of each is judged by its bound, so that a device which is always wrong
/// is told as well.
pub fn soak(
    bench: &mut Bench<'_>,
    dtypes: &[DType],
    size: usize,
    deadline: &Deadline<'_>,
) -> Result<Soak, QualifyError> {
    let began = deadline.now();
    let by_bits = bench.describe().deterministic;
    let mut soak = Soak {
        outcome: Outcome::NotRun("there was no time".into()),
        runs: 0,
        flops: 0.0,
        bytes: 0.0,
        faults: 0,
        rests: 0,
        seconds: 0.0,
        rate_per_run: 1.0,
        rate_per_byte: 1.0,
        wrong: None,
        by_bits,
    };
    let mut finding = None;
    let mut rounds = Vec::new();
    for dtype in dtypes {
        match Round::open(bench.device.as_mut(), size, *dtype, bench.seed)? {
            Ok(round) => {
                soak.runs += 1;
                let wrong = round.wrong(&round.first, false);
                // Bits may repeat all the same; values that are outside of their bound once are so again.
                if wrong.is_none() || by_bits {
                    rounds.push(round);
                }
                soak.wrong = soak.wrong.take().or(wrong);
            }
            Err(Fault { kind: toprope_program::FaultKind::Unsupported { .. }, .. }) => {}
            Err(fault) => {
                soak.faults += 1;
                finding.get_or_insert(fault.to_string());
                bench.revive(&fault);
            }
        }
    }
    let mut bout = Deadline::within(bench.clock, WORK);
    'all: while !deadline.passed() && !rounds.is_empty() {
        for round in &rounds {
            let device = bench.device.as_mut();
            match round.product.run(device, &round.session) {
                Ok(bytes) => {
                    soak.runs += 1;
                    soak.flops += round.product.flops();
                    soak.bytes += round.product.bytes();
                    if let Some(wrong) = round.wrong(&bytes, by_bits) {
                        soak.faults += 1;
                        finding.get_or_insert(wrong);
                    }
                }
                Err(fault) => {
                    soak.faults += 1;
                    finding.get_or_insert(fault.to_string());
                    // Its buffers are gone with the device.
                    bench.revive(&fault);
                    rounds.clear();
                    break 'all;
                }
            }
        }
        if bout.passed() && deadline.left() > REST {
            (bench.sleep)(REST);
            soak.rests += 1;
            bout = Deadline::within(bench.clock, WORK);
        }
    }
    for round in rounds {
        // Memory that is not given back shows in the next stage that fills it.
        let _ = round.session.close(bench.device.as_mut());
    }
    soak.seconds = deadline.now().saturating_sub(began).as_secs_f64();
    soak.rate_per_run = rate_bound(soak.faults, soak.runs as f64);
    soak.rate_per_byte = rate_bound(soak.faults, soak.bytes);
    soak.outcome = match finding {
        Some(finding) => Outcome::Failed(format!("{} of {} runs: {finding}", soak.faults, soak.runs)),
        None if soak.runs > 1 => Outcome::Passed,
        None => Outcome::NotRun("there was no time".into()),
    };
    Ok(soak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_runs_bound_the_rate_by_three_over_n() {
        assert!((rate_bound(0, 1000.0) - 0.002_995_7).abs() < 1e-6);
        assert_eq!(rate_bound(0, 0.0), 1.0);
        assert!(rate_bound(5, 1000.0) > 0.005 && rate_bound(5, 1000.0) < 0.02);
        assert!(rate_bound(1000, 1000.0) > 0.99);
    }
}
