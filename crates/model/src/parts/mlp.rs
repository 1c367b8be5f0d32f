//! The gated feed-forward layer.

use super::network::Network;
use crate::architecture::Architecture;
use crate::error::ModelError;
use toprope_program::ValueId;
use toprope_program::operator::Swiglu;

/// `down(silu(gate(x)) · up(x))` with gate and up as one product, and biases where the configuration has them.
pub(super) fn gated(network: &mut Network<'_>, x: ValueId, prefix: &str) -> Result<ValueId, ModelError> {
    let biased = matches!(network.architecture, Architecture::Llama(config) if config.mlp_bias);
    let mut both = network.linear("gate_up", x, &format!("{prefix}.gate_up_proj.weight"))?;
    if biased {
        both = network.biased("gate_up.biased", both, &format!("{prefix}.gate_up_proj.bias"))?;
    }
    let name = network.local("hidden");
    let hidden = network.builder.one(&name, Swiglu {}, [both.into()])?;
    let down = network.linear("down", hidden, &format!("{prefix}.down_proj.weight"))?;
    if biased { network.biased("down.biased", down, &format!("{prefix}.down_proj.bias")) } else { Ok(down) }
}
