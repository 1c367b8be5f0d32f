//! Routed and shared experts (V3, section 2.1.2).

use super::mlp;
use super::network::{Network, Routed};
use crate::config::DeepseekV3Config;
use crate::error::ModelError;
use crate::parameters::layer_part;
use toprope_program::operator::{Combine, ExpertSort, Gather, GroupedMatmul, Router, Swiglu};
use toprope_program::{DType, ValueId};

/// The weighted sum of the chosen experts of normed rows `x` \[T, hidden\], plus the shared ones (equation 12).
pub(super) fn experts(
    network: &mut Network<'_>,
    config: &DeepseekV3Config,
    x: ValueId,
    layer: usize,
) -> Result<ValueId, ModelError> {
    let (prefix, part) = (format!("model.layers.{layer}.mlp"), layer_part(config.into(), layer));

    // Router logits in f32 from weights that are not rounded, as in DeepSeek's published code: a choice must not hang
    // on a bf16 rounding.
    let gate = network.parameter(&format!("{prefix}.gate.weight"))?;
    let bias = network.parameter(&format!("{prefix}.gate.e_score_correction_bias"))?;
    let logits = network.product("logits", x, gate, DType::F32)?;
    let router = Router {
        scoring: config.scoring_func,
        top_k: config.num_experts_per_tok,
        groups: config.n_group,
        top_groups: config.topk_group,
        normalize: config.norm_topk_prob,
        scale: config.routed_scaling_factor,
    };
    let name = network.local("scores");
    let chosen = network.builder.apply(&name, router, [logits.into(), bias.into()])?;
    let (scores, indices, weights, counts) = (chosen[0], chosen[1], chosen[2], chosen[3]);
    network.routed.push(Routed { layer, logits, scores, counts });

    network.builder.set_part(format!("{part}.experts"));
    let name = network.local("token");
    let sorted = network.builder.apply(&name, ExpertSort { experts: config.experts() }, [indices.into()])?;
    let (token, slot, offsets) = (sorted[0], sorted[1], sorted[2]);
    let name = network.local("input");
    let rows = network.builder.one(&name, Gather { output: network.dtype }, [x.into(), token.into()])?;
    let both = grouped(network, "gate_up", rows, &format!("{prefix}.experts.gate_up_proj.weight"), offsets)?;
    let name = network.local("hidden");
    let hidden = network.builder.one(&name, Swiglu {}, [both.into()])?;
    let out = grouped(network, "down", hidden, &format!("{prefix}.experts.down_proj.weight"), offsets)?;
    let name = network.local("combined");
    let combined = network.builder.one(&name, Combine {}, [out.into(), slot.into(), weights.into()])?;

    if config.shared_width() == 0 {
        return Ok(combined);
    }
    network.builder.set_part(format!("{part}.shared_experts"));
    let shared = mlp::gated(network, x, &format!("{prefix}.shared_experts"))?;
    network.sum("sum", combined, shared)
}

/// A product with each expert's own matrix `[outputs, inputs]` over rows sorted by expert.
fn grouped(
    network: &mut Network<'_>,
    name: &str,
    rows: ValueId,
    weight: &str,
    offsets: ValueId,
) -> Result<ValueId, ModelError> {
    let weight = network.weight(weight)?;
    let transposed = network.builder.seen(weight, |view| view.transpose(1, 2))?;
    let (name, operator) = (network.local(name), GroupedMatmul { output: network.dtype, row_sums: false });
    Ok(network.builder.one(&name, operator, [rows.into(), transposed, offsets.into()])?)
}
