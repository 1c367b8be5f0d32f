//! Shape by dtype by device: where the operator is wrong and where it is not.

use crate::guess::axes_of;
use crate::lockstep::{Named, flops};
use crate::probe::Probe;
use std::fmt::Write;
use toprope_conformance::Oracle;
use toprope_conformance::lockstep::Obstacle;
use toprope_conformance::values::Regime;
use toprope_conformance::verdict::Verdict;
use toprope_program::{DType, Type};

/// One shape in one dtype on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Dtypes and sizes of the operands.
    pub shape: String,
    /// The dtype of its floats.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// `agree`, `differ`, `incomparable` or `not run`.
    pub verdict: &'static str,
    /// The worst error in units of the tolerance.
    pub units: Option<f64>,
}

/// Operations above which a shape is left out.
const FLOPS_MAX: u64 = 40_000_000;

/// Tries the case's shape and others of each of its axes, in f32 and bf16, on every device.
pub(super) fn matrix(
    devices: &mut [Named<'_>],
    oracle: &mut Oracle,
    probe: &Probe,
    seed: u64,
) -> Result<Vec<Cell>, Obstacle> {
    let mut shapes = vec![probe.clone()];
    for (axis, size) in axes_of(probe) {
        for other in [1, 16, 17, 64, 100] {
            if other != size {
                shapes.extend(probe.resized(&axis(other), seed, Regime::Normal));
            }
        }
    }
    let mut all = Vec::new();
    for shape in shapes {
        all.extend(
            [DType::F32, DType::Bf16]
                .into_iter()
                .filter_map(|dtype| in_dtype(&shape, dtype, seed).map(|p| (dtype, p))),
        );
    }
    let mut cells: Vec<Cell> = Vec::new();
    for (dtype, probe) in all {
        if flops(&probe) > FLOPS_MAX {
            continue;
        }
        let Ok(probe) = probe.made_consistent(oracle) else { continue };
        let shape = told(&probe);
        if cells.iter().any(|cell| cell.shape == shape) {
            continue;
        }
        let exact = probe.exact(oracle)?;
        for named in devices.iter_mut() {
            let device = named.name.clone();
            let (verdict, units) = match probe.run(named.device) {
                Ok(outcome) => {
                    let judgement = probe.judge(&exact, &outcome);
                    let verdict = match judgement.verdict {
                        Verdict::Agree => "agree",
                        Verdict::Differ(_) => "differ",
                        Verdict::Incomparable(_) => "incomparable",
                    };
                    (verdict, judgement.worst.map(|worst| worst.units))
                }
                Err(_) => ("not run", None),
            };
            cells.push(Cell { shape: shape.clone(), dtype: dtype.to_string(), device, verdict, units });
        }
    }
    Ok(cells)
}

/// The same with its tensors of floats in a dtype; none where the operator refuses that.
fn in_dtype(probe: &Probe, dtype: DType, seed: u64) -> Option<Probe> {
    let operands = probe.operands();
    let types: Vec<Type> = operands
        .iter()
        .map(|tensor| {
            let changed = tensor.dtype.is_float() && tensor.sizes.len() > 1;
            let dtype = if changed { dtype } else { tensor.dtype };
            Type::new(dtype, tensor.sizes.iter().copied())
        })
        .collect();
    let mut other = Probe::of(probe.operator(), &types, seed, Regime::Normal, probe.is_first()).ok()?;
    // Indices and scalars stay those of the case.
    for (at, tensor) in operands.into_iter().enumerate() {
        if types[at].dtype == tensor.dtype && (!tensor.dtype.is_float() || tensor.data.len() <= 4) {
            other.set_operand(at, tensor);
        }
    }
    Some(other)
}

fn told(probe: &Probe) -> String {
    let told = |t: &toprope_program::Tensor| {
        let sizes: Vec<String> = t.sizes.iter().map(ToString::to_string).collect();
        format!("{}[{}]", t.dtype, sizes.join("x"))
    };
    probe.operands().iter().map(told).collect::<Vec<_>>().join(" ")
}

/// As comma-separated values.
pub(super) fn csv(cells: &[Cell]) -> String {
    let mut text = String::from("operands,dtype,device,verdict,error_in_units_of_the_tolerance\n");
    for cell in cells {
        let units = cell.units.map_or(String::new(), |units| format!("{units:.4e}"));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{},{},{},{},{units}", cell.shape, cell.dtype, cell.device, cell.verdict);
    }
    text
}
