//! Bits that must repeat on one device: a whole range against its operators one by one, twice the same, with checks on
//! and off, and in memory that the host gave.

use crate::session::{Image, Session, all_checks};
use crate::values::Values;
use std::sync::Arc;
use toprope_program::shape::sizes;
use toprope_program::{CheckMask, Device, Fault, Program, Range, Role, Span, Validated, ValueId, Width};

/// How a range is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// In one span.
    Whole,
    /// An instruction at a time.
    Single,
}

/// A value whose bits differ between two runs that must agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitDifference {
    /// The value's name.
    pub value: String,
    /// The operator that wrote it.
    pub operator: &'static str,
    /// First byte that differs, counted from the value's first.
    pub byte: usize,
}

/// Runs a program freely from these values and gives the memory afterwards.
pub fn free_run(
    device: &mut dyn Device,
    session: &Session,
    values: &Values,
    symbols: &[usize],
    manner: Manner,
    checks: &CheckMask,
) -> Result<Image, Fault> {
    let program = session.program.program();
    let mut image = session.blank();
    for (id, _) in program.values_with_ids() {
        if let Some(tensor) = &values[id.0 as usize] {
            session.put(&mut image, id, tensor);
        }
    }
    session.write(device, &image)?;
    for range in Range::ALL {
        let count = program.range(range).len();
        let spans: Vec<Span> = match manner {
            Manner::Whole => vec![Span { range, from: 0, to: count }],
            Manner::Single => (0..count).map(|from| Span { range, from, to: from + 1 }).collect(),
        };
        for span in spans.into_iter().filter(|span| span.from < span.to) {
            session.run(device, span, symbols, true, checks)?;
        }
    }
    session.read(device)
}

/// Compares what outlives a range: outputs, carried values, caches and next states. What a check wrote is left out where
/// `without_checks`.
pub fn compare_bits(
    session: &Session,
    symbols: &[usize],
    left: &Image,
    right: &Image,
    without_checks: bool,
) -> Option<BitDifference> {
    let program = session.program.program();
    for range in Range::ALL {
        for instruction in program.range(range) {
            if without_checks && instruction.check.is_some() {
                continue;
            }
            for id in &instruction.outputs {
                let value = program.value(*id);
                if !outlives(&value.role) {
                    continue;
                }
                let count: usize = sizes(&value.shape, symbols).iter().product();
                let bytes = count * value.dtype.size_bytes(session.plan.width);
                let Some(place) = session.plan.place(*id) else { continue };
                let (left, right) = (left.bytes(place, bytes), right.bytes(place, bytes));
                if let Some(byte) = left.iter().zip(right).position(|(a, b)| a != b) {
                    let operator = instruction.operator.name();
                    return Some(BitDifference { value: value.name.clone(), operator, byte });
                }
            }
        }
    }
    None
}

fn outlives(role: &Role) -> bool {
    match role {
        Role::Output | Role::Carried | Role::Cache | Role::Next { .. } => true,
        Role::Scratch | Role::State { .. } | Role::Constant { .. } | Role::Input => false,
    }
}

/// What was compared bit by bit, in the order of [`repeats`].
pub const PROPERTIES: [&str; 3] =
    ["same bits twice", "same bits in a range and alone", "same bits with checks on and off"];

/// Runs a program four times and compares the bits; one entry for each of [`PROPERTIES`], the last only where the program
/// has checks.
pub fn repeats(
    device: &mut dyn Device,
    program: &Arc<Validated>,
    values: &Values,
    symbols: &[usize],
) -> Result<Vec<Option<BitDifference>>, Fault> {
    let session = Session::open(device, program, Width::Native)?;
    let all = all_checks(program.program());
    let whole = free_run(device, &session, values, symbols, Manner::Whole, &all)?;
    let again = free_run(device, &session, values, symbols, Manner::Whole, &all)?;
    let single = free_run(device, &session, values, symbols, Manner::Single, &all)?;
    let mut found = vec![
        compare_bits(&session, symbols, &whole, &again, false),
        compare_bits(&session, symbols, &whole, &single, false),
    ];
    if has_checks(program.program()) {
        let unchecked = free_run(device, &session, values, symbols, Manner::Whole, &CheckMask::default())?;
        found.push(compare_bits(&session, symbols, &whole, &unchecked, true));
    }
    session.close(device)?;
    Ok(found)
}

fn has_checks(program: &Program) -> bool {
    Range::ALL.into_iter().flat_map(|range| program.range(range)).any(|i| i.check.is_some())
}

/// The id of the value that a bit difference names.
pub fn value_of(program: &Program, difference: &BitDifference) -> Option<ValueId> {
    program.find(&difference.value)
}
