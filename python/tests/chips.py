"""Bad chips: dispatch modes that compute one operator wrong, to be entered before `lockstep` (so they lie below it)."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

A = torch.ops.aten
Compute = Callable[..., Any]


class BadChip(TorchDispatchMode):
    """Runs `wrong(func, args, kwargs)` instead of one operator; counts how often."""

    def __init__(self, operator: Any, wrong: Compute) -> None:
        super().__init__()
        self.operator, self.wrong, self.times = operator, wrong, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not self.operator:
            return func(*args, **kwargs)
        self.times += 1
        return self.wrong(func, args, kwargs)


def first(change: Callable[[Tensor], Tensor]) -> Compute:
    """The right result, or the first of them, changed."""

    def wrong(func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if isinstance(result, tuple):
            return (change(result[0]), *result[1:])
        return change(result)

    return wrong


def tail_of_k(func: Any, args: Any, kwargs: Any) -> Any:
    """A product that leaves out what does not fill a block of 16."""
    kept = args[0].shape[-1] // 16 * 16
    return func(args[0][..., :kept], args[1][..., :kept, :]) if kept else func(*args)


def short_accumulation(dtype: torch.dtype) -> Compute:
    """A product whose sum is kept in a short type."""

    def wrong(func: Any, args: Any, kwargs: Any) -> Any:
        a, b = args
        total = torch.zeros(a.shape[0], b.shape[1], dtype=dtype)
        for k in range(a.shape[1]):
            total = (total.float() + a[:, k : k + 1].float() * b[k : k + 1].float()).to(dtype)
        return total.to(a.dtype)

    return wrong


def rounded_operands(dtype: torch.dtype) -> Compute:
    """A product of operands rounded to a short type."""
    return lambda func, args, kwargs: func(*(a.to(dtype).to(a.dtype) for a in args), **kwargs)


class Stale:
    """Every third result of a shape is the one before."""

    def __init__(self) -> None:
        self.held: Dict[Any, List[Any]] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        kept = self.held.setdefault(tuple(result.shape), [])
        kept.append(result.clone())
        return kept[-2].clone() if len(kept) % 3 == 0 else result


class Sometimes:
    """One call in `period` has a flipped bit; which one depends on the call's number alone."""

    def __init__(self, period: int) -> None:
        self.period, self.calls = period, 0

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self.calls += 1
        if self.calls % self.period == 0 and result.numel():
            flat = result.clone().reshape(-1)
            flat.view(torch.int32)[flat.numel() // 2] ^= 1 << 27
            return flat.reshape(result.shape)
        return result


def with_argument(position: int, change: Callable[[Any], Any]) -> Compute:
    """The operator with one argument changed."""

    def wrong(func: Any, args: Any, kwargs: Any) -> Any:
        changed = list(args)
        changed[position] = change(changed[position])
        return func(*changed, **kwargs)

    return wrong


def with_keyword(name: str, change: Callable[[Any], Any]) -> Compute:
    """The operator with one keyword argument changed."""
    return lambda func, args, kwargs: func(*args, **{**kwargs, name: change(kwargs[name])})


def truncating(func: Any, args: Any, kwargs: Any) -> Any:
    """A cast to bf16 that cuts."""
    source = args[0]
    if source.dtype == torch.float32 and kwargs.get("dtype") == torch.bfloat16:
        return func((source.contiguous().view(torch.int32) & -65536).view(torch.float32), **kwargs)
    return func(*args, **kwargs)


def saturating(func: Any, args: Any, kwargs: Any) -> Any:
    """Infinities become the largest number."""
    return func(*args, **kwargs).clamp(min=torch.finfo(torch.float32).min)


def leaking_mask(func: Any, args: Any, kwargs: Any) -> Any:
    """Causal attention whose first query sees the second key."""
    result = func(*args, **kwargs)
    q, k, v = args[:3]
    weights = torch.softmax(q[..., :1, :] @ k[..., :2, :].transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
    out = result[0].clone()
    out[..., :1, :] = weights @ v[..., :2, :]
    return (out, *result[1:])


def plain_softmax(func: Any, args: Any, kwargs: Any) -> Any:
    """Softmax without the maximum taken out."""
    powers = args[0].exp()
    return powers / powers.sum(args[1], True)


def only_last(func: Any, args: Any, kwargs: Any) -> Any:
    """A gradient of an embedding in which the last of equal tokens wins."""
    gradient, indices, rows = args[:3]
    out = gradient.new_zeros(rows, gradient.shape[-1])
    out[indices.reshape(-1)] = gradient.reshape(-1, gradient.shape[-1])
    return out


def swapped_halves(result: Tensor) -> Tensor:
    """The two halves of the last dimension exchanged."""
    return torch.cat(result.chunk(2, -1)[::-1], -1)


def zero_tail(result: Tensor) -> Tensor:
    """The last columns not written."""
    copy = result.clone()
    copy[..., copy.shape[-1] // 8 * 8 :] = 0
    return copy


def later_steps(func: Any, args: Any, kwargs: Any) -> Any:
    """AdamW one step further on than it is: another bias correction."""
    changed = list(args)
    changed[5] = [step + 1 for step in args[5]]
    return func(*changed, **kwargs)


#: Defects by name: the operator, what it does instead, words that a guess should hold (empty: none is asked for), and
#: the options of the training that shows it.
DEFECTS: Dict[str, Tuple[Any, Callable[[], Compute], str, Dict[str, Any]]] = {
    "tail of K dropped": (A.mm.default, lambda: tail_of_k, "dropped tail", {}),
    "tail of K dropped in bmm": (A.bmm.default, lambda: tail_of_k, "dropped tail", {"fused": False}),
    "wrong scale": (A.native_layer_norm.default, lambda: first(lambda y: y * 1.01), "wrong scale", {}),
    "doubled weight gradient": (A.sum.dim_IntList, lambda: first(lambda y: y * 2), "doubled", {}),
    "bf16 accumulation": (A.mm.default, lambda: short_accumulation(torch.bfloat16), "accumulation", {}),
    "fp16 accumulation": (A.mm.default, lambda: short_accumulation(torch.float16), "accumulation", {}),
    "bf16 operands": (A.mm.default, lambda: rounded_operands(torch.bfloat16), "operands rounded", {}),
    "stored as bf16": (A.gelu.default, lambda: first(lambda y: y.bfloat16().float()), "stored in a shorter type", {}),
    "stale buffer": (A.mm.default, Stale, "stale", {}),
    "epsilon of layer norm": (A.native_layer_norm.default, lambda: with_argument(4, lambda e: 1e-3), "epsilon", {}),
    "epsilon of AdamW": (
        A._fused_adamw_.default,
        lambda: with_keyword("eps", lambda e: 1e-5),
        "epsilon",
        {"options": {"fused": True}},
    ),
    "bias correction of AdamW": (A._fused_adamw_.default, lambda: later_steps, "", {"options": {"fused": True}}),
    "truncating cast": (A._to_copy.default, lambda: truncating, "truncating cast", {"mixed": True}),
    "saturation for infinity": (A.masked_fill.Scalar, lambda: saturating, "saturation", {"fused": False}),
    "mask corner": (A._scaled_dot_product_flash_attention_for_cpu.default, lambda: leaking_mask, "wrong part", {}),
    "softmax without maximum": (A._softmax.default, lambda: plain_softmax, "exponential", {"fused": False, "loud": True}),
    "repeated tokens lost": (A.embedding_dense_backward.default, lambda: only_last, "", {}),
    "halves swapped": (A.gelu.default, lambda: first(swapped_halves), "layout", {}),
    "tail not written": (A.gelu.default, lambda: first(zero_tail), "dropped part", {}),
    "bit flip": (A.mm.default, lambda: Sometimes(17), "race or bit flip", {}),
    "addcdiv off by one ulp": (
        A.addcdiv_.default,
        lambda: lambda func, args, kwargs: args[0].copy_(func(*args, **kwargs) * (1 + 4e-7)),
        "",
        {"options": {"foreach": False}},
    ),
}


# Written after the guesser, to see how it does on what it was not made for.


def tail_of_addmm(func: Any, args: Any, kwargs: Any) -> Any:
    """A product with bias that leaves out what does not fill a block of 8."""
    kept = args[1].shape[-1] // 8 * 8
    return func(args[0], args[1][:, :kept], args[2][:kept], **kwargs)


def tail_of_rows(func: Any, args: Any, kwargs: Any) -> Any:
    """A sum that leaves out the rows that do not fill a block of 16."""
    dim = args[1][0]
    kept = args[0].shape[dim] // 16 * 16
    return func(args[0].narrow(dim, 0, kept), *args[1:], **kwargs) if kept else func(*args, **kwargs)


def cut_to_bf16(result: Tensor) -> Tensor:
    """The upper half of each word."""
    return (result.contiguous().view(torch.int32) & -65536).view(torch.float32)


def sum_in_bf16(func: Any, args: Any, kwargs: Any) -> Any:
    """A sum over rows kept in bf16."""
    if args[1] != [0]:
        return func(*args, **kwargs)
    total = torch.zeros_like(args[0][0]).bfloat16()
    for row in args[0]:
        total = (total.float() + row).bfloat16()
    return total.float().unsqueeze(0) if args[2] else total.float()


def batched_in_fp16(func: Any, args: Any, kwargs: Any) -> Any:
    """A batched product whose sum is kept in fp16."""
    a, b = args
    total = torch.zeros(a.shape[0], a.shape[1], b.shape[2]).half()
    for k in range(a.shape[2]):
        total = (total.float() + a[:, :, k : k + 1] * b[:, k : k + 1]).half()
    return total.float()


def doubled_value_gradient(func: Any, args: Any, kwargs: Any) -> Any:
    """Attention's backward with the gradient of the values twice as large."""
    query, key, value = func(*args, **kwargs)
    return query, key, value * 2


class Late:
    """Every result is that of the call before."""

    def __init__(self) -> None:
        self.held: Dict[Any, Any] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        before = self.held.get(args[0].shape)
        self.held[args[0].shape] = tuple(None if part is None else part.clone() for part in result)
        return before or result


def last_class_off(result: Tensor) -> Tensor:
    """The last column is off."""
    return torch.cat([result[:, :-1], result[:, -1:] + 0.1], 1)


def channels_not_written(result: Tensor) -> Tensor:
    """The last two channels are not written."""
    return torch.cat([result[:, :-2], torch.zeros_like(result[:, -2:])], 1)


def with_infinity(result: Tensor) -> Tensor:
    """The largest element is infinite."""
    return torch.where(result == result.max(), float("inf"), result)


ATTENTION_BACKWARD = A._scaled_dot_product_flash_attention_for_cpu_backward.default

HELD_OUT: Dict[str, Tuple[Any, Callable[[], Compute], str, Dict[str, Any]]] = {
    "tail of addmm": (A.addmm.default, lambda: tail_of_addmm, "dropped tail", {}),
    "tail of rows": (A.sum.dim_IntList, lambda: tail_of_rows, "dropped tail", {}),
    "gradient cut": (A.gelu_backward.default, lambda: first(cut_to_bf16), "truncating cast", {}),
    "gradient stored as bf16": (
        A.native_layer_norm_backward.default,
        lambda: first(lambda y: y.bfloat16().float()),
        "stored in a shorter type",
        {},
    ),
    "scale of softmax": (A._softmax.default, lambda: first(lambda y: y * 0.98), "wrong scale", {"fused": False}),
    "doubled gradient of values": (ATTENTION_BACKWARD, lambda: doubled_value_gradient, "doubled", {}),
    "epsilon of group norm": (A.native_group_norm.default, lambda: with_argument(7, lambda e: 1e-2), "epsilon", {"images": True}),
    "epsilon of batch norm": (A.native_batch_norm.default, lambda: with_argument(7, lambda e: 1e-3), "epsilon", {"images": True}),
    "images mirrored": (A.native_batch_norm.default, lambda: first(lambda y: y.flip(-1)), "layout", {"images": True}),
    "channels not written": (A.convolution.default, lambda: first(channels_not_written), "dropped part", {"images": True}),
    "bf16 convolution": (
        A.convolution.default,
        lambda: lambda f, a, k: f(a[0].bfloat16().float(), a[1].bfloat16().float(), *a[2:], **k),
        "operands rounded",
        {"images": True},
    ),
    "late gradients": (A.convolution_backward.default, Late, "stale", {"images": True}),
    "fp16 batched product": (A.bmm.default, lambda: batched_in_fp16, "accumulation", {"fused": False}),
    "bf16 sum": (A.sum.dim_IntList, lambda: sum_in_bf16, "accumulation", {}),
    "flips in addmm": (A.addmm.default, lambda: Sometimes(3), "race or bit flip", {}),
    "last class off": (A._log_softmax.default, lambda: first(last_class_off), "wrong tail", {}),
    "rate of AdamW": (A._fused_adamw_.default, lambda: with_keyword("lr", lambda r: 2 * r), "", {"options": {"fused": True}}),
    "large epsilon of AdamW": (
        A._fused_adamw_.default,
        lambda: with_keyword("eps", lambda e: 1e-3),
        "epsilon",
        {"options": {"fused": True}},
    ),
    "an infinity": (A.mm.default, lambda: first(with_infinity), "not finite", {}),
    "tokens reversed": (A.embedding.default, lambda: first(lambda y: y.flip(1)), "layout", {}),
}
