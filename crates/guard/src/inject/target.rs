//! Where in a program a fault strikes.

use super::spec::{At, Home, Moment, Scheduled, Target, What};
use toprope_program::operator::Adamw;
use toprope_program::{Instruction, Operator, Program, Range};

/// An instruction and when, seen from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strike {
    pub range: Range,
    /// Index in the program that the device was given, checks among it.
    pub index: usize,
    pub moment: Moment,
}

/// The instructions of a range without checks, with their indices: schedules count them so that a level of checking does
/// not move a fault.
fn unchecked(program: &Program, range: Range) -> impl DoubleEndedIterator<Item = (usize, &Instruction)> {
    program.range(range).iter().enumerate().filter(|(_, instruction)| instruction.check.is_none())
}

/// How many instructions of a range a schedule can name.
pub(super) fn instructions(program: &Program, range: Range) -> usize {
    unchecked(program, range).count()
}

/// Where a target lies in a program.
pub(super) fn resolve(program: &Program, target: &Target) -> Option<Strike> {
    let find = |wanted: &dyn Fn(&Instruction) -> bool| {
        Range::ALL.into_iter().find_map(|range| {
            let found = unchecked(program, range).find(|(_, instruction)| wanted(instruction));
            found.map(|(index, _)| (range, index))
        })
    };
    let (range, index) = match &target.at {
        At::Start => find(&|_| true)?,
        At::Range(range, index) => {
            let index = index.unwrap_or(instructions(program, *range) / 2);
            (*range, unchecked(program, *range).nth(index)?.0)
        }
        At::Operator { name, part } => find(&|instruction| {
            instruction.operator.name() == name
                && part.as_ref().is_none_or(|part| within(&instruction.part, part))
        })?,
        At::Value(name) => {
            let id = program.find(name)?;
            find(&|instruction| instruction.outputs.contains(&id))?
        }
    };
    Some(Strike { range, index, moment: target.moment })
}

/// Whether an instruction's part is `wanted` or lies inside of it.
fn within(part: &str, wanted: &str) -> bool {
    part == wanted || part.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'))
}

/// Where a fault strikes a device; `None` for those of the worker and the supervisor, and where there is no such place.
fn strike(program: &Program, what: &What) -> Option<Strike> {
    match what {
        What::Die(target)
        | What::Hang(target)
        | What::Driver { target, .. }
        | What::OutOfMemory(target)
        | What::Unsupported(target)
        | What::Compute { target, .. } => resolve(program, target),
        What::AtRest { home, value, .. } => {
            let at = |range: Range| Strike { range, index: 0, moment: Moment::Before };
            match home {
                Home::State => Some(at(Range::Accumulate)),
                Home::Carried => Some(at(Range::Update)),
                Home::Activation => {
                    resolve(program, &Target { at: At::Value(value.clone()), moment: Moment::After })
                }
                Home::Snapshot | Home::Checkpoint => None,
            }
        }
        What::TearState => {
            let last = program.update.len().checked_sub(1)?;
            Some(Strike { range: Range::Update, index: last, moment: Moment::After })
        }
        What::DieWhileAnswering
        | What::DieInSnapshot
        | What::Slow { .. }
        | What::DiskFull
        | What::KillSupervisor => None,
    }
}

/// Where a fault strikes a device, its echoes among it: a check that runs an instruction a second time on a chip that is
/// broken for good meets the same fault. Check operators are other code and do not meet it.
pub(super) fn strikes(program: &Program, fault: &Scheduled) -> Vec<Strike> {
    let Some(first) = strike(program, &fault.what) else { return Vec::new() };
    let mut strikes = vec![first];
    if fault.always && matches!(fault.what, What::Compute { .. }) {
        let instructions = program.range(first.range);
        let struck = &instructions[first.index];
        let replays = |instruction: &Instruction| {
            instruction.check.is_some()
                && instruction.operator.name() == struck.operator.name()
                && instruction.operands == struck.operands
        };
        let echoes = instructions.iter().enumerate().filter(|(_, instruction)| replays(instruction));
        strikes.extend(echoes.map(|(index, _)| Strike { index, ..first }));
    }
    strikes
}

/// How many of an instruction's outputs hold its result; those behind them are checksums of it.
pub fn results(instruction: &Instruction) -> usize {
    let checksums = match &instruction.operator {
        Operator::Matmul(matmul) => usize::from(matmul.row_sums),
        Operator::GroupedMatmul(grouped) => usize::from(grouped.row_sums),
        Operator::GroupedOuter(outer) => usize::from(outer.row_sums),
        Operator::LinearCrossEntropyGradient(loss) => 2 * usize::from(loss.sums),
        Operator::Adamw(adamw) => Adamw::DIGESTS.len() * usize::from(adamw.digests),
        Operator::AttentionGradient(attention) => usize::from(attention.sums),
        _ => 0,
    };
    instruction.outputs.len() - checksums
}
