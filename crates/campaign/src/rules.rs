//! The field's other rules, each implemented from its description, and given every advantage that the description leaves
//! open: each step and each tensor is looked at, and one strike is an alarm.

use crate::scene::{Named, Outcome, Scene};
use serde::Serialize;
use toprope_program::shape::sizes;
use toprope_program::{DType, Fault, Operand, Operator, Range};

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A loss or gradient norm that is not finite.
    Nan,
    /// A loss above ten times the largest so far.
    LossSpike,
    /// A gradient norm above five times the mean of the last ten steps.
    GradientJump,
    /// Huawei's `NPU_ASD_CONFIG`: the square of a gradient's largest element above 10^6 times its moving mean (0.99,
    /// corrected for its start); above 100 times it does not enter the mean.
    AsdStatistic,
    /// Huawei's checksum of a bf16 product from its rounded result, confirmed by running it again on the same chip.
    AsdChecksum,
    /// Running the step again on the same device and comparing bits.
    SameDevice,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 6] = [
        Rule::Nan,
        Rule::LossSpike,
        Rule::GradientJump,
        Rule::AsdStatistic,
        Rule::AsdChecksum,
        Rule::SameDevice,
    ];

    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Nan => "NaN check",
            Rule::LossSpike => "loss spike, 10x the largest",
            Rule::GradientJump => "gradient norm jump, 5x",
            Rule::AsdStatistic => "NPU_ASD_CONFIG statistic",
            Rule::AsdChecksum => "NPU_ASD_CONFIG checksum",
            Rule::SameDevice => "run again on the same device",
        }
    }
}

/// Steps that the gradient rule averages over, and waits for.
const WINDOW: usize = 10;

/// What rules that look back have seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    largest_loss: f64,
    norms: Vec<f64>,
    /// By gradient: the moving mean and the number of steps in it.
    means: Vec<(f64, i32)>,
}

/// The square of a gradient's largest element.
fn peak(bytes: &[u8]) -> f64 {
    let sizes = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])).abs());
    // NaN compares as nothing, as it does in the rule's own code.
    let largest = sizes.fold(0.0, f64::max);
    largest * largest
}

fn corrected((mean, steps): (f64, i32)) -> f64 {
    mean / (1.0 - 0.99f64.powi(steps))
}

fn is_gradient(named: &Named) -> bool {
    named.dtype == DType::F32 && named.name.starts_with("gradient.")
}

impl History {
    /// Takes a committed step in.
    pub fn see(&mut self, carried: &[Named], outcome: &Outcome) {
        self.largest_loss = self.largest_loss.max(outcome.loss);
        self.norms.push(outcome.gradient_norm);
        self.means.resize(carried.len(), (0.0, 0));
        for ((named, bytes), mean) in carried.iter().zip(&outcome.carried).zip(&mut self.means) {
            if is_gradient(named) {
                let peak = peak(bytes);
                if mean.1 == 0 || peak <= 100.0 * corrected(*mean) {
                    *mean = (0.99 * mean.0 + 0.01 * peak, mean.1 + 1);
                }
            }
        }
    }

    /// Whether a rule that looks at a step's numbers accuses this one.
    pub fn accuses(&self, rule: Rule, carried: &[Named], outcome: &Outcome) -> bool {
        match rule {
            Rule::Nan => outcome.is_non_finite(),
            Rule::LossSpike => self.largest_loss > 0.0 && outcome.loss > 10.0 * self.largest_loss,
            Rule::GradientJump => {
                let recent = &self.norms[self.norms.len().saturating_sub(WINDOW)..];
                let mean = recent.iter().sum::<f64>() / WINDOW as f64;
                recent.len() == WINDOW && outcome.gradient_norm > 5.0 * mean
            }
            Rule::AsdStatistic => {
                carried.iter().zip(&outcome.carried).zip(&self.means).any(|((named, bytes), mean)| {
                    is_gradient(named) && mean.1 > 0 && peak(bytes) > 1e6 * corrected(*mean)
                })
            }
            Rule::AsdChecksum | Rule::SameDevice => false,
        }
    }
}

/// Elements of an operand as the operator sees them, row by row.
fn seen(scene: &mut Scene, operand: &Operand) -> Result<(Vec<usize>, Vec<f32>), Fault> {
    let program = scene.program.clone();
    let program = program.program();
    let value = program.value(operand.value);
    let bytes = scene.read(&value.name)?;
    let numbers: Vec<f32> = match value.dtype {
        DType::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    };
    let bounds = program.bounds();
    let Some(view) = &operand.view else { return Ok((sizes(&value.shape, &bounds), numbers)) };
    let shape = sizes(&view.shape, &bounds);
    let mut out = Vec::with_capacity(shape.iter().product());
    let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
    for row in 0..rows {
        for column in 0..columns {
            let at = view.offset + row * view.strides[0] + column * view.strides.get(1).copied().unwrap_or(0);
            out.push(numbers.get(at).copied().unwrap_or(0.0));
        }
    }
    Ok((shape, out))
}

/// Huawei's rule at one product that has just run: whether it flags a row. None where the rule does not look: products
/// that are not of bf16, or have a bias.
///
/// # Errors
/// The device's fault.
pub fn checksum_flags(scene: &mut Scene, range: Range, index: usize) -> Result<Option<bool>, Fault> {
    let program = scene.program.clone();
    let instruction = &program.program().range(range)[index];
    let bf16 = |operand: &Operand| program.program().value(operand.value).dtype == DType::Bf16;
    let product = instruction.outputs[0];
    let looks = matches!(instruction.operator, Operator::Matmul(_))
        && instruction.operands.len() == 2
        && instruction.operands.iter().all(bf16)
        && program.program().value(product).dtype == DType::Bf16;
    if !looks {
        return Ok(None);
    }
    let (_, a) = seen(scene, &instruction.operands[0])?;
    let (b_shape, b) = seen(scene, &instruction.operands[1])?;
    let (c_shape, c) = seen(scene, &product.into())?;
    let (depth, columns, rows) = (b_shape[0], b_shape[1], c_shape[0]);
    let sums: Vec<f32> = b.chunks_exact(columns).map(|row| row.iter().sum()).collect();
    let row_of = |row: usize| &c[row * columns..(row + 1) * columns];
    let mean_of = |row: &[f32]| row.iter().map(|x| x.abs()).sum::<f32>() / columns as f32;
    let largest_of = |row: &[f32]| row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let peaked = (0..rows).all(|row| largest_of(row_of(row)) > 5.0 * mean_of(row_of(row)));
    let n = columns as f32;
    Ok(Some((0..rows).any(|row| {
        let have: f32 = row_of(row).iter().sum();
        let want: f32 = a[row * depth..(row + 1) * depth].iter().zip(&sums).map(|(a, s)| a * s).sum();
        let unit = 2f32.powi(-8);
        let e =
            if peaked { largest_of(row_of(row)) * unit * n.sqrt() } else { mean_of(row_of(row)) * unit * n };
        // NaN on either side compares as no alarm, as it does in the rule's own code.
        (have - want).abs() - 5.0 * e > 5e-20
    })))
}
