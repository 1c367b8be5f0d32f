//! A user's own shapes: the distinct instructions of their programs. Each is run small first, so that all are tried; then as
//! large as time and memory allow, judged whole or by samples.

mod cut; // a part of a shape
mod drawn; // what it is filled with
mod run; // small first, then whole

pub use drawn::{Band, Numbers};
pub use run::run;

use std::collections::BTreeMap;
use toprope_conformance::isolate;
use toprope_diagnose::Probe;
use toprope_program::cost::{Cost, instruction_cost};
use toprope_program::{Concrete, Program, Range, text};

/// What an instruction is needed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// For training.
    pub training: bool,
    /// For inference.
    pub inference: bool,
}

/// One distinct instruction of a user's programs.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The instruction as a program of its own, without symbols.
    pub program: Program,
    /// The operator's name.
    pub operator: &'static str,
    /// The types of its operands.
    pub operands: Vec<Concrete>,
    /// The sizes, for people.
    pub told: String,
    /// How often it occurs.
    pub count: u64,
    /// What it costs once.
    pub cost: Cost,
    /// What it is needed for.
    pub need: Need,
    /// The numbers that its operands had in the user's own run, where that is known.
    pub numbers: Vec<Option<Numbers>>,
}

/// A call of somebody's own run.
#[derive(Clone, Debug)]
pub struct Call {
    /// The operator as a program of one instruction.
    pub program: Program,
    /// What it is needed for.
    pub need: Need,
    /// What is known of its operands' numbers.
    pub numbers: Vec<Option<Numbers>>,
    /// How often it was made.
    pub count: u64,
}

/// Why something on a user's list is not run.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Its name.
    pub operator: String,
    /// Its sizes, for people.
    pub shape: String,
    /// Why.
    pub reason: String,
}

/// The distinct instructions of programs, the cheapest first. Checks are not among them: they are put in by a guard.
pub fn distinct(programs: &[(&Program, Need)]) -> Vec<Shape> {
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    for (program, need) in programs {
        for range in Range::ALL {
            for index in 0..program.range(range).len() {
                let Some(shape) = shape(program, range, index, *need) else { continue };
                let known =
                    found.entry(text::print(&shape.program)).or_insert_with(|| Shape { count: 0, ..shape });
                known.count += 1;
                known.need.training |= need.training;
                known.need.inference |= need.inference;
            }
        }
    }
    let mut shapes: Vec<Shape> = found.into_values().collect();
    sort(&mut shapes);
    shapes
}

/// The distinct calls of somebody's own run, the cheapest first.
pub fn of_calls(calls: &[Call]) -> Vec<Shape> {
    let mut found: BTreeMap<String, Shape> = BTreeMap::new();
    for Call { program, need, numbers, count } in calls {
        let Some(shape) = shape(program, Range::Accumulate, 0, *need) else { continue };
        let known = found.entry(text::print(&shape.program)).or_insert_with(|| Shape {
            count: 0,
            numbers: numbers.clone(),
            ..shape
        });
        known.count += count;
        known.need.training |= need.training;
        known.need.inference |= need.inference;
        for (held, own) in known.numbers.iter_mut().zip(numbers) {
            *held = held.zip(*own).and_then(|(held, own)| held.joined(own));
        }
    }
    let mut shapes: Vec<Shape> = found.into_values().collect();
    sort(&mut shapes);
    shapes
}

fn sort(shapes: &mut [Shape]) {
    shapes.sort_by_key(|shape| (shape.cost.flops + shape.cost.bytes, shape.operator, shape.told.clone()));
}

fn shape(program: &Program, range: Range, index: usize, need: Need) -> Option<Shape> {
    let mut alone = isolate::bound(&isolate::alone(program, range, index)?, &program.bounds());
    // Names and places do not tell shapes apart.
    alone.name = "shape".into();
    for (at, value) in alone.values.iter_mut().enumerate() {
        value.name = format!("v{at}");
    }
    let instruction = alone.accumulate.first_mut()?;
    instruction.part.clear();
    let instruction = alone.accumulate.first()?;
    if instruction.check.is_some() {
        return None;
    }
    let operands = alone.concrete_operands(instruction, &[]);
    let cost = instruction_cost(&alone, instruction, &[]);
    let (operator, told) = (instruction.operator.name(), told(&operands));
    Some(Shape { operator, operands, told, count: 1, cost, need, numbers: Vec::new(), program: alone })
}

/// The sizes of operands, as in `[4096, 7168] [7168, 2048]`.
pub fn told(operands: &[Concrete]) -> String {
    let one = |operand: &Concrete| format!("{:?}", operand.sizes);
    operands.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The shapes that speed is measured on: the costliest of each operator and dtype within a budget of operations and bytes.
pub fn for_speed(shapes: &[Shape]) -> Vec<&Shape> {
    const FLOPS_MAX: u64 = 1 << 31;
    const BYTES_MAX: u64 = 1 << 25;
    let mut best: BTreeMap<(&str, &str), &Shape> = BTreeMap::new();
    for shape in shapes.iter().filter(|shape| shape.cost.flops <= FLOPS_MAX && shape.cost.bytes <= BYTES_MAX)
    {
        let dtype = shape.operands.iter().map(|o| o.dtype).find(|dtype| dtype.is_float());
        // They come cheapest first.
        best.insert((shape.operator, dtype.map_or("", toprope_program::DType::name)), shape);
    }
    best.into_values().collect()
}

/// A shape as a probe.
pub fn probe_of(shape: &Shape, seed: u64) -> Option<Probe> {
    let values = drawn::drawn(&shape.program, &shape.numbers, seed);
    Probe::new(shape.program.clone(), Vec::new(), values, true).ok()
}
