//! Programs of one operator (with its forward where a gradient needs one), over shapes that kernels get wrong: 1, primes,
//! sizes beside the widths of tiles, long rows.

use super::GenerateError;
use super::draft::{Draft, Habits};
use super::emit::emit;
use crate::random::Random;
use std::sync::Arc;
use toprope_program::operator::Operator;
use toprope_program::{Phase, Validated};

/// A program with a binding of its symbols.
#[derive(Clone, Debug)]
pub struct Case {
    /// What made it, for reports.
    pub name: String,
    /// The program.
    pub program: Arc<Validated>,
    /// A value for each symbol.
    pub symbols: Vec<usize>,
    /// The seed that its values are drawn from.
    pub seed: u64,
}

const SMALL: &[usize] = &[1, 2, 3, 4, 5, 7, 8, 11, 13];
const TILES: &[usize] = &[1, 8, 15, 16, 17, 31, 32, 33];
const WIDE: &[usize] = &[3, 16, 17, 33, 48, 64, 65];
const LONG: &[usize] = &[1, 2, 257, 1031];

/// Case number `index` of an operator. The same seed and index give the same program.
pub fn case(operator: &Operator, seed: u64, index: u64) -> Result<Case, GenerateError> {
    let name = operator.name();
    let mut random = Random::new(seed, &format!("case {name} {index}"));
    let values = random.seed();
    // Long rows only where an operator's work grows with their number alone.
    let sizes = match index % 8 {
        0 | 3 => SMALL,
        1 | 4 | 6 => TILES,
        7 if is_linear(operator) => LONG,
        _ => WIDE,
    };
    let habits = Habits { reuse: 0.0, views: 0.35, outputs: 1.0, symbols: 0.2, states: false };
    let mut draft = Draft::new(&format!("{name}-{index}"), Phase::Evaluate, random, habits, sizes.to_vec());
    emit(&mut draft, operator)?;
    let program = draft.validated(seed)?;
    let symbols = draft.binding();
    Ok(Case { name: format!("{name} case {index}"), program, symbols, seed: values })
}

/// Whether the work of an operator grows with its elements alone, so that long rows are cheap.
fn is_linear(operator: &Operator) -> bool {
    match operator {
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Activation(_)
        | Operator::ActivationGradient(_)
        | Operator::Swiglu(_)
        | Operator::SwigluGradient(_)
        | Operator::Assemble(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::RmsNorm(_)
        | Operator::RmsNormGradient(_)
        | Operator::GlobalNorm(_)
        | Operator::Adamw(_)
        | Operator::Increment(_)
        | Operator::Accumulate(_)
        | Operator::RandomBits(_)
        | Operator::Digest(_)
        | Operator::Gather(_)
        | Operator::ScatterAdd(_) => true,
        Operator::Matmul(_)
        | Operator::GroupedMatmul(_)
        | Operator::GroupedOuter(_)
        | Operator::Attention(_)
        | Operator::AttentionGradient(_)
        | Operator::Rope(_)
        | Operator::LinearCrossEntropy(_)
        | Operator::LinearCrossEntropyGradient(_)
        | Operator::Router(_)
        | Operator::RouterGradient(_)
        | Operator::BalanceLoss(_)
        | Operator::BalanceLossGradient(_)
        | Operator::ExpertSort(_)
        | Operator::Combine(_)
        | Operator::CombineGradient(_)
        | Operator::BiasUpdate(_)
        | Operator::Append(_)
        | Operator::ProductCheck(_)
        | Operator::Compare(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => false,
    }
}
