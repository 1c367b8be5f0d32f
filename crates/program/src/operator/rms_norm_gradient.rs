//! Gradient of [`super::RmsNorm`].

use super::*;

/// Attributes of `rms_norm_gradient`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RmsNormGradient {
    /// The dtype of the weight's gradient.
    pub weight_output: DType,
}

pub(super) const RECORD: Record = Record {
    name: "rms_norm_gradient",
    summary: "Gradient of rms_norm.",
    formula: "c[r] = Σ_d dy·weight·x/D; dx = rstd·(dy·weight - x·rstd²·c); dweight[d] = Σ_r dy·x·rstd",
    source: "derivative of rms_norm",
    operands: &[
        slot("x", "[R.., D]", Accepts::Float),
        slot("weight", "[D]", Accepts::Float),
        slot("rstd", "[R..]", Accepts::F32),
        slot("dy", "[R.., D]", Accepts::Float),
    ],
    outputs: &[slot("dx", "[R.., D]", Accepts::Float), slot("dweight", "[D]", Accepts::Float)],
    numerics: "f32 inside, sums in any order, one rounding on store (dx to x's dtype); magnitude of dx rstd·(|dy·weight| + |x|·rstd²·Σ|dy·weight·x|/D), of dweight Σ|dy·x·rstd|.",
    gradient: "none",
    invariant: Invariant::Identity("Σ_d weight·dweight = Σ_{r,d} dy·y"),
};

impl Definition for RmsNormGradient {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let x = &operands[0];
        let forward = RmsNorm { epsilon: 0.0 }.infer(&operands[..2])?;
        same_shape("rstd and the rows of x", &operands[2], &forward[1])?;
        same_shape("x and dy", x, &operands[3])?;
        if !self.weight_output.is_float() {
            return Err("weight_output must be f32 or bf16".into());
        }
        Ok(vec![x.clone(), Type { dtype: self.weight_output, shape: operands[1].shape.clone() }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        9 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        let columns = operands[1].elements();
        let rows = operands[0].elements() / columns.max(1);
        vec![
            Tolerance::rounded(outputs[0].dtype, columns as f64 + 8.0),
            Tolerance::rounded(outputs[1].dtype, rows as f64 + 3.0),
        ]
    }
}
