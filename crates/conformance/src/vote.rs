//! Sister devices vote by bits: the same instruction on the same operands must give the same bits on each, and the one that
//! stands against a majority is the bad one. Needs no oracle and no tolerance; it says nothing of what all get wrong.

use crate::session::{Session, all_checks};
use crate::values::Values;
use std::sync::Arc;
use toprope_program::shape::sizes;
use toprope_program::{Device, Fault, Range, Span, Tensor, Validated, Width};

/// What one instruction's bits came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All devices gave the same bits.
    Unanimous,
    /// More than half gave the same bits; these devices did not, or failed.
    Against(Vec<usize>),
    /// No bits have more than half of the votes: nobody can be named. Groups of devices with the same bits, largest first;
    /// who failed is in none.
    NoMajority(Vec<Vec<usize>>),
}

/// The vote over one instruction.
#[derive(Clone, Debug)]
pub struct Vote {
    /// The range.
    pub range: Range,
    /// Index in its range.
    pub index: usize,
    /// The operator's name.
    pub operator: &'static str,
    /// What it came to.
    pub decision: Decision,
    /// Devices that failed in it, with their faults; they have no vote from here on.
    pub faults: Vec<(usize, Fault)>,
}

/// Votes over programs, added up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Instructions voted on.
    pub votes: u64,
    /// Votes that named nobody and were not unanimous.
    pub undecided: u64,
    /// How often each device stood against a majority, and the first operator in which it did.
    pub against: Vec<(u64, Option<&'static str>)>,
}

impl Tally {
    /// Adds votes of `devices` devices.
    pub fn add(&mut self, devices: usize, votes: &[Vote]) {
        self.against.resize(self.against.len().max(devices), (0, None));
        for vote in votes {
            self.votes += 1;
            match &vote.decision {
                Decision::Unanimous => {}
                Decision::NoMajority(_) => self.undecided += 1,
                Decision::Against(minority) => {
                    for device in minority {
                        let (count, first) = &mut self.against[*device];
                        *count += 1;
                        first.get_or_insert(vote.operator);
                    }
                }
            }
        }
    }

    /// The devices that ever stood against a majority, by index.
    pub fn named(&self) -> Vec<usize> {
        (0..self.against.len()).filter(|device| self.against[*device].0 > 0).collect()
    }
}

/// What a device gave for one instruction: raw bytes of its outputs.
type Bits = Result<Vec<Vec<u8>>, Fault>;

/// Runs a program on every device, an instruction at a time, with one set of values after the other, the first as a first
/// micro-batch. Each gets the same operands, those that the majority (or, without one, the largest group) gave before.
///
/// # Errors
/// A device refuses the program or fails outside of its instructions: its index and the fault.
pub fn vote(
    devices: &mut [&mut dyn Device],
    program: &Arc<Validated>,
    symbols: &[usize],
    rounds: Vec<Values>,
) -> Result<Vec<Vote>, (usize, Fault)> {
    let mut sessions = Vec::new();
    for (at, device) in devices.iter_mut().enumerate() {
        sessions.push(Session::open(*device, program, Width::Native).map_err(|fault| (at, fault))?);
    }
    let mut failed = vec![false; devices.len()];
    let mut votes = Vec::new();
    for (round, mut held) in rounds.into_iter().enumerate() {
        for range in Range::ALL {
            for (index, instruction) in program.program().range(range).iter().enumerate() {
                let fed = Fed { range, index, symbols, held: &held, first: round == 0 };
                let mut given: Vec<Option<Bits>> = Vec::new();
                for (at, device) in devices.iter_mut().enumerate() {
                    given.push((!failed[at]).then(|| one(*device, &sessions[at], &fed)));
                }
                let (camps, faults) = count(given);
                faults.iter().for_each(|(at, _)| failed[*at] = true);
                let decision = decide(&camps, devices.len());
                let chosen = camps.into_iter().next().map(|(bytes, _)| bytes).unwrap_or_default();
                for (id, bytes) in instruction.outputs.iter().zip(chosen) {
                    let value = program.program().value(*id);
                    let sizes = sizes(&value.shape, symbols);
                    let tensor = Tensor::from_bytes(value.dtype, &sizes, Width::Native, &bytes);
                    held[id.0 as usize] = tensor.or(held[id.0 as usize].take());
                }
                votes.push(Vote { range, index, operator: instruction.operator.name(), decision, faults });
            }
        }
    }
    for (at, (device, session)) in devices.iter_mut().zip(sessions).enumerate() {
        if !failed[at] {
            session.close(*device).map_err(|fault| (at, fault))?;
        }
    }
    Ok(votes)
}

/// One instruction with what it reads.
struct Fed<'a> {
    range: Range,
    index: usize,
    symbols: &'a [usize],
    held: &'a Values,
    first: bool,
}

/// The bytes that an instruction's outputs hold after it ran.
fn one(device: &mut dyn Device, session: &Session, fed: &Fed<'_>) -> Bits {
    let Fed { range, index, symbols, held, first } = *fed;
    let program = session.program.program();
    let instruction = &program.range(range)[index];
    let mut image = session.blank();
    for operand in &instruction.operands {
        if let Some(tensor) = &held[operand.value.0 as usize] {
            session.put(&mut image, operand.value, tensor);
        }
    }
    session.write(device, &image)?;
    let span = Span { range, from: index, to: index + 1 };
    session.run(device, span, symbols, first, &all_checks(program))?;
    let after = session.read(device)?;
    let bytes = |id: &toprope_program::ValueId| {
        let value = program.value(*id);
        let count: usize = sizes(&value.shape, symbols).iter().product();
        let place = session.plan.place(*id);
        place.map_or_else(Vec::new, |place| {
            after.bytes(place, count * value.dtype.size_bytes(Width::Native)).to_vec()
        })
    };
    Ok(instruction.outputs.iter().map(bytes).collect())
}

/// Bits with the devices that gave them.
type Camp = (Vec<Vec<u8>>, Vec<usize>);

/// Groups of devices with the same bits, largest first, and the faults.
fn count(given: Vec<Option<Bits>>) -> (Vec<Camp>, Vec<(usize, Fault)>) {
    let (mut camps, mut faults): (Vec<Camp>, Vec<_>) = (Vec::new(), Vec::new());
    for (at, bits) in given.into_iter().enumerate() {
        match bits {
            None => {}
            Some(Err(fault)) => faults.push((at, fault)),
            Some(Ok(bits)) => match camps.iter_mut().find(|(known, _)| *known == bits) {
                Some((_, devices)) => devices.push(at),
                None => camps.push((bits, vec![at])),
            },
        }
    }
    camps.sort_by_key(|(_, devices)| std::cmp::Reverse(devices.len()));
    (camps, faults)
}

/// A majority is more than half of all devices, those that failed among them.
fn decide(camps: &[Camp], devices: usize) -> Decision {
    match camps.first() {
        Some((_, largest)) if largest.len() == devices => Decision::Unanimous,
        Some((_, largest)) if largest.len() * 2 > devices => {
            Decision::Against((0..devices).filter(|at| !largest.contains(at)).collect())
        }
        _ => Decision::NoMajority(camps.iter().map(|(_, devices)| devices.clone()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toprope_program::FaultKind;

    fn bits(numbers: &[u8]) -> Vec<Option<Bits>> {
        numbers.iter().map(|number| Some(Ok(vec![vec![*number]]))).collect()
    }

    fn decided(given: Vec<Option<Bits>>) -> Decision {
        let devices = given.len();
        decide(&count(given).0, devices)
    }

    #[test]
    fn a_minority_is_named_and_a_tie_is_not() {
        assert_eq!(decided(bits(&[7, 7, 7])), Decision::Unanimous);
        assert_eq!(decided(bits(&[7, 7, 8, 7, 9])), Decision::Against(vec![2, 4]));
        assert_eq!(decided(bits(&[7, 8])), Decision::NoMajority(vec![vec![0], vec![1]]));
        assert_eq!(decided(bits(&[7, 8, 7, 8])), Decision::NoMajority(vec![vec![0, 2], vec![1, 3]]));
        assert_eq!(decided(bits(&[1, 2, 3])), Decision::NoMajority(vec![vec![0], vec![1], vec![2]]));
    }

    #[test]
    fn who_fails_stands_against_the_others() {
        let mut given = bits(&[7, 7, 7]);
        given[1] = Some(Err(Fault::new("x", FaultKind::Hang { waited_ms: 1 })));
        assert_eq!(decided(given), Decision::Against(vec![1]));
        let mut given = bits(&[7, 7]);
        given[0] = None;
        assert_eq!(decided(given), Decision::NoMajority(vec![vec![1]]), "one of two is no majority");
    }
}
