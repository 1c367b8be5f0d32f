//! Chooses experts for each token.

use super::*;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Each expert on its own (DeepSeek-V3).
    Sigmoid,
    /// Over all experts (DeepSeek-V2, Mixtral, Qwen).
    Softmax,
}

/// Attributes of `router`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// How logits become scores.
    pub scoring: Scoring,
    /// Experts for each token, `K`.
    pub top_k: usize,
    /// Groups of neighbouring experts; 1 where there are none.
    pub groups: usize,
    /// Groups that a token may choose from.
    pub top_groups: usize,
    /// Whether the chosen scores are divided by their sum.
    pub normalize: bool,
    /// What weights are multiplied by at the end (routed scaling factor).
    pub scale: f64,
}

pub(super) const RECORD: Record = Record {
    name: "router",
    summary: "Top-k experts with scores, a selection bias and group limits.",
    formula: "scores = sigmoid(logits) or softmax over experts; b = scores + bias; a group's score is the sum of its two largest b (one where it has one expert); only experts of the top_groups best groups take part; indices[t,:] = the K largest b in descending order, ties to the lower index (groups too); weights = scale·scores[indices] / (Σ_k scores[indices] + 1e-20 if normalize, else 1); counts[e] = how often e was chosen",
    source: "DeepSeek-V3, arXiv 2412.19437, equations 12-16 and section 2.1.2",
    operands: &[slot("logits", "[T, E]", Accepts::F32), slot("bias", "[E]", Accepts::F32)],
    outputs: &[
        slot("scores", "[T, E]", Accepts::F32),
        slot("indices", "[T, K]", Accepts::I32),
        slot("weights", "[T, K]", Accepts::F32),
        slot("counts", "[E]", Accepts::I32),
    ],
    numerics: "f32 inside. Choices whose margin is within the tolerance of the scores may differ between devices: comparisons count them as incomparable. Magnitude |scores| and |weights|, for softmax |scores|·(1 + d) and |weights|·(1 + 2·max d), d the distance of a logit from the row's largest. A NaN score is never preferred to a number.",
    gradient: "dlogits = router_gradient(scores, indices, weights, dweights, dscores); the choice and the bias have none",
    invariant: Invariant::Identity("Σ_k weights = scale where normalize; Σ_e counts = T·K"),
};

impl Router {
    pub(super) fn check(&self, experts: usize) -> Result<(), String> {
        if self.groups == 0 || !experts.is_multiple_of(self.groups) {
            return Err(format!("{experts} experts do not divide into {} groups", self.groups));
        }
        if self.top_groups == 0 || self.top_groups > self.groups {
            return Err(format!("top_groups {} must lie in 1..={}", self.top_groups, self.groups));
        }
        let reach = experts / self.groups * self.top_groups;
        if self.top_k == 0 || self.top_k > reach {
            return Err(format!("top_k {} must lie in 1..={reach}, the experts within reach", self.top_k));
        }
        positive("scale", self.scale)
    }
}

impl Definition for Router {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let logits = &operands[0];
        rank("logits", logits, 2)?;
        let experts = constant("the number of experts", logits.shape[1])?;
        dims("bias", &operands[1], &logits.shape[1..])?;
        self.check(experts)?;
        let chosen = vec![logits.shape[0], self.top_k.into()];
        Ok(vec![
            logits.clone(),
            Type { dtype: DType::I32, shape: chosen.clone() },
            Type { dtype: DType::F32, shape: chosen },
            Type::new(DType::I32, [experts]),
        ])
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        8 * count(operands)
    }

    fn tolerances(&self, operands: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        let experts = operands[0].sizes[1] as f64;
        let scores = match self.scoring {
            Scoring::Sigmoid => Tolerance::rounded(DType::F32, 8.0),
            Scoring::Softmax => Tolerance::rounded(DType::F32, experts + 12.0),
        };
        let weights = Tolerance::rounded(DType::F32, experts + self.top_k as f64 + 16.0);
        vec![scores, Tolerance::EXACT, weights, Tolerance::EXACT]
    }

    fn gradient(&self, gradients: &mut Gradients<'_>) -> Result<(), String> {
        let weights = gradients.incoming(2)?;
        let mut inputs = vec![gradients.output(0), gradients.output(1), gradients.output(2), weights];
        inputs.extend(gradients.incoming_optional(0)?);
        let operator =
            RouterGradient { scoring: self.scoring, normalize: self.normalize, scale: self.scale };
        let gradient = gradients.emit(operator, inputs)?[0];
        gradients.set(0, gradient);
        Ok(())
    }
}
