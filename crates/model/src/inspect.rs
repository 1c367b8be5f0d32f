//! A program at a glance: parameters, operators, FLOPs, bytes and memory by part.

mod display;
mod memory; // bytes by part

pub use memory::PartMemory;

use crate::architecture::Architecture;
use crate::cost::packed_cost;
use crate::error::ModelError;
use crate::totals::{Totals, group, totals};
use serde::Serialize;
use toprope_program::memory::Breakdown;
use toprope_program::shape::ShapeText;
use toprope_program::{MemoryPlan, Operand, Program, Range, StateLayout, Validated, Width};

/// What `toprope inspect` says of a model's program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The program's name.
    pub name: String,
    /// What it is for: `train`, `evaluate`, `prefill` or `decode`.
    pub phase: String,
    /// The dtype of activations.
    pub dtype: String,
    /// The program's stable hash.
    pub hash: String,
    /// Its symbols with their bounds; costs and memory are at the bounds.
    pub symbols: Vec<(String, usize)>,
    /// Parameter counts.
    pub totals: Totals,
    /// The ranges of a step.
    pub ranges: Vec<RangeSummary>,
    /// By part, in the order of the model.
    pub parts: Vec<PartSummary>,
    /// The plan.
    pub memory: MemorySummary,
    /// The instructions with the most FLOPs, most first; equal ones are one line.
    pub largest: Vec<LargeOperator>,
}

/// A range's operators and cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeSummary {
    /// `accumulate` or `update`.
    pub range: String,
    /// Instructions.
    pub operators: usize,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// A part's parameters, operators and cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartSummary {
    /// `embedding`, `attention`, `mlp`, `router`, `experts`, `shared_experts`, `head`, `mtp`, `loss` or `optimizer`.
    pub part: String,
    /// Parameters.
    pub parameters: u64,
    /// Instructions, forward and backward.
    pub operators: usize,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// The memory plan in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemorySummary {
    /// Halves of the state: 2, or 1 in place.
    pub state_halves: usize,
    /// One half of the state: parameters, moments, biases, counters.
    pub state_bytes: usize,
    /// Gradients and counters.
    pub carried_bytes: usize,
    /// Inputs, outputs, constants.
    pub host_bytes: usize,
    /// Activations and what else lives within a range.
    pub scratch_bytes: usize,
    /// The sum: the peak without a device's own workspace.
    pub total_bytes: usize,
    /// The same by part of the model.
    pub parts: Vec<PartMemory>,
}

/// One of the largest instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LargeOperator {
    /// `accumulate` or `update`.
    pub range: String,
    /// Its index within the range; the first of equal ones.
    pub index: usize,
    /// The operator.
    pub operator: String,
    /// The group of its part.
    pub part: String,
    /// Shapes of its first two operands.
    pub shapes: String,
    /// How many equal ones there are.
    pub count: usize,
    /// Floating-point operations of one.
    pub flops: u64,
    /// Bytes read and written by one.
    pub bytes: u64,
}

/// Lines in the table of largest operators.
const LARGEST: usize = 8;

/// Looks at a program that was built for a configuration.
pub fn summarize<'a>(
    architecture: impl Into<Architecture<'a>>,
    validated: &Validated,
    layout: StateLayout,
) -> Result<Summary, ModelError> {
    let program = validated.program();
    let architecture = architecture.into();
    let totals = totals(architecture)?;
    let mut parts: Vec<PartSummary> =
        totals.parts.iter().map(|total| PartSummary::new(&total.part, total.parameters)).collect();
    let (mut ranges, mut largest) = (Vec::new(), Vec::new());
    for range in Range::ALL {
        let instructions = program.range(range);
        let mut summary =
            RangeSummary { range: range.name().into(), operators: instructions.len(), flops: 0, bytes: 0 };
        for (index, instruction) in instructions.iter().enumerate() {
            let cost = packed_cost(program, instruction);
            summary.flops = summary.flops.saturating_add(cost.flops);
            summary.bytes = summary.bytes.saturating_add(cost.bytes);
            let name = group(&instruction.part);
            let at = match parts.iter().position(|part| part.part == name) {
                Some(at) => at,
                None => {
                    parts.push(PartSummary::new(name, 0));
                    parts.len() - 1
                }
            };
            let part = &mut parts[at];
            part.operators += 1;
            part.flops = part.flops.saturating_add(cost.flops);
            part.bytes = part.bytes.saturating_add(cost.bytes);
            let shapes: Vec<String> =
                instruction.operands.iter().take(2).map(|operand| shape(program, operand)).collect();
            note(
                &mut largest,
                LargeOperator {
                    range: range.name().into(),
                    index,
                    operator: instruction.operator.name().into(),
                    part: name.into(),
                    shapes: shapes.join(" "),
                    count: 1,
                    flops: cost.flops,
                    bytes: cost.bytes,
                },
            );
        }
        if !instructions.is_empty() {
            ranges.push(summary);
        }
    }
    largest.sort_by_key(|large| std::cmp::Reverse((large.flops, large.bytes)));
    largest.truncate(LARGEST);
    let plan = MemoryPlan::new(validated, Width::Native, layout);
    let names = parts.iter().map(|part| part.part.as_str());
    let memory_parts = memory::by_part(architecture, program, &plan, names);
    Ok(Summary {
        name: program.name.clone(),
        phase: program.phase.name().into(),
        dtype: activation_dtype(program),
        hash: validated.hash().into(),
        symbols: program.symbols.iter().map(|symbol| (symbol.name.clone(), symbol.bound)).collect(),
        totals,
        ranges,
        memory: MemorySummary::new(&plan, memory_parts),
        parts,
        largest,
    })
}

/// Adds an instruction to the list, or to the count of its equal.
fn note(largest: &mut Vec<LargeOperator>, new: LargeOperator) {
    let equal = |large: &&mut LargeOperator| {
        large.flops == new.flops
            && (&large.range, &large.operator, &large.part, &large.shapes)
                == (&new.range, &new.operator, &new.part, &new.shapes)
    };
    match largest.iter_mut().find(equal) {
        Some(large) => large.count += 1,
        None => largest.push(new),
    }
}

fn shape(program: &Program, operand: &Operand) -> String {
    let r#type = program.operand_type(operand);
    ShapeText { shape: &r#type.shape, symbols: &program.symbols }.to_string()
}

/// The dtype of the embedded tokens, the first activation.
fn activation_dtype(program: &Program) -> String {
    let first = program.accumulate.first().and_then(|instruction| instruction.outputs.first());
    first.map_or_else(String::new, |id| program.value(*id).dtype.to_string())
}

impl PartSummary {
    fn new(part: &str, parameters: u64) -> PartSummary {
        PartSummary { part: part.into(), parameters, operators: 0, flops: 0, bytes: 0 }
    }
}

impl MemorySummary {
    fn new(plan: &MemoryPlan, parts: Vec<PartMemory>) -> MemorySummary {
        let Breakdown { state_bytes, carried_bytes, host_bytes, scratch_bytes } = plan.breakdown;
        let state_halves = if plan.layout == StateLayout::Double { 2 } else { 1 };
        let total_bytes = plan.total_bytes();
        MemorySummary {
            state_halves,
            state_bytes,
            carried_bytes,
            host_bytes,
            scratch_bytes,
            total_bytes,
            parts,
        }
    }
}
