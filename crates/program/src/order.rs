//! The canonical order of a program: instructions after what they read, nothing dead, values numbered by first use.

use crate::program::{Instruction, Program, Range};
use crate::value::{Operand, Role, ValueId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Sorts instructions so that each stands after what it reads, and otherwise as early as it stood.
pub fn sort(instructions: &mut Vec<Instruction>) {
    let mut writer = HashMap::new();
    for (index, instruction) in instructions.iter().enumerate() {
        for id in &instruction.outputs {
            writer.entry(*id).or_insert(index);
        }
    }
    let mut waits = vec![0usize; instructions.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); instructions.len()];
    for (index, instruction) in instructions.iter().enumerate() {
        for operand in &instruction.operands {
            if let Some(&from) = writer.get(&operand.value).filter(|from| **from != index) {
                waits[index] += 1;
                readers[from].push(index);
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..instructions.len()).filter(|index| waits[*index] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(instructions.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for reader in &readers[index] {
            waits[*reader] -= 1;
            if waits[*reader] == 0 {
                ready.push(Reverse(*reader));
            }
        }
    }
    // A cycle leaves instructions out: keep the list as it is, so that the validator can name them.
    if order.len() == instructions.len() {
        let mut taken: Vec<Option<Instruction>> =
            std::mem::take(instructions).into_iter().map(Some).collect();
        *instructions = order.into_iter().filter_map(|index| taken[index].take()).collect();
    }
}

/// Removes instructions whose results nobody needs, and scratch values and constants that nobody names.
pub fn prune(program: &mut Program) {
    let mut live = vec![false; program.values.len()];
    for range in Range::ALL.into_iter().rev() {
        let instructions = match range {
            Range::Accumulate => &mut program.accumulate,
            Range::Update => &mut program.update,
        };
        let values = &program.values;
        let mut kept = Vec::with_capacity(instructions.len());
        for instruction in instructions.drain(..).rev() {
            let wanted = instruction.check.is_some()
                || instruction
                    .outputs
                    .iter()
                    .any(|id| live[id.0 as usize] || !matches!(values[id.0 as usize].role, Role::Scratch));
            if wanted {
                for operand in &instruction.operands {
                    live[operand.value.0 as usize] = true;
                }
                kept.push(instruction);
            }
        }
        kept.reverse();
        *instructions = kept;
    }
    renumber(program);
}

/// Numbers values as the printed form does: declared ones in their order, then scratch values by first write.
fn renumber(program: &mut Program) {
    let mut used = vec![false; program.values.len()];
    let mut order: Vec<ValueId> = Vec::with_capacity(program.values.len());
    let mut scratch = Vec::new();
    for range in Range::ALL {
        for instruction in program.range(range) {
            let reads = instruction.operands.iter().map(|operand| operand.value);
            for id in reads.chain(instruction.outputs.iter().copied()) {
                if !std::mem::replace(&mut used[id.0 as usize], true)
                    && program.value(id).role == Role::Scratch
                {
                    scratch.push(id);
                }
            }
        }
    }
    for (id, value) in program.values_with_ids() {
        let keep = match value.role {
            Role::Scratch => false,
            Role::Constant { .. } => used[id.0 as usize],
            _ => true,
        };
        if keep {
            order.push(id);
        }
    }
    // Scratch values are numbered by where they are written, which is where the printed form declares them.
    let mut written = Vec::new();
    for range in Range::ALL {
        for instruction in program.range(range) {
            written.extend(
                instruction.outputs.iter().copied().filter(|id| program.value(*id).role == Role::Scratch),
            );
        }
    }
    let mut listed = vec![false; program.values.len()];
    for id in written.into_iter().chain(scratch) {
        if !std::mem::replace(&mut listed[id.0 as usize], true) {
            order.push(id);
        }
    }
    let mut renamed = vec![None; program.values.len()];
    for (new, old) in order.iter().enumerate() {
        renamed[old.0 as usize] = Some(ValueId(new as u32));
    }
    let rename = |id: &mut ValueId| {
        if let Some(new) = renamed[id.0 as usize] {
            *id = new;
        }
    };
    let mut values: Vec<Option<crate::Value>> =
        std::mem::take(&mut program.values).into_iter().map(Some).collect();
    program.values = order.iter().filter_map(|old| values[old.0 as usize].take()).collect();
    for value in &mut program.values {
        if let Role::Next { of } = &mut value.role {
            rename(of);
        }
    }
    for instruction in program.accumulate.iter_mut().chain(&mut program.update) {
        for Operand { value, .. } in &mut instruction.operands {
            rename(value);
        }
        instruction.outputs.iter_mut().for_each(rename);
    }
}
