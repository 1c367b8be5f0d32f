//! Builds programs an operator at a time. Types are inferred as one goes; the validator has the last word.

use crate::constant::Content;
use crate::dtype::DType;
use crate::initial::Initial;
use crate::operator::Operator;
use crate::program::{Instruction, Phase, Program, Range};
use crate::shape::{Dim, Symbol, SymbolId, Type, View};
use crate::value::{Operand, Role, Value, ValueId};
use std::collections::HashSet;

/// Why an operator could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot build `{operator}` in {part}: {reason}")]
pub struct BuildError {
    /// The operator's name.
    pub operator: String,
    /// The part of the model.
    pub part: String,
    /// What does not fit.
    pub reason: String,
}

/// A program under construction.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) program: Program,
    names: HashSet<String>,
    range: Range,
    part: String,
    sums_of_products: HashSet<ValueId>,
}

impl Builder {
    /// An empty program.
    pub fn new(name: impl Into<String>, phase: Phase) -> Builder {
        Builder {
            program: Program {
                name: name.into(),
                phase,
                symbols: Vec::new(),
                values: Vec::new(),
                accumulate: Vec::new(),
                update: Vec::new(),
            },
            names: HashSet::new(),
            range: Range::Accumulate,
            part: String::new(),
            sums_of_products: HashSet::new(),
        }
    }

    /// The program so far.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The finished program in canonical order, without dead instructions; not yet validated.
    pub fn finish(mut self) -> Program {
        crate::order::prune(&mut self.program);
        self.program
    }

    /// A number bound at run time, in `1..=bound`.
    pub fn symbol(&mut self, name: impl Into<String>, bound: usize) -> SymbolId {
        self.program.symbols.push(Symbol { name: name.into(), bound });
        SymbolId(self.program.symbols.len() as u16 - 1)
    }

    /// The range that operators are added to from now on.
    pub fn set_range(&mut self, range: Range) {
        self.range = range;
    }

    /// The part of the model that operators belong to from now on.
    pub fn set_part(&mut self, part: impl Into<String>) {
        self.part = part.into();
    }

    /// The part of the model that operators belong to now.
    pub fn part(&self) -> &str {
        &self.part
    }

    /// Declares a value; a name that is taken gets a number.
    pub fn declare(&mut self, name: &str, r#type: Type, role: Role) -> ValueId {
        let mut unique = name.to_string();
        let mut number = 1;
        while !self.names.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}.{number}");
        }
        let id = ValueId(self.program.values.len() as u32);
        self.program.values.push(Value { name: unique, dtype: r#type.dtype, shape: r#type.shape, role });
        id
    }

    /// A state value.
    pub fn state(&mut self, name: &str, r#type: Type, initial: Initial) -> ValueId {
        self.declare(name, r#type, Role::State { initial })
    }

    /// An input.
    pub fn input(
        &mut self,
        name: &str,
        dtype: DType,
        shape: impl IntoIterator<Item = impl Into<Dim>>,
    ) -> ValueId {
        self.declare(name, Type::new(dtype, shape), Role::Input)
    }

    /// A constant.
    pub fn constant(&mut self, name: &str, r#type: Type, content: Content) -> ValueId {
        self.declare(name, r#type, Role::Constant { content })
    }

    /// A carried value.
    pub fn carried(&mut self, name: &str, r#type: Type) -> ValueId {
        self.declare(name, r#type, Role::Carried)
    }

    /// The type of an operand.
    pub fn operand_type(&self, operand: &Operand) -> Type {
        self.program.operand_type(operand)
    }

    /// The window that an operand is, dense or not.
    pub fn view(&self, operand: impl Into<Operand>) -> Result<View, BuildError> {
        let operand = operand.into();
        match operand.view {
            Some(view) => Ok(view),
            None => View::dense(&self.program.value(operand.value).shape)
                .ok_or_else(|| self.error("view", "an inner dimension is symbolic".into())),
        }
    }

    /// An operand seen through a function of views, as in `builder.seen(x, |view| view.narrow(1, 0, 4))`.
    pub fn seen(
        &self,
        operand: impl Into<Operand>,
        through: impl FnOnce(View) -> View,
    ) -> Result<Operand, BuildError> {
        let operand = operand.into();
        let view = through(self.view(operand.clone())?);
        Ok(Operand { value: operand.value, view: Some(view) })
    }

    /// Adds an operator; its outputs are new scratch values named after `name`.
    pub fn apply<const N: usize>(
        &mut self,
        name: &str,
        operator: impl Into<Operator>,
        operands: [Operand; N],
    ) -> Result<Vec<ValueId>, BuildError> {
        self.apply_all(name, operator, operands.to_vec())
    }

    /// As [`Builder::apply`] for any number of operands.
    pub fn apply_all(
        &mut self,
        name: &str,
        operator: impl Into<Operator>,
        operands: Vec<Operand>,
    ) -> Result<Vec<ValueId>, BuildError> {
        let operator = operator.into();
        let types = self.infer(&operator, &operands)?;
        let record = operator.definition().record();
        let outputs = types
            .into_iter()
            .enumerate()
            .map(|(index, r#type)| {
                let name = match index {
                    0 => name.to_string(),
                    _ => format!("{name}.{}", record.outputs.get(index).map_or("output", |slot| slot.name)),
                };
                self.declare(&name, r#type, Role::Scratch)
            })
            .collect::<Vec<_>>();
        self.push(operator, operands, outputs.clone());
        Ok(outputs)
    }

    /// Adds an operator with one output.
    pub fn one<const N: usize>(
        &mut self,
        name: &str,
        operator: impl Into<Operator>,
        operands: [Operand; N],
    ) -> Result<ValueId, BuildError> {
        Ok(self.apply(name, operator, operands)?[0])
    }

    /// Says of a sum that it is part of a product, and none of the residual stream: the backward pass computes it again where it
    /// does products.
    pub fn sum_of_products(&mut self, sum: ValueId) {
        self.sums_of_products.insert(sum);
    }

    /// Whether a value is such a sum.
    pub(crate) fn is_sum_of_products(&self, value: ValueId) -> bool {
        self.sums_of_products.contains(&value)
    }

    /// How many instructions the first range has.
    pub fn instructions(&self) -> usize {
        self.program.accumulate.len()
    }

    /// Puts the first range's instructions from `from` on before all others.
    pub fn move_to_front(&mut self, from: usize) {
        let count = self.program.accumulate.len();
        self.program.accumulate.rotate_right(count.saturating_sub(from));
    }

    /// Adds an operator that writes values which were declared before.
    pub fn apply_to(
        &mut self,
        operator: impl Into<Operator>,
        operands: Vec<Operand>,
        outputs: Vec<ValueId>,
    ) -> Result<(), BuildError> {
        let operator = operator.into();
        let types = self.infer(&operator, &operands)?;
        let declared: Vec<Type> = outputs.iter().map(|id| self.program.value(*id).r#type()).collect();
        if types != declared {
            return Err(self.error(operator.name(), "the outputs have other types".into()));
        }
        self.push(operator, operands, outputs);
        Ok(())
    }

    /// Adds `x` into a carried value of its own type, declared here.
    pub fn accumulate(&mut self, name: &str, x: impl Into<Operand>) -> Result<ValueId, BuildError> {
        let x = x.into();
        let target = self.carried(name, self.operand_type(&x));
        self.apply_to(crate::operator::Accumulate {}, vec![target.into(), x], vec![target])?;
        Ok(target)
    }

    /// The next half of a state value, declared here.
    pub fn next(&mut self, of: ValueId) -> ValueId {
        let value = self.program.value(of);
        let (name, r#type) = (format!("{}'", value.name), value.r#type());
        self.declare(&name, r#type, Role::Next { of })
    }

    fn push(&mut self, operator: Operator, operands: Vec<Operand>, outputs: Vec<ValueId>) {
        let instruction = Instruction { operator, operands, outputs, part: self.part.clone(), check: None };
        match self.range {
            Range::Accumulate => self.program.accumulate.push(instruction),
            Range::Update => self.program.update.push(instruction),
        }
    }

    fn infer(&self, operator: &Operator, operands: &[Operand]) -> Result<Vec<Type>, BuildError> {
        let types: Vec<Type> = operands.iter().map(|operand| self.operand_type(operand)).collect();
        crate::validate::infer(operator, &types).map_err(|reason| self.error(operator.name(), reason))
    }

    fn error(&self, operator: &str, reason: String) -> BuildError {
        BuildError { operator: operator.into(), part: self.part.clone(), reason }
    }
}
