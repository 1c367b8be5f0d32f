//! How many parameters a configuration has, without building anything.

use crate::architecture::Architecture;
use crate::error::ModelError;
use crate::parameters::parameters;
use serde::Serialize;

/// Parameter counts. What a checkpoint's file holds is counted: the experts' selection biases too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// The main model, with embedding and head, without prediction modules.
    pub main: u64,
    /// Of the main model, what takes part in the products of one token: all but the embedding's table, of which a token
    /// reads one row, and the experts that it did not choose.
    pub activated: u64,
    /// The prediction modules' own, without the embedding and the head that they share.
    pub mtp: u64,
    /// The prediction modules as published, each with a copy of the embedding and of the head.
    pub mtp_published: u64,
    /// By part, in the order of the model.
    pub parts: Vec<PartTotal>,
}

/// The parameters of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartTotal {
    /// `embedding`, `attention`, `mlp`, `router`, `experts`, `shared_experts`, `head` or `mtp`.
    pub part: String,
    /// How many.
    pub parameters: u64,
    /// How many of them a token activates; see [`Totals::activated`].
    pub activated: u64,
}

/// The group that a part of a program belongs to: `layers.3.attention` is `attention`, anything of a prediction module
/// is `mtp`.
pub fn group(part: &str) -> &str {
    if part.starts_with("mtp.") {
        return "mtp";
    }
    match part.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((_, group)) => group,
        None => part,
    }
}

/// Counts the parameters of a configuration.
pub fn totals<'a>(architecture: impl Into<Architecture<'a>>) -> Result<Totals, ModelError> {
    let architecture = architecture.into();
    architecture.validate()?;
    let mut totals = Totals { main: 0, activated: 0, mtp: 0, mtp_published: 0, parts: Vec::new() };
    let mut shared = 0u64;
    for parameter in parameters(architecture) {
        let count = parameter.elements();
        let activated = match parameter.shape.as_slice() {
            // Only experts are stacked.
            [experts, _, _] => count / *experts as u64 * architecture.experts_per_token() as u64,
            // A tied table is the head too, which every token reads.
            _ if parameter.part == "embedding" && !architecture.tied() => 0,
            _ => count,
        };
        if parameter.name == "model.embed_tokens.weight" || parameter.name == "lm_head.weight" {
            shared += count;
        }
        let group = group(&parameter.part);
        if group == "mtp" {
            totals.mtp += count;
        } else {
            totals.main += count;
            totals.activated += activated;
        }
        match totals.parts.iter_mut().find(|total| total.part == group) {
            Some(total) => {
                total.parameters += count;
                total.activated += activated;
            }
            None => {
                totals.parts.push(PartTotal { part: group.into(), parameters: count, activated });
            }
        }
    }
    totals.mtp_published = totals.mtp + shared * architecture.prediction_layers() as u64;
    Ok(totals)
}
