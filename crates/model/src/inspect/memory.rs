//! Whose memory it is: the bytes of each value go to the part of the model that it belongs to.

use crate::architecture::Architecture;
use crate::parameters::parameters;
use crate::totals::group;
use serde::Serialize;
use std::collections::HashMap;
use toprope_program::memory::ALIGNMENT_BYTES;
use toprope_program::{MemoryPlan, Program, Range, Role, StateLayout, ValueId};

/// A part's bytes in the memory plan, by what they are for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartMemory {
    /// The part; `gaps` is what the layout leaves between values.
    pub part: String,
    /// The state, all halves of it.
    pub state_bytes: usize,
    /// Gradients and counters.
    pub carried_bytes: usize,
    /// Inputs, outputs, constants.
    pub host_bytes: usize,
    /// Activations and gradients of activations that are alive where most are.
    pub scratch_bytes: usize,
}

impl PartMemory {
    fn new(part: &str) -> PartMemory {
        PartMemory { part: part.into(), state_bytes: 0, carried_bytes: 0, host_bytes: 0, scratch_bytes: 0 }
    }

    /// All of them.
    pub fn total_bytes(&self) -> usize {
        let rest = self.carried_bytes.saturating_add(self.host_bytes).saturating_add(self.scratch_bytes);
        self.state_bytes.saturating_add(rest)
    }
}

/// The plan's bytes by part, parts in the order of `names`; they add up to the plan's total.
pub(super) fn by_part<'a>(
    architecture: Architecture<'_>,
    program: &Program,
    plan: &MemoryPlan,
    names: impl Iterator<Item = &'a str>,
) -> Vec<PartMemory> {
    let mut parts: Vec<PartMemory> = names.map(PartMemory::new).collect();
    let owners = Owners::new(architecture, program);
    let halves = if plan.layout == StateLayout::Double { 2 } else { 1 };
    let mut add = |name: &str, write: &mut dyn FnMut(&mut PartMemory)| {
        let at = parts.iter().position(|part| part.part == name).unwrap_or_else(|| {
            parts.push(PartMemory::new(name));
            parts.len() - 1
        });
        write(&mut parts[at]);
    };
    for (id, value) in program.values_with_ids() {
        let Some(place) = plan.place(id) else { continue };
        let bytes = place.bytes.div_ceil(ALIGNMENT_BYTES).saturating_mul(ALIGNMENT_BYTES);
        add(owners.of(program, id), &mut |part| match value.role {
            Role::State { .. } => grow(&mut part.state_bytes, bytes.saturating_mul(halves)),
            Role::Carried => grow(&mut part.carried_bytes, bytes),
            Role::Input | Role::Output | Role::Constant { .. } | Role::Cache => {
                grow(&mut part.host_bytes, bytes)
            }
            Role::Next { .. } | Role::Scratch => {}
        });
    }
    let mut left = plan.breakdown.scratch_bytes;
    for (id, bytes) in fullest(program, plan) {
        left = left.saturating_sub(bytes);
        add(owners.of(program, id), &mut |part| grow(&mut part.scratch_bytes, bytes));
    }
    if left > 0 {
        add("gaps", &mut |part| grow(&mut part.scratch_bytes, left));
    }
    parts.retain(|part| part.total_bytes() > 0);
    parts
}

/// Sums stay in range for sizes that no machine has.
fn grow(sum: &mut usize, bytes: usize) {
    *sum = sum.saturating_add(bytes);
}

/// The scratch values that are alive where most bytes of them are.
fn fullest(program: &Program, plan: &MemoryPlan) -> Vec<(ValueId, usize)> {
    let mut fullest = (0, Vec::new());
    for range in Range::ALL {
        let instructions = program.range(range);
        let mut lives: HashMap<ValueId, (usize, usize)> = HashMap::new();
        for (index, instruction) in instructions.iter().enumerate() {
            let read = instruction.operands.iter().map(|operand| operand.value);
            for id in read.chain(instruction.outputs.iter().copied()) {
                if program.value(id).role == Role::Scratch {
                    lives.entry(id).or_insert((index, index)).1 = index;
                }
            }
        }
        let bytes = |id: &ValueId| plan.place(*id).map_or(0, |place| place.bytes);
        // What begins and what ends at each instruction, so that one pass finds the fullest.
        let mut change = vec![(0, 0); instructions.len()];
        for (id, (first, last)) in &lives {
            grow(&mut change[*first].0, bytes(id));
            grow(&mut change[*last].1, bytes(id));
        }
        let (mut alive, mut most) = (0usize, (0, 0));
        for (index, (begins, ends)) in change.into_iter().enumerate() {
            alive = alive.saturating_add(begins);
            most = most.max((alive, instructions.len() - index));
            alive = alive.saturating_sub(ends);
        }
        if most.0 > fullest.0 {
            let at = instructions.len() - most.1;
            let there = lives.iter().filter(|(_, (first, last))| (*first..=*last).contains(&at));
            fullest = (most.0, there.map(|(id, _)| (*id, bytes(id))).collect());
        }
    }
    fullest.1
}

/// The part that each value belongs to.
struct Owners {
    /// Parts of parameters, by name.
    parameters: HashMap<String, String>,
    /// The part of the first instruction that writes a value, or else reads it.
    instructions: HashMap<ValueId, String>,
}

impl Owners {
    fn new(architecture: Architecture<'_>, program: &Program) -> Owners {
        let parameters =
            parameters(architecture).into_iter().map(|parameter| (parameter.name, parameter.part)).collect();
        let mut instructions = HashMap::new();
        let all = || program.accumulate.iter().chain(&program.update);
        for instruction in all() {
            for id in &instruction.outputs {
                instructions.entry(*id).or_insert_with(|| instruction.part.clone());
            }
        }
        for instruction in all() {
            for operand in &instruction.operands {
                instructions.entry(operand.value).or_insert_with(|| instruction.part.clone());
            }
        }
        Owners { parameters, instructions }
    }

    /// A parameter, its moments and its gradient belong to the parameter's part.
    fn of<'a>(&'a self, program: &Program, id: ValueId) -> &'a str {
        let name = program.value(id).name.as_str();
        let own = name.strip_prefix("gradient.").unwrap_or(name);
        let moments = [".m", ".v", ".momentum"];
        let own = moments.iter().find_map(|moment| own.strip_suffix(moment)).unwrap_or(own);
        let part = self.parameters.get(own).or_else(|| self.instructions.get(&id));
        part.map_or("other", |part| group(part))
    }
}
