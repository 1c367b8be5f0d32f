//! A program without its checks: what the hash is of.

use crate::operator::Operator;
use crate::program::Program;
use crate::value::Role;

/// The program without its checks and without row sums that nobody reads: what the hash is of.
pub fn without_checks(program: &Program) -> Program {
    let mut plain = program.clone();
    let mut results = Vec::new();
    for range in [&mut plain.accumulate, &mut plain.update] {
        range.retain(|instruction| {
            if instruction.check.is_some() {
                results.extend(instruction.outputs.iter().copied());
            }
            instruction.check.is_none()
        });
    }
    let mut read = vec![false; plain.values.len()];
    for instruction in plain.accumulate.iter().chain(&plain.update) {
        for operand in &instruction.operands {
            read[operand.value.0 as usize] = true;
        }
    }
    for instruction in plain.accumulate.iter_mut().chain(&mut plain.update) {
        let (row_sums, own) = match &mut instruction.operator {
            Operator::Matmul(matmul) => (&mut matmul.row_sums, 1),
            Operator::GroupedMatmul(grouped) => (&mut grouped.row_sums, 1),
            Operator::GroupedOuter(outer) => (&mut outer.row_sums, 1),
            Operator::LinearCrossEntropyGradient(gradient) => (&mut gradient.sums, 3),
            Operator::AttentionGradient(gradient) => (&mut gradient.sums, 3),
            _ => continue,
        };
        let unread = instruction
            .outputs
            .iter()
            .skip(own)
            .all(|id| !read[id.0 as usize] && plain.values[id.0 as usize].role == Role::Scratch);
        if *row_sums && unread {
            *row_sums = false;
            instruction.outputs.truncate(own);
        }
    }
    // A digest that the optimizer gives for the host is a check's too.
    for instruction in &mut plain.update {
        if let Operator::Adamw(adamw) = &mut instruction.operator
            && adamw.digests
            && instruction.outputs.iter().skip(3).all(|id| !read[id.0 as usize])
        {
            adamw.digests = false;
            results.extend(instruction.outputs.drain(3..));
        }
    }
    // A check's result is an output that nothing else writes; without its check it is nobody's.
    for id in results {
        plain.values[id.0 as usize].role = Role::Scratch;
    }
    crate::order::prune(&mut plain);
    plain
}
