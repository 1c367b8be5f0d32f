//! Automatic differentiation from program to program: walks the first range backwards and lets each operator's definition
//! emit its gradient in terms of other operators.

use crate::builder::{BuildError, Builder};
use crate::constant::Content;
use crate::dtype::DType;
use crate::operator::{Add, Assemble, Cast, Operator};
use crate::program::Instruction;
use crate::recompute::Recompute;
use crate::shape::{Dim, Type, View, dense_strides};
use crate::value::{Operand, Role, ValueId};
use std::collections::HashMap;
use std::rc::Rc;

/// Appends the gradients of a scalar with respect to some values. Gives one operand per value, in the value's shape and
/// its gradient dtype (f32 for f32 values), or none where no gradient reaches it.
pub fn differentiate(
    builder: &mut Builder,
    loss: ValueId,
    with_respect_to: &[ValueId],
    recompute: Recompute,
) -> Result<Vec<Option<ValueId>>, BuildError> {
    let forward: Rc<[Instruction]> = builder.program.accumulate.as_slice().into();
    let mut producers = HashMap::new();
    for (index, instruction) in forward.iter().enumerate() {
        for (output, id) in instruction.outputs.iter().enumerate() {
            producers.insert(*id, (index, output));
        }
    }
    let mut needed = vec![false; builder.program.values.len()];
    for id in with_respect_to {
        needed[id.0 as usize] = true;
    }
    for instruction in forward.iter() {
        if instruction.operands.iter().any(|operand| needed[operand.value.0 as usize]) {
            for id in &instruction.outputs {
                needed[id.0 as usize] = builder.program.value(*id).dtype.is_float();
            }
        }
    }
    // The tape owns the builder while it works, so that gradient rules need one lifetime only.
    let empty = Builder::new("", builder.program.phase);
    let mut tape = Tape {
        builder: std::mem::replace(builder, empty),
        forward: forward.clone(),
        producers,
        needed,
        contributions: HashMap::new(),
        again: HashMap::new(),
        superseded: Vec::new(),
        recompute,
        failure: None,
    };
    let result = tape.run(&forward, loss, with_respect_to);
    *builder = tape.builder;
    for (old, new) in tape.superseded {
        // Where the gradient that makes `new` is itself computed from `old`, the forward operator stays.
        if depends(&builder.program.accumulate, new, old) {
            continue;
        }
        for instruction in &mut builder.program.accumulate {
            for operand in &mut instruction.operands {
                if operand.value == old {
                    operand.value = new;
                }
            }
        }
    }
    crate::order::sort(&mut builder.program.accumulate);
    result
}

/// Whether `value` is computed from `from`, through any number of instructions.
fn depends(instructions: &[Instruction], value: ValueId, from: ValueId) -> bool {
    let mut writers = HashMap::new();
    for instruction in instructions {
        writers.extend(instruction.outputs.iter().map(|id| (*id, instruction)));
    }
    let (mut waiting, mut seen) = (vec![value], std::collections::HashSet::new());
    while let Some(id) = waiting.pop() {
        if id == from {
            return true;
        }
        if seen.insert(id)
            && let Some(writer) = writers.get(&id)
        {
            waiting.extend(writer.operands.iter().map(|operand| operand.value));
        }
    }
    false
}

/// A gradient that flows into a window of a value.
#[derive(Clone)]
struct Contribution {
    window: Option<View>,
    gradient: Operand,
}

struct Tape {
    builder: Builder,
    forward: Rc<[Instruction]>,
    producers: HashMap<ValueId, (usize, usize)>,
    needed: Vec<bool>,
    contributions: HashMap<ValueId, Vec<Contribution>>,
    again: HashMap<ValueId, ValueId>,
    superseded: Vec<(ValueId, ValueId)>,
    recompute: Recompute,
    failure: Option<BuildError>,
}

impl Tape {
    fn run(
        &mut self,
        forward: &[Instruction],
        loss: ValueId,
        with_respect_to: &[ValueId],
    ) -> Result<Vec<Option<ValueId>>, BuildError> {
        let part = self.builder.part().to_string();
        let one = Type::new(DType::F32, [1]);
        let seed = self.builder.constant("one", one, Content::Splat { value: 1.0 });
        self.contributions.insert(loss, vec![Contribution { window: None, gradient: seed.into() }]);
        for instruction in forward.iter().rev() {
            if !instruction.operands.iter().any(|operand| self.needed[operand.value.0 as usize]) {
                continue;
            }
            self.builder.set_part(instruction.part.clone());
            let mut incoming = Vec::new();
            for id in &instruction.outputs {
                incoming.push(self.resolve(*id)?);
            }
            if incoming.iter().all(Option::is_none) {
                continue;
            }
            let mut gradients = Gradients { tape: &mut *self, instruction, incoming };
            let definition = instruction.operator.definition();
            definition.gradient(&mut gradients).map_err(|reason| BuildError {
                operator: definition.record().name.into(),
                part: instruction.part.clone(),
                reason,
            })?;
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
        }
        let mut results = Vec::new();
        for id in with_respect_to {
            let gradient = self.resolve(*id)?;
            results.push(match gradient {
                None => None,
                Some(operand) => Some(self.dense(*id, operand)?),
            });
        }
        self.builder.set_part(part);
        Ok(results)
    }

    /// Gradients are f32 where the value is, or is a rounded copy of an f32 value; else in the value's dtype.
    fn gradient_dtype(&self, id: ValueId) -> DType {
        let value = self.builder.program.value(id);
        let rounded_copy = self.producers.get(&id).is_some_and(|(index, _)| {
            let producer = &self.forward[*index];
            matches!(producer.operator, Operator::Cast(_))
                && self.builder.operand_type(&producer.operands[0]).dtype == DType::F32
        });
        if rounded_copy { DType::F32 } else { value.dtype }
    }

    /// The whole gradient of a value in its own shape: one contribution as it is, or a sum.
    fn resolve(&mut self, id: ValueId) -> Result<Option<Operand>, BuildError> {
        let Some(contributions) = self.contributions.get(&id).cloned() else { return Ok(None) };
        let shape = self.builder.program.value(id).shape.clone();
        let whole: Vec<Option<Operand>> =
            contributions.iter().map(|contribution| self.whole(&shape, contribution)).collect();
        let name = format!("{}.gradient", self.builder.program.value(id).name);
        let output = self.gradient_dtype(id);
        let sum: Operand = match whole.as_slice() {
            [Some(only)] => return Ok(Some(only.clone())),
            [Some(first), Some(second)] => {
                self.builder.one(&name, Add { output }, [first.clone(), second.clone()])?.into()
            }
            _ => {
                let mut views = Vec::new();
                let mut parts = Vec::new();
                for contribution in &contributions {
                    views.push(match &contribution.window {
                        Some(view) => view.clone(),
                        None => self.builder.view(id)?,
                    });
                    parts.push(contribution.gradient.clone());
                }
                self.builder.apply_all(&name, Assemble { output, shape, views }, parts)?[0].into()
            }
        };
        self.contributions.insert(id, vec![Contribution { window: None, gradient: sum.clone() }]);
        Ok(Some(sum))
    }

    /// A contribution that covers its value one to one, as an operand of the value's shape; none where it needs a copy.
    fn whole(&self, shape: &[Dim], contribution: &Contribution) -> Option<Operand> {
        let Some(window) = &contribution.window else { return Some(contribution.gradient.clone()) };
        let source = self.builder.program.value(contribution.gradient.value);
        let total = |shape: &[Dim]| -> Option<(usize, Option<crate::SymbolId>)> {
            let mut symbol = None;
            let mut count = 1usize;
            for dim in shape {
                count = count.checked_mul(dim.factor)?;
                symbol = symbol.or(dim.symbol);
            }
            Some((count, symbol))
        };
        let covers = window.offset == 0
            && total(&window.shape) == total(shape)
            && total(&source.shape) == total(shape)
            && window.strides.iter().zip(&window.shape).all(|(s, d)| *s != 0 || d.constant() == Some(1));
        if !covers {
            return None;
        }
        // The gradient's own strides within its (dense) value must be the window's within the base; then both memory
        // orders are the same and the base's shape can be laid over the gradient's memory.
        let strides = match &contribution.gradient.view {
            None => dense_strides(&source.shape)?,
            Some(view) if view.offset == 0 => view.strides.clone(),
            Some(_) => return None,
        };
        let same = strides
            .iter()
            .zip(&window.strides)
            .zip(&window.shape)
            .all(|((a, b), dim)| a == b || dim.constant() == Some(1));
        if !same {
            return None;
        }
        let view = (source.shape != shape).then(|| View::dense(shape)).flatten();
        if source.shape != shape && view.is_none() {
            return None;
        }
        Some(Operand { value: contribution.gradient.value, view })
    }

    /// A gradient as a dense value of its own, as `accumulate` reads it.
    fn dense(&mut self, id: ValueId, operand: Operand) -> Result<ValueId, BuildError> {
        let (shape, output) = (self.builder.program.value(id).shape.clone(), self.gradient_dtype(id));
        let source = self.builder.program.value(operand.value);
        let fits = operand.view.is_none() && source.shape == shape && source.role == Role::Scratch;
        if fits {
            return Ok(operand.value);
        }
        let name = format!("{}.gradient", self.builder.program.value(id).name);
        let views = vec![self.builder.view(id)?];
        Ok(self.builder.apply_all(&name, Assemble { output, shape, views }, vec![operand])?[0])
    }

    /// The value to read in the backward pass for a forward value: itself, or what computes it again.
    fn kept(&mut self, id: ValueId) -> Result<ValueId, BuildError> {
        if let Some(again) = self.again.get(&id) {
            return Ok(*again);
        }
        let Some((index, 0)) = self.producers.get(&id).copied() else { return Ok(id) };
        let forward = self.forward.clone();
        let instruction = &forward[index];
        let with_products = self.recompute == Recompute::Products && self.builder.is_sum_of_products(id);
        if !self.recompute.again(&instruction.operator) && !with_products {
            return Ok(id);
        }
        let mut operands = instruction.operands.clone();
        for operand in &mut operands {
            operand.value = self.kept(operand.value)?;
        }
        let name = format!("{}.again", self.builder.program.value(id).name);
        let outputs = self.builder.apply_all(&name, instruction.operator.clone(), operands)?;
        for (old, new) in instruction.outputs.iter().zip(outputs) {
            self.again.insert(*old, new);
        }
        Ok(self.again.get(&id).copied().unwrap_or(id))
    }
}

/// What an operator's gradient rule works with: the instruction, the gradients of its outputs, and a place to put those
/// of its operands.
pub struct Gradients<'a> {
    tape: &'a mut Tape,
    instruction: &'a Instruction,
    incoming: Vec<Option<Operand>>,
}

impl Gradients<'_> {
    /// Whether an operand needs a gradient.
    pub fn wants(&self, operand: usize) -> bool {
        self.instruction.operands.get(operand).is_some_and(|o| self.tape.needed[o.value.0 as usize])
    }

    /// Whether an optional operand is there.
    pub fn has_operand(&self, operand: usize) -> bool {
        operand < self.instruction.operands.len()
    }

    /// An operand of the instruction, computed again where the policy says so.
    pub fn operand(&mut self, operand: usize) -> Operand {
        let original = self.instruction.operands[operand].clone();
        match self.tape.kept(original.value) {
            Ok(value) => Operand { value, view: original.view },
            Err(error) => {
                self.tape.failure.get_or_insert(error);
                original
            }
        }
    }

    /// An output of the instruction.
    pub fn output(&mut self, output: usize) -> Operand {
        let original = self.instruction.outputs[output];
        match self.tape.kept(original) {
            Ok(value) => value.into(),
            Err(error) => {
                self.tape.failure.get_or_insert(error);
                original.into()
            }
        }
    }

    /// The type of an operand as the instruction sees it.
    pub fn operand_type(&self, operand: usize) -> Type {
        self.tape.builder.operand_type(&self.instruction.operands[operand])
    }

    /// The dtype that an operand's gradient must have.
    pub fn dtype(&self, operand: usize) -> DType {
        self.tape.gradient_dtype(self.instruction.operands[operand].value)
    }

    /// The gradient of an output.
    pub fn incoming(&self, output: usize) -> Result<Operand, String> {
        self.incoming[output].clone().ok_or_else(|| "no gradient reaches its output".to_string())
    }

    /// The gradient of an output, where one reaches it.
    pub fn incoming_optional(&self, output: usize) -> Result<Option<Operand>, String> {
        Ok(self.incoming[output].clone())
    }

    /// A window of the gradient of an output, given as a view of the output.
    pub fn incoming_window(&mut self, output: usize, window: &View) -> Result<Operand, String> {
        let incoming = self.incoming_dense(output)?;
        Ok(Operand { value: incoming, view: Some(window.clone()) })
    }

    /// The gradient of an output, repeated along a new axis.
    pub fn incoming_repeated(&mut self, output: usize, axis: usize, dim: Dim) -> Result<Operand, String> {
        let incoming = self.incoming(output)?;
        self.tape.builder.seen(incoming, |view| view.repeat(axis, dim)).map_err(|error| error.reason)
    }

    /// The gradient of a scalar output `[1]`, repeated to `[count]`.
    pub fn incoming_scalar(&mut self, output: usize, count: Dim) -> Result<Operand, String> {
        let incoming = self.incoming(output)?;
        let repeated = |view: View| view.repeat(0, count).drop_axis(1);
        self.tape.builder.seen(incoming, repeated).map_err(|error| error.reason)
    }

    /// An operand with two axes exchanged.
    pub fn transposed(&self, operand: Operand, first: usize, second: usize) -> Result<Operand, String> {
        let swapped = |view: View| view.transpose(first, second);
        let operand = self.tape.builder.seen(operand, swapped).map_err(|error| error.reason)?;
        // Transposed twice is the value itself.
        let value = self.tape.builder.program().value(operand.value);
        if operand.view == View::dense(&value.shape) {
            return Ok(operand.value.into());
        }
        Ok(operand)
    }

    /// Whether an operand's last two axes lie in memory the other way round.
    pub fn is_transposed(&self, operand: usize) -> bool {
        match &self.instruction.operands[operand].view {
            Some(view) => {
                let rank = view.strides.len();
                rank >= 2 && view.strides[rank - 2] == 1 && view.strides[rank - 1] > 1
            }
            None => false,
        }
    }

    /// Adds an operator of the backward pass.
    pub fn emit(
        &mut self,
        operator: impl Into<Operator>,
        operands: impl IntoIterator<Item = Operand>,
    ) -> Result<Vec<ValueId>, String> {
        let operands = operands.into_iter().collect();
        let name = format!("{}.backward", self.tape.builder.program.value(self.instruction.outputs[0]).name);
        self.tape.builder.apply_all(&name, operator, operands).map_err(|error| error.reason)
    }

    /// Sets the gradient of an operand, in the operand's shape; dropped where the operand needs none.
    pub fn set(&mut self, operand: usize, gradient: impl Into<Operand>) {
        if let Err(reason) = self.set_converted(operand, gradient.into()) {
            let error = BuildError {
                operator: self.instruction.operator.name().into(),
                part: self.instruction.part.clone(),
                reason,
            };
            self.tape.failure.get_or_insert(error);
        }
    }

    /// As [`Gradients::set`], for a gradient of any float dtype.
    pub fn set_converted(&mut self, operand: usize, gradient: Operand) -> Result<(), String> {
        if !self.wants(operand) {
            return Ok(());
        }
        let have = self.tape.builder.operand_type(&gradient);
        if have.shape != self.operand_type(operand).shape {
            return Err(format!("the gradient of operand {operand} has another shape"));
        }
        let output = self.dtype(operand);
        let gradient = if have.dtype == output {
            gradient
        } else {
            let name = format!("{}.cast", self.tape.builder.program.value(gradient.value).name);
            self.tape.builder.one(&name, Cast { output }, [gradient]).map_err(|error| error.reason)?.into()
        };
        let target = &self.instruction.operands[operand];
        let contribution = Contribution { window: target.view.clone(), gradient };
        self.tape.contributions.entry(target.value).or_default().push(contribution);
        Ok(())
    }

    /// Passes the gradient of an output on to an operand.
    pub fn pass(&mut self, output: usize, operand: usize) -> Result<(), String> {
        let incoming = self.incoming(output)?;
        self.set_converted(operand, incoming)
    }

    /// Says that a value of the backward pass is the same as an output of the forward one and takes its place, so that the
    /// forward operator falls away where nothing else reads it.
    pub fn supersede(&mut self, output: usize, by: ValueId) {
        self.tape.superseded.push((self.instruction.outputs[output], by));
    }

    fn incoming_dense(&mut self, output: usize) -> Result<ValueId, String> {
        let incoming = self.incoming(output)?;
        let id = self.instruction.outputs[output];
        let shape = &self.tape.builder.program.value(id).shape;
        let source = self.tape.builder.program.value(incoming.value);
        if incoming.view.as_ref().is_none_or(|view| view.offset == 0 && view.is_dense())
            && crate::shape::elements(&crate::shape::sizes(
                &source.shape,
                &self.tape.builder.program.bounds(),
            )) == crate::shape::elements(&crate::shape::sizes(shape, &self.tape.builder.program.bounds()))
        {
            return Ok(incoming.value);
        }
        self.tape.dense(id, incoming).map_err(|error| error.reason)
    }
}
