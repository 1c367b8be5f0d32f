"""Sums over elements: reductions, softmax, losses, and sums by index."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor

from ..call import LOW_PRECISION, Call, NotChecked, Operands
from ..real import ULPS, Real, unit_roundoff
from . import Expected, dims_of, rule, with_rerun
from .elementwise import foreach_operands


def summand(c: Operands) -> Real:
    """`self`; a `dtype` argument makes torch convert before it adds."""
    x = c.real("self")
    wished = c.get("dtype")
    if wished is not None and not wished.is_floating_point:
        raise NotChecked("a sum as whole numbers of floating point numbers")
    if wished is not None and unit_roundoff(wished) > c.storage_unit():
        return x.stored(wished)
    return x


@rule("sum")
def total(call: Call) -> List[Expected]:
    """A sum in any order; whole numbers exactly."""
    want = call.rerun()[0]
    if not want.dtype.is_floating_point:
        return [want]
    return [summand(call).sum(dims_of(call.get("dim")), bool(call.get("keepdim"))).with_value(want)]


@rule("mean")
def mean(call: Call) -> List[Expected]:
    """On the CPU torch stores the sum before it divides."""
    x = summand(call)
    dims = dims_of(call.get("dim"))
    added = call.put_down(x.sum(dims, bool(call.get("keepdim"))))
    count = x.value.numel() / max(added.value.numel(), 1)
    return with_rerun(call, [added / count])


def variance(call: Call) -> List[Real]:
    """Variance and mean, two passes; the bound also covers Welford's updates, which lose as much to first order."""
    x = call.real("self")
    dims = dims_of(call.get("dim"))
    keep = bool(call.get("keepdim"))
    centre = x.mean(dims, True)
    squares = (x - centre).square().sum(dims, keep)
    count = x.value.numel() / max(squares.value.numel(), 1)
    correction = call.get("correction")
    if correction is None:
        correction = 0 if call.get("unbiased") is False else 1
    if count <= correction:
        raise NotChecked("a variance of too few elements")
    return [squares / (count - correction), x.mean(dims, keep)]


@rule("var")
def var(call: Call) -> List[Expected]:
    """The variance."""
    return with_rerun(call, variance(call)[:1])


@rule("std")
def std(call: Call) -> List[Expected]:
    """Its root."""
    return with_rerun(call, [variance(call)[0].sqrt()])


@rule("var_mean")
def var_mean(call: Call) -> List[Expected]:
    """Both."""
    return with_rerun(call, variance(call))


@rule("std_mean")
def std_mean(call: Call) -> List[Expected]:
    """Both."""
    spread, centre = variance(call)
    return with_rerun(call, [spread.sqrt(), centre])


def norm_of(x: Real, order: float, dims: Optional[Sequence[int]], keep: bool) -> Real:
    """A vector norm by its definition."""
    if order == 2.0:
        return x.square().sum(dims, keep).sqrt()
    if order == 1.0:
        return x.abs().sum(dims, keep)
    if order == 0.0:
        return Real((x.value != 0).double(), None, x.arithmetic).sum(dims, keep)
    if math.isinf(order):
        axes = tuple(dims) if dims else tuple(range(x.value.dim()))
        pick = torch.amax if order > 0 else torch.amin
        return Real(pick(x.value.abs(), axes, keepdim=keep), None, x.arithmetic)
    return x.abs().power(order).sum(dims, keep).power(1.0 / order)


@rule("linalg_vector_norm", "norm")
def vector_norm(call: Call) -> List[Expected]:
    """A norm over dimensions."""
    order = call.get("ord", "p")
    order = 2.0 if order is None else float(order)
    return with_rerun(call, [norm_of(summand(call), order, dims_of(call.get("dim")), bool(call.get("keepdim")))])


@rule("_foreach_norm")
def foreach_norm(call: Call) -> List[Expected]:
    """A norm of each tensor."""
    order = float(call.get("ord"))
    return with_rerun(call, [norm_of(summand(c), order, None, False) for c in foreach_operands(call)])


@rule("prod")
def product(call: Call) -> List[Expected]:
    """n factors: n roundings."""
    want = call.rerun()[0]
    if not want.dtype.is_floating_point:
        return [want]
    terms = call.wide("self").numel() / max(want.numel(), 1)
    return [call.added_up(Real(want, None, call.arithmetic()).rounded(terms), want.abs(), terms)]


def _running(x: Real, dim: int) -> Real:
    """A running sum: element i is a sum of i + 1 terms, of which any may be the last."""
    terms = x.value.shape[dim] if x.value.dim() else 1
    error = x.value.abs().cumsum(dim) * (terms * x.arithmetic.unit)
    return Real(x.value.cumsum(dim), error, x.arithmetic)


@rule("cumsum")
def running_sum(call: Call) -> List[Expected]:
    """Sums of more and more terms."""
    want = call.rerun()[0]
    if not want.dtype.is_floating_point:
        return [want]
    return [_running(summand(call), call.get("dim")).with_value(want)]


@rule("cumprod")
def running_product(call: Call) -> List[Expected]:
    """Products of more and more factors."""
    want = call.rerun()[0]
    terms = want.shape[call.get("dim")] if want.dim() else 1
    return [Real(want, None, call.arithmetic()).rounded(terms)] if want.dtype.is_floating_point else [want]


def shifted(x: Real, dim: int) -> Real:
    """x less its maximum along `dim`.

    A mask of the largest negative number may overflow to -∞ here. That is far below 0 either way: half of the size
    bounds the error as far as its exponential goes.
    """
    apart = x - Real(x.value.amax(dim, keepdim=True), None, x.arithmetic)
    far = apart.bound().isinf() & (apart.value < -1e4)
    return Real(apart.value, torch.where(far, apart.value.abs() / 2, apart.bound()), x.arithmetic)


def softmax_of(call: Call, x: Real, dim: int) -> Real:
    """eˣ over its sum, with the maximum taken out; along other dimensions than the last torch stores the powers."""
    if not x.value.dim():
        return Real(torch.ones_like(x.value), None, x.arithmetic)
    powers = call.put_down(shifted(x, dim).exp())
    return powers / powers.sum([dim], True)


@rule("_softmax", "softmax")
def softmax(call: Call) -> List[Expected]:
    """Softmax along a dimension."""
    if not call.wide("self").numel():
        return call.rerun()
    return with_rerun(call, [softmax_of(call, summand(call), call.get("dim"))])


@rule("_safe_softmax")
def safe_softmax(call: Call) -> List[Expected]:
    """Softmax with 0 in rows that are all -∞; torch masks a stored softmax."""
    x, dim = summand(call), call.get("dim")
    plain = softmax_of(call, x, dim)
    empty = (x.value == -math.inf).all(dim, keepdim=True)
    return with_rerun(call, [Real(torch.where(empty, 0.0, plain.value), torch.where(empty, 0.0, plain.bound()), x.arithmetic)])


def _log_sum(call: Call, x: Real, dim: int) -> Real:
    """ln Σeˣ⁻ᵐ; torch's CPU kernels keep the sum and its logarithm in the operands' dtype."""
    total = shifted(x, dim).exp().sum([dim], True)
    return call.put_down(call.put_down(total).log()) if call.kept_short() else total.log()


@rule("_log_softmax", "log_softmax")
def log_softmax(call: Call) -> List[Expected]:
    """x less its maximum, less the logarithm of the sum of powers (or less both added up)."""
    x, dim = summand(call), call.get("dim")
    if not x.value.dim() or not x.value.numel():
        return call.rerun()
    log_sum = _log_sum(call, x, dim)
    apart = shifted(x, dim) - log_sum
    together = x - (log_sum + Real(x.value.amax(dim, keepdim=True), None, x.arithmetic))
    error = torch.maximum(apart.bound(), together.bound())
    return with_rerun(call, [Real(apart.value, error, x.arithmetic)])


@rule("logsumexp")
def logsumexp(call: Call) -> List[Expected]:
    """Over one or more dimensions."""
    x = call.real("self")
    dims = tuple(dims_of(call.get("dim")) or range(x.value.dim()))
    top = Real(x.value.amax(dims, keepdim=True), None, x.arithmetic)
    powers = call.put_down(call.put_down(x - top).exp())
    result = call.put_down(call.put_down(powers.sum(dims, True)).log()) + top
    shape = call.rerun()[0].shape
    return with_rerun(call, [result.moved(lambda t: t.reshape(shape))])


@rule("_softmax_backward_data")
def softmax_backward(call: Call) -> List[Expected]:
    """(g - Σ g·y)·y."""
    gradient, y, dim = call.real("grad_output"), call.real("output"), call.get("dim")
    product = gradient * y
    # g·y - y·Σg·y is what some kernels compute.
    one = (gradient - product.sum([dim], True)) * y
    two = product - y * product.sum([dim], True)
    return with_rerun(call, [Real(one.value, torch.maximum(one.bound(), two.bound()), one.arithmetic)])


@rule("_log_softmax_backward_data")
def log_softmax_backward(call: Call) -> List[Expected]:
    """g - e^y·Σg."""
    gradient, y, dim = call.real("grad_output"), call.real("output"), call.get("dim")
    return with_rerun(call, [gradient - y.exp() * gradient.sum([dim], True)])


# Losses.


def reduced(loss: Real, reduction: int) -> Real:
    """0: as it is; 1: the mean; 2: the sum."""
    if reduction == 0:
        return loss
    return loss.mean() if reduction == 1 else loss.sum()


@rule("mse_loss")
def mse_loss(call: Call) -> List[Expected]:
    """Squares of differences; torch stores them before it reduces."""
    squares = call.put_down((call.real("self") - call.real("target")).square())
    result = reduced(squares, call.get("reduction"))
    return with_rerun(call, [call.put_down(result)])


def _target_weights(call: Call) -> Any:
    """Targets with a place for the class dimension, their weights, and where they count."""
    target = call.wide("target")
    counted = target != call.get("ignore_index")
    safe = torch.where(counted, target, 0)
    weights = torch.ones(target.shape, dtype=torch.float64)
    if call.get("weight") is not None:
        weights = call.wide("weight")[safe]
    return safe, torch.where(counted, weights, 0.0)


def accumulated(x: Real, call: Call) -> Real:
    """A sum of all elements."""
    return call.added_up(x.sum(), x.value.abs().sum(), int((x.value != 0).sum()) - 1)


@rule("nll_loss_forward", "nll_loss2d_forward")
def nll_loss(call: Call) -> List[Expected]:
    """-Σ wₜ·xₜ / Σ wₜ: a selection, then sums."""
    x = call.real("self")
    safe, weights = _target_weights(call)
    class_dim = 1 if x.value.dim() > 1 else 0
    picked = torch.gather(x.value, class_dim, safe.unsqueeze(class_dim)).squeeze(class_dim)
    weight = Real(weights, None, x.arithmetic)
    losses = -(Real(torch.where(weights == 0, 0.0, picked), None, x.arithmetic) * weight)
    whole = accumulated(weight, call)
    if call.get("reduction") == 0:
        return with_rerun(call, [losses, None])[:1] + [call.rerun()[1]]
    added = accumulated(losses, call)
    return with_rerun(call, [added / whole if call.get("reduction") == 1 else added, whole])


@rule("nll_loss_backward", "nll_loss2d_backward")
def nll_loss_backward(call: Call) -> List[Expected]:
    """-g·wₜ/Σw at the target, 0 elsewhere."""
    want = call.rerun()[0]
    # A product and a division.
    return [Real(want, None, call.arithmetic()).rounded(1 + 2 * ULPS["divide"])]


@rule("binary_cross_entropy_with_logits")
def bce_with_logits(call: Call) -> List[Expected]:
    """(1 - t)·x + ln(1 + e^-|x|) + max(-x, 0), weighted; torch stores each part."""
    if call.get("pos_weight") is not None or call.get("weight") is not None:
        raise NotChecked("weighted binary cross entropy has no rule")
    x, target = call.real("self"), call.real("target")
    tail = torch.log1p((-x.value.abs()).exp())
    soft = Real(tail, tail * (2 * (ULPS["log1p"] + ULPS["exp"]) * x.arithmetic.unit), x.arithmetic)
    parts = call.put_down(call.put_down((1.0 - target) * x) + call.put_down(soft) + (-x).maximum(0.0))
    size = (target.value * x.value).abs() + x.value.abs()
    parts = Real(parts.value, parts.bound() + size * (2 * x.arithmetic.unit + 2 * call.storage_unit()), x.arithmetic)
    return with_rerun(call, [call.put_down(reduced(parts, call.get("reduction")))])


# Sums by index: some devices add with atomics in the dtype of the result, in any order.


def by_index(call: Call, want: Tensor, size: Tensor, terms: Tensor) -> Real:
    """`terms` numbers (a count for each element), together of `size`, added in the dtype in which they are stored."""
    unit = max(call.storage_unit(), call.arithmetic().unit)
    error = size * ((terms - 1).clamp(min=0) * unit)
    return Real(want, error, call.arithmetic())


@rule("embedding_dense_backward")
def embedding_backward(call: Call) -> List[Expected]:
    """Rows of gradients added at their indices."""
    want = call.rerun()[0]
    counts = torch.bincount(call.wide("indices").reshape(-1), minlength=want.shape[0])[: want.shape[0], None].double()
    size = call.rerun(torch.abs)[0]
    if call.get("scale_grad_by_freq"):
        counts = counts + 3.0
    return [by_index(call, want, size, counts)]


@rule("index_put", "_index_put_impl", "index_put.hacked_twin")
def index_put(call: Call) -> List[Expected]:
    """Puts or adds values at indices."""
    indices = call.get("indices")
    want = call.rerun()[0]
    if not call.get("accumulate"):
        if _index_repeats(call):
            raise NotChecked("an index comes twice: which value stays is open")
        return [want]
    if not want.dtype.is_floating_point:
        return [want]
    places = [index.raw if index is not None else None for index in indices]
    ones = torch.ones(call.wide("values").shape, dtype=torch.float64)
    terms = torch.zeros_like(want).index_put_(places, ones, accumulate=True)
    return [by_index(call, want, call.rerun(torch.abs)[0], terms + 1)]


def _index_repeats(call: Call) -> bool:
    """Whether two values go to one place."""
    places = [index.raw if index is not None else None for index in call.get("indices")]
    shape = call.wide("self").shape
    hits = torch.zeros(shape, dtype=torch.float64)
    target = hits[tuple(slice(None) if place is None else place for place in places)]
    hits.index_put_(places, torch.ones(target.shape, dtype=torch.float64), accumulate=True)
    return bool((hits > 1).any())


@rule("scatter_add", "scatter.reduce", "scatter_reduce")
def scatter_add(call: Call) -> List[Expected]:
    """Values added along a dimension at indices."""
    if call.get("reduce") not in (None, "sum", "add"):
        raise NotChecked(f"scatter with {call.get('reduce')} has no rule")
    want = call.rerun()[0]
    if not want.dtype.is_floating_point:
        return [want]
    index = call.wide("index")
    terms = torch.zeros_like(want).scatter_add(call.get("dim"), index, torch.ones(index.shape, dtype=torch.float64))
    return [by_index(call, want, call.rerun(torch.abs)[0], terms + 1)]


@rule("index_add")
def index_add(call: Call) -> List[Expected]:
    """Slices added along a dimension at indices."""
    want = call.rerun()[0]
    if not want.dtype.is_floating_point:
        return [want]
    source = torch.ones(call.wide("source").shape, dtype=torch.float64)
    terms = torch.zeros_like(want).index_add(call.get("dim"), call.wide("index").reshape(-1), source)
    alpha = 0 if call.get("alpha") in (None, 1) else 1
    return [by_index(call, want, call.rerun(torch.abs)[0], terms + 1 + alpha)]


# Sums over windows.


def window(call: Call, terms: float) -> List[Expected]:
    """A mean over `terms` elements, linear in its operand: `terms` additions and a division."""
    size = call.rerun(torch.abs)[0]
    arithmetic = call.arithmetic()
    unit = arithmetic.unit if call.name != "max_pool2d_with_indices_backward" else call.storage_unit()
    return [Real(call.rerun()[0], size * ((terms + 2 * ULPS["divide"]) * max(unit, arithmetic.unit)), arithmetic)]


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "avg_pool2d_backward", "avg_pool3d_backward", "max_pool2d_with_indices_backward")
def pool(call: Call) -> List[Expected]:
    """As many terms as the window has."""
    kernel = call.get("kernel_size")
    kernel = [kernel] if isinstance(kernel, int) else list(kernel)
    terms = math.prod(kernel * (2 if len(kernel) == 1 else 1))
    if call.name.endswith("backward") and call.compute_dtype() in LOW_PRECISION:
        size = call.rerun(torch.abs)[0]
        error = size * ((terms + 2 * ULPS["divide"]) * call.storage_unit())
        return [Real(call.rerun()[0], error, call.arithmetic())]
    return window(call, terms)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "adaptive_avg_pool1d")
def adaptive_pool(call: Call) -> List[Expected]:
    """At most as many terms as the image has."""
    source = call.wide("self")
    terms = math.prod(source.shape[-2:])
    if call.name.endswith("backward") and call.compute_dtype() in LOW_PRECISION:
        size = call.rerun(torch.abs)[0]
        return [Real(call.rerun()[0], size * (terms * call.storage_unit()), call.arithmetic())]
    return window(call, terms)
