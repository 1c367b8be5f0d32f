//! What instructions cost: FLOPs and bytes, at given symbol values.

use crate::program::{Instruction, Program, Range};

/// FLOPs and bytes of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: u64,
    /// Bytes read and written, each operand and output once.
    pub bytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops = self.flops.saturating_add(other.flops);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The cost of one instruction.
pub fn instruction_cost(program: &Program, instruction: &Instruction, symbols: &[usize]) -> Cost {
    let operands = program.concrete_operands(instruction, symbols);
    let outputs = program.concrete_outputs(instruction, symbols);
    let flops = instruction.operator.definition().flops(&operands, &outputs);
    let bytes = operands.iter().chain(&outputs).map(crate::Concrete::bytes).fold(0u64, u64::saturating_add);
    Cost { flops, bytes }
}

/// The cost of a range.
pub fn range_cost(program: &Program, range: Range, symbols: &[usize]) -> Cost {
    let mut total = Cost::default();
    for instruction in program.range(range) {
        total += instruction_cost(program, instruction, symbols);
    }
    total
}
