//! Random programs of many operators from one seed: values read again and through views, both dtypes, blocks as models
//! build them, gradients by autodiff, and an update range.

use super::GenerateError;
use super::blocks::{Experts, attention_block, experts_block};
use super::draft::{Draft, Habits};
use super::emit::{adamw_attributes, emit};
use super::exemplars::exemplars;
use crate::random::Random;
use std::collections::BTreeMap;
use std::sync::Arc;
use toprope_program::autodiff::differentiate;
use toprope_program::operator::*;
use toprope_program::recompute::Recompute;
use toprope_program::{BuildError, DType, Initial, Operand, Phase, Range, Type, Validated, ValueId, View};

/// A random program.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The program.
    pub program: Arc<Validated>,
    /// A value for each symbol.
    pub symbols: Vec<usize>,
    /// The seed that its values are drawn from.
    pub seed: u64,
    /// How often each operator occurs.
    pub counts: BTreeMap<&'static str, u64>,
    /// Why it has no gradients although they were wanted.
    pub undifferentiated: Option<String>,
}

/// The program of a seed. The same seed gives the same program, which is printed the same.
pub fn program(seed: u64) -> Result<Generated, GenerateError> {
    let mut random = Random::new(seed, "program");
    let values = random.seed();
    let wants_gradients = random.chance(0.4);
    let mut sizes = Vec::new();
    for _ in 0..3 {
        sizes.push(random.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17]));
    }
    let symbols = if random.chance(0.4) { 0.5 } else { 0.0 };
    let habits = Habits { reuse: 0.75, views: 0.2, outputs: 0.15, symbols, states: true };
    let mut draft = Draft::new(&format!("random-{seed}"), Phase::Train, random, habits, sizes);
    let table = exemplars();
    let mut blocks = Vec::new();
    let mut ends = Vec::new();
    let count = 3 + draft.random.below(12);
    for _ in 0..count {
        match draft.random.below(10) {
            0 => {
                attention_block(&mut draft)?;
            }
            1 => {
                let (sum, balance, experts) = experts_block(&mut draft)?;
                blocks.push(experts);
                // Both, since the router's gradient needs that of its weights.
                ends.extend([sum, balance]);
            }
            _ => {
                let operator = draft.random.below(table.len());
                let operator = &table[operator];
                if wants_gradients && !has_gradient(operator) {
                    continue;
                }
                let outputs = emit(&mut draft, operator)?;
                if wants_gradients {
                    // Only first outputs carry gradients on.
                    outputs.iter().skip(1).for_each(|id| draft.forget(*id));
                }
            }
        }
    }
    let mut undifferentiated = None;
    let mut sums = Vec::new();
    if wants_gradients {
        let before = (draft.builder.clone(), draft.random.clone());
        match gradients(&mut draft, &ends) {
            Ok(gradients) => sums = gradients,
            Err(error) => {
                undifferentiated = Some(error.to_string());
                (draft.builder, draft.random) = before;
            }
        }
    }
    update(&mut draft, &blocks, &sums, &table)?;
    let program = draft.validated(seed)?;
    let symbols = draft.binding();
    let mut counts = BTreeMap::new();
    for range in Range::ALL {
        for instruction in program.program().range(range) {
            *counts.entry(instruction.operator.name()).or_default() += 1;
        }
    }
    Ok(Generated { program, symbols, seed: values, counts, undifferentiated })
}

/// A loss over the newest results, its gradients, and their sums: weight and carried value of each.
fn gradients(d: &mut Draft, more: &[ValueId]) -> Result<Vec<(ValueId, ValueId)>, BuildError> {
    let newest: Vec<ValueId> = d.results().into_iter().rev().take(3).collect();
    let mut losses = newest.clone();
    losses.extend(more.iter().filter(|id| !newest.contains(id)));
    let mut total: Option<ValueId> = None;
    for id in losses {
        let value = d.builder.program().value(id).clone();
        let mut x: Operand = id.into();
        if value.dtype != DType::F32 {
            x = d.add("widened", Cast { output: DType::F32 }, vec![x])?[0].into();
        }
        let symbol = value.shape.iter().find_map(|dim| dim.symbol);
        let factor = value.shape.iter().map(|dim| dim.factor).product();
        let flat = toprope_program::Dim { factor, symbol };
        x.view = View::dense(&[flat]);
        let weights = d.dense("loss_weights", DType::F32, &[flat]);
        let loss = d.add("loss", Dot {}, vec![x, weights])?[0];
        total = Some(match total {
            None => loss,
            Some(total) => d.add("total", Add { output: DType::F32 }, vec![total.into(), loss.into()])?[0],
        });
    }
    let Some(total) = total else { return Ok(Vec::new()) };
    let weights = d.weights.clone();
    let recompute = d.random.pick(&[Recompute::Nothing, Recompute::Elementwise, Recompute::Products]);
    let gradients = differentiate(&mut d.builder, total, &weights, recompute)?;
    d.builder.accumulate("loss_sum", total)?;
    let mut sums = Vec::new();
    for (weight, gradient) in weights.into_iter().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        let name = format!("{}.sum", d.builder.program().value(weight).name);
        sums.push((weight, d.builder.accumulate(&name, gradient)?));
    }
    Ok(sums)
}

/// The update range: clipping and optimizer where there are gradients, balancing, counters, and a few operators more.
fn update(
    d: &mut Draft,
    blocks: &[Experts],
    sums: &[(ValueId, ValueId)],
    table: &[Operator],
) -> Result<(), BuildError> {
    d.builder.set_range(Range::Update);
    d.builder.set_part("update");
    d.forget_all();
    if !sums.is_empty() {
        let operands = sums.iter().map(|(_, sum)| (*sum).into()).collect();
        let norm = d.add("norm", GlobalNorm { clip: 1.0 }, operands)?;
        norm.iter().for_each(|id| d.forget(*id));
        let rates = d.builder.input("rates", DType::F32, [3]);
        for (weight, sum) in sums {
            let (name, r#type) = {
                let value = d.builder.program().value(*weight);
                (value.name.clone(), value.r#type())
            };
            let m = d.builder.state(&format!("{name}.m"), r#type.clone(), Initial::Zeros);
            let v = d.builder.state(&format!("{name}.v"), r#type, Initial::Zeros);
            let mut outputs = vec![d.builder.next(*weight), d.builder.next(m), d.builder.next(v)];
            let attributes = adamw_attributes(d);
            if attributes.digests {
                for digest in Adamw::DIGESTS {
                    let r#type = Type::new(DType::U32, [2]);
                    outputs.push(d.builder.declare(digest, r#type, toprope_program::Role::Output));
                }
            }
            let operands = [*weight, *sum, m, v, norm[1], rates].into_iter().map(Operand::from).collect();
            d.builder.apply_to(attributes, operands, outputs)?;
        }
    }
    for experts in blocks {
        let next = d.builder.next(experts.bias);
        let operands = vec![experts.bias.into(), experts.counts.into()];
        d.builder.apply_to(BiasUpdate { rate: 0.001 }, operands, vec![next])?;
    }
    if d.random.chance(0.3) {
        let counter = d.builder.state("counter", Type::new(DType::I32, [1]), Initial::Zeros);
        let next = d.builder.next(counter);
        d.builder.apply_to(Increment { by: 1 }, vec![counter.into()], vec![next])?;
    }
    // States are read-only once their next half is written, so what comes now reads inputs.
    d.habits.states = false;
    for _ in 0..d.random.below(3) {
        let operator = &table[d.random.below(table.len())];
        if fits_update(operator) {
            emit(d, operator)?;
        }
    }
    Ok(())
}

/// Whether an operator may stand in the update range, and why not.
fn fits_update(operator: &Operator) -> bool {
    // Carried values are written in the first range only; a cache belongs to decoding.
    !matches!(operator, Operator::Accumulate(_) | Operator::Append(_))
}

/// Whether an operator may stand between a weight and a loss. The router is left to its block: its gradient needs that of
/// its weights.
fn has_gradient(operator: &Operator) -> bool {
    match operator {
        Operator::Cast(_)
        | Operator::Add(_)
        | Operator::Multiply(_)
        | Operator::Scale(_)
        | Operator::Activation(_)
        | Operator::Swiglu(_)
        | Operator::Assemble(_)
        | Operator::Gather(_)
        | Operator::ScatterAdd(_)
        | Operator::ColumnSum(_)
        | Operator::Dot(_)
        | Operator::Matmul(_)
        | Operator::GroupedMatmul(_)
        | Operator::RmsNorm(_)
        | Operator::Rope(_)
        | Operator::LinearCrossEntropy(_)
        | Operator::BalanceLoss(_)
        | Operator::Combine(_) => true,
        // Neither has a gradient, but nothing that they give leads to a loss.
        Operator::RandomBits(_) | Operator::Digest(_) => true,
        // Attention comes with its block: a query offset has no gradient.
        Operator::Attention(_)
        | Operator::ActivationGradient(_)
        | Operator::SwigluGradient(_)
        | Operator::GroupedOuter(_)
        | Operator::AttentionGradient(_)
        | Operator::RmsNormGradient(_)
        | Operator::LinearCrossEntropyGradient(_)
        | Operator::Router(_)
        | Operator::RouterGradient(_)
        | Operator::BalanceLossGradient(_)
        | Operator::ExpertSort(_)
        | Operator::CombineGradient(_)
        | Operator::GlobalNorm(_)
        | Operator::Adamw(_)
        | Operator::BiasUpdate(_)
        | Operator::Increment(_)
        | Operator::Accumulate(_)
        | Operator::Append(_)
        | Operator::ProductCheck(_)
        | Operator::Compare(_)
        | Operator::AttentionCheck(_)
        | Operator::LossCheck(_)
        | Operator::AdamwDigest(_)
        | Operator::Verify(_) => false,
    }
}
