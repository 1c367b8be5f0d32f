//! Speed by operator: achieved FLOP/s and bytes/s beside the device's own best (the roofline of its largest product and its
//! largest copy, Williams, Waterman and Patterson 2009) and beside other devices on the same shapes.

use crate::bench::Bench;
use crate::budget::{Clock, Deadline};
use crate::cases::QualifyError;
use crate::datasheet::Datasheet;
use crate::product::{Product, checked};
use crate::shapes::{Shape, probe_of};
use serde::Serialize;
use std::time::Duration;
use toprope_diagnose::Probe;
use toprope_program::cost::{Cost, instruction_cost};
use toprope_program::operator::Scale;
use toprope_program::{Builder, DType, Device, Fault, Phase, Range, Role, Session, StateLayout, Type, Width};

/// How fast something ran.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorSpeed {
    /// The operator's name.
    pub name: String,
    /// The dtype that it computes on.
    pub dtype: Option<DType>,
    /// The shape.
    pub shape: String,
    /// Seconds of the fastest run.
    pub seconds: f64,
    /// Operations a second.
    pub flops_per_second: f64,
    /// Bytes read and written a second.
    pub bytes_per_second: f64,
    /// What the device's own best products and copies would take, over what it took.
    pub of_roofline: f64,
    /// What the vendor's datasheet would take, over what it took; none where no such number was given.
    pub of_datasheet: Option<f64>,
    /// Its seconds over those of the trusted device.
    pub beside_trusted: Option<f64>,
    /// Its seconds over the median of its sister dies.
    pub beside_sisters: Option<f64>,
    /// What is told of it, where it is slow.
    pub slow: Option<String>,
}

/// Speed of a device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Speed {
    /// The best product in f32, operations a second.
    pub f32_flops_per_second: f64,
    /// The best product in bf16, operations a second.
    pub bf16_flops_per_second: f64,
    /// The best copy, bytes read and written a second.
    pub bytes_per_second: f64,
    /// What the vendor promises; none where no datasheet was given.
    pub datasheet: Option<Datasheet>,
    /// By operator.
    pub operators: Vec<OperatorSpeed>,
    /// Why it was not measured, where it was not.
    pub not_run: Option<String>,
}

impl Speed {
    /// Its best beside the vendor's numbers, in words.
    pub fn beside_datasheet(&self) -> String {
        let Some(datasheet) = &self.datasheet else { return "no datasheet was given".into() };
        let shares = [
            ("f32", self.f32_flops_per_second, datasheet.f32_flops_per_second),
            ("bf16", self.bf16_flops_per_second, datasheet.bf16_flops_per_second),
            ("bandwidth", self.bytes_per_second, datasheet.bytes_per_second),
        ];
        let told = shares.map(|(name, own, promised)| match promised {
            Some(promised) => format!("{name} {:.1} %", 100.0 * own / promised),
            None => format!("{name} not given"),
        });
        format!("of the datasheet: {}", told.join(", "))
    }
}

/// Slower than this share of the roofline and than the trusted device by as much is told as slow.
const ROOFLINE_SHARE: f64 = 0.1;
const TIMES_TRUSTED: f64 = 5.0;
/// Slower than the median of its sisters by this is told.
const TIMES_SISTERS: f64 = 1.5;
/// Operations or bytes below which nothing is called slow.
const LARGE: u64 = 1 << 20;
/// Time for one operator, at most.
const BUDGET: Duration = Duration::from_millis(150);
/// Runs at least, of which the fastest counts.
const RUNS_MIN: u32 = 3;

/// Sides of the products whose best counts as the device's own.
const SIDES: [usize; 3] = [256, 512, 1024];

/// Measures the roofline and the shapes' operators until the deadline, beside the trusted device where that is asked for.
pub fn measure(
    bench: &mut Bench<'_>,
    shapes: &[&Shape],
    beside_trusted: bool,
    datasheet: Option<Datasheet>,
    deadline: &Deadline<'_>,
) -> Result<Speed, QualifyError> {
    let clock = bench.clock;
    let mut speed = Speed { datasheet, ..Speed::default() };
    if let Err(fault) =
        roofline(bench.device.as_mut(), clock, &deadline.part(0.5, Duration::from_secs(30)), &mut speed)?
    {
        bench.revive(&fault);
        speed.not_run = Some(fault.to_string());
        return Ok(speed);
    }
    for shape in shapes {
        if deadline.passed() {
            break;
        }
        let Some(probe) = probe_of(shape, bench.seed) else { continue };
        let budget = deadline.left().mul_f64(0.2).min(BUDGET);
        let seconds = match time(bench.device.as_mut(), &probe, clock, budget) {
            Ok(seconds) => seconds,
            Err(fault) => {
                bench.revive(&fault);
                continue;
            }
        };
        let trusted = bench.trusted.as_deref_mut().filter(|_| beside_trusted);
        let trusted = trusted.and_then(|device| time(device, &probe, clock, budget).ok());
        speed.operators.push(told(&speed, &shape.told, &probe, seconds, trusted));
    }
    Ok(speed)
}

/// How fast a probe was, beside the device's own best.
pub(crate) fn told(
    speed: &Speed,
    shape: &str,
    probe: &Probe,
    seconds: f64,
    trusted: Option<f64>,
) -> OperatorSpeed {
    let program = probe.program().program();
    let Cost { flops, bytes } = instruction_cost(program, probe.instruction(), probe.symbols());
    let operands = program.concrete_operands(probe.instruction(), probe.symbols());
    let dtype = operands.iter().map(|operand| operand.dtype).find(|dtype| dtype.is_float());
    let peak =
        if dtype == Some(DType::Bf16) { speed.bf16_flops_per_second } else { speed.f32_flops_per_second };
    let ideal = (flops as f64 / peak.max(1.0)).max(bytes as f64 / speed.bytes_per_second.max(1.0));
    let of_roofline = ideal / seconds;
    let beside_trusted = trusted.map(|trusted| seconds / trusted);
    // What is over in no time is dominated by how it is started.
    let large = flops > LARGE || bytes > LARGE;
    let slow = match beside_trusted {
        Some(times) if large && of_roofline < ROOFLINE_SHARE && times > TIMES_TRUSTED => Some(format!(
            "{:.1} % of what its own best product and copy allow, {times:.0} times the trusted device's time",
            100.0 * of_roofline
        )),
        _ => None,
    };
    OperatorSpeed {
        name: probe.operator().name().into(),
        dtype,
        shape: shape.into(),
        seconds,
        flops_per_second: flops as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        of_roofline,
        of_datasheet: speed
            .datasheet
            .as_ref()
            .and_then(|datasheet| datasheet.seconds(dtype, flops, bytes))
            .map(|ideal| ideal / seconds),
        beside_trusted,
        beside_sisters: None,
        slow,
    }
}

/// Puts each die's times beside the median of the others.
pub fn beside_sisters(dies: &mut [Speed]) {
    let times: Vec<Vec<(String, String, f64)>> = dies
        .iter()
        .map(|die| die.operators.iter().map(|o| (o.name.clone(), o.shape.clone(), o.seconds)).collect())
        .collect();
    for (own, die) in dies.iter_mut().enumerate() {
        for operator in &mut die.operators {
            let others = times
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != own)
                .filter_map(|(_, list)| {
                    list.iter().find(|(name, shape, _)| *name == operator.name && *shape == operator.shape)
                })
                .map(|(_, _, seconds)| *seconds);
            let Some(median) = median(others) else { continue };
            let ratio = operator.seconds / median;
            operator.beside_sisters = Some(ratio);
            // What is over in no time is dominated by how it is started.
            let large = operator.flops_per_second.max(operator.bytes_per_second) * operator.seconds;
            if ratio > TIMES_SISTERS && large > LARGE as f64 {
                operator.slow = Some(format!("{ratio:.1} times the median of its sister dies"));
            }
        }
    }
}

/// The middle one; of an even number the upper of the two.
pub(crate) fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The best products and the best copy.
pub(crate) fn roofline(
    device: &mut dyn Device,
    clock: Clock<'_>,
    deadline: &Deadline<'_>,
    speed: &mut Speed,
) -> Result<Result<(), Fault>, QualifyError> {
    for dtype in [DType::F32, DType::Bf16] {
        for side in SIDES {
            let product = Product::new([side, side, side], dtype, DType::F32)?;
            let numbers: Vec<f64> = (0..side * side).map(|at| (at % 7) as f64 - 3.0).collect();
            let mut run = || -> Result<f64, Fault> {
                let session = product.open(device, &numbers, &numbers)?;
                let best = fastest(device, &session, clock, deadline.left() / 6)?;
                session.close(device)?;
                Ok(best)
            };
            match run() {
                Ok(seconds) => {
                    let best = match dtype {
                        DType::Bf16 => &mut speed.bf16_flops_per_second,
                        _ => &mut speed.f32_flops_per_second,
                    };
                    *best = best.max(product.flops() / seconds);
                    // The next is eight times as long.
                    if deadline.left().as_secs_f64() < seconds * 8.0 * f64::from(RUNS_MIN + 1) {
                        break;
                    }
                }
                Err(fault) => return Ok(Err(fault)),
            }
        }
    }
    const COPIED: usize = 8 << 20;
    let mut builder = Builder::new("copy", Phase::Evaluate);
    let x = builder.input("x", DType::F32, [COPIED]);
    let y = builder.declare("y", Type::new(DType::F32, [COPIED]), Role::Output);
    let scaled = builder.apply_to(Scale { factor: 2.0 }, vec![x.into()], vec![y]);
    scaled.map_err(|error| QualifyError::Program(error.to_string()))?;
    let program = checked(builder.finish())?;
    let run = || -> Result<f64, Fault> {
        let session = Session::open(device, program, Width::Native, StateLayout::InPlace)?;
        session.write(device, "x", &vec![0; COPIED * 4])?;
        let best = fastest(device, &session, clock, deadline.left())?;
        session.close(device)?;
        Ok(best)
    };
    Ok(run().map(|seconds| speed.bytes_per_second = (COPIED * 8) as f64 / seconds))
}

/// Seconds of the fastest run within a budget.
fn fastest(
    device: &mut dyn Device,
    session: &Session,
    clock: Clock<'_>,
    budget: Duration,
) -> Result<f64, Fault> {
    session.run(device, Range::Accumulate)?;
    let (began, mut best, mut runs) = (clock(), f64::INFINITY, 0);
    while runs < RUNS_MIN || clock().saturating_sub(began) < budget.min(BUDGET) {
        let started = clock();
        session.run(device, Range::Accumulate)?;
        best = best.min(clock().saturating_sub(started).as_secs_f64());
        runs += 1;
    }
    // A clock that stands still measures nothing.
    Ok(best.max(1e-9))
}

/// Seconds of the fastest run of a probe.
pub(crate) fn time(
    device: &mut dyn Device,
    probe: &Probe,
    clock: Clock<'_>,
    budget: Duration,
) -> Result<f64, Fault> {
    let program = probe.program().program();
    let session = Session::open(device, probe.program().clone(), Width::Native, StateLayout::InPlace)?;
    for (id, value) in program.values_with_ids() {
        if let Some(tensor) = &probe.values()[id.0 as usize]
            && !matches!(value.role, Role::Constant { .. })
        {
            session.write(device, &value.name, &tensor.to_bytes(Width::Native))?;
        }
    }
    let best = fastest(device, &session, clock, budget)?;
    session.close(device)?;
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn die(seconds: f64) -> Speed {
        let operator = OperatorSpeed {
            name: "matmul".into(),
            dtype: Some(DType::F32),
            shape: "[8, 8]".into(),
            seconds,
            flops_per_second: 1e9,
            bytes_per_second: 1e9,
            of_roofline: 1.0,
            of_datasheet: None,
            beside_trusted: None,
            beside_sisters: None,
            slow: None,
        };
        Speed { operators: vec![operator], ..Speed::default() }
    }

    #[test]
    fn a_slow_die_is_told_beside_its_sisters() {
        let mut dies = [die(1.0), die(1.1), die(3.0), die(0.9)];
        beside_sisters(&mut dies);
        let slow: Vec<bool> = dies.iter().map(|die| die.operators[0].slow.is_some()).collect();
        assert_eq!(slow, [false, false, true, false]);
    }
}
