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
