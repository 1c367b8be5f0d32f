//! The validator: lists every defect of a program with its place and reason. Its answer is the only way to get a program
//! that a device will prepare.
//!
//! Rules that it keeps:
//! - names of values and symbols are unique, printable and not empty; symbols are bound to at least 1;
//! - only the outermost dimension is symbolic, no dimension is 0, no size overflows, at most one symbol per shape;
//! - operands and outputs fit their operator's record: number, dtypes, shapes;
//! - a view stays inside its value for every binding;
//! - scratch, outputs and next states are written exactly once, before they are read, within one range;
//! - `accumulate` writes no state; `update` writes each next state once; every state that has no next is frozen;
//! - carried values are written by `accumulate` only, once, in the first range, and read in the second;
//! - caches are written by `append` only, and a reader stands behind the append;
//! - nobody writes state, inputs or constants; only train programs have an update; only train programs have next states;
//! - in place, nothing reads a state after its next half was written;
//! - instructions of one check share its bit; what they write is read by instructions of that check only.
//!
//! Rules that it does not keep yet: that every output is worth reading, that carried counters do not overflow.

use crate::dtype::DType;
use crate::operator::{Occurs, Operator};
use crate::program::{Instruction, Phase, Program, Range};
use crate::shape::{Dim, Type, View, elements, sizes};
use crate::value::{Operand, Role, ValueId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::OnceLock;

/// Where a defect is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// The program as a whole.
    Program,
    /// A symbol, by name.
    Symbol(String),
    /// A value, by name.
    Value(String),
    /// An instruction: range, index, operator.
    Instruction(Range, usize, &'static str),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defect {
    /// Where.
    pub spot: Spot,
    /// What, and what would be right.
    pub reason: String,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spot {
            Spot::Program => write!(f, "program: {}", self.reason),
            Spot::Symbol(name) => write!(f, "symbol {name}: {}", self.reason),
            Spot::Value(name) => write!(f, "%{name}: {}", self.reason),
            Spot::Instruction(range, index, operator) => {
                write!(f, "{} {index} `{operator}`: {}", range.name(), self.reason)
            }
        }
    }
}

/// A program that a device will prepare. Only [`validate`] makes one.
#[derive(Debug)]
pub struct Validated {
    program: Program,
    hash: OnceLock<String>,
}

impl Validated {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The stable hash of the unchecked program; see [`crate::hash`].
    pub fn hash(&self) -> &str {
        self.hash.get_or_init(|| crate::hash::program_hash(&self.program))
    }
}

/// Checks a program; on failure gives all defects, in the order of the program.
pub fn validate(program: Program) -> Result<Validated, Vec<Defect>> {
    let mut checker = Checker { program: &program, defects: Vec::new() };
    checker.symbols_and_values();
    // Instructions index values; only once all ids are in range can the rest be looked at.
    if checker.ids_in_range() {
        for range in Range::ALL {
            for (index, instruction) in program.range(range).iter().enumerate() {
                checker.instruction(range, index, instruction);
            }
        }
        checker.order();
        checker.checks();
    }
    let defects = checker.defects;
    if defects.is_empty() { Ok(Validated { program, hash: OnceLock::new() }) } else { Err(defects) }
}

/// The output types of an operator on operands of these types: counts and dtypes against its record, then its own rule.
pub fn infer(operator: &Operator, operands: &[Type]) -> Result<Vec<Type>, String> {
    let record = operator.definition().record();
    let required = record.operands.iter().filter(|slot| slot.occurs != Occurs::Optional).count();
    let unbounded = record.operands.iter().any(|slot| slot.occurs == Occurs::Many);
    if operands.len() < required || (!unbounded && operands.len() > record.operands.len()) {
        return Err(format!("{} operand(s) given, {required} needed", operands.len()));
    }
    for (index, operand) in operands.iter().enumerate() {
        let slot = &record.operands[index.min(record.operands.len() - 1)];
        if !slot.accepts.includes(operand.dtype) {
            return Err(format!("operand `{}` cannot be {}", slot.name, operand.dtype));
        }
    }
    operator.definition().infer(operands)
}

/// No size in a program may need more than this many elements.
const ELEMENTS_MAX: usize = 1 << 46;

struct Checker<'a> {
    program: &'a Program,
    defects: Vec<Defect>,
}

impl Checker<'_> {
    fn report(&mut self, spot: Spot, reason: impl Into<String>) {
        self.defects.push(Defect { spot, reason: reason.into() });
    }

    fn symbols_and_values(&mut self) {
        let program = self.program;
        let mut names = HashSet::new();
        if !printable(&program.name) {
            self.report(
                Spot::Program,
                "its name must be printable, without quotes or line ends, and not empty",
            );
        }
        for symbol in &program.symbols {
            let spot = || Spot::Symbol(symbol.name.clone());
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if symbol.name.is_empty()
                || !symbol.name.chars().all(plain)
                || symbol.name.starts_with(|c: char| c.is_ascii_digit())
            {
                self.report(spot(), "a symbol's name is letters, digits and underscores, no digit first");
            }
            if !names.insert(symbol.name.as_str()) {
                self.report(spot(), "the name is taken");
            }
            if symbol.bound == 0 {
                self.report(spot(), "the bound must be at least 1");
            }
        }
        names.clear();
        for value in &program.values {
            let spot = || Spot::Value(value.name.clone());
            if !identifier(&value.name) {
                self.report(spot(), "a value's name is letters, digits and any of `_.'/-`");
            }
            if !names.insert(value.name.as_str()) {
                self.report(spot(), "the name is taken");
            }
            if let Some(reason) = self.shape_defect(&value.shape) {
                self.report(spot(), reason);
            }
            if value.shape.iter().skip(1).any(|dim| dim.symbol.is_some()) {
                self.report(spot(), "only the outermost dimension may be symbolic");
            }
            match &value.role {
                Role::Next { of } => match program.values.get(of.0 as usize) {
                    Some(current) if matches!(current.role, Role::State { .. }) => {
                        if (current.dtype, &current.shape) != (value.dtype, &value.shape) {
                            self.report(spot(), "a next state has the type of its state");
                        }
                    }
                    _ => self.report(spot(), "a next state must name a state value"),
                },
                Role::State { .. } | Role::Carried | Role::Constant { .. }
                    if value.shape.iter().any(|dim| dim.symbol.is_some()) =>
                {
                    self.report(spot(), "state, carried values and constants have no symbolic dimension");
                }
                Role::State { initial } if *initial != crate::Initial::Zeros && !value.dtype.is_float() => {
                    self.report(spot(), "integer state starts at zero");
                }
                Role::Constant { content: crate::constant::Content::Rope(_) }
                    if value.dtype != DType::F32
                        || value.shape.len() != 3
                        || value.shape[1] != Dim::from(2) =>
                {
                    self.report(spot(), "a rope table is f32[positions, 2, half of the rotated columns]");
                }
                _ => {}
            }
        }
    }

    fn shape_defect(&self, shape: &[Dim]) -> Option<String> {
        if shape.is_empty() || shape.len() > 8 {
            return Some("a value has 1 to 8 dimensions".into());
        }
        let mut symbols = HashSet::new();
        for dim in shape {
            if dim.factor == 0 {
                return Some("a dimension must not be 0".into());
            }
            if let Some(id) = dim.symbol {
                if id.0 as usize >= self.program.symbols.len() {
                    return Some("a dimension names a symbol that is not declared".into());
                }
                symbols.insert(id);
            }
        }
        if symbols.len() > 1 {
            return Some("a shape has at most one symbol".into());
        }
        let count = elements(&sizes(shape, &self.program.bounds()));
        (count > ELEMENTS_MAX).then(|| format!("{count} elements are more than {ELEMENTS_MAX}"))
    }

    fn ids_in_range(&mut self) -> bool {
        let count = self.program.values.len();
        let before = self.defects.len();
        for range in Range::ALL {
            for (index, instruction) in self.program.range(range).iter().enumerate() {
                let reads = instruction.operands.iter().map(|operand| operand.value);
                if reads.chain(instruction.outputs.iter().copied()).any(|id| id.0 as usize >= count) {
                    let spot = Spot::Instruction(range, index, instruction.operator.name());
                    self.report(spot, "names a value that is not declared");
                }
            }
        }
        self.defects.len() == before
    }

    fn instruction(&mut self, range: Range, index: usize, instruction: &Instruction) {
        let program = self.program;
        let spot = || Spot::Instruction(range, index, instruction.operator.name());
        let mut views_fit = true;
        for operand in &instruction.operands {
            if let Some(reason) = self.view_defect(operand) {
                self.report(spot(), reason);
                views_fit = false;
            }
        }
        if !instruction.part.is_empty() && !printable(&instruction.part) {
            self.report(spot(), "its part must be printable, without quotes or line ends");
        }
        if !views_fit {
            return;
        }
        let types: Vec<Type> =
            instruction.operands.iter().map(|operand| program.operand_type(operand)).collect();
        match infer(&instruction.operator, &types) {
            Err(reason) => self.report(spot(), reason),
            Ok(types) => {
                let declared: Vec<Type> =
                    instruction.outputs.iter().map(|id| program.value(*id).r#type()).collect();
                if types.len() != declared.len() {
                    self.report(
                        spot(),
                        format!("{} output(s) given, {} needed", declared.len(), types.len()),
                    );
                } else if let Some(at) = types.iter().zip(&declared).position(|(want, have)| want != have) {
                    let name = &program.value(instruction.outputs[at]).name;
                    self.report(spot(), format!("output %{name} has another type than the operator gives"));
                }
            }
        }
        if let Some(at) = instruction.operator.writes_in_place() {
            let target = &instruction.operands[at.min(instruction.operands.len().saturating_sub(1))];
            if target.view.is_some() || instruction.outputs.first() != Some(&target.value) {
                self.report(spot(), "it writes in place: its output must be its first operand, dense");
            }
            if instruction.operands.iter().skip(1).any(|operand| operand.value == target.value) {
                self.report(spot(), "it must not read what it writes in place");
            }
        }
    }

    fn view_defect(&self, operand: &Operand) -> Option<String> {
        let view: &View = operand.view.as_ref()?;
        let value = self.program.value(operand.value);
        if view.shape.len() != view.strides.len() {
            return Some(format!("a view of %{} has as many strides as dimensions", value.name));
        }
        if let Some(reason) = self.shape_defect(&view.shape) {
            return Some(format!("a view of %{}: {reason}", value.name));
        }
        (!view.stays_inside(&value.shape)).then(|| format!("a view of %{} leaves it", value.name))
    }

    /// Who writes what, and when it may be read.
    fn order(&mut self) {
        let program = self.program;
        if program.phase != Phase::Train && !program.update.is_empty() {
            self.report(Spot::Program, "only a train program has an update");
        }
        let mut written: HashMap<ValueId, (Range, usize)> = HashMap::new();
        let mut appended_after_read = Vec::new();
        for range in Range::ALL {
            for (index, instruction) in program.range(range).iter().enumerate() {
                let spot = || Spot::Instruction(range, index, instruction.operator.name());
                let in_place = instruction.operator.writes_in_place().is_some();
                for (position, operand) in instruction.operands.iter().enumerate() {
                    let id = operand.value;
                    let value = program.value(id);
                    let readable = match value.role {
                        Role::State { .. } => !self.next_written(id, &written),
                        Role::Constant { .. } | Role::Input => true,
                        Role::Cache => true,
                        Role::Carried if in_place && position == 0 => true,
                        Role::Carried => range == Range::Update && written.contains_key(&id),
                        Role::Scratch | Role::Output => {
                            written.get(&id).is_some_and(|(writer, _)| *writer == range)
                        }
                        Role::Next { .. } => written.contains_key(&id),
                    };
                    if !readable {
                        self.report(spot(), format!("reads %{} where it cannot", value.name));
                    }
                }
                for id in &instruction.outputs {
                    let value = program.value(*id);
                    let accumulates = matches!(instruction.operator, Operator::Accumulate(_));
                    let appends = matches!(instruction.operator, Operator::Append(_));
                    let writable = match value.role {
                        Role::Scratch | Role::Output => !in_place,
                        Role::Next { .. } => !in_place && range == Range::Update,
                        Role::Carried => accumulates && range == Range::Accumulate,
                        Role::Cache => appends,
                        Role::State { .. } | Role::Constant { .. } | Role::Input => false,
                    };
                    if !writable {
                        self.report(spot(), format!("must not write %{}", value.name));
                    }
                    if value.role == Role::Cache {
                        let read = program.range(range)[..index]
                            .iter()
                            .any(|earlier| earlier.operands.iter().any(|operand| operand.value == *id));
                        if read {
                            appended_after_read.push((range, index, value.name.clone()));
                        }
                    } else if written.insert(*id, (range, index)).is_some() {
                        self.report(spot(), format!("writes %{} a second time", value.name));
                    }
                }
            }
        }
        for (range, index, name) in appended_after_read {
            let spot = Spot::Instruction(range, index, "append");
            self.report(spot, format!("%{name} was read or written before: append comes first, once"));
        }
        for (id, value) in program.values_with_ids() {
            let needs_writer = matches!(value.role, Role::Next { .. } | Role::Output | Role::Carried);
            if needs_writer && !written.contains_key(&id) {
                self.report(Spot::Value(value.name.clone()), "is never written");
            }
        }
        let mut followed = HashSet::new();
        for value in &program.values {
            if let Role::Next { of } = value.role {
                if program.phase != Phase::Train {
                    self.report(Spot::Value(value.name.clone()), "only a train program has next states");
                }
                if !followed.insert(of) {
                    self.report(Spot::Value(value.name.clone()), "its state has another next already");
                }
            }
        }
    }

    fn next_written(&self, state: ValueId, written: &HashMap<ValueId, (Range, usize)>) -> bool {
        written.keys().any(|id| self.program.value(*id).role == Role::Next { of: state })
    }

    fn checks(&mut self) {
        let program = self.program;
        let mut wrote: HashMap<ValueId, u16> = HashMap::new();
        for instruction in program.accumulate.iter().chain(&program.update) {
            if let Some(bit) = instruction.check {
                wrote.extend(instruction.outputs.iter().map(|id| (*id, bit)));
            }
        }
        for range in Range::ALL {
            for (index, instruction) in program.range(range).iter().enumerate() {
                let reads = |operand: &Operand| {
                    wrote.get(&operand.value).is_some_and(|bit| instruction.check != Some(*bit))
                };
                if instruction.operands.iter().any(reads) {
                    let spot = Spot::Instruction(range, index, instruction.operator.name());
                    self.report(spot, "reads what a check wrote, which may not have fired");
                }
            }
        }
    }
}

fn printable(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_control() && c != '"' && c != '\\')
}

fn identifier(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.'/-".contains(c))
}
