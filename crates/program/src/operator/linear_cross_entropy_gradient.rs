//! Loss and gradients of [`super::LinearCrossEntropy`] in one pass.

use super::*;

/// Attributes of `linear_cross_entropy_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearCrossEntropyGradient {
    /// The dtype of the weight's gradient.
    pub weight_output: DType,
    /// Whether the sums that `loss_check` judges come as two more outputs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sums: bool,
}

pub(super) const RECORD: Record = Record {
    name: "linear_cross_entropy_gradient",
    summary: "Loss of a linear head and its gradients; logits are made once and thrown away.",
    formula: "p[t,v] = e^(z[t,v] - lse[t]); g[t,v] = dloss[t]·(p[t,v] - [v = target[t]]), 0 where the target is outside 0..V; dx[t,d] = Σ_v g·weight[v,d]; dweight[v,d] = Σ_t g·x[t,d]; loss as in linear_cross_entropy. With W[v] = Σ_d weight, W2[v] = √(Σ_d weight²), X[t], X2[t] the same of x: row_sums[t] = (Σ_d dx, Σ_v g·W, √(V+D)·Σ_v |g|·W2, the loss by another way, 1 + |max z| + |z_target| + |loss|), zeros and a last 1 where there is no target; weight_sums[v] = (Σ_d dweight, Σ_t g·X, √(T+D)·Σ_t |g|·X2)",
    source: "derivative of linear_cross_entropy",
    operands: &[
        slot("x", "[T, D]", Accepts::Float),
        slot("weight", "[V, D]", Accepts::Float),
        slot("targets", "[T]", Accepts::I32),
        slot("dloss", "[T]", Accepts::F32),
    ],
    outputs: &[
        slot("loss", "[T]", Accepts::F32),
        slot("dx", "[T, D]", Accepts::Float),
        slot("dweight", "[V, D]", Accepts::Float),
        optional("row_sums", "[T, 5]", Accepts::F32),
        optional("weight_sums", "[V, 3]", Accepts::F32),
    ],
    numerics: "f32 inside, any order; the first sums from the f32 accumulators before rounding, the others from the g that the products read; g may be rounded to bf16 where both x and weight are; dx stored in x's dtype. With e = 1 + |lse| + max_v Σ|x·weight|: magnitude of dx Σ_v |dloss|·(p·(1 + 2e) + [v = target])·|weight|, of dweight the same with |x| over t; of loss as in linear_cross_entropy.",
    gradient: "none",
    invariant: Invariant::Identity("Σ_d dx = Σ_v g·W; Σ_d dweight = Σ_t g·X; loss_check"),
};

impl Definition for LinearCrossEntropyGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        linear_cross_entropy::check(operands)?;
        let rows = &operands[0].shape[..1];
        dims("dloss", &operands[3], rows)?;
        if !self.weight_output.is_float() {
            return Err("weight_output must be f32 or bf16".into());
        }
        let mut outputs = vec![
            Type { dtype: DType::F32, shape: rows.to_vec() },
            operands[0].clone(),
            Type { dtype: self.weight_output, shape: operands[1].shape.clone() },
        ];
        if self.sums {
            outputs.push(Type { dtype: DType::F32, shape: vec![rows[0], 5.into()] });
            outputs.push(Type { dtype: DType::F32, shape: vec![operands[1].shape[0], 3.into()] });
        }
        Ok(outputs)
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        6 * operands[0].elements() as u64 * operands[1].sizes[0] as u64
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let (t, d, v) = (operands[0].sizes[0], operands[0].sizes[1], operands[1].sizes[0]);
        let both_bf16 = operands[..2].iter().all(|operand| operand.dtype == DType::Bf16);
        let rounded = if both_bf16 { DType::Bf16.unit_roundoff() } else { 0.0 };
        let product = |output: DType, terms: usize| {
            let mut tolerance = Tolerance::rounded(output, (d + v + terms) as f64 + 16.0);
            tolerance.accumulated += rounded;
            tolerance
        };
        let mut tolerances = vec![
            Tolerance::rounded(DType::F32, (d + v) as f64 + 12.0),
            product(outputs[1].dtype, v),
            product(outputs[2].dtype, t),
        ];
        if self.sums {
            for terms in [v + d, t + d] {
                let mut tolerance = product(DType::F32, terms);
                // Squares of terms below 2^-63 are subnormal; `loss_check` has a floor far above what that changes.
                tolerance.absolute += 2f64.powi(-54);
                tolerances.push(tolerance);
            }
        }
        tolerances
    }
}
