//! Brings the experts' rows back to their tokens.

use super::*;

/// Attributes of `combine`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Combine {}

pub(super) const RECORD: Record = Record {
    name: "combine",
    summary: "Weighted sum of each token's expert rows.",
    formula: "out[t,:] = Σ_k weights[t,k]·y[slot[t,k],:]; a slot outside the rows of y adds nothing",
    source: "DeepSeek-V3, arXiv 2412.19437, equation 12",
    operands: &[
        slot("y", "[P, D]", Accepts::Float),
        slot("slot", "[T, K]", Accepts::I32),
        slot("weights", "[T, K]", Accepts::F32),
    ],
    outputs: &[slot("out", "[T, D]", Accepts::Float)],
    numerics: "f32 sum over k in any order, one rounding on store to y's dtype; magnitude Σ|weights·y|.",
    gradient: "dy, dweights = combine_gradient(y, slot, weights, dout)",
    invariant: Invariant::Recompute,
};

pub(super) fn check(operands: &[Type]) -> Result<Type, String> {
    let (y, slots) = (&operands[0], &operands[1]);
    rank("y", y, 2)?;
    rank("slot", slots, 2)?;
    same_shape("slot and weights", slots, &operands[2])?;
    Ok(Type { dtype: y.dtype, shape: vec![slots.shape[0], y.shape[1]] })
}

impl Definition for Combine {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        Ok(vec![check(operands)?])
    }

    fn flops(&self, operands: &[Concrete], outputs: &[Concrete]) -> u64 {
        2 * count(outputs) * operands[1].sizes[1] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::product(outputs[0].dtype, false, operands[1].sizes[1])]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let inputs =
            [gradients.operand(0), gradients.operand(1), gradients.operand(2), gradients.incoming(0)?];
        let emitted = gradients.emit(CombineGradient {}, inputs)?;
        gradients.set(0, emitted[0]);
        gradients.set(2, emitted[1]);
        Ok(())
    }
}
