//! The same product again and again while memory is held full, at work and at rest in several duty cycles, every result
//! compared: what n clean runs say of the rate of faults.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::cases::QualifyError;
use crate::memory::Blocks;
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
    /// The duty cycles, in turn.
    pub duties: Vec<DutyRuns>,
    /// Bytes of memory that were held full all the while.
    pub held_bytes: u64,
    /// Times that a block of it was read back.
    pub held_reads: u64,
    /// What of it did not hold.
    pub lost: Option<String>,
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

/// Work and rest in turn: load that comes and goes moves voltage and temperature, which steady load does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Duty {
    name: &'static str,
    work: Duration,
    rest: Duration,
    /// How long it goes on before the next one.
    leg: Duration,
}

const fn duty(name: &'static str, work: u64, rest: u64, leg: u64) -> Duty {
    let ms = Duration::from_millis;
    Duty { name, work: ms(work), rest: ms(rest), leg: ms(leg) }
}

/// Nine tenths of the time at work, half of it, and a tenth.
const DUTIES: [Duty; 3] =
    [duty("steady", 1800, 200, 4000), duty("half", 100, 100, 1000), duty("bursts", 20, 180, 1000)];

/// What ran in a duty cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DutyRuns {
    /// Its name.
    pub name: &'static str,
    /// Milliseconds of work before each rest.
    pub work_ms: u64,
    /// Milliseconds of rest.
    pub rest_ms: u64,
    /// Products that were run and compared.
    pub runs: u64,
    /// Runs whose result differed.
    pub faults: u64,
    /// Rests.
    pub rests: u64,
}

impl Soak {
    /// The duty cycles in a line.
    pub fn duties_told(&self) -> String {
        let told = self.duties.iter().map(|duty| {
            let share = 100 * duty.work_ms / (duty.work_ms + duty.rest_ms).max(1);
            format!("{} ({share} % at work) {}", duty.name, duty.runs)
        });
        told.collect::<Vec<_>>().join(", ")
    }
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

/// The share of the soak that may go into filling memory.
const FILLING: f64 = 0.1;

/// Runs products until the deadline, with up to `memory_bytes_max` of memory held full. The first result of each is judged by
/// its bound, so that a device which is always wrong is told as well.
pub fn soak(
    bench: &mut Bench<'_>,
    dtypes: &[DType],
    size: usize,
    memory_bytes_max: u64,
    deadline: &Deadline<'_>,
) -> Result<Soak, QualifyError> {
    let began = deadline.now();
    let by_bits = bench.describe().deterministic;
    let none = |duty: &Duty| DutyRuns {
        name: duty.name,
        work_ms: duty.work.as_millis() as u64,
        rest_ms: duty.rest.as_millis() as u64,
        runs: 0,
        faults: 0,
        rests: 0,
    };
    let mut soak = Soak {
        outcome: Outcome::NotRun("there was no time".into()),
        runs: 0,
        flops: 0.0,
        bytes: 0.0,
        faults: 0,
        duties: DUTIES.iter().map(none).collect(),
        held_bytes: 0,
        held_reads: 0,
        lost: None,
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
    let filling = deadline.part(FILLING, Duration::from_secs(600));
    let filled = Blocks::fill(bench.device.as_mut(), memory_bytes_max, &filling, bench.seed);
    let mut work = Work { bench, rounds, blocks: Blocks::default(), deadline, finding };
    match filled {
        Ok(blocks) => {
            soak.held_bytes = blocks.bytes();
            work.blocks = blocks;
        }
        Err(fault) => work.fails(&mut soak, &fault),
    }
    let mut legs = DUTIES.iter().enumerate().cycle();
    while !deadline.passed()
        && !work.rounds.is_empty()
        && let Some((index, duty)) = legs.next()
    {
        work.leg(&mut soak, index, duty);
        work.read_back(&mut soak);
    }
    let Work { bench, rounds, blocks, finding, .. } = work;
    for round in rounds {
        // Memory that is not given back shows in the next stage that fills it.
        let _ = round.session.close(bench.device.as_mut());
    }
    let _ = blocks.release(bench.device.as_mut());
    soak.seconds = deadline.now().saturating_sub(began).as_secs_f64();
    soak.rate_per_run = rate_bound(soak.faults, soak.runs as f64);
    soak.rate_per_byte = rate_bound(soak.faults, soak.bytes);
    soak.outcome = match (finding, &soak.lost) {
        (Some(finding), _) => Outcome::Failed(format!("{} of {} runs: {finding}", soak.faults, soak.runs)),
        (None, Some(lost)) => Outcome::Failed(format!("memory that was held full: {lost}")),
        (None, None) if soak.runs > 1 => Outcome::Passed,
        (None, None) => Outcome::NotRun("there was no time".into()),
    };
    Ok(soak)
}

/// What is at work.
struct Work<'a, 'b, 'c> {
    bench: &'a mut Bench<'b>,
    rounds: Vec<Round>,
    blocks: Blocks,
    deadline: &'a Deadline<'c>,
    finding: Option<String>,
}

impl Work<'_, '_, '_> {
    /// Products and rests of one duty cycle, until its leg is over.
    fn leg(&mut self, soak: &mut Soak, index: usize, duty: &Duty) {
        let leg = self.deadline.part(1.0, duty.leg);
        let mut bout = self.deadline.part(1.0, duty.work);
        loop {
            for round in &self.rounds {
                match round.product.run(self.bench.device.as_mut(), &round.session) {
                    Ok(bytes) => {
                        soak.runs += 1;
                        soak.duties[index].runs += 1;
                        soak.flops += round.product.flops();
                        soak.bytes += round.product.bytes();
                        if let Some(wrong) = round.wrong(&bytes, soak.by_bits) {
                            soak.faults += 1;
                            soak.duties[index].faults += 1;
                            self.finding.get_or_insert(format!("{wrong} ({} load)", duty.name));
                        }
                    }
                    Err(fault) => {
                        soak.duties[index].faults += 1;
                        self.fails(soak, &fault);
                        return;
                    }
                }
            }
            if leg.passed() {
                return;
            }
            if bout.passed() && leg.left() > duty.rest {
                (self.bench.sleep)(duty.rest);
                soak.duties[index].rests += 1;
                bout = self.deadline.part(1.0, duty.work);
            }
        }
    }

    /// Reads the next block of the memory that is held.
    fn read_back(&mut self, soak: &mut Soak) {
        if self.blocks.count() == 0 {
            return;
        }
        let index = soak.held_reads as usize % self.blocks.count();
        match self.blocks.check(self.bench.device.as_mut(), index) {
            Ok(lost) => {
                soak.held_reads += 1;
                soak.lost = soak.lost.take().or(lost);
            }
            Err(fault) => self.fails(soak, &fault),
        }
    }

    /// The device failed: buffers are gone with it.
    fn fails(&mut self, soak: &mut Soak, fault: &Fault) {
        soak.faults += 1;
        self.finding.get_or_insert(fault.to_string());
        // Given back before another device stands in its place; one that is lost has nothing to give.
        let _ = std::mem::take(&mut self.blocks).release(self.bench.device.as_mut());
        self.rounds.clear();
        self.bench.revive(fault);
    }
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
