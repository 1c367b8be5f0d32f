//! Checks: operators put into a program by a pass, each with a bit in the mask among the bindings. The hash is of the
//! unchecked program.

use crate::dtype::DType;
use crate::operator::{Operator, ProductCheck};
use crate::program::{Instruction, Program};
use crate::shape::{Dim, Type};
use crate::value::{Role, Value, ValueId};

/// A check that was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSite {
    /// Its bit in the mask.
    pub bit: u16,
    /// The value, of role output, that holds its result `[1]`: the distance in units of the bound.
    pub result: ValueId,
    /// The name of the checked product.
    pub product: String,
}

/// The largest result of a product check on a healthy device; see `product_check`.
pub const PRODUCT_CHECK_LIMIT: f32 = 2.0;

/// Puts a checksum identity behind every dense product of the first range. Row sums are asked of the products themselves,
/// so that devices take them from the accumulator.
pub fn insert_product_checks(program: &mut Program) -> Vec<CheckSite> {
    let mut sites = Vec::new();
    let mut checked = Vec::with_capacity(program.accumulate.len());
    for mut instruction in std::mem::take(&mut program.accumulate) {
        let has_bias = instruction.operands.len() > 2;
        let Operator::Matmul(matmul) = &mut instruction.operator else {
            checked.push(instruction);
            continue;
        };
        if matmul.row_sums || has_bias || sites.len() > usize::from(u16::MAX) {
            checked.push(instruction);
            continue;
        }
        matmul.row_sums = true;
        let product = program.values[instruction.outputs[0].0 as usize].clone();
        let row_sums = declare(
            program,
            format!("{}.row_sums", product.name),
            Type { dtype: DType::F32, shape: product.shape[..1].to_vec() },
            Role::Scratch,
        );
        let bit = sites.len() as u16;
        let result = declare(
            program,
            format!("{}.check", product.name),
            Type { dtype: DType::F32, shape: vec![Dim::from(1)] },
            Role::Output,
        );
        instruction.outputs.push(row_sums);
        let check = Instruction {
            operator: ProductCheck {}.into(),
            operands: vec![instruction.operands[0].clone(), instruction.operands[1].clone(), row_sums.into()],
            outputs: vec![result],
            part: instruction.part.clone(),
            check: Some(bit),
        };
        checked.push(instruction);
        checked.push(check);
        sites.push(CheckSite { bit, result, product: product.name });
    }
    program.accumulate = checked;
    sites
}

fn declare(program: &mut Program, name: String, r#type: Type, role: Role) -> ValueId {
    program.values.push(Value { name, dtype: r#type.dtype, shape: r#type.shape, role });
    ValueId(program.values.len() as u32 - 1)
}

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
        let row_sums = match &mut instruction.operator {
            Operator::Matmul(matmul) => &mut matmul.row_sums,
            Operator::GroupedMatmul(grouped) => &mut grouped.row_sums,
            _ => continue,
        };
        let unread = instruction
            .outputs
            .get(1)
            .is_some_and(|id| !read[id.0 as usize] && plain.values[id.0 as usize].role == Role::Scratch);
        if *row_sums && unread {
            *row_sums = false;
            instruction.outputs.truncate(1);
        }
    }
    // A check's result is an output that nothing else writes; without its check it is nobody's.
    for id in results {
        plain.values[id.0 as usize].role = Role::Scratch;
    }
    crate::order::prune(&mut plain);
    plain
}
