"""Operators that move, make, select or compare numbers and round nothing (but once, on store)."""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor

from ..call import Call, NotChecked
from . import Expected, Verdict, rule

#: f64 on the same operands gives the result itself; the store rounds it once to nearest.
EXACT = (
    # copies and changes of type
    "clone copy _to_copy _copy_from _copy_from_and_resize contiguous lift lift_fresh lift_fresh_copy to _unsafe_view "
    "_reshape_copy _reshape_alias_copy view_copy expand_copy "
    "t_copy transpose_copy permute_copy slice_copy select_copy squeeze_copy unsqueeze_copy detach_copy "
    "alias_copy as_strided_copy unfold_copy diagonal_copy split_copy split_with_sizes_copy unbind_copy _conj_physical "
    "contiguous_format resolve_conj resolve_neg "
    # making
    "zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full scalar_tensor fill zero eye tril_indices "
    "triu_indices one_hot _local_scalar_dense _efficientzerotensor "
    # putting together and taking apart
    "cat stack hstack vstack constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d roll "
    "flip rot90 repeat tile repeat_interleave tril triu diag_embed diagonal_backward slice_backward select_backward "
    "slice_scatter select_scatter diagonal_scatter as_strided_scatter unsafe_split unsafe_split_with_sizes unsafe_chunk "
    "unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle _pack_padded_sequence "
    # selecting
    "index index_select gather take embedding masked_select masked_fill masked_scatter where index_fill index_copy "
    "scatter.src scatter.value nonzero argwhere amax amin aminmax clamp clamp_min clamp_max maximum minimum fmax fmin "
    "relu threshold threshold_backward hardtanh hardtanh_backward relu6 max min median "
    # comparing, logic, whole numbers
    "eq ne lt le gt ge isnan isinf isfinite isneginf isposinf signbit equal is_nonzero any all logical_not logical_and "
    "logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift "
    "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ neg abs sign sgn floor ceil trunc round "
    "floor_divide bincount count_nonzero searchsorted bucketize isin positive real imag view_as_real_copy "
    "histc unique_consecutive _unique2 unique_dim complex nan_to_num _is_any_true _is_all_true fmod remainder gcd lcm "
    "heaviside copysign"
).split()

#: Of these only whole numbers are exact.
WHOLE_NUMBERS_ONLY = frozenset(["floor_divide", "remainder"])


@rule(*EXACT)
def exact(call: Call) -> List[Expected]:
    """The f64 rerun, rounded once on store."""
    if call.name.rstrip("_") in WHOLE_NUMBERS_ONLY and call.floating():
        raise NotChecked("a rounded quotient may differ by one")
    return call.rerun()


@rule("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "empty_quantized")
def contents_open(call: Call) -> List[Expected]:
    """Memory whose contents nobody promises: shape and dtype are checked."""
    return [Verdict(lambda got: None, "contents are undefined; shape and dtype are checked", complete=True)]


def positions(call: Call, values: Optional[Tensor], dim: int, distinct: bool) -> Verdict:
    """Indices that must lead to `values` (where given) along `dim`; with ties any choice is right."""
    source = call.wide("self")

    def check(got: Tensor) -> Optional[str]:
        if got.numel() == 0:
            return None
        got = got.cpu()
        if int(got.min()) < 0 or int(got.max()) >= max(source.shape[dim] if source.dim() else 1, 1):
            return "an index points outside of the tensor"
        if distinct and got.dim() and bool((got.sort(dim).values.diff(dim=dim) == 0).any()):
            return "an index comes twice"
        found = torch.gather(source, dim, got) if source.dim() else source
        if values is not None and not torch.equal(torch.nan_to_num(found), torch.nan_to_num(values.reshape(found.shape))):
            return "an index does not lead to its value"
        return None

    return Verdict(check, "indices may differ where values tie", complete=True)


def in_any_order(call: Call, values: Tensor, dim: int) -> List[Expected]:
    """The same values, and indices that lead to the same values, whatever their order."""
    source, ordered_values = call.wide("self"), values.sort(dim).values
    reason = "the order is open; sorted values are compared"

    def same(found: Tensor) -> Optional[str]:
        right = torch.equal(found.cpu().to(ordered_values.dtype).sort(dim).values, ordered_values)
        return None if right else "not the largest (or smallest) values"

    def lead_there(got: Tensor) -> Optional[str]:
        return positions(call, None, dim, distinct=True).check(got) or same(torch.gather(source, dim, got.cpu()))

    return [Verdict(same, reason, complete=True), Verdict(lead_there, reason, complete=True)]


@rule("topk", "sort", "sort.stable", "kthvalue")
def ordered(call: Call) -> List[Expected]:
    """Values exactly; indices must lead to them, each once."""
    values = call.rerun()[0]
    dim = call.get("dim")
    dim = -1 if dim is None else dim
    if call.name == "topk" and call.get("sorted") is False:
        return in_any_order(call, values, dim)
    if call.name == "kthvalue":
        raise NotChecked("no rule for kthvalue")
    return [values, positions(call, values, dim, distinct=True)]


@rule("argsort", "argsort.stable")
def argsort(call: Call) -> List[Expected]:
    """Indices that lead to the sorted values."""
    dim = call.get("dim")
    dim = -1 if dim is None else dim
    values = torch.sort(call.wide("self"), dim=dim, descending=bool(call.get("descending"))).values
    return [positions(call, values, dim, distinct=True)]


@rule("max.dim", "min.dim", "mode")
def extreme(call: Call) -> List[Expected]:
    """The value exactly, and an index that leads to it."""
    if call.name == "mode":
        raise NotChecked("no rule for mode")
    values = call.rerun()[0]
    dim, keep = call.get("dim"), bool(call.get("keepdim"))
    kept = values if keep or not call.wide("self").dim() else values.unsqueeze(dim)
    inner = positions(call, kept, dim, distinct=False)
    open_up = (lambda got: got) if keep else (lambda got: got.unsqueeze(dim) if call.wide("self").dim() else got)
    return [values, Verdict(lambda got: inner.check(open_up(got)), inner.reason, complete=True)]


@rule("argmax", "argmin")
def arg_extreme(call: Call) -> List[Expected]:
    """An index that leads to the extreme value."""
    source = call.wide("self")
    flat = source.reshape(-1) if call.get("dim") is None else source
    dim = 0 if call.get("dim") is None else call.get("dim")
    pick = torch.amax if call.name == "argmax" else torch.amin
    values = pick(flat, dim, keepdim=True)

    def check(got: Tensor) -> Optional[str]:
        shaped = got.cpu().reshape(values.shape)
        if shaped.numel() and (int(shaped.min()) < 0 or int(shaped.max()) >= max(flat.shape[dim], 1)):
            return "an index points outside of the tensor"
        found = torch.gather(flat, dim, shaped) if flat.dim() else flat
        return None if torch.equal(torch.nan_to_num(found), torch.nan_to_num(values)) else "not the extreme value"

    return [Verdict(check, "indices may differ where values tie", complete=True)]


@rule("max_pool2d_with_indices")
def max_pool(call: Call) -> List[Expected]:
    """The maximum of each window, and an index that leads to it."""
    values = call.rerun()[0]
    source = call.wide("self")
    flat = source.reshape(*source.shape[:-2], -1)

    def check(got: Tensor) -> Optional[str]:
        shaped = got.cpu().reshape(*values.shape[:-2], -1)
        if shaped.numel() and (int(shaped.min()) < 0 or int(shaped.max()) >= flat.shape[-1]):
            return "an index points outside of the image"
        found = torch.gather(flat, -1, shaped)
        return None if torch.equal(found, values.reshape(found.shape)) else "an index does not lead to its value"

    return [values, Verdict(check, "indices may differ where values tie", complete=True)]
