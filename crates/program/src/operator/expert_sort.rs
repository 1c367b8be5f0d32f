//! Sorts token copies by expert.

use super::*;

/// Attributes of `expert_sort`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSort {
    /// The number of experts, `E`.
    pub experts: usize,
}

pub(super) const RECORD: Record = Record {
    name: "expert_sort",
    summary: "Stable counting sort of (token, choice) pairs by expert.",
    formula: "pairs (t,k) ordered by indices[t,k], then t, then k; slot[t,k] = place of (t,k); token[slot[t,k]] = t; offsets[e] = pairs with an expert below e, offsets[E] = T·K",
    source: "definition",
    operands: &[slot("indices", "[T, K]", Accepts::I32)],
    outputs: &[
        slot("token", "[T·K]", Accepts::I32),
        slot("slot", "[T, K]", Accepts::I32),
        slot("offsets", "[E+1]", Accepts::I32),
    ],
    numerics: "Exact. Indices lie in 0..E, as router gives them; a device clamps others into that range.",
    gradient: "none (integers)",
    invariant: Invariant::Recompute,
};

impl Definition for ExpertSort {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let indices = &operands[0];
        rank("indices", indices, 2)?;
        let choices = constant("the choices of a token", indices.shape[1])?;
        if self.experts == 0 {
            return Err("there must be an expert".into());
        }
        let pairs = indices.shape[0].times(choices).ok_or("too many pairs")?;
        Ok(vec![
            Type { dtype: DType::I32, shape: vec![pairs] },
            indices.clone(),
            Type::new(DType::I32, [self.experts + 1]),
        ])
    }

    fn flops(&self, _: &[Concrete], _: &[Concrete]) -> u64 {
        0
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance::EXACT; 3]
    }
}
