"""Normalisations, forward and backward: mean, variance, root, scale."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Tuple

import torch

from ..call import Call, NotChecked
from ..real import Real
from . import Expected, Verdict, rule, with_rerun


def moments(x: Real, dims: List[int], eps: float) -> Tuple[Real, Real]:
    """Mean and 1/√(variance + eps), kept dimensions; two passes, whose bound covers Welford's updates to first order."""
    centre = x.mean(dims, True)
    variance = (x - centre).square().mean(dims, True)
    return centre, (variance + eps).rsqrt()


def centred(x: Real, centre: Real) -> Real:
    """x - mean; some kernels compute x·r - mean·r, which rounds beside |x| and |mean|."""
    apart = x - centre
    size = (x.value.abs() + centre.value.abs()) * (3 * x.arithmetic.unit)
    return Real(apart.value, apart.bound() + size, x.arithmetic)


def affine(x: Real, weight: Optional[Real], bias: Optional[Real]) -> Real:
    """x·w + b. A kernel that folds the mean into the bias rounds that once more."""
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias.rounded()


def optional(call: Call, name: str, shape: Any = None) -> Optional[Real]:
    """An optional argument, reshaped where a shape is given."""
    if call.get(name) is None:
        return None
    given = call.real(name)
    return given if shape is None else given.moved(lambda t: t.reshape(shape))


@rule("native_layer_norm")
def layer_norm(call: Call) -> List[Expected]:
    """Over the last dimensions."""
    x = call.real("input")
    dims = list(range(-len(call.get("normalized_shape")), 0))
    centre, scale = moments(x, dims, float(call.get("eps")))
    y = affine(centred(x, centre) * scale, optional(call, "weight"), optional(call, "bias"))
    return with_rerun(call, [y, centre, scale])


def input_gradient(gradient: Real, x: Real, centre: Real, scale: Real, dims: List[int]) -> Real:
    """r·(g - mean(g) - x̂·mean(g·x̂)), in the form a·g + b·x + c that torch computes."""
    count = math.prod(x.value.shape[dim] for dim in dims)
    along = (gradient * x).sum(dims, True)
    total = gradient.sum(dims, True)
    slope = (total * centre - along) * scale * scale * scale / count
    shift = (-slope) * centre - total * scale / count
    return scale * gradient + slope * x + shift


@rule("native_layer_norm_backward")
def layer_norm_backward(call: Call) -> List[Expected]:
    """Gradients of input, weight and bias; mean and 1/σ are operands."""
    gradient, x = call.real("grad_out"), call.real("input")
    depth = len(call.get("normalized_shape"))
    dims = list(range(-depth, 0))
    rows = list(range(x.value.dim() - depth))
    kept = tuple(x.value.shape[: x.value.dim() - depth]) + (1,) * depth
    centre = call.real("mean").moved(lambda t: t.reshape(kept))
    scale = call.real("rstd").moved(lambda t: t.reshape(kept))
    weight = optional(call, "weight")
    scaled = gradient if weight is None else gradient * weight
    whole: List[Optional[Real]] = [
        input_gradient(scaled, x, centre, scale, dims),
        over_rows(call, gradient * (centred(x, centre) * scale), rows),
        over_rows(call, gradient, rows),
    ]
    return with_rerun(call, masked(call, whole))


def over_rows(call: Call, x: Real, rows: List[int]) -> Real:
    """The gradient of a weight or bias: a sum over rows."""
    if not rows:
        return x
    count = math.prod(x.value.shape[row] for row in rows)
    return call.added_up(x.sum(rows), x.value.abs().sum(rows), count)


def masked(call: Call, outputs: List[Optional[Real]]) -> List[Optional[Real]]:
    """Only the outputs that were asked for."""
    return [value if wanted else None for value, wanted in zip(outputs, call.get("output_mask"))]


@rule("_fused_rms_norm")
def rms_norm(call: Call) -> List[Expected]:
    """x / √(mean(x²) + eps) · w."""
    x = call.real("input")
    dims = list(range(-len(call.get("normalized_shape")), 0))
    eps = call.get("eps")
    eps = torch.finfo(call.named["input"].dtype).eps if eps is None else float(eps)
    scale = (x.square().mean(dims, True) + eps).rsqrt()
    # Without a fused kernel torch stores the normalised row before it is scaled.
    y = affine(call.put_down(x * scale), optional(call, "weight"), None)
    return [y, scale]


@rule("_fused_rms_norm_backward")
def rms_norm_backward(call: Call) -> List[Expected]:
    """r·(g - x̂·mean(g·x̂)) and Σ g·x̂."""
    gradient, x = call.real("grad_out"), call.real("input")
    depth = len(call.get("normalized_shape"))
    dims, rows = list(range(-depth, 0)), list(range(x.value.dim() - depth))
    scale = call.real("rstd").moved(lambda t: t.reshape(tuple(x.value.shape[:-depth]) + (1,) * depth))
    weight = optional(call, "weight")
    scaled = call.put_down(gradient if weight is None else gradient * weight)
    hat = call.put_down(x * scale)
    inner = call.put_down((scaled * hat).mean(dims, True))
    whole: List[Optional[Real]] = [
        call.put_down(scaled - hat * inner) * scale,
        over_rows(call, call.put_down(gradient * hat), rows) if weight is not None else None,
    ]
    return masked(call, whole)


# Channels: dimension 1 of the input.


def per_channel(call: Call, name: str, rank: int) -> Optional[Real]:
    """A vector over channels, in the shape that meets the input."""
    return optional(call, name, (1, -1) + (1,) * (rank - 2))


@rule("native_group_norm")
def group_norm(call: Call) -> List[Expected]:
    """Over the channels of a group and the image."""
    x, groups = call.real("input"), call.get("group")
    shape, batch = x.value.shape, x.value.shape[0]
    grouped = x.moved(lambda t: t.reshape(batch, groups, -1))
    centre, scale = moments(grouped, [2], float(call.get("eps")))
    normal = (centred(grouped, centre) * scale).moved(lambda t: t.reshape(shape))
    y = affine(normal, per_channel(call, "weight", len(shape)), per_channel(call, "bias", len(shape)))
    flat = lambda real: real.moved(lambda t: t.reshape(batch, groups))  # noqa: E731
    return with_rerun(call, [y, flat(centre), flat(scale)])


@rule("native_group_norm_backward")
def group_norm_backward(call: Call) -> List[Expected]:
    """As for layers, over the channels of a group."""
    gradient, x, groups = call.real("grad_out"), call.real("input"), call.get("group")
    shape, batch = x.value.shape, x.value.shape[0]
    weight = per_channel(call, "weight", len(shape))
    into = lambda real: real.moved(lambda t: t.reshape(batch, groups, -1))  # noqa: E731
    kept = lambda name: call.real(name).moved(lambda t: t.reshape(batch, groups, 1))  # noqa: E731
    centre, scale = kept("mean"), kept("rstd")
    scaled = gradient if weight is None else gradient * weight
    dx = input_gradient(into(scaled), into(x), centre, scale, [2]).moved(lambda t: t.reshape(shape))
    hat = (centred(into(x), centre) * scale).moved(lambda t: t.reshape(shape))
    over = [0] + list(range(2, len(shape)))
    whole: List[Optional[Real]] = [dx, over_rows(call, gradient * hat, over), over_rows(call, gradient, over)]
    return with_rerun(call, masked(call, whole))


def _over(x: Real) -> List[int]:
    return [0] + list(range(2, x.value.dim()))


def folded(call: Call, x: Real, centre: Real, scale: Real, weight: Optional[Real], bias: Optional[Real]) -> Real:
    """x·(r·w) + (b - mean·r·w); torch keeps both factors in the operands' dtype."""
    plain = affine(centred(x, centre) * scale, weight, bias)
    if not call.kept_short():
        return plain
    factor = call.put_down(scale if weight is None else scale * weight)
    shift = -(call.put_down(centre) * factor)
    shift = call.put_down(shift if bias is None else shift + bias)
    return Real(plain.value, torch.maximum(plain.bound(), (x * factor + shift).bound()), plain.arithmetic)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit.no_stats", "cudnn_batch_norm")
def batch_norm(call: Call) -> List[Expected]:
    """Over batch and image; running statistics are written too."""
    if call.name == "cudnn_batch_norm":
        raise NotChecked("cudnn_batch_norm keeps a reserve that only it reads")
    x = call.real("input")
    rank = x.value.dim()
    weight, bias = per_channel(call, "weight", rank), per_channel(call, "bias", rank)
    running = "running_mean" in call.named
    if not call.get("training"):
        centre = per_channel(call, "running_mean", rank)
        spread = per_channel(call, "running_var", rank)
        assert centre is not None and spread is not None
        y = folded(call, x, centre, (spread + float(call.get("eps"))).rsqrt(), weight, bias)
        kept = Verdict(lambda got: None, "statistics are kept when training only", complete=True)
        return [y, kept, kept] + ([call.wide("running_mean"), call.wide("running_var")] if running else [])
    centre, scale = moments(x, _over(x), float(call.get("eps")))
    if call.kept_short():
        # The variance and its root are kept in 16 bits too.
        variance = (x - centre).square().mean(_over(x), True) + float(call.get("eps"))
        scale = 1.0 / call.put_down(call.put_down(variance).sqrt())
    y = folded(call, x, centre, scale, weight, bias)
    flat = lambda real: real.moved(lambda t: t.reshape(-1))  # noqa: E731
    expected: List[Optional[Real]] = [y, flat(centre), flat(scale)]
    if running:
        count = x.value.numel() / max(x.value.shape[1], 1)
        variance = (x - centre).square().sum(_over(x), True) / max(count - 1, 1)
        momentum = call.get("momentum")
        for name, fresh in (("running_mean", centre), ("running_var", variance)):
            old = optional(call, name)
            if old is None:
                expected.append(None)
                continue
            part = call.put_down(call.put_down(flat(fresh)) * momentum)
            expected.append(call.put_down(old * (1.0 - momentum)) + part)
    return with_rerun(call, expected)


@rule("native_batch_norm_backward")
def batch_norm_backward(call: Call) -> List[Expected]:
    """Statistics of the batch when training, the running ones else."""
    gradient, x = call.real("grad_out"), call.real("input")
    rank, over = x.value.dim(), _over(x)
    weight = per_channel(call, "weight", rank)
    if call.get("train"):
        centre, scale = per_channel(call, "save_mean", rank), per_channel(call, "save_invstd", rank)
        assert centre is not None and scale is not None
        scaled = gradient if weight is None else gradient * weight
        dx = input_gradient(scaled, x, centre, scale, over)
    else:
        centre, spread = per_channel(call, "running_mean", rank), per_channel(call, "running_var", rank)
        assert centre is not None and spread is not None
        scale = (spread + float(call.get("eps"))).rsqrt()
        dx = gradient * scale if weight is None else gradient * scale * weight
    hat = centred(x, centre) * scale
    return with_rerun(call, masked(call, [dx, over_rows(call, gradient * hat, over), over_rows(call, gradient, over)]))
