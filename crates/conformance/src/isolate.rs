//! One instruction as a program of its own, and the same at other sizes.

use std::collections::BTreeMap;
use toprope_program::operator::Operator;
use toprope_program::{
    Dim, Instruction, Operand, Phase, Program, Range, Role, Type, Value, ValueId, validate,
};

/// An instruction of a program alone: what it reads are inputs of the same names and types, what it writes are outputs. What
/// it writes in place keeps its role. None where the program has no such instruction.
pub fn alone(program: &Program, range: Range, index: usize) -> Option<Program> {
    let instruction = program.range(range).get(index)?;
    let mut values: Vec<Value> = Vec::new();
    let mut renamed: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for operand in &instruction.operands {
        renamed.entry(operand.value).or_insert_with(|| {
            let value = program.value(operand.value);
            let in_place = instruction.outputs.contains(&operand.value);
            let role = if in_place { value.role.clone() } else { Role::Input };
            values.push(Value { role, ..value.clone() });
            ValueId(values.len() as u32 - 1)
        });
    }
    for id in &instruction.outputs {
        renamed.entry(*id).or_insert_with(|| {
            values.push(Value { role: Role::Output, ..program.value(*id).clone() });
            ValueId(values.len() as u32 - 1)
        });
    }
    let operands = instruction
        .operands
        .iter()
        .map(|operand| Some(Operand { value: *renamed.get(&operand.value)?, view: operand.view.clone() }))
        .collect::<Option<Vec<_>>>()?;
    let outputs =
        instruction.outputs.iter().map(|id| renamed.get(id).copied()).collect::<Option<Vec<_>>>()?;
    let mut alone = Program {
        name: program.name.clone(),
        phase: Phase::Evaluate,
        symbols: program.symbols.clone(),
        values,
        accumulate: vec![Instruction { operands, outputs, ..instruction.clone() }],
        update: Vec::new(),
    };
    toprope_program::order::prune(&mut alone);
    Some(alone)
}

/// The program with its symbols as the numbers that they are bound to.
pub fn bound(program: &Program, symbols: &[usize]) -> Program {
    let mut program = program.clone();
    let bind = |shape: &mut Vec<Dim>| shape.iter_mut().for_each(|dim| *dim = dim.value(symbols).into());
    program.values.iter_mut().for_each(|value| bind(&mut value.shape));
    for instruction in program.accumulate.iter_mut().chain(&mut program.update) {
        for operand in &mut instruction.operands {
            if let Some(view) = &mut operand.view {
                bind(&mut view.shape);
            }
        }
        attribute_shapes(&mut instruction.operator, &bind);
    }
    program.symbols.clear();
    program
}

/// A program of one instruction without views and symbols, with every size mapped, given the value's index, the axis and the
/// size; shapes among the operator's attributes have the index `usize::MAX`. None where the operator does not take the new
/// sizes.
pub fn resized(program: &Program, map: &dyn Fn(usize, usize, usize) -> usize) -> Option<Program> {
    let mut program = program.clone();
    let instruction = program.accumulate.first_mut()?;
    if instruction.operands.iter().any(|operand| operand.view.is_some()) {
        return None;
    }
    let change = |value: usize, shape: &mut Vec<Dim>| {
        let axes = shape.iter_mut().enumerate();
        axes.for_each(|(axis, dim)| *dim = map(value, axis, dim.factor).into());
    };
    attribute_shapes(&mut instruction.operator, &|shape| change(usize::MAX, shape));
    for (at, value) in program.values.iter_mut().enumerate() {
        change(at, &mut value.shape);
    }
    let instruction = program.accumulate.first()?;
    let types: Vec<Type> = instruction.operands.iter().map(|operand| program.operand_type(operand)).collect();
    if types.iter().any(|r#type| r#type.shape.iter().any(|dim| dim.factor == 0)) {
        return None;
    }
    let inferred = validate::infer(&instruction.operator, &types).ok()?;
    for (id, r#type) in instruction.outputs.clone().into_iter().zip(inferred) {
        program.values[id.0 as usize].shape = r#type.shape;
    }
    Some(program)
}

/// Applies a change to the shapes that an operator holds among its attributes.
fn attribute_shapes(operator: &mut Operator, change: &dyn Fn(&mut Vec<Dim>)) {
    match operator {
        Operator::Assemble(assemble) => {
            change(&mut assemble.shape);
            assemble.views.iter_mut().for_each(|view| change(&mut view.shape));
            // Strides follow from the result where a part is its whole; other windows are left, and refused if they no
            // longer fit.
            for view in &mut assemble.views {
                if let Some(dense) = toprope_program::View::dense(&assemble.shape)
                    && dense.shape == view.shape
                {
                    *view = dense;
                }
            }
        }
        Operator::ScatterAdd(scatter) => {
            let mut shape = vec![scatter.rows];
            change(&mut shape);
            scatter.rows = shape[0];
        }
        Operator::RandomBits(random) => change(&mut random.shape),
        _ => {}
    }
}
