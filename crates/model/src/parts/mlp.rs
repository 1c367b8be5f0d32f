//! The gated feed-forward layer.

use super::network::Network;
use crate::error::ModelError;
use toprope_program::ValueId;
use toprope_program::operator::Swiglu;

/// `down(silu(gate(x)) · up(x))` with gate and up as one product.
pub(super) fn gated(network: &mut Network<'_>, x: ValueId, prefix: &str) -> Result<ValueId, ModelError> {
    let both = network.linear("gate_up", x, &format!("{prefix}.gate_up_proj.weight"))?;
    let name = network.local("hidden");
    let hidden = network.builder.one(&name, Swiglu {}, [both.into()])?;
    network.linear("down", hidden, &format!("{prefix}.down_proj.weight"))
}
