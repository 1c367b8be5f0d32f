//! From gradients to the next state.

use super::muon;
use super::network::Network;
use crate::checkpoint::{Piece, pieces};
use crate::error::ModelError;
use crate::parameters::Parameter;
use crate::training_options::TrainingOptions;
use std::collections::HashMap;
use toprope_program::constant::Content;
use toprope_program::operator::{Adamw, BiasUpdate, GlobalNorm, Increment, Operator};
use toprope_program::{DType, Initial, Program, Role, Type, ValueId};

/// Gradients and loads in their carried values.
pub(crate) struct Sums {
    gradients: Vec<ValueId>,
    counts: Vec<(String, ValueId)>,
}

/// Carries the gradient of each parameter and the load of each layer's experts.
pub(crate) fn carry_gradients(
    network: &mut Network<'_>,
    trained: &[Parameter],
    gradients: Vec<Option<ValueId>>,
) -> Result<Sums, ModelError> {
    let mut sums = Sums { gradients: Vec::new(), counts: Vec::new() };
    for (parameter, gradient) in trained.iter().zip(gradients) {
        network.builder.set_part(parameter.part.clone());
        let gradient = match gradient {
            Some(gradient) => gradient,
            None => zeros(network, parameter),
        };
        let name = format!("gradient.{}", parameter.name);
        sums.gradients.push(network.builder.accumulate(&name, gradient)?);
    }
    for index in 0..network.routed.len() {
        let (layer, counts) = (network.routed[index].layer, network.routed[index].counts);
        let part = crate::parameters::layer_part(network.architecture, layer);
        network.builder.set_part(format!("{part}.router"));
        let carried = network.builder.accumulate(&format!("counts.{layer}"), counts)?;
        let bias = format!("model.layers.{layer}.mlp.gate.e_score_correction_bias");
        sums.counts.push((bias, carried));
    }
    Ok(sums)
}

/// A parameter that no gradient reaches has one of zero, not none.
fn zeros(network: &mut Network<'_>, parameter: &Parameter) -> ValueId {
    let r#type = Type::new(DType::F32, parameter.shape.iter().copied());
    let name = format!("{}.no_gradient", parameter.name);
    network.builder.constant(&name, r#type, Content::Splat { value: 0.0 })
}

/// Clips, moves every parameter by AdamW or Muon and every selection bias by its load, and counts the step.
pub(crate) fn update(
    network: &mut Network<'_>,
    options: &TrainingOptions,
    trained: &[Parameter],
    sums: &Sums,
) -> Result<(), ModelError> {
    let builder = &mut network.builder;
    builder.set_part("optimizer");
    let norm = builder.declare("gradient_norm", Type::new(DType::F32, [1]), Role::Output);
    let factor = builder.declare("clip_factor", Type::new(DType::F32, [1]), Role::Output);
    let operands = sums.gradients.iter().map(|sum| (*sum).into()).collect();
    builder.apply_to(GlobalNorm { clip: options.clip }, operands, vec![norm, factor])?;
    let rates = builder.input("rates", DType::F32, [3]);
    let published = if options.muon.is_some() { pieces(network.architecture) } else { Vec::new() };
    let mut of_parameter: HashMap<&str, Vec<&Piece>> = HashMap::new();
    for piece in &published {
        of_parameter.entry(&piece.parameter).or_default().push(piece);
    }
    for (parameter, gradient) in trained.iter().zip(&sums.gradients) {
        let weight = network.parameter(&parameter.name)?;
        let builder = &mut network.builder;
        if let Some(options_of_muon) = options.muon.as_ref().filter(|_| muon::moves(parameter)) {
            let own = Piece {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                parameter: parameter.name.clone(),
                offset_elements: 0,
            };
            // An adapter's matrix is no part of a published one.
            let alone = [&own];
            let pieces = of_parameter.get(own.name.as_str()).map_or(&alone[..], Vec::as_slice);
            let step = muon::Step {
                options: options_of_muon,
                weight_decay: options.adamw.weight_decay,
                dtype: options.dtype,
                factor,
                rates,
            };
            muon::update(builder, parameter, pieces, (weight, *gradient), &step)?;
            continue;
        }
        let r#type = builder.program().value(weight).r#type();
        let m = builder.state(&format!("{}.m", parameter.name), r#type.clone(), Initial::Zeros);
        let v = builder.state(&format!("{}.v", parameter.name), r#type, Initial::Zeros);
        let next = vec![builder.next(weight), builder.next(m), builder.next(v)];
        let adamw = Adamw {
            beta1: options.adamw.beta1,
            beta2: options.adamw.beta2,
            epsilon: options.adamw.epsilon,
            weight_decay: if parameter.kind.is_vector() { 0.0 } else { options.adamw.weight_decay },
            digests: false,
        };
        let operands =
            vec![weight.into(), (*gradient).into(), m.into(), v.into(), factor.into(), rates.into()];
        builder.apply_to(adamw, operands, next)?;
    }
    for (name, counts) in &sums.counts {
        let bias = network.parameter(name)?;
        let next = network.builder.next(bias);
        let operator = BiasUpdate { rate: options.bias_update_rate };
        network.builder.apply_to(operator, vec![bias.into(), (*counts).into()], vec![next])?;
    }
    let builder = &mut network.builder;
    let step = builder.state("step", Type::new(DType::I32, [1]), Initial::Zeros);
    let next = builder.next(step);
    builder.apply_to(Increment { by: 1 }, vec![step.into()], vec![next])?;
    Ok(())
}

/// Moves each `accumulate` to just behind what it reads, so that no gradient stays alive in scratch memory until the end
/// of the range, and a device can add a product's result where it is made.
pub(crate) fn accumulate_early(program: &mut Program) {
    let instructions = std::mem::take(&mut program.accumulate);
    let (adding, computing): (Vec<_>, Vec<_>) = instructions
        .into_iter()
        .partition(|instruction| matches!(instruction.operator, Operator::Accumulate(_)));
    let mut waiting: std::collections::HashMap<ValueId, Vec<_>> = std::collections::HashMap::new();
    let mut ordered = Vec::with_capacity(adding.len() + computing.len());
    let written: std::collections::HashSet<ValueId> =
        computing.iter().flat_map(|instruction| instruction.outputs.iter().copied()).collect();
    for instruction in adding {
        match instruction.operands.get(1).map(|operand| operand.value) {
            Some(source) if written.contains(&source) => {
                waiting.entry(source).or_default().push(instruction);
            }
            _ => ordered.push(instruction),
        }
    }
    for instruction in computing {
        let outputs = instruction.outputs.clone();
        ordered.push(instruction);
        for output in outputs {
            ordered.extend(waiting.remove(&output).into_iter().flatten());
        }
    }
    program.accumulate = ordered;
}
