//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; V3, section 2.1.1).

use super::network::Network;
use crate::config::DeepseekV3Config;
use crate::error::ModelError;
use toprope_program::operator::{Append, Assemble, Attention, Rope};
use toprope_program::{DType, Dim, Operand, Role, Type, ValueId, View};

/// Attention of normed rows `x` \[T, hidden\], projected back to the residual stream.
pub(super) fn attention(
    network: &mut Network<'_>,
    config: &DeepseekV3Config,
    x: ValueId,
    prefix: &str,
) -> Result<ValueId, ModelError> {
    let (heads, rank) = (config.num_attention_heads, config.kv_lora_rank);
    let (nope, rope, value) = (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim);
    let segment_start = network.input("segment_start", DType::I32, network.rows);

    let q = query(network, config, x, prefix)?;
    let q = network.builder.seen(q, |view| view.split(1, heads, nope + rope))?;
    let q = rotated(network, config, "q.rotated", q, nope)?;

    // One product gives the latent, from which keys and values are expanded, and the key's rotary columns, which all
    // heads share.
    let compressed = network.linear("kv_compressed", x, &format!("{prefix}.kv_a_proj_with_mqa.weight"))?;
    let latent = network.builder.seen(compressed, |view| view.narrow(1, 0, rank))?;
    let latent = network.norm("latent", latent, &format!("{prefix}.kv_a_layernorm.weight"))?;
    let shared = network.builder.seen(compressed, |view| view.narrow(1, rank, rope).split(1, 1, rope))?;
    let shared = rotated(network, config, "k.rotated", shared, 0)?;
    let shared = network.builder.seen(shared, |view| view.drop_axis(1))?;
    let (latent, shared, keys, cached) = match network.cache_rows {
        None => (latent, shared, network.rows, Vec::new()),
        Some(rows) => {
            let latent = appended(network, "latent", latent.into(), rows, rank)?;
            let shared = appended(network, "key", shared, rows, rope)?;
            let place =
                ["position", "cache_length"].map(|name| network.input(name, DType::I32, 1.into()).into());
            (latent, shared.into(), rows.into(), place.to_vec())
        }
    };
    let expanded = network.linear("kv", latent, &format!("{prefix}.kv_b_proj.weight"))?;
    let by_head = |view: View| view.split(1, heads, nope + value);
    let k_nope = network.builder.seen(expanded, |view| by_head(view).narrow(2, 0, nope))?;
    let v = network.builder.seen(expanded, |view| by_head(view).narrow(2, nope, value))?;
    let k = key(network, config, keys, k_nope, shared)?;

    let name = network.local("out");
    let mut operands = vec![q.into(), k.into(), v, segment_start.into()];
    operands.extend(cached);
    let out = network.builder.apply_all(&name, Attention { scale: config.softmax_scale() }, operands)?[0];
    let out = network.reshaped(out, vec![network.rows, (heads * value).into()])?;
    network.linear("projected", out, &format!("{prefix}.o_proj.weight"))
}

/// Queries \[T, heads · head size\], through their own latent where the configuration has one.
fn query(
    network: &mut Network<'_>,
    config: &DeepseekV3Config,
    x: ValueId,
    prefix: &str,
) -> Result<ValueId, ModelError> {
    if config.q_lora_rank.is_none() {
        return network.linear("q", x, &format!("{prefix}.q_proj.weight"));
    }
    let compressed = network.linear("q_compressed", x, &format!("{prefix}.q_a_proj.weight"))?;
    let latent = network.norm("q_latent", compressed, &format!("{prefix}.q_a_layernorm.weight"))?;
    network.linear("q", latent, &format!("{prefix}.q_b_proj.weight"))
}

/// Heads with their columns from `start` on rotated by position.
fn rotated(
    network: &mut Network<'_>,
    config: &DeepseekV3Config,
    name: &str,
    heads: Operand,
    start: usize,
) -> Result<ValueId, ModelError> {
    let positions = network.input("positions", DType::I32, network.rows);
    let (name, table) = (network.local(name), network.rope_table());
    let operator = Rope { start, interleaved: config.rope_interleave, inverse: false };
    Ok(network.builder.one(&name, operator, [heads, positions.into(), table.into()])?)
}

/// Rows put into a cache `cache.<part>.<name>` \[rows, columns\] from `position` on. The cache holds what all heads share, so
/// it is small (V2, section 2.1.2); keys and values are expanded from it.
fn appended(
    network: &mut Network<'_>,
    name: &str,
    new: Operand,
    rows: usize,
    columns: usize,
) -> Result<ValueId, ModelError> {
    let name = format!("cache.{}", network.local(name));
    let cache = network.builder.declare(&name, Type::new(network.dtype, [rows, columns]), Role::Cache);
    let position = network.input("position", DType::I32, 1.into());
    network.builder.apply_to(Append {}, vec![cache.into(), new, position.into()], vec![cache])?;
    Ok(cache)
}

/// Keys \[rows, heads, head size\]: each head's own columns, then the rotary ones `shared` \[rows, rotary\] by all heads.
fn key(
    network: &mut Network<'_>,
    config: &DeepseekV3Config,
    rows: Dim,
    k_nope: Operand,
    shared: Operand,
) -> Result<ValueId, ModelError> {
    let (heads, nope, rope) = (config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim);
    let shape = vec![rows, heads.into(), (nope + rope).into()];
    let repeated = network.builder.seen(shared, |view| view.repeat(1, heads.into()))?;
    let whole = network.whole(&shape)?;
    let views = vec![whole.clone().narrow(2, 0, nope), whole.narrow(2, nope, rope)];
    let name = network.local("k");
    let operator = Assemble { output: network.dtype, shape, views };
    Ok(network.builder.one(&name, operator, [k_nope, repeated])?)
}
