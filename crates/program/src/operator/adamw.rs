//! The optimizer.

use super::*;

/// Attributes of `adamw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adamw {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether the digests come too, as three more outputs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digests: bool,
}

impl Adamw {
    /// What the digests are of, in their order: the next state, the state and the gradient as they were read.
    pub const DIGESTS: [&'static str; 3] = ["digest", "state_digest", "gradient_digest"];
}

pub(super) const RECORD: Record = Record {
    name: "adamw",
    summary: "Adam with decoupled weight decay and a clipping factor, in one pass.",
    formula: "[lr, c1, c2] = rates; g = gradient·factor; m' = β1·m + (1-β1)·g; v' = β2·v + (1-β2)·g·g; w' = (w - lr·λ·w) - lr·((m'/c1)/(√(v'/c2) + ε)); c1 = 1-β1^t and c2 = 1-β2^t come from the host; digest = digest(w') + digest(m') + digest(v'), state_digest = digest(w) + digest(m) + digest(v), both modulo 2^64, gradient_digest = digest(gradient)",
    source: "Loshchilov and Hutter, arXiv 1711.05101, algorithm 2",
    operands: &[
        slot("weight", "[...]", Accepts::F32),
        slot("gradient", "[...]", Accepts::F32),
        slot("m", "[...]", Accepts::F32),
        slot("v", "[...]", Accepts::F32),
        slot("factor", "[1]", Accepts::F32),
        slot("rates", "[3]", Accepts::F32),
    ],
    outputs: &[
        slot("weight'", "[...]", Accepts::F32),
        slot("m'", "[...]", Accepts::F32),
        slot("v'", "[...]", Accepts::F32),
        optional("digest", "[2]", Accepts::U32),
        optional("state_digest", "[2]", Accepts::U32),
        optional("gradient_digest", "[2]", Accepts::U32),
    ],
    numerics: "β, 1-β, ε and λ are rounded to f32 (1-β from f64); each operation is one f32 IEEE operation in the order written; subnormals are kept. Magnitude of m' β1|m| + (1-β1)|g|, of v' v', of w' |w| + lr·((|m'|magnitude/c1)/(√(v'/c2) + ε)).",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Definition for Adamw {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!("{name} must lie in 0..1"));
            }
        }
        positive("epsilon", self.epsilon)?;
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err("weight_decay must not be negative".into());
        }
        let weight = &operands[0];
        for (name, operand) in [("gradient", 1), ("m", 2), ("v", 3)] {
            same_shape(&format!("weight and {name}"), weight, &operands[operand])?;
        }
        scalar("factor", &operands[4])?;
        dims("rates", &operands[5], &[3.into()])?;
        let mut outputs = vec![weight.clone(); 3];
        if self.digests {
            outputs.extend(Adamw::DIGESTS.map(|_| Type::new(DType::U32, [2])));
        }
        Ok(outputs)
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        16 * count(operands)
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        let mut tolerances = vec![
            Tolerance::rounded(DType::F32, 14.0),
            Tolerance::rounded(DType::F32, 5.0),
            Tolerance::rounded(DType::F32, 6.0),
        ];
        if self.digests {
            // The first follows from the device's own outputs: it is judged against them, never across devices.
            tolerances.extend(Adamw::DIGESTS.map(|_| Tolerance::EXACT));
        }
        tolerances
    }
}
