//! What an instruction of a training step costs.

use toprope_program::Program;
use toprope_program::cost::{Cost, instruction_cost};
use toprope_program::program::Instruction;

/// The symbol of the programs that train and evaluate: how many sequences are packed into their rows.
pub(crate) const SEQUENCES: &str = "sequences";

/// FLOPs and bytes of one instruction at the symbols' bounds. The contract counts a pair of tokens for each two rows of an
/// attention; rows are packed sequences here, and no token sees beyond its own, so only those pairs are counted.
pub fn packed_cost(program: &Program, instruction: &Instruction) -> Cost {
    let mut cost = instruction_cost(program, instruction, &program.bounds());
    if instruction.operator.name().starts_with("attention") {
        let sequences = program.symbols.iter().find(|symbol| symbol.name == SEQUENCES);
        cost.flops /= sequences.map_or(1, |symbol| symbol.bound.max(1) as u64);
    }
    cost
}
