//! The head and its loss in one operator that never holds all logits.

use super::*;

/// Attributes of `linear_cross_entropy`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearCrossEntropy {}

pub(super) const RECORD: Record = Record {
    name: "linear_cross_entropy",
    summary: "Negative log-likelihood of targets under a linear head, a row at a time.",
    formula: "z[t,v] = Σ_d x[t,d]·weight[v,d]; lse[t] = ln Σ_v e^z; loss[t] = lse[t] - z[t,target[t]]; 0 where the target is outside 0..V",
    source: "definition; chunked as in Cut Cross-Entropy, arXiv 2411.09009",
    operands: &[
        slot("x", "[T, D]", Accepts::Float),
        slot("weight", "[V, D]", Accepts::Float),
        slot("targets", "[T]", Accepts::I32),
    ],
    outputs: &[slot("loss", "[T]", Accepts::F32), slot("lse", "[T]", Accepts::F32)],
    numerics: "Logits, maximum, sum and logarithm in f32, any order; magnitude 1 + |lse| + |z_target| + max_v Σ|x·weight|. The loss is minus a token's log-probability.",
    gradient: "loss, dx, dweight = linear_cross_entropy_gradient(x, weight, targets, dloss); its loss takes the place of this operator's",
    invariant: Invariant::Recompute,
};

pub(super) fn check(operands: &[Type]) -> Result<(), String> {
    let (x, weight) = (&operands[0], &operands[1]);
    rank("x", x, 2)?;
    rank("weight", weight, 2)?;
    constant("the rows of weight", weight.shape[0])?;
    if x.shape[1] != weight.shape[1] {
        return Err("x and weight must have the same number of columns".into());
    }
    dims("targets", &operands[2], &x.shape[..1])
}

impl Definition for LinearCrossEntropy {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        check(operands)?;
        let rows = Type { dtype: DType::F32, shape: operands[0].shape[..1].to_vec() };
        Ok(vec![rows.clone(), rows])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        2 * operands[0].elements() as u64 * operands[1].sizes[0] as u64
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        let (d, v) = (operands[0].sizes[1], operands[1].sizes[0]);
        vec![Tolerance::rounded(DType::F32, (d + v) as f64 + 12.0); 2]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let operator = LinearCrossEntropyGradient { weight_output: gradients.dtype(1), sums: false };
        let inputs =
            [gradients.operand(0), gradients.operand(1), gradients.operand(2), gradients.incoming(0)?];
        let emitted = gradients.emit(operator, inputs)?;
        gradients.set(0, emitted[1]);
        gradients.set(1, emitted[2]);
        gradients.supersede(0, emitted[0]);
        Ok(())
    }
}
