//! Making a program ready: which instructions run as one, what operands are copied first, how much scratch memory it
//! takes. All of it is decided here, so that running an instruction is a look-up.

use crate::bind::{Staged, Window};
use crate::fault::{self, unsupported};
use crate::operator::{Execute, Sizes};
use crate::support::support;
use std::sync::Arc;
use toprope_program::memory::ALIGNMENT_BYTES;
use toprope_program::{
    DType, Fault, Instruction, MemoryPlan, Operator, Program, Range, Role, Validated, Width,
};

/// Single-threaded work below this many estimated nanoseconds is not worth waking other threads for.
const PARALLEL_FROM_NANOSECONDS: f64 = 15_000.0;

/// How an instruction takes part in a fused pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// It runs as it is.
    None,
    /// Output `output` is added straight into what instruction `accumulate` of the range adds it into.
    Into {
        /// The later instruction.
        accumulate: usize,
        /// Which output.
        output: usize,
    },
    /// Instruction `by` does its work.
    Absorbed {
        /// The earlier instruction.
        by: usize,
    },
}

/// Outputs at the end of an instruction's list that one check alone reads: left out where it does not fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    /// The check's bit.
    pub(crate) bit: u16,
    /// Outputs that remain.
    pub(crate) others: usize,
}

/// A program with what does not depend on its symbols.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) program: Arc<Validated>,
    pub(crate) plan: Arc<MemoryPlan>,
    fusions: [Vec<Fusion>; 2],
    sums: [Vec<Option<Sums>>; 2],
}

/// A prepared program under one binding of its symbols.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The binding.
    pub(crate) symbols: Vec<usize>,
    /// Bytes of scratch memory for any of its instructions.
    pub(crate) workspace_bytes: usize,
    steps: [Vec<Step>; 2],
}

/// One instruction under a binding.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) inputs: Box<[Window]>,
    pub(crate) outputs: Box<[Window]>,
    /// Bytes of the workspace that staged operands take, at its beginning.
    pub(crate) staged_bytes: usize,
    /// Whether it pays to use all threads.
    pub(crate) parallel: bool,
}

fn index(range: Range) -> usize {
    match range {
        Range::Accumulate => 0,
        Range::Update => 1,
    }
}

impl Prepared {
    /// Refuses what the device lacks and finds the pairs that run as one.
    pub(crate) fn new(program: Arc<Validated>, plan: Arc<MemoryPlan>) -> Result<Prepared, Fault> {
        if plan.width != Width::Native {
            return Err(unsupported("program", None, Vec::new(), "this device has no wide mode"));
        }
        for range in Range::ALL {
            for (at, instruction) in program.program().range(range).iter().enumerate() {
                if let Err(missing) = support(&instruction.operator) {
                    let name = instruction.operator.name();
                    let mut refusal = unsupported(name, missing.dtype, Vec::new(), missing.reason);
                    refusal.place = Some(fault::place(range, at, instruction));
                    return Err(refusal);
                }
            }
        }
        let fusions = Range::ALL.map(|range| fusions(program.program(), range));
        let sums = Range::ALL.map(|range| sums(program.program(), range));
        Ok(Prepared { program, plan, fusions, sums })
    }

    pub(crate) fn instructions(&self, range: Range) -> &[Instruction] {
        self.program.program().range(range)
    }

    pub(crate) fn fusions(&self, range: Range) -> &[Fusion] {
        &self.fusions[index(range)]
    }

    pub(crate) fn sums(&self, range: Range) -> &[Option<Sums>] {
        &self.sums[index(range)]
    }

    /// Resolves every operand for these symbols.
    pub(crate) fn bind(&self, symbols: &[usize], threads: usize) -> Result<Bound, Fault> {
        let mut bound =
            Bound { symbols: symbols.to_vec(), workspace_bytes: 0, steps: [Vec::new(), Vec::new()] };
        for range in Range::ALL {
            for (at, instruction) in self.instructions(range).iter().enumerate() {
                let (step, bytes) = self.step(instruction, symbols, threads).map_err(|mut refusal| {
                    refusal.place = Some(fault::place(range, at, instruction));
                    refusal
                })?;
                bound.workspace_bytes = bound.workspace_bytes.max(bytes);
                bound.steps[index(range)].push(step);
            }
        }
        Ok(bound)
    }

    fn step(
        &self,
        instruction: &Instruction,
        symbols: &[usize],
        threads: usize,
    ) -> Result<(Step, usize), Fault> {
        let program = self.program.program();
        let name = instruction.operator.name();
        let execute = support(&instruction.operator)
            .map_err(|missing| unsupported(name, missing.dtype, Vec::new(), missing.reason))?;
        let slices = self.plan.slices(program, instruction, symbols);
        let (inputs, outputs) = slices.ok_or_else(|| {
            unsupported(name, None, Vec::new(), "the memory plan belongs to another program")
        })?;
        let outputs: Box<[Window]> = outputs.iter().map(Window::new).collect();
        let mut staged_bytes = 0usize;
        let mut inputs: Box<[Window]> = inputs.iter().map(Window::new).collect();
        for (position, window) in inputs.iter_mut().enumerate() {
            if execute.reads(position) && must_stage(execute, position, window, &outputs) {
                let staged = Staged { offset_bytes: staged_bytes, source: window.shape };
                let bytes = window.dense_bytes().checked_next_multiple_of(ALIGNMENT_BYTES);
                staged_bytes = staged_bytes.saturating_add(bytes.unwrap_or(usize::MAX));
                window.shape = window.shape.dense();
                window.staged = Some(staged);
            }
        }
        let parallel = threads > 1 && nanoseconds(program, instruction, symbols) >= PARALLEL_FROM_NANOSECONDS;
        let sizes = Sizes { inputs: &inputs, outputs: &outputs, threads: if parallel { threads } else { 1 } };
        let bytes = staged_bytes.saturating_add(execute.workspace_bytes(&sizes));
        Ok((Step { inputs, outputs, staged_bytes, parallel }, bytes))
    }
}

/// Bytes of scratch memory that a program takes beside its plan at its symbols' bounds, on so many threads.
///
/// # Errors
/// What the device lacks.
pub fn workspace_bytes(
    program: Arc<Validated>,
    plan: Arc<MemoryPlan>,
    threads: usize,
) -> Result<usize, Fault> {
    let bounds = program.program().bounds();
    Ok(Prepared::new(program, plan)?.bind(&bounds, threads)?.workspace_bytes)
}

impl Bound {
    pub(crate) fn steps(&self, range: Range) -> &[Step] {
        &self.steps[index(range)]
    }
}

/// Whether an operand must be copied first: its strides are not those of a kernel, or (where the state is in place) the
/// operator would overwrite what it has yet to read.
fn must_stage(execute: &dyn Execute, position: usize, window: &Window, outputs: &[Window]) -> bool {
    let torn = outputs.iter().any(|output| {
        let same = window.offset_bytes == output.offset_bytes
            && window.dtype == output.dtype
            && window.shape == output.shape;
        window.overlaps(output) && !(execute.in_place() && same)
    });
    torn || !window.shape.fits(execute.layout(position))
}

/// A rough time on one thread; only what is worth splitting depends on it, never a bit of a result.
fn nanoseconds(program: &Program, instruction: &Instruction, symbols: &[usize]) -> f64 {
    let operands = program.concrete_operands(instruction, symbols);
    let outputs = program.concrete_outputs(instruction, symbols);
    let flops = instruction.operator.definition().flops(&operands, &outputs) as f64;
    let bytes: u64 = operands.iter().chain(&outputs).map(|value| value.bytes()).sum();
    let flops_each = match &instruction.operator {
        Operator::Matmul(_) | Operator::GroupedMatmul(_) | Operator::GroupedOuter(_) => 30.0,
        Operator::LinearCrossEntropy(_) | Operator::LinearCrossEntropyGradient(_) => 30.0,
        Operator::Attention(_) | Operator::AttentionGradient(_) => 15.0,
        _ => 4.0,
    };
    flops / flops_each + bytes as f64 / 10.0
}

/// Pairs of an operator and the `accumulate` that is the only reader of one of its outputs.
fn fusions(program: &Program, range: Range) -> Vec<Fusion> {
    let instructions = program.range(range);
    let mut fusions = vec![Fusion::None; instructions.len()];
    let mut readers = vec![0usize; program.values.len()];
    let mut writer = vec![None; program.values.len()];
    for (at, instruction) in instructions.iter().enumerate() {
        for operand in &instruction.operands {
            readers[operand.value.0 as usize] += 1;
        }
        for (output, id) in instruction.outputs.iter().enumerate() {
            writer[id.0 as usize].get_or_insert((at, output));
        }
    }
    for (at, instruction) in instructions.iter().enumerate() {
        let (Operator::Accumulate(_), [_, x]) = (&instruction.operator, instruction.operands.as_slice())
        else {
            continue;
        };
        let value = program.value(x.value);
        let only =
            readers[x.value.0 as usize] == 1 && value.role == Role::Scratch && value.dtype == DType::F32;
        let dense = x.view.as_ref().is_none_or(|view| view.is_dense() && view.shape == value.shape);
        let (Some((by, output)), true, true) = (writer[x.value.0 as usize], only, dense) else { continue };
        let adds = support(&instructions[by].operator).ok().and_then(|execute| execute.adds_into());
        let free =
            fusions[by] == Fusion::None && instructions[by].check.is_none() && instruction.check.is_none();
        if by < at && free && adds == Some(output) {
            fusions[by] = Fusion::Into { accumulate: at, output };
            fusions[at] = Fusion::Absorbed { by };
        }
    }
    fusions
}

/// The sums of a range's instructions that only checks read.
fn sums(program: &Program, range: Range) -> Vec<Option<Sums>> {
    let instructions = program.range(range);
    // For each value the one check that reads it, or that others do too.
    let mut reader: Vec<Option<Option<u16>>> = vec![None; program.values.len()];
    for instruction in instructions {
        for operand in &instruction.operands {
            let reader = &mut reader[operand.value.0 as usize];
            *reader = match *reader {
                None => Some(instruction.check),
                Some(bit) if bit == instruction.check => Some(bit),
                Some(_) => Some(None),
            };
        }
    }
    let of = |instruction: &Instruction| {
        let others = match &instruction.operator {
            Operator::Matmul(matmul) if matmul.row_sums => 1,
            Operator::GroupedMatmul(grouped) if grouped.row_sums => 1,
            Operator::GroupedOuter(outer) if outer.row_sums => 1,
            Operator::LinearCrossEntropyGradient(gradient) if gradient.sums => 3,
            _ => return None,
        };
        let mut bits = instruction.outputs.iter().skip(others).map(|id| {
            let scratch = program.value(*id).role == Role::Scratch;
            reader[id.0 as usize].flatten().filter(|_| scratch)
        });
        let bit = bits.next().flatten()?;
        bits.all(|other| other == Some(bit)).then_some(Sums { bit, others })
    };
    instructions.iter().map(of).collect()
}
