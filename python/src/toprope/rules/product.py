"""Products of matrices and convolutions: sums of K products, judged beside the sum of their sizes."""

from __future__ import annotations

import math
from typing import List

import torch
from torch import Tensor

from ..call import Call, Captured, NotChecked
from ..real import Real
from . import Expected, rule


def of_products(call: Call, terms: float, arithmetic_roundings: float = 1.0) -> List[Expected]:
    """Results that are linear in each operand: `terms` products each, added in any order, a unit that may truncate.

    The magnitude Σ|a||b| is the same call on absolute values. Operands of the 16-bit types below the smallest normal
    number may count as zero.
    """
    arithmetic = call.arithmetic()
    wants, sizes = call.rerun(), call.rerun(torch.abs)
    expected: List[Expected] = []
    for want, size in zip(wants, sizes):
        if want is None:
            expected.append(None)
            continue
        error = size * ((terms + arithmetic_roundings) * arithmetic.unit) + terms * arithmetic.smallest
        # No partial sum is larger than the magnitude: only where that overflows anything may come out.
        error = torch.where(size < arithmetic.largest, error, math.inf)
        error = torch.where(want.isfinite(), error, 0.0)
        expected.append(Real(want, error, arithmetic))
    return expected


def _whole(call: Call) -> bool:
    return not call.floating()


@rule("mm", "bmm", "mv", "dot", "vdot", "matmul")
def product(call: Call) -> List[Expected]:
    """K = the inner dimension."""
    if _whole(call):
        return call.rerun()
    return of_products(call, call.wide("self").shape[-1])


@rule("linear", "mkldnn_linear", "_linear_prepack")
def linear(call: Call) -> List[Expected]:
    """x·wᵀ + b."""
    x, weight = call.wide("self" if "self" in call.named else "input"), call.wide("weight")
    bias = call.get("bias")
    want = x @ weight.t() + (bias.wide if bias is not None else 0.0)
    size = x.abs() @ weight.t().abs() + (bias.wide.abs() if bias is not None else 0.0)
    arithmetic = call.arithmetic()
    terms = x.shape[-1] + 1
    return [Real(want, size * ((terms + 1) * arithmetic.unit) + terms * arithmetic.smallest, arithmetic)]


@rule("addmm", "addmv", "addbmm", "baddbmm", "addr", "_addmm_activation")
def added_product(call: Call) -> List[Expected]:
    """beta·c + alpha·(a·b); torch may put the product or the scaled c down in memory first where numbers are 16 bits."""
    if call.name == "_addmm_activation":
        raise NotChecked("no rule for _addmm_activation")
    if _whole(call):
        return call.rerun()
    first = call.get("mat1", "batch1", "mat", "vec1")
    assert isinstance(first, Captured)
    terms = first.shape[-1] if call.name != "addr" else 1
    if call.name == "addbmm":
        terms *= first.shape[0]
    beta, alpha = call.get("beta"), call.get("alpha")
    arithmetic = call.arithmetic()
    plain = beta in (0, 1) and alpha == 1
    # |beta|·|c| + |alpha|·|a||b|
    size = _absolute_sum(call)
    want = call.rerun()[0]
    error = size * ((terms + 2 + (0 if plain else 3)) * arithmetic.unit) + terms * arithmetic.smallest
    if (not plain or call.name == "addr") and call.storage_unit() > arithmetic.unit:
        error += size * (2 * call.storage_unit())
    error = torch.where(size < arithmetic.largest, error, math.inf)
    return [Real(want, torch.where(want.isfinite(), error, 0.0), arithmetic)]


def _absolute_sum(call: Call) -> Tensor:
    """The call on absolute values and factors."""
    held = dict(call.kwargs)
    try:
        for name in ("beta", "alpha"):
            if call.get(name) is not None:
                call.kwargs[name] = abs(call.get(name))
        return call.rerun(torch.abs)[0]
    finally:
        call.kwargs = held


@rule("_grouped_mm")
def grouped_product(call: Call) -> List[Expected]:
    """Products of groups of rows (or inner slices), group g ending at offs[g]."""
    a, b = call.wide("self"), call.wide("mat2")
    offsets = call.get("offs")
    if call.get("bias") is not None:
        raise NotChecked("_grouped_mm with a bias has no rule")
    ends = [] if offsets is None else [int(end) for end in offsets.wide]

    def grouped(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() == 3 and b.dim() == 3:
            return a @ b
        starts = [0] + ends[:-1]
        spans = list(zip(starts, ends))
        if a.dim() == 2 and b.dim() == 3:
            return torch.cat([a[s:e] @ b[g] for g, (s, e) in enumerate(spans)])
        if a.dim() == 3 and b.dim() == 2:
            return torch.cat([a[g] @ b[:, s:e] for g, (s, e) in enumerate(spans)], dim=1)
        return torch.stack([a[:, s:e] @ b[s:e] for s, e in spans])

    arithmetic = call.arithmetic()
    terms = a.shape[-1]
    if a.dim() == 2 and b.dim() == 2:
        terms = max([e - s for s, e in zip([0] + ends[:-1], ends)] or [0])
    want, size = grouped(a, b), grouped(a.abs(), b.abs())
    if a.dim() == 2 and b.dim() == 3 and want.shape[0] != a.shape[0]:
        raise NotChecked("rows behind the last group are undefined")
    return [Real(want, size * ((terms + 1) * arithmetic.unit) + terms * arithmetic.smallest, arithmetic)]


def _kernel(weight: Tensor) -> int:
    return math.prod(weight.shape[2:])


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> List[Expected]:
    """K = input channels of a group times the kernel's elements, and the bias."""
    weight = call.wide("weight")
    channels = weight.shape[0] // call.get("groups") if call.get("transposed") else weight.shape[1]
    expected = of_products(call, channels * _kernel(weight) + 1)
    if not call.get("transposed") or not call.kept_short():
        return expected
    # Without a fused kernel torch puts products down and adds the places of the kernel up in 16 bits.
    size = call.rerun(torch.abs)[0]
    return [call.added_up(real, size, _kernel(weight) + 1) for real in expected if isinstance(real, Real)]


@rule("convolution_backward", "convolution_backward_overrideable")
def convolution_backward(call: Call) -> List[Expected]:
    """Three sums with their own numbers of terms: kernel × channels for the input, batch × image for weight and bias."""
    gradient, weight = call.wide("grad_output"), call.wide("weight")
    groups = call.get("groups")
    out_channels = weight.shape[1] if call.get("transposed") else weight.shape[0] // groups
    image = gradient.shape[0] * math.prod(gradient.shape[2:])
    if call.get("transposed"):
        image = max(image, call.wide("input").shape[0] * math.prod(call.wide("input").shape[2:]))
    terms: List[float] = [out_channels * _kernel(weight), image, image]
    expected: List[Expected] = []
    arithmetic = call.arithmetic()
    for want, size, count in zip(call.rerun(), call.rerun(torch.abs), terms):
        if want is None:
            expected.append(None)
            continue
        error = size * ((count + 1) * arithmetic.unit) + count * arithmetic.smallest
        # Without a fused kernel torch adds each image's part, and each place of the kernel, into a gradient of 16 bits.
        additions = call.wide("input").shape[0] + _kernel(weight)
        expected.append(call.added_up(Real(want, error, arithmetic), size, additions))
    return expected


