//! Gradient of [`super::Combine`].

use super::*;

/// Attributes of `combine_gradient`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CombineGradient {}

pub(super) const RECORD: Record = Record {
    name: "combine_gradient",
    summary: "Gradient of combine.",
    formula: "dy = 0; dy[slot[t,k],:] += weights[t,k]·dout[t,:]; dweights[t,k] = Σ_d y[slot[t,k],d]·dout[t,d]; a slot outside the rows of y adds nothing and has dweights 0",
    source: "derivative of combine",
    operands: &[
        slot("y", "[P, D]", Accepts::Float),
        slot("slot", "[T, K]", Accepts::I32),
        slot("weights", "[T, K]", Accepts::F32),
        slot("dout", "[T, D]", Accepts::Float),
    ],
    outputs: &[slot("dy", "[P, D]", Accepts::Float), slot("dweights", "[T, K]", Accepts::F32)],
    numerics: "f32 inside; dy stored in y's dtype; slots are distinct, as expert_sort gives them; magnitude |weights·dout| and Σ|y·dout|.",
    gradient: "none",
    invariant: Invariant::Identity("Σ_d dy[slot]·y[slot] = weights·dweights"),
};

impl Definition for CombineGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let out = combine::check(operands)?;
        same_shape("dout and combine's result", &operands[3], &out)?;
        Ok(vec![operands[0].clone(), operands[2].clone()])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        3 * operands[3].elements() as u64 * operands[1].sizes[1] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        vec![
            Tolerance::rounded(outputs[0].dtype, 1.0),
            Tolerance::product(DType::F32, false, operands[0].sizes[1]),
        ]
    }
}
