//! Values: what operators read and write, each with a role.

use crate::constant::Content;
use crate::dtype::DType;
use crate::initial::Initial;
use crate::shape::{Shape, Type, View};
use serde::{Deserialize, Serialize};

/// Index of a [`Value`] in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

/// What a value is to a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Part of the run's state; read-only within a step.
    State {
        /// What it holds before the first step.
        initial: Initial,
    },
    /// The next step's half of a state value; written once, by `update`.
    Next {
        /// The state value that it follows.
        of: ValueId,
    },
    /// Written by the host once; described by the program.
    Constant {
        /// What it holds.
        content: Content,
    },
    /// Written by the host before a range runs.
    Input,
    /// Gradients and counters: added to by `accumulate`, read by `update`.
    Carried,
    /// Lives inside one range.
    Scratch,
    /// Read by the host after a range ran.
    Output,
    /// A decoding cache, written in place by `append` only.
    Cache,
}

/// A typed, named value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Unique in its program; Hugging Face's tensor names where there is one.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions; only the outermost may be symbolic.
    pub shape: Shape,
    /// What it is to the step.
    pub role: Role,
}

impl Value {
    /// Dtype and shape.
    pub fn r#type(&self) -> Type {
        Type { dtype: self.dtype, shape: self.shape.clone() }
    }
}

/// What an operator reads: a dense value or a declared strided view of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    /// The value read.
    pub value: ValueId,
    /// The window into it; none means all of it, dense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
}

impl From<ValueId> for Operand {
    fn from(value: ValueId) -> Operand {
        Operand { value, view: None }
    }
}
