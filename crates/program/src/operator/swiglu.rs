//! The gated unit of Llama and DeepSeek.

use super::*;

/// Attributes of `swiglu`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swiglu {}

pub(super) const RECORD: Record = Record {
    name: "swiglu",
    summary: "Gated linear unit over a row that holds gate and up side by side.",
    formula: "y[r,f] = silu(x[r,f]) · x[r,F+f]",
    source: "Shazeer, arXiv 2002.05202, section 2",
    operands: &[slot("x", "[R, 2F]", Accepts::Float)],
    outputs: &[slot("y", "[R, F]", Accepts::Float)],
    numerics: "f32 inside, one rounding on store to x's dtype; magnitude |gate·up|·max(sigmoid(gate), 2^-104): where e^-gate overflows an f32, 0 is right.",
    gradient: "dx = swiglu_gradient(x, dy)",
    invariant: Invariant::Recompute,
};

impl Definition for Swiglu {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        rank("x", &operands[0], 2)?;
        let half = operands[0].shape[1].divided(2).filter(|dim| dim.symbol.is_none());
        let half = half.ok_or("x must have an even, constant number of columns")?;
        Ok(vec![Type { dtype: operands[0].dtype, shape: vec![operands[0].shape[0], half] }])
    }

    fn flops(&self, _: &[Concrete], outputs: &[Concrete]) -> u64 {
        9 * count(outputs)
    }

    fn tolerances(&self, _: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::rounded(outputs[0].dtype, 16.0)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let inputs = [gradients.operand(0), gradients.incoming(0)?];
        let gradient = gradients.emit(SwigluGradient {}, inputs)?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
