//! Random schedules: the same seed, program and number of steps give the same faults in every process.

use super::select::draw;
use super::spec::*;
use super::target::{instructions, results};
use toprope_program::shape::{elements, sizes};
use toprope_program::{Program, Range, Role};

/// A random entry that cannot be drawn from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` draws `{class}`, and the program has no place for it; leave that class out")]
pub struct DrawError {
    /// The entry.
    pub entry: String,
    /// The class.
    pub class: &'static str,
}

/// The faults of a schedule with its random entries drawn. A fault's index here is its id everywhere: in
/// [`super::Firings`], in records and in the journal.
///
/// # Errors
/// A class that this program has no place for.
pub fn expand(schedule: &Schedule, program: &Program, steps: u64) -> Result<Vec<Scheduled>, DrawError> {
    let mut faults = Vec::new();
    for entry in &schedule.entries {
        match entry {
            Entry::Fault(fault) => faults.push(fault.clone()),
            Entry::Random(random) => {
                for step in 0..steps {
                    let dice = Dice { seed: random.seed, step };
                    let classes = random.classes.len();
                    if classes == 0 || dice.unit(0) >= random.rate {
                        continue;
                    }
                    let class = random.classes[dice.below(1, classes)];
                    let what = what(class, &dice, program)
                        .ok_or_else(|| DrawError { entry: random.to_string(), class: class.name() })?;
                    faults.push(Scheduled { step, device: None, always: false, what });
                }
            }
        }
    }
    Ok(faults)
}

/// Random numbers of one step, by what they are for.
struct Dice {
    seed: u64,
    step: u64,
}

impl Dice {
    fn bits(&self, purpose: u32) -> u64 {
        draw(self.seed, 16 + purpose, self.step)
    }

    fn unit(&self, purpose: u32) -> f64 {
        (self.bits(purpose) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&self, purpose: u32, bound: usize) -> usize {
        (self.bits(purpose) % bound.max(1) as u64) as usize
    }
}

fn what(class: RandomClass, dice: &Dice, program: &Program) -> Option<What> {
    let target = || anywhere(dice, program);
    Some(match class {
        RandomClass::Lost => match dice.below(2, 8) {
            0 => What::DieWhileAnswering,
            _ => What::Die(target()?),
        },
        RandomClass::Hang => What::Hang(target()?),
        // CANN's codes for a vector core, a link and a memory error.
        RandomClass::Driver => {
            What::Driver { code: [507_015, 507_035, 507_054][dice.below(2, 3)], target: target()? }
        }
        RandomClass::OutOfMemory => What::OutOfMemory(target()?),
        RandomClass::Unsupported => What::Unsupported(target()?),
        RandomClass::NonFinite => {
            let change = [Change::Nan, Change::Infinity][dice.below(2, 2)];
            compute(dice, program, change, 1)?
        }
        RandomClass::Mismatch => {
            let change = mixed(dice.unit(2));
            compute(dice, program, change, 10usize.pow(dice.below(3, 4) as u32))?
        }
        RandomClass::Rest => {
            let home = [Home::State, Home::Carried][dice.below(2, 2)];
            let fits = |role: &Role| match home {
                Home::State => matches!(role, Role::State { .. }),
                _ => *role == Role::Carried,
            };
            let values: Vec<_> = program.values.iter().filter(|value| fits(&value.role)).collect();
            let value = values.get(dice.below(4, values.len()))?;
            let corruption = Corruption { seed: dice.bits(5), ..Corruption::one(Change::Flip(None)) };
            What::AtRest { corruption, home, value: value.name.clone() }
        }
        RandomClass::Slow => {
            let factor = [1.5, 2.0, 3.0][dice.below(2, 3)];
            What::Slow { factor, steps: 1 + dice.below(3, 5) as u64 }
        }
    })
}

/// The mix of wrong numbers that NPU logs of the field report: single bits, wrong carries, missing carries, compounds.
fn mixed(unit: f64) -> Change {
    match unit {
        u if u < 0.47 => Change::Flip(None),
        u if u < 0.72 => Change::WrongCarry(None),
        u if u < 0.96 => Change::MissingCarry(None),
        _ => Change::Compound,
    }
}

fn anywhere(dice: &Dice, program: &Program) -> Option<Target> {
    let (first, second) = (instructions(program, Range::Accumulate), instructions(program, Range::Update));
    let index = dice.below(6, first + second);
    let at = match index.checked_sub(first) {
        None => At::Range(Range::Accumulate, Some(index)),
        Some(index) if second > 0 => At::Range(Range::Update, Some(index)),
        Some(_) => return None,
    };
    let moment = [Moment::Before, Moment::In, Moment::After][dice.below(7, 3)];
    Some(Target { at, moment })
}

/// A float output anywhere in the step.
fn compute(dice: &Dice, program: &Program, change: Change, count: usize) -> Option<What> {
    let mut places = Vec::new();
    for range in Range::ALL {
        let plain = program.range(range).iter().filter(|instruction| instruction.check.is_none());
        for (index, instruction) in plain.enumerate() {
            for (output, id) in instruction.outputs[..results(instruction)].iter().enumerate() {
                if program.value(*id).dtype.is_float() {
                    places.push((range, index, output, *id));
                }
            }
        }
    }
    let (range, index, output, id) = *places.get(dice.below(4, places.len()))?;
    let there = elements(&sizes(&program.value(id).shape, &program.bounds()));
    let corruption =
        Corruption { change, count: count.min(there), seed: dice.bits(5), band: None, output, anew: false };
    let target = Target { at: At::Range(range, Some(index)), moment: Moment::In };
    Some(What::Compute { corruption, target })
}
