//! Schedules that cannot happen, refused before the first step.

use super::change::width;
use super::spec::{At, Change, Corruption, Entry, Home, Schedule, Scheduled, Target, What};
use super::target::{instructions, resolve, results};
use toprope_program::shape::{elements, sizes};
use toprope_program::{DType, Program, Role, Value};

/// A fault that cannot happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault `{fault}` cannot happen: {reason}")]
pub struct Impossible {
    /// The fault, as a schedule names it.
    pub fault: String,
    /// Why, and what would be right.
    pub reason: String,
}

/// Checks a schedule against a training program and the number of steps of the run.
///
/// # Errors
/// The first fault that cannot happen.
pub fn check(schedule: &Schedule, program: &Program, steps: u64) -> Result<(), Impossible> {
    for entry in &schedule.entries {
        let (fault, checked) = match entry {
            Entry::Fault(fault) => (fault.to_string(), one(fault, program, steps)),
            Entry::Random(random) if random.classes.is_empty() => {
                (random.to_string(), Err("no class to choose from: name one in classes=".into()))
            }
            Entry::Random(_) => continue,
        };
        checked.map_err(|reason| Impossible { fault, reason })?;
    }
    Ok(())
}

fn one(fault: &Scheduled, program: &Program, steps: u64) -> Result<(), String> {
    if fault.step >= steps {
        return Err(format!("the run has {steps} steps, counted from 0; choose one below {steps}"));
    }
    match &fault.what {
        What::Die(at) | What::Hang(at) | What::OutOfMemory(at) | What::Unsupported(at) => target(at, program),
        What::Driver { target: at, .. } => target(at, program),
        What::Compute { corruption, target: at } => {
            target(at, program)?;
            let Some(strike) = resolve(program, at) else { return Ok(()) };
            let instruction = &program.range(strike.range)[strike.index];
            let count = results(instruction);
            let Some(id) = instruction.outputs[..count].get(corruption.output) else {
                let name = instruction.operator.name();
                return Err(format!("`{name}` has {count} output(s), counted from 0"));
            };
            let value = program.value(*id);
            // The accumulator of a float is an f32 whatever it is stored in.
            let bits = if value.dtype.is_float() { 32 } else { width(value.dtype) };
            fits(corruption, value, program, bits)
        }
        What::AtRest { corruption, home, value } => {
            let value = at_rest(program, *home, value)?;
            fits(corruption, value, program, width(value.dtype))
        }
        What::Slow { .. }
        | What::DieWhileAnswering
        | What::DieInSnapshot
        | What::TearState
        | What::DiskFull
        | What::KillSupervisor => Ok(()),
    }
}

fn target(target: &Target, program: &Program) -> Result<(), String> {
    if resolve(program, target).is_some() {
        return Ok(());
    }
    Err(match &target.at {
        At::Start => "the program has no instruction".into(),
        At::Range(range, _) => {
            let count = instructions(program, *range);
            format!("`{}` has {count} instructions, counted from 0", range.name())
        }
        At::Operator { name, part } => {
            let all = || program.accumulate.iter().chain(&program.update);
            match part {
                Some(part) if all().any(|instruction| instruction.operator.name() == name) => {
                    let parts = all().filter(|i| i.operator.name() == name).map(|i| i.part.as_str());
                    format!("the program has no `{name}` in `{part}`{}", nearest(part, parts))
                }
                _ => {
                    let names = all().map(|instruction| instruction.operator.name());
                    format!("the program has no `{name}`{}", nearest(name, names))
                }
            }
        }
        At::Value(name) => match program.find(name) {
            Some(_) => format!("no instruction writes `{name}`; corrupt it at rest instead"),
            None => unknown(name, program.values.iter()),
        },
    })
}

fn unknown<'a>(name: &str, values: impl Iterator<Item = &'a Value>) -> String {
    format!("the program has no value `{name}`{}", nearest(name, values.map(|value| value.name.as_str())))
}

fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> String {
    let near = words.min_by_key(|known| strsim::damerau_levenshtein(known, word));
    near.map(|near| format!("; the nearest is `{near}`")).unwrap_or_default()
}

fn at_rest<'a>(program: &'a Program, home: Home, name: &str) -> Result<&'a Value, String> {
    let fits = |value: &&Value| match home {
        Home::State | Home::Snapshot | Home::Checkpoint => matches!(value.role, Role::State { .. }),
        Home::Carried => value.role == Role::Carried,
        Home::Activation => value.role == Role::Scratch,
    };
    let found = program.values.iter().filter(fits).find(|value| value.name == name);
    found.ok_or_else(|| match program.find(name) {
        Some(_) if home == Home::Activation => format!("`{name}` is no value inside a range"),
        Some(_) if home == Home::Carried => format!("`{name}` is not carried between the ranges"),
        Some(_) => format!("`{name}` is not a part of the state"),
        None => unknown(name, program.values.iter().filter(fits)),
    })
}

fn fits(corruption: &Corruption, value: &Value, program: &Program, bits: u32) -> Result<(), String> {
    let name = &value.name;
    let (bit, carries) = match corruption.change {
        Change::Flip(bit) => (bit, bits),
        Change::WrongCarry(bit) | Change::MissingCarry(bit) => {
            (bit, bits - u32::from(value.dtype.is_float()))
        }
        Change::Nan | Change::Infinity if !value.dtype.is_float() => {
            return Err(format!("`{name}` holds {}, which has no NaN or infinity", value.dtype));
        }
        _ => (None, bits),
    };
    if let Some(bit) = bit.filter(|bit| *bit >= carries) {
        return Err(format!("bit {bit} is beyond `{name}`: its bits are 0 to {}", carries - 1));
    }
    let there = elements(&sizes(&value.shape, &program.bounds()));
    if corruption.count > there {
        return Err(format!("`{name}` has {there} elements, fewer than count {}", corruption.count));
    }
    if corruption.band.is_some() && matches!(value.dtype, DType::I32 | DType::U32) {
        return Err(format!("`{name}` holds {}; bands are of floats", value.dtype));
    }
    Ok(())
}
