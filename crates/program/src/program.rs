//! A program: a flat list of operators over typed values, with no device in it.

use crate::operator::Operator;
use crate::shape::{Concrete, Symbol, Type, sizes};
use crate::value::{Operand, Role, Value, ValueId};
use serde::{Deserialize, Serialize};

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A training step: `accumulate` and `update`.
    Train,
    /// Loss without gradients: `accumulate` only.
    Evaluate,
    /// Logits of a prompt, filling caches.
    Prefill,
    /// Logits of the next token, from caches.
    Decode,
}

impl Phase {
    /// The name in the printed form.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Train => "train",
            Phase::Evaluate => "evaluate",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

/// The two halves of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// Forward, backward and checks, once per micro-batch; adds into carried values and writes no state.
    Accumulate,
    /// Norm, clip and optimizer: writes the next state.
    Update,
}

impl Range {
    /// Both, in the order in which a step runs them.
    pub const ALL: [Range; 2] = [Range::Accumulate, Range::Update];

    /// The name in the printed form.
    pub fn name(self) -> &'static str {
        match self {
            Range::Accumulate => "accumulate",
            Range::Update => "update",
        }
    }
}

/// One operator applied to operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instruction {
    /// The operator with its attributes.
    #[serde(flatten)]
    pub operator: Operator,
    /// What it reads, in the order of the operator's record.
    pub operands: Vec<Operand>,
    /// What it writes, in the order of the operator's record.
    pub outputs: Vec<ValueId>,
    /// The part of the model that it belongs to, such as `layers.3.attention`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub part: String,
    /// For a check: its bit in the mask among the bindings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<u16>,
}

/// A step as data. See [`crate::validate`] for what makes one runnable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The name of the recipe or case that it was built for.
    pub name: String,
    /// What it is for.
    pub phase: Phase,
    /// Numbers bound at run time.
    pub symbols: Vec<Symbol>,
    /// Every value; a [`ValueId`] is an index.
    pub values: Vec<Value>,
    /// The first range.
    pub accumulate: Vec<Instruction>,
    /// The second range.
    #[serde(default)]
    pub update: Vec<Instruction>,
}

impl Program {
    /// The instructions of a range.
    pub fn range(&self, range: Range) -> &[Instruction] {
        match range {
            Range::Accumulate => &self.accumulate,
            Range::Update => &self.update,
        }
    }

    /// A value. Ids come from this program, so they are in range after validation.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Every value with its id.
    pub fn values_with_ids(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(index, value)| (ValueId(index as u32), value))
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values_with_ids().find(|(_, value)| value.name == name).map(|(id, _)| id)
    }

    /// The state values in declaration order.
    pub fn state(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values_with_ids().filter(|(_, value)| matches!(value.role, Role::State { .. }))
    }

    /// Whether a value is state of a training program that no update writes.
    pub fn is_frozen(&self, id: ValueId) -> bool {
        self.phase == Phase::Train
            && matches!(self.value(id).role, Role::State { .. })
            && !self.values.iter().any(|value| value.role == Role::Next { of: id })
    }

    /// The type of an operand as the operator sees it.
    pub fn operand_type(&self, operand: &Operand) -> Type {
        let value = self.value(operand.value);
        match &operand.view {
            None => value.r#type(),
            Some(view) => Type { dtype: value.dtype, shape: view.shape.clone() },
        }
    }

    /// The bounds of all symbols: the binding that plans and costs use.
    pub fn bounds(&self) -> Vec<usize> {
        self.symbols.iter().map(|symbol| symbol.bound).collect()
    }

    /// Operand types of an instruction with the symbols bound.
    pub fn concrete_operands(&self, instruction: &Instruction, symbols: &[usize]) -> Vec<Concrete> {
        let concrete = |operand: &Operand| {
            let Type { dtype, shape } = self.operand_type(operand);
            Concrete { dtype, sizes: sizes(&shape, symbols) }
        };
        instruction.operands.iter().map(concrete).collect()
    }

    /// Output types of an instruction with the symbols bound.
    pub fn concrete_outputs(&self, instruction: &Instruction, symbols: &[usize]) -> Vec<Concrete> {
        let concrete = |id: &ValueId| {
            let value = self.value(*id);
            Concrete { dtype: value.dtype, sizes: sizes(&value.shape, symbols) }
        };
        instruction.outputs.iter().map(concrete).collect()
    }
}
