//! What a step is fed with: state, inputs of each micro-batch, and a program's constants.

use toprope_conformance::values::Values;
use toprope_program::shape::{elements, sizes};
use toprope_program::{Program, Role, Tensor};

/// The values of one step, by name.
#[derive(Clone, Debug, Default)]
pub struct StepValues {
    /// State before the step, and inputs that hold for all of it.
    pub values: Vec<(String, Tensor)>,
    /// The micro-batches in their order.
    pub micro: Vec<MicroValues>,
}

/// One micro-batch.
#[derive(Clone, Debug, Default)]
pub struct MicroValues {
    /// A number for each symbol of the program.
    pub symbols: Vec<usize>,
    /// Its inputs.
    pub values: Vec<(String, Tensor)>,
}

/// Values that do not fit a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The program has no such value.
    #[error("the program has no value `{0}`")]
    NoValue(String),
    /// The value has another number of elements.
    #[error("`{name}` has {given} elements where the program has {needed}")]
    Elements {
        /// The value's name.
        name: String,
        /// Elements given.
        given: usize,
        /// Elements needed.
        needed: usize,
    },
    /// There is no micro-batch.
    #[error("the step has no micro-batch")]
    Empty,
}

impl StepValues {
    /// What stands in memory before the first micro-batch: state, inputs and constants; carried values as zeros, which the
    /// first micro-batch overwrites.
    ///
    /// # Errors
    /// A value does not fit the program.
    pub fn before(&self, program: &Program) -> Result<Values, StepError> {
        let first = self.micro.first().ok_or(StepError::Empty)?;
        let mut held: Values = vec![None; program.values.len()];
        for (id, value) in program.values_with_ids() {
            let sizes = sizes(&value.shape, &first.symbols);
            held[id.0 as usize] = match &value.role {
                Role::Constant { content } => {
                    Some(Tensor::rounded(value.dtype, &sizes, content.values(&sizes)))
                }
                Role::Carried => Some(Tensor::zeros(value.dtype, &sizes)),
                _ => None,
            };
        }
        put(program, &mut held, &self.values, &first.symbols)?;
        Ok(held)
    }

    /// Takes a micro-batch's inputs in, and constants at its size.
    ///
    /// # Errors
    /// A value does not fit the program, or there is no such micro-batch.
    pub fn feed(&self, program: &Program, held: &mut Values, micro: usize) -> Result<(), StepError> {
        let micro = self.micro.get(micro).ok_or(StepError::Empty)?;
        put(program, held, &micro.values, &micro.symbols)
    }
}

fn put(
    program: &Program,
    held: &mut Values,
    values: &[(String, Tensor)],
    symbols: &[usize],
) -> Result<(), StepError> {
    for (name, tensor) in values {
        let id = program.find(name).ok_or_else(|| StepError::NoValue(name.clone()))?;
        let value = program.value(id);
        let sizes = sizes(&value.shape, symbols);
        let (given, needed) = (tensor.data.len(), elements(&sizes));
        if given != needed {
            return Err(StepError::Elements { name: name.clone(), given, needed });
        }
        held[id.0 as usize] = Some(Tensor { dtype: value.dtype, sizes, data: tensor.data.clone() });
    }
    Ok(())
}
