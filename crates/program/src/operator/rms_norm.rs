//! Root-mean-square normalisation of rows.

use super::*;

/// Attributes of `rms_norm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RmsNorm {
    /// Added to the mean square, rounded to f32.
    pub epsilon: f64,
}

pub(super) const RECORD: Record = Record {
    name: "rms_norm",
    summary: "Scales each row to a root mean square of one, then by a weight per column.",
    formula: "rstd[r] = 1/√(Σ_d x[r,d]²/D + epsilon); y[r,d] = x[r,d]·rstd[r]·weight[d]",
    source: "Zhang and Sennrich, arXiv 1910.07467, equation 4",
    operands: &[slot("x", "[R.., D]", Accepts::Float), slot("weight", "[D]", Accepts::Float)],
    outputs: &[slot("y", "[R.., D]", Accepts::Float), slot("rstd", "[R..]", Accepts::F32)],
    numerics: "f32 inside, any order of the sum, one rounding on store to x's dtype; magnitude |y| and rstd.",
    gradient: "dx, dweight = rms_norm_gradient(x, weight, rstd, dy)",
    invariant: Invariant::Identity("Σ_d (y/weight)² = D·(1 - epsilon·rstd²)"),
};

impl Definition for RmsNorm {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let x = &operands[0];
        if !(2..=3).contains(&x.rank()) {
            return Err("x must have 2 or 3 dimensions".into());
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return Err("epsilon must not be negative".into());
        }
        dims("weight", &operands[1], &x.shape[x.rank() - 1..])?;
        let rows = x.shape[..x.rank() - 1].to_vec();
        Ok(vec![x.clone(), Type { dtype: DType::F32, shape: rows }])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        4 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], outputs: &[Concrete]) -> Vec<Tolerance> {
        // The sum's relative error halves under the root.
        let roundings = operands[1].sizes[0] as f64 / 2.0 + 6.0;
        vec![Tolerance::rounded(outputs[0].dtype, roundings), Tolerance::rounded(DType::F32, roundings)]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let weight = gradients.dtype(1);
        let inputs =
            [gradients.operand(0), gradients.operand(1), gradients.output(1), gradients.incoming(0)?];
        let emitted = gradients.emit(RmsNormGradient { weight_output: weight }, inputs)?;
        gradients.set(0, emitted[0]);
        gradients.set(1, emitted[1]);
        Ok(())
    }
}
