//! Grouped-query attention (arXiv 2305.13245), as Llama and Qwen2 have it.

use super::network::Network;
use crate::error::ModelError;
use crate::llama::LlamaConfig;
use toprope_program::operator::{Append, Attention, Rope};
use toprope_program::{DType, Operand, Role, Type, ValueId};

/// Attention of normed rows `x` \[T, hidden\], projected back to the residual stream.
pub(super) fn attention(
    network: &mut Network<'_>,
    config: &LlamaConfig,
    x: ValueId,
    prefix: &str,
) -> Result<ValueId, ModelError> {
    let (heads, groups, size) = (config.num_attention_heads, config.key_value_heads(), config.head_size());
    let segment_start = network.input("segment_start", DType::I32, network.rows);

    // One product gives queries, keys and values; queries and keys are rotated together.
    let all = network.linear("qkv", x, &format!("{prefix}.qkv_proj.weight"))?;
    let all = match config.projection_bias() {
        true => network.biased("qkv.biased", all, &format!("{prefix}.qkv_proj.bias"))?,
        false => all,
    };
    let rotated = heads + groups;
    let unrotated =
        network.builder.seen(all, |view| view.narrow(1, 0, rotated * size).split(1, rotated, size))?;
    let positions = network.input("positions", DType::I32, network.rows);
    let (name, table) = (network.local("qk.rotated"), network.rope_table());
    let operator = Rope { start: 0, interleaved: false, inverse: false };
    let qk = network.builder.one(&name, operator, [unrotated, positions.into(), table.into()])?;
    let q = network.builder.seen(qk, |view| view.narrow(1, 0, heads))?;
    let k = network.builder.seen(qk, |view| view.narrow(1, heads, groups))?;
    let v = network
        .builder
        .seen(all, |view| view.narrow(1, rotated * size, groups * size).split(1, groups, size))?;

    let operands = match network.cache_rows {
        None => vec![q, k, v, segment_start.into()],
        Some(rows) => {
            let k = appended(network, "key", k, [rows, groups, size])?;
            let v = appended(network, "value", v, [rows, groups, size])?;
            let place = ["position", "cache_length"].map(|name| network.input(name, DType::I32, 1.into()));
            vec![q, k.into(), v.into(), segment_start.into(), place[0].into(), place[1].into()]
        }
    };
    let name = network.local("out");
    let out = network.builder.apply_all(&name, Attention { scale: config.softmax_scale() }, operands)?[0];
    let out = network.reshaped(out, vec![network.rows, (heads * size).into()])?;
    let projected = network.linear("projected", out, &format!("{prefix}.o_proj.weight"))?;
    match config.attention_bias {
        true => network.biased("projected.biased", projected, &format!("{prefix}.o_proj.bias")),
        false => Ok(projected),
    }
}

/// Rows put into a cache `cache.<part>.<name>` \[rows, groups, head size\] from `position` on.
fn appended(
    network: &mut Network<'_>,
    name: &str,
    new: Operand,
    shape: [usize; 3],
) -> Result<ValueId, ModelError> {
    let name = format!("cache.{}", network.local(name));
    let cache = network.builder.declare(&name, Type::new(network.dtype, shape), Role::Cache);
    let position = network.input("position", DType::I32, 1.into());
    network.builder.apply_to(Append {}, vec![cache.into(), new, position.into()], vec![cache])?;
    Ok(cache)
}
