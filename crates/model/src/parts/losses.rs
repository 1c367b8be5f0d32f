//! Heads and what is minimised.

use super::mtp;
use super::network::{Network, Trunk};
use crate::architecture::Architecture;
use crate::error::ModelError;
use crate::training_options::TrainingOptions;
use toprope_program::constant::Content;
use toprope_program::operator::{Add, BalanceLoss, Dot, Gather, LinearCrossEntropy, Router, Scale};
use toprope_program::{DType, Dim, Operand, Type, ValueId};

/// The terms of the loss, each f32\[1\] and as it enters the total.
pub(crate) struct Losses {
    pub total: ValueId,
    main: ValueId,
    mtp: Option<ValueId>,
    balance: Option<ValueId>,
}

/// `total = main + λ/D · Σ_d mtp_d + α · Σ_layer balance` (V3, equations 17-20, 24 and 25).
pub(crate) fn training(
    network: &mut Network<'_>,
    options: &TrainingOptions,
    trunk: &Trunk,
) -> Result<Losses, ModelError> {
    let main = mean(network, trunk.normed, "targets", "loss_scale")?;
    let depths = network.architecture.prediction_layers();
    let mut previous = trunk.normed;
    let mut sum = None;
    for depth in 1..=depths {
        previous = mtp::module(network, previous, depth)?;
        let loss = mean(network, previous, &format!("mtp_targets.{depth}"), &format!("mtp_scale.{depth}"))?;
        sum = Some(added(network, "mtp", sum, loss)?);
    }
    network.builder.set_part("loss");
    let mtp = scaled(network, "mtp.weighted", sum, options.mtp_weight / depths.max(1) as f64)?;
    let balance = match options.balance_alpha > 0.0 {
        true => balance(network, options)?,
        false => None,
    };
    let mut total = main;
    for term in [mtp, balance].into_iter().flatten() {
        total = added(network, "total", Some(total), term)?;
    }
    Ok(Losses { total, main, mtp, balance })
}

/// Adds the terms and the experts' loads into their carried values.
pub(crate) fn carry(network: &mut Network<'_>, losses: &Losses) -> Result<(), ModelError> {
    network.builder.set_part("loss");
    let terms = [
        ("loss", Some(losses.total)),
        ("loss_main", Some(losses.main)),
        ("loss_mtp", losses.mtp),
        ("loss_balance", losses.balance),
    ];
    for (name, term) in terms {
        if let Some(term) = term {
            network.builder.accumulate(name, term)?;
        }
    }
    Ok(())
}

/// Sum of losses and number of targets, carried.
pub(crate) fn evaluation(network: &mut Network<'_>, trunk: &Trunk) -> Result<(), ModelError> {
    let rows = network.rows;
    let ones = network.builder.constant("ones", Type::new(DType::F32, [1]), Content::Splat { value: 1.0 });
    let each = repeated(network, ones, rows)?;
    let targets = network.input("targets", DType::I32, rows);
    let losses = token_losses(network, trunk.normed, targets)?;
    network.builder.set_part("loss");
    let sum = network.builder.one("loss.sum", Dot {}, [losses.into(), each.clone()])?;
    network.builder.accumulate("loss_sum", sum)?;
    // A gather from a column of ones gives 1 for each target within the vocabulary and 0 for the others: exactly the
    // targets that have a loss.
    let vocabulary = network.architecture.vocab_size().into();
    let column = network.builder.seen(ones, |view| view.repeat(0, vocabulary))?;
    let valid = network.builder.one("loss.valid", Gather { output: DType::F32 }, [column, targets.into()])?;
    let valid = network.builder.seen(valid, |view| view.drop_axis(1))?;
    let count = network.builder.one("loss.count", Dot {}, [valid, each])?;
    network.builder.accumulate("target_count", count)?;
    Ok(())
}

/// A scalar f32\[1\] repeated along `dim`.
fn repeated(network: &Network<'_>, scalar: ValueId, dim: Dim) -> Result<Operand, ModelError> {
    Ok(network.builder.seen(scalar, |view| view.repeat(0, dim).drop_axis(1))?)
}

fn token_losses(network: &mut Network<'_>, normed: ValueId, targets: ValueId) -> Result<ValueId, ModelError> {
    let head = network.weight(network.architecture.head())?;
    let name = network.local("losses");
    let operands = [normed.into(), head.into(), targets.into()];
    Ok(network.builder.apply(&name, LinearCrossEntropy {}, operands)?[0])
}

/// The losses of a head's targets times a scale that makes them a mean over the step.
fn mean(
    network: &mut Network<'_>,
    normed: ValueId,
    targets: &str,
    scale: &str,
) -> Result<ValueId, ModelError> {
    let rows = network.rows;
    let targets = network.input(targets, DType::I32, rows);
    let losses = token_losses(network, normed, targets)?;
    let scale = network.input(scale, DType::F32, 1.into());
    let (name, scale) = (network.local("mean"), repeated(network, scale, rows)?);
    Ok(network.builder.one(&name, Dot {}, [losses.into(), scale])?)
}

/// α times the sum over layers of the mean over sequences; none without experts.
fn balance(network: &mut Network<'_>, options: &TrainingOptions) -> Result<Option<ValueId>, ModelError> {
    let Architecture::DeepseekV3(config) = network.architecture else { return Ok(None) };
    if network.routed.is_empty() {
        return Ok(None);
    }
    let experts = config.experts();
    // Equation 18 counts the K best affinities as they are, without bias and groups.
    let affinity = Router {
        scoring: config.scoring_func,
        top_k: config.num_experts_per_tok,
        groups: 1,
        top_groups: 1,
        normalize: false,
        scale: 1.0,
    };
    let r#type = Type::new(DType::F32, [experts]);
    let no_bias = network.builder.constant("no_bias", r#type, Content::Splat { value: 0.0 });
    let scale = network.input("balance_scale", DType::F32, 1.into());
    let mut sum = None;
    for index in 0..network.routed.len() {
        let routed = &network.routed[index];
        let (layer, logits, scores) = (routed.layer, routed.logits, routed.scores);
        let part = crate::parameters::layer_part(network.architecture, layer);
        network.builder.set_part(format!("{part}.router"));
        let name = network.local("affinity");
        let best = network.builder.apply(&name, affinity.clone(), [logits.into(), no_bias.into()])?[1];
        let name = network.local("balance");
        let operator = BalanceLoss { sequence: options.sequence };
        let losses = network.builder.one(&name, operator, [scores.into(), best.into()])?;
        let sequences = network.builder.program().value(losses).shape[0];
        let (name, scale) = (network.local("balance.mean"), repeated(network, scale, sequences)?);
        let loss = network.builder.one(&name, Dot {}, [losses.into(), scale])?;
        network.builder.set_part("loss");
        sum = Some(added(network, "balance", sum, loss)?);
    }
    scaled(network, "balance.weighted", sum, options.balance_alpha)
}

fn added(
    network: &mut Network<'_>,
    name: &str,
    sum: Option<ValueId>,
    term: ValueId,
) -> Result<ValueId, ModelError> {
    let Some(sum) = sum else { return Ok(term) };
    network.builder.set_part("loss");
    let name = network.local(name);
    Ok(network.builder.one(&name, Add { output: DType::F32 }, [sum.into(), term.into()])?)
}

fn scaled(
    network: &mut Network<'_>,
    name: &str,
    value: Option<ValueId>,
    factor: f64,
) -> Result<Option<ValueId>, ModelError> {
    let Some(value) = value else { return Ok(None) };
    network.builder.set_part("loss");
    let name = network.local(name);
    Ok(Some(network.builder.one(&name, Scale { factor }, [value.into()])?))
}
