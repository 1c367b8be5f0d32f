//! Multi-token prediction (V3, section 2.2).

use super::network::Network;
use crate::error::ModelError;
use crate::parameters::layer_part;
use toprope_program::operator::Assemble;
use toprope_program::{DType, ValueId};

/// The module of a depth (1, 2, …): its normed output \[T, hidden\], for the shared head and the next depth.
///
/// `previous` is the depth before's output after its final norm (the main model's for depth 1), and the embedding's columns
/// come first in `eh_proj`: the report leaves both open, this is how the published weights were trained.
pub(super) fn module(
    network: &mut Network<'_>,
    previous: ValueId,
    depth: usize,
) -> Result<ValueId, ModelError> {
    let layer = network.architecture.layers() + depth - 1;
    let (prefix, part) = (format!("model.layers.{layer}"), layer_part(network.architecture, layer));

    network.builder.set_part(format!("{part}.projection"));
    let tokens = network.input(&format!("mtp_tokens.{depth}"), DType::I32, network.rows);
    let embedded = network.embedding("tokens", tokens)?;
    let embedded = network.norm("embedding", embedded, &format!("{prefix}.enorm.weight"))?;
    let hidden = network.norm("hidden", previous, &format!("{prefix}.hnorm.weight"))?;
    let both = beside(network, embedded, hidden)?;
    let x = network.linear("projected", both, &format!("{prefix}.eh_proj.weight"))?;

    let x = network.layer(x, layer)?;
    network.builder.set_part(format!("{part}.head"));
    network.norm("input", x, &format!("{prefix}.shared_head.norm.weight"))
}

/// Two values side by side, \[T, 2 · hidden\].
fn beside(network: &mut Network<'_>, left: ValueId, right: ValueId) -> Result<ValueId, ModelError> {
    let width = network.architecture.hidden_size();
    let shape = vec![network.rows, (2 * width).into()];
    let whole = network.whole(&shape)?;
    let views = vec![whole.clone().narrow(1, 0, width), whole.narrow(1, width, width)];
    let name = network.local("both");
    let operator = Assemble { output: network.dtype, shape, views };
    Ok(network.builder.one(&name, operator, [left.into(), right.into()])?)
}
