//! One of each operator, in the order of the contract: what cases and draws go through.

use toprope_program::operator::*;
use toprope_program::{DType, Dim};

/// One of each operator. Attributes are placeholders: [`super::emit`] draws its own.
pub fn exemplars() -> Vec<Operator> {
    let output = DType::F32;
    let one = || vec![Dim::from(1)];
    vec![
        Cast { output }.into(),
        Add { output }.into(),
        Multiply { output }.into(),
        Scale { factor: 1.0 }.into(),
        Activation { kind: ActivationKind::Silu }.into(),
        ActivationGradient { kind: ActivationKind::Silu }.into(),
        Swiglu {}.into(),
        SwigluGradient {}.into(),
        Assemble { output, shape: one(), views: Vec::new() }.into(),
        Gather { output }.into(),
        ScatterAdd { output, rows: 1.into() }.into(),
        ColumnSum { output }.into(),
        Dot {}.into(),
        Matmul { output, row_sums: false }.into(),
        GroupedMatmul { output, row_sums: false }.into(),
        GroupedOuter { output, row_sums: false }.into(),
        Attention { scale: 1.0 }.into(),
        AttentionGradient { scale: 1.0, sums: false }.into(),
        RmsNorm { epsilon: 1e-6 }.into(),
        RmsNormGradient { weight_output: output }.into(),
        Rope { start: 0, interleaved: false, inverse: false }.into(),
        LinearCrossEntropy {}.into(),
        LinearCrossEntropyGradient { weight_output: output, sums: false }.into(),
        Router {
            scoring: Scoring::Sigmoid,
            top_k: 1,
            groups: 1,
            top_groups: 1,
            normalize: false,
            scale: 1.0,
        }
        .into(),
        RouterGradient { scoring: Scoring::Sigmoid, normalize: false, scale: 1.0 }.into(),
        BalanceLoss { sequence: 1 }.into(),
        BalanceLossGradient { sequence: 1 }.into(),
        ExpertSort { experts: 1 }.into(),
        Combine {}.into(),
        CombineGradient {}.into(),
        GlobalNorm { clip: 1.0 }.into(),
        Adamw { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, digests: false }.into(),
        BiasUpdate { rate: 0.001 }.into(),
        Increment { by: 1 }.into(),
        Accumulate {}.into(),
        RandomBits { stream: 0, shape: one() }.into(),
        Append {}.into(),
        Digest {}.into(),
        ProductCheck::default().into(),
        Compare {}.into(),
        AttentionCheck { scale: 1.0 }.into(),
        LossCheck {}.into(),
        AdamwDigest { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }.into(),
        Verify { of: Box::new(Dot {}.into()) }.into(),
    ]
}

#[cfg(test)]
mod tests {
    /// A new operator must be added above, or this fails; `emit` fails to compile.
    #[test]
    fn every_operator_is_there_once() {
        let names: Vec<_> = super::exemplars().iter().map(|operator| operator.name()).collect();
        let contract: Vec<_> = toprope_program::OPERATORS.iter().map(|record| record.name).collect();
        assert_eq!(names, contract);
    }
}
