//! The digest chain: what the state of each committed step is, told by the update that wrote it.
//!
//! The optimizer digests what it writes (and what it read) in its own pass, from its registers; what it does not write (biases, counters) is
//! small and digested by the host. A digest of the whole is a chain over both, in the order of the program.

use crate::decide::Digest;
use std::collections::HashMap;
use toprope_program::operator::{Adamw, DIGEST_BLOCK, DIGEST_KEYS, digest_factor, scramble};
use toprope_program::{DType, Operator, Outputs, Program, Role, Type, Validated, Value, ValueId, Width};

/// State values that are digested together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The values, of role state.
    pub members: Vec<ValueId>,
    /// The output that holds the sum of their digests after `update`; none is left to the host.
    pub told: Option<ValueId>,
}

/// Asks every optimizer that does not give a digest yet for one.
pub fn insert(program: &mut Program) {
    for index in 0..program.update.len() {
        let is_check = program.update[index].check.is_some();
        match &mut program.update[index].operator {
            Operator::Adamw(adamw) if !adamw.digests && !is_check => adamw.digests = true,
            _ => continue,
        }
        let output = program.value(program.update[index].outputs[0]).name.clone();
        for digest in Adamw::DIGESTS {
            let Type { dtype, shape } = Type::new(DType::U32, [2]);
            let name = format!("{output}.{digest}");
            program.values.push(Value { name, dtype, shape, role: Role::Output });
            let id = ValueId(program.values.len() as u32 - 1);
            program.update[index].outputs.push(id);
        }
    }
}

/// The groups of a program's state, each state value in one of them.
pub fn groups(program: &Validated) -> Vec<Group> {
    let program = program.program();
    let of: HashMap<ValueId, ValueId> = program
        .values_with_ids()
        .filter_map(|(id, value)| match value.role {
            Role::Next { of } => Some((id, of)),
            _ => None,
        })
        .collect();
    let mut groups = Vec::new();
    let mut grouped = Vec::new();
    for instruction in program.update.iter().filter(|instruction| instruction.check.is_none()) {
        let (Operator::Adamw(_), [weight, m, v, digest, ..]) =
            (&instruction.operator, instruction.outputs.as_slice())
        else {
            continue;
        };
        let members: Vec<ValueId> = [weight, m, v].iter().filter_map(|id| of.get(*id).copied()).collect();
        if members.len() == 3 && program.value(*digest).role == Role::Output {
            grouped.extend(members.iter().copied());
            groups.push(Group { members, told: Some(*digest) });
        }
    }
    let rest = program.state().filter(|(id, _)| !grouped.contains(id));
    groups.extend(rest.map(|(id, _)| Group { members: vec![id], told: None }));
    groups
}

/// The digest that `update` told of a group.
pub fn told(outputs: &Outputs, id: ValueId) -> Option<u64> {
    let bytes = outputs.bytes(id)?;
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// The contract's `digest` of a value's bytes.
pub fn digest_of(dtype: DType, bytes: &[u8]) -> u64 {
    let each = dtype.size_bytes(Width::Native);
    let blocks = bytes.chunks(DIGEST_BLOCK * each).enumerate();
    blocks.fold(0, |sum: u64, (block, bytes)| {
        let own = match each {
            2 => bytes.chunks_exact(2).zip(&DIGEST_KEYS).fold(0u64, |sum, (pair, key)| {
                sum.wrapping_add(u64::from(u16::from_le_bytes([pair[0], pair[1]])) * u64::from(*key))
            }),
            _ => bytes.chunks_exact(4).zip(&DIGEST_KEYS).fold(0u64, |sum, (four, key)| {
                let bits = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                sum.wrapping_add(u64::from(bits) * u64::from(*key))
            }),
        };
        sum.wrapping_add(own.wrapping_mul(digest_factor(block as u64)))
    })
}

/// One digest of many, in their order: a chain over SplitMix64's finalizer.
pub fn fold(digests: impl Iterator<Item = u64>) -> Digest {
    Digest(digests.fold(0u64, |chain, digest| scramble(scramble(chain).wrapping_add(digest))))
}
