//! The adjoint of views: builds a value from parts, adding where they overlap. Also concatenation and padding.

use super::*;
use crate::shape::View;

/// Attributes of `assemble`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assemble {
    /// The dtype of the result.
    pub output: DType,
    /// The shape of the result.
    pub shape: Vec<Dim>,
    /// Where each part goes, in order; a stride of 0 adds all elements along that axis into one place.
    pub views: Vec<View>,
}

pub(super) const RECORD: Record = Record {
    name: "assemble",
    summary: "Builds a value by adding parts into windows of it: concatenation, padding, the gradient of views.",
    formula: "y = 0; for each part p and index i: y[views[p](i)] += parts[p][i]",
    source: "definition; the transpose of a strided read",
    operands: &[many("parts", "[...]", Accepts::Float)],
    outputs: &[slot("y", "shape", Accepts::Float)],
    numerics: "f32 sums in any order over all contributions of an element, one rounding on store; magnitude the sum of absolute contributions.",
    gradient: "dparts[p] = the window views[p] of dy",
    invariant: Invariant::Identity("the sum of y equals the sum of the parts"),
};

impl Definition for Assemble {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        if !self.output.is_float() {
            return Err(format!("output must be f32 or bf16, it is {}", self.output));
        }
        if self.views.len() != operands.len() {
            return Err(format!("{} views for {} parts", self.views.len(), operands.len()));
        }
        for (index, (view, part)) in self.views.iter().zip(operands).enumerate() {
            if view.shape != part.shape {
                return Err(format!("view {index} and its part must have the same shape"));
            }
            if !view.stays_inside(&self.shape) {
                return Err(format!("view {index} leaves the result"));
            }
        }
        Ok(vec![Type { dtype: self.output, shape: self.shape.clone() }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        operands.iter().map(|part| part.elements() as u64).sum()
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        // The largest number of contributions that one element can have.
        let repeats = |view: &View, part: &Concrete| -> usize {
            let repeated = view.strides.iter().zip(&part.sizes).filter(|(stride, _)| **stride == 0);
            repeated.map(|(_, size)| *size).product::<usize>().max(1)
        };
        let terms: usize = self.views.iter().zip(operands).map(|(view, part)| repeats(view, part)).sum();
        vec![Tolerance::rounded(outputs[0].dtype, terms as f64)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        for (index, view) in self.views.iter().enumerate() {
            if gradients.wants(index) {
                let window = gradients.incoming_window(0, view)?;
                gradients.set_converted(index, window)?;
            }
        }
        Ok(())
    }
}
