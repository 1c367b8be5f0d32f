//! The result of another operator against the same result by another route.

use super::*;
use crate::tolerance::Tolerance;

/// The largest result of `verify` on a healthy device: the result and its second route, each within one unit of the
/// exact value (docs/checks.md).
pub const VERIFY_LIMIT: f64 = 2.0;

/// Attributes of `verify`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The operator whose result is verified, with its attributes.
    pub of: Box<Operator>,
}

pub(super) const RECORD: Record = Record {
    name: "verify",
    summary: "Judges the results of another operator by another route, without storing them: the largest distance in units of a bound.",
    formula: "values = the operands of `of`, then its outputs; for each element of each output |got - want| / (relative·|want| + min(accumulated, 4·√(accumulated·2^-24))·magnitude + 2^-70), `want` computed again by code of its own, tolerance and magnitude those of `of`; +∞ where an exact output (tolerance 0) differs or a number is not finite; worst is the largest, and any number up to 1 where none is above 1. Of router: scores so; b = scores + bias as stored, size[t] = max_e |scores| + |bias|, unit = 2^-22·size: indices in 0..E and distinct, else +∞; (largest b that was not chosen, of groups with a choice or whose score exceeds the best group that is not among the top_groups by more than 2·unit) - (least chosen b), over unit; chosen groups at most top_groups, else +∞; (score of the top_groups-th group) - (least score of a chosen group), over 2·unit; weights from the stored scores and indices, magnitude themselves; counts exactly",
    source: "certificates: Blum and Kannan, \"Designing programs that check their work\" (1989); bound: docs/checks.md",
    operands: &[many("values", "[...]", Accepts::Any)],
    outputs: &[slot("worst", "[1]", Accepts::F32)],
    numerics: "f32 or wider inside, any order, by other code than the operator's own. At most 2 on a healthy device. Judged against that, not across devices. `of` is one of rms_norm, rms_norm_gradient, router, router_gradient, balance_loss, balance_loss_gradient, expert_sort, column_sum, dot, global_norm, bias_update, increment.",
    gradient: "none",
    invariant: Invariant::Recompute,
};

impl Verify {
    /// Verifies this operator, where that is possible.
    pub fn new(of: &Operator) -> Option<Verify> {
        Verify::outputs(of).map(|_| Verify { of: Box::new(of.clone()) })
    }

    /// How many outputs an operator has that can be verified.
    fn outputs(of: &Operator) -> Option<usize> {
        match of {
            Operator::RmsNorm(_)
            | Operator::RmsNormGradient(_)
            | Operator::Router(_)
            | Operator::RouterGradient(_)
            | Operator::BalanceLoss(_)
            | Operator::BalanceLossGradient(_)
            | Operator::ExpertSort(_)
            | Operator::ColumnSum(_)
            | Operator::Dot(_)
            | Operator::GlobalNorm(_)
            | Operator::BiasUpdate(_)
            | Operator::Increment(_) => Some(of.definition().record().outputs.len()),
            _ => None,
        }
    }

    /// The number of values that are operands of `of`, where `count` are given.
    pub fn inputs(&self, count: usize) -> usize {
        count.saturating_sub(Verify::outputs(&self.of).unwrap_or(0))
    }

    /// Factors of `|want|` and of the magnitude in the unit of an output's distance.
    pub fn unit(tolerance: &Tolerance) -> (f64, f64) {
        let statistical = 4.0 * (tolerance.accumulated * DType::F32.unit_roundoff()).sqrt();
        (tolerance.relative, tolerance.accumulated.min(statistical))
    }
}

impl Definition for Verify {
    fn record(&self) -> &'static Record {
        &RECORD
    }

    fn infer(&self, operands: &[Type]) -> Result<Vec<Type>, String> {
        let name = self.of.name();
        let Some(outputs) = Verify::outputs(&self.of) else {
            return Err(format!("`{name}` cannot be verified"));
        };
        let Some(inputs) = operands.len().checked_sub(outputs) else {
            return Err(format!("the operands of `{name}` and its {outputs} output(s) are needed"));
        };
        let want = crate::validate::infer(&self.of, &operands[..inputs])?;
        match want.iter().zip(&operands[inputs..]).position(|(want, have)| want != have) {
            Some(at) => Err(format!("output {at} of `{name}` has another type")),
            None => Ok(vec![Type::new(DType::F32, [1])]),
        }
    }

    fn flops(&self, operands: &[Concrete], _: &[Concrete]) -> u64 {
        let (inputs, outputs) = operands.split_at(self.inputs(operands.len()));
        self.of.definition().flops(inputs, outputs)
    }

    fn tolerances(&self, _: &[Concrete], _: &[Concrete]) -> Vec<Tolerance> {
        vec![Tolerance { relative: 0.0, accumulated: 0.0, absolute: VERIFY_LIMIT }]
    }
}
