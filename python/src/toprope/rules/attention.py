"""Fused attention, forward and backward, all of torch's kernels by one formula."""

from __future__ import annotations

import math
from typing import Any, List, Optional

import torch
from torch import Tensor

from ..call import LOW_PRECISION, Call, Captured, NotChecked, NotComparable
from ..real import ULPS, Real, unit_roundoff
from . import Expected, Verdict, rule

FORWARD = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)

#: The fewest keys that a kernel takes at once; what it has so far is rescaled at each block.
BLOCK = 32


def scores(call: Call) -> Real:
    """scale·q·kᵀ plus the mask, key heads repeated for the query heads that share them."""
    if float(call.get("dropout_p") or 0.0) > 0:
        raise NotComparable("attention with dropout is random")
    query, key = call.real("query"), repeated(call, "key")
    factor = call.get("scale")
    factor = 1.0 / math.sqrt(query.value.shape[-1]) if factor is None else float(factor)
    product = query.matmul(key.transposed()) * factor
    mask = call.get("attn_mask", "attn_bias")
    if isinstance(mask, Captured) and mask.raw.numel():
        if mask.dtype == torch.bool:
            product = product.where(mask.wide, -math.inf)
        else:
            product = product + Real(mask.wide, None, product.arithmetic)
    if call.get("is_causal"):
        rows, columns = product.value.shape[-2:]
        seen = torch.ones(rows, columns, dtype=torch.bool).tril()
        product = product.where(seen, -math.inf)
    return product


def operand(call: Call, x: Real) -> Real:
    """A matrix that goes back to the matrix unit: in the dtype of the queries (log-sums and masks may be wider)."""
    dtype = call.named["query"].dtype
    return x.stored(dtype) if dtype in LOW_PRECISION else x


def repeated(call: Call, name: str) -> Real:
    """Keys or values, each head as often as query heads share it."""
    heads, have = call.wide("query").shape[-3], call.wide(name).shape[-3]
    real = call.real(name)
    return real if heads == have else real.moved(lambda t: t.repeat_interleave(heads // have, dim=-3))


def summed_groups(call: Call, name: str, gradient: Real) -> Real:
    """The gradient of keys or values that several query heads share."""
    heads, have = call.wide("query").shape[-3], call.wide(name).shape[-3]
    if heads == have:
        return gradient
    shape = gradient.value.shape
    grouped = gradient.moved(lambda t: t.reshape(*shape[:-3], have, heads // have, *shape[-2:]))
    return grouped.sum([-3])


def sharing(call: Call, name: str) -> int:
    """How many query heads share a head of keys or values."""
    return call.wide("query").shape[-3] // max(call.wide(name).shape[-3], 1)


def in_parts(call: Call, left: Real, right: Real, groups: int) -> Real:
    """A gradient that a kernel adds up block by block, and head by head, in the memory of the result.

    Each of these additions rounds to the queries' dtype; no partial sum is larger than Σ|a||b|.
    """
    product = left.matmul(right)
    dtype = call.named["query"].dtype
    additions = math.ceil(left.value.shape[-1] / BLOCK) * groups - 1
    if dtype not in LOW_PRECISION or additions < 1:
        return product
    size = left.value.abs() @ right.value.abs()
    error = product.bound() + size * (additions * unit_roundoff(dtype))
    return Real(product.value, error, product.arithmetic)


def rescaled(x: Real, keys: int) -> Real:
    """Each block after the first multiplies what is there by e^(m - m'): an exponential, a difference, a product."""
    blocks = max(math.ceil(keys / BLOCK) - 1, 0)
    return x.rounded(blocks * (2 * ULPS["exp"] + 2)) if blocks else x


@rule(*FORWARD)
def forward(call: Call) -> List[Expected]:
    """softmax(scores)·v; probabilities go to the matrix unit in the operands' dtype."""
    s = scores(call)
    top = s.value.amax(-1, keepdim=True)
    seen = top > -math.inf
    top = Real(torch.where(seen, top, 0.0), None, s.arithmetic)
    powers = rescaled((s - top).exp(), s.value.shape[-1])
    total = operand(call, powers).sum([-1], True)
    y = operand(call, powers).matmul(repeated(call, "value")) / total
    # A row that sees nothing: zero or NaN, as each kernel likes.
    y = Real(y.value, torch.where(seen, y.bound(), math.inf), y.arithmetic)
    log_sum = (total.log() + top).moved(lambda t: t.squeeze(-1))
    log_sum = Real(log_sum.value, torch.where(seen.squeeze(-1), log_sum.bound(), math.inf), y.arithmetic)
    state = Verdict(lambda got: None, "state of the kernel", complete=True)
    rest: List[Expected] = [state for _ in call.func._schema.returns[2:]]
    return [y, Verdict(lambda got: _log_sum_wrong(log_sum, got), "padded as the kernel likes", complete=True), *rest]


def _log_sum_wrong(expected: Real, got: Tensor) -> Optional[str]:
    """Compares the rows that count; kernels pad them, or leave the whole out."""
    if got.numel() == 0:
        return None
    rows = expected.value.shape[-1]
    have = got.detach().cpu().double()
    if have.shape[-1] < rows:
        have = have.transpose(-1, -2)
    have = have[..., :rows].reshape(expected.value.shape)
    limit = expected.bound() + expected.value.abs() * torch.finfo(torch.float32).eps
    right = ((have - expected.value).abs() <= limit) | ~limit.isfinite()
    return None if bool(right.all()) else f"{int((~right).sum())} logarithms of sums are off"


@rule(*(f"{name}_backward" for name in FORWARD))
def backward(call: Call) -> List[Expected]:
    """dV = Pᵀ·dO, dS = P·(dO·Vᵀ - rowsum(dO·O)), dQ = dS·K·scale, dK = dSᵀ·Q·scale."""
    s = scores(call)
    factor = call.get("scale")
    factor = 1.0 / math.sqrt(call.wide("query").shape[-1]) if factor is None else float(factor)
    rows = s.value.shape[-2]
    shape = s.value.shape[:-1]
    given = call.wide("logsumexp").double()
    if given.shape[-1] < rows:
        given = given.transpose(-1, -2)
    log_sum = given[..., :rows].reshape(shape).unsqueeze(-1)
    log_sum = torch.where(log_sum.isfinite(), log_sum, math.inf)
    probability = (s - Real(log_sum, None, s.arithmetic)).exp()
    upstream = call.real("grad_out", "grad_out_")
    delta = (upstream * call.real("out")).sum([-1], True)
    reached = upstream.matmul(repeated(call, "value").transposed())
    ds = operand(call, probability * (reached - delta))
    p = operand(call, probability)
    query, key = call.real("query"), repeated(call, "key")
    dq = in_parts(call, ds, key, 1) * factor
    dk = in_parts(call, ds.transposed(), query, sharing(call, "key")) * factor
    dv = in_parts(call, p.transposed(), upstream, sharing(call, "value"))
    outputs: List[Any] = [dq, summed_groups(call, "key", dk), summed_groups(call, "value", dv)]
    extra = len(call.func._schema.returns) - 3
    mask = call.get("grad_input_mask")
    if extra and mask and mask[3]:
        raise NotChecked("the gradient of an attention bias has no rule")
    return outputs + [None] * extra
