"""What kind of defect it looks like, each guess with the experiment that tells it from the others.

All experiments work on one wrong call: its operands as they were, what came out, and what its rule says of changed
operands. Nothing is guessed where no experiment speaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from . import judge as judging
from . import rules
from .call import Call, Captured, NotChecked, map_tree, results
from .judge import Judgement
from .real import Real, unit_roundoff

#: Operators that are products of matrices, and the operand whose last dimension is K.
PRODUCTS = {
    "mm": "self",
    "bmm": "self",
    "mv": "self",
    "addmm": "mat1",
    "baddbmm": "batch1",
    "addmv": "mat",
    "linear": "input",
    "mkldnn_linear": "self",
    "_grouped_mm": "self",
}

#: Blocks in which kernels cut a dimension.
TILES = (128, 64, 32, 16, 8, 4, 2)


@dataclass(frozen=True)
class Guess:
    """A kind of defect and what showed it."""

    kind: str
    because: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.because}"


class History:
    """Fingerprints of the last results of each operator and shape, to recognise one that comes again."""

    KEPT = 4

    def __init__(self) -> None:
        self._prints: Dict[Any, List[Tuple[float, ...]]] = {}

    def note(self, operator: str, call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any) -> None:
        """Remembers what a call gave."""
        key, print_ = fingerprint(operator, call, args, kwargs, returned)
        if print_ is not None:
            kept = self._prints.setdefault(key, [])
            kept.append(print_)
            del kept[: -self.KEPT]

    def seen(self, operator: str, call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any) -> int:
        """How many calls ago the same result was given; 0 where it was not."""
        key, print_ = fingerprint(operator, call, args, kwargs, returned)
        kept = self._prints.get(key, [])
        if print_ is None or len(set(print_)) < 3 or print_ not in kept:
            return 0
        return len(kept) - kept.index(print_)


def fingerprint(
    operator: str, call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any
) -> Tuple[Any, Optional[Tuple[float, ...]]]:
    """The first elements of the first result."""
    if call.signature.is_view:
        return None, None
    found = [v for _, v in results(call.signature, call.func, args, kwargs, returned) if isinstance(v, Tensor)]
    if not found or not found[0].dtype.is_floating_point or not found[0].is_contiguous() or found[0].numel() < 4:
        return None, None
    first = found[0].detach()
    return (operator, tuple(first.shape)), tuple(first.reshape(-1)[:16].cpu().double().tolist())


@dataclass
class Evidence:
    """One wrong result and the means to ask further."""

    func: Any
    call: Call
    label: str
    got: Tensor
    want: Tensor
    bound: Tensor

    def fits(self, want: Tensor, bound: Optional[Tensor] = None, factor: float = 1.0) -> bool:
        """Whether what came out is right for another expectation."""
        bound = self.bound if bound is None else bound
        distance = (self.got - want).abs()
        return bool(((distance <= bound * factor) | (distance == 0)).all())

    def expected_with(self, name: str, operand: Any) -> Optional[Tuple[Tensor, Tensor]]:
        """What the rule says where one argument is another one."""
        return expectation(changed(self.call, {name: operand}), self.label, self.got)


def changed(call: Call, arguments: Dict[str, Any]) -> Call:
    """The same call with other arguments (tensors as `Captured`)."""
    other = object.__new__(Call)
    other.func, other.signature = call.func, call.signature
    other.named = {**call.named, **arguments}
    names = [argument.name for argument in call.func._schema.arguments]
    other.args = tuple(other.named[name] for name in names[: len(call.args)])
    other.kwargs = {name: other.named[name] for name in {**call.kwargs, **arguments} if name in names[len(call.args) :]}
    return other


def expectation(call: Call, label: str, got: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
    """Value and bound of one result by its rule; the bound holds the rounding on store."""
    try:
        expected = list(rules.find(call)(call))
    except (NotChecked, RuntimeError, ValueError, TypeError, IndexError, KeyError):
        return None
    position = _position(call, label, len(expected))
    want = expected[position] if position is not None else None
    store = unit_roundoff(got.dtype) if got.dtype.is_floating_point else 0.0
    if isinstance(want, Real):
        bound = want.bound().expand_as(want.value)
        if store > want.arithmetic.unit:
            bound = bound + (want.value.abs() + bound) * store
        return want.value, bound + torch.finfo(got.dtype).tiny
    if isinstance(want, Tensor) and want.dtype.is_floating_point:
        return want.double(), want.double().abs() * store
    return None


def _position(call: Call, label: str, count: int) -> Optional[int]:
    """Where a label stands among a rule's results."""
    flat: List[str] = []
    schema = call.func._schema
    fresh = [result for result, again in zip(schema.returns, call.signature.returns_written) if not again]
    for index, result in enumerate(schema.returns):
        if not call.signature.returns_written[index]:
            flat.append(result.name or (f"out{index}" if len(fresh) > 1 else "out"))
    for name in call.signature.written:
        value = call.named[name]
        if isinstance(value, (list, tuple)):
            flat += [f"{name}[{index}]" for index in range(len(value))]
        else:
            flat.append(name)
    if label in flat and len(flat) == count:
        return flat.index(label)
    if "[" in label and len(fresh) == 1:
        return int(label[label.index("[") + 1 : -1])
    return None


def guess(
    history: History,
    func: Any,
    call: Call,
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    returned: Any,
    judgement: Judgement,
) -> Optional[Guess]:
    """The first experiment that speaks; None where none does."""
    try:
        return _guess(history, func, call, args, kwargs, returned, judgement)
    except Exception as error:  # an experiment of ours that fails must not end the user's run
        return Guess("unknown", f"an experiment failed: {type(error).__name__}: {str(error)[:160]}")


def _guess(
    history: History,
    func: Any,
    call: Call,
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    returned: Any,
    judgement: Judgement,
) -> Optional[Guess]:
    label = judgement.output
    named = dict(results(call.signature, func, args, kwargs, returned))
    value = named.get(label)
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return None
    with judging.out_of_sight():
        ago = history.seen(str(func), call, args, kwargs, returned)
    if ago:
        return Guess("stale buffer", f"the same numbers came out {ago} call(s) of this shape ago")
    unsteady = repeats(func, call, label, value)
    if unsteady is not None:
        return unsteady
    with judging.out_of_sight():
        raw = value.detach().cpu()
        expected = expectation(call, label, raw)
        if expected is None or tuple(expected[0].shape) != tuple(raw.shape):
            return None
        evidence = Evidence(func, call, label, raw.double(), *expected)
    for experiment in EXPERIMENTS:
        if experiment is short_sum:
            # It asks the device, through whatever lies between us and it.
            found = experiment(evidence, raw)
        else:
            with judging.out_of_sight():
                found = experiment(evidence, raw)
        if found is not None:
            return found
    return None


def again(func: Any, call: Call, label: str, operands: Optional[Dict[str, Captured]] = None) -> Optional[Tensor]:
    """The result of the same call once more on the device; None where it does not run."""
    asked = changed(call, dict(operands)) if operands else call

    def live(leaf: Any) -> Any:
        if not isinstance(leaf, Captured):
            return leaf
        return leaf.raw.clone() if leaf.device.type == "cpu" else leaf.raw.to(leaf.device)

    with judging.out_of_sight():
        args, kwargs = map_tree(asked.args, live), map_tree(asked.kwargs, live)
    try:
        returned = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    found = dict(results(call.signature, func, args, kwargs, returned)).get(label)
    with judging.out_of_sight():
        return found.detach().cpu() if isinstance(found, Tensor) else None


def repeats(func: Any, call: Call, label: str, value: Tensor) -> Optional[Guess]:
    """Runs the call thrice more: does it give the same bits?"""
    with judging.out_of_sight():
        first = value.detach().cpu()
    differing = 0
    for _ in range(3):
        once = again(func, call, label)
        if once is None:
            return None
        with judging.out_of_sight():
            differing += not torch.equal(once.nan_to_num(), first.nan_to_num())
    if differing:
        return Guess("race or bit flip", f"{differing} of 3 repetitions of the same call give other bits")
    return None


# Experiments, in the order in which they are asked.


def not_finite(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Infinities and NaN where there are numbers, or numbers where there are infinities."""
    limit = torch.finfo(raw.dtype).max
    lost = evidence.want.isinf() & raw.isfinite()
    if bool(lost.any()):
        return Guess("saturation", f"{int(lost.sum())} results are finite where they must be infinite")
    made = ~raw.isfinite() & evidence.want.isfinite()
    if not bool(made.any()):
        return None
    if "softmax" in evidence.call.name or "attention" in evidence.call.name or "logsumexp" in evidence.call.name:
        return Guess("exponential overflows", "not finite where the exact result is: the maximum is not taken out first")
    largest = max([float(c.raw.double().abs().max()) for c in evidence.call.floating() if c.raw.numel()] or [0.0])
    kind = "overflow" if largest * largest > limit else "not finite"
    return Guess(kind, f"{int(made.sum())} results are not finite; operands reach {largest:.3g} of {limit:.3g}")


def scaled(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """One factor for all elements."""
    large = evidence.want.abs() > evidence.want.abs().max() * 0.01
    if int(large.sum()) < 2:
        return None
    factor = float((evidence.got[large] / evidence.want[large]).median())
    if not math.isfinite(factor) or abs(factor - 1) < 1e-6 or factor == 0:
        return None
    # The factor itself is known from rounded numbers.
    slack = evidence.bound * (1 + abs(factor)) + evidence.want.abs() * abs(factor) * 4 * unit_roundoff(raw.dtype)
    if not evidence.fits(evidence.want * factor, slack):
        return None
    name = "doubled" if abs(factor - 2) < 0.01 else "wrong scale"
    return Guess(name, f"every element is {factor:.6g} times the exact one")


def unwritten(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Zeros in one part, right everywhere else."""
    wrong = (evidence.got - evidence.want).abs() > evidence.bound
    zero = wrong & (raw == 0)
    if not bool(zero.any()) or int(zero.sum()) * 100 < int(wrong.sum()) * 99:
        return None
    return Guess("dropped part", f"{int(zero.sum())} of {raw.numel()} results are 0: {region(wrong)}")


def shortened(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """The last terms of a sum left out."""
    name, dim = summed(evidence.call)
    if name is None:
        return None
    operand = evidence.call.named[name]
    terms = operand.shape[dim]
    tried = []
    for kept in [terms // tile * tile for tile in TILES] + [terms - 1]:
        if 0 < kept < terms and kept not in tried:
            tried.append(kept)
            found = evidence.expected_with(name, with_values(operand, zeroed(operand.raw, dim, kept)))
            if found is not None and evidence.fits(*found):
                return Guess("dropped tail", f"the result is exact for the first {kept} of {terms} terms")
    return None


def summed(call: Call) -> Tuple[Optional[str], int]:
    """The operand and dimension over which a call adds up; None where there is no single one."""
    base = rules.base_name(call.name)
    if base in PRODUCTS:
        return PRODUCTS[base], -1
    if base in ("sum", "mean", "_softmax", "_log_softmax", "cumsum", "linalg_vector_norm"):
        dims = rules.dims_of(call.get("dim"))
        operand = call.get("self")
        if isinstance(operand, Captured) and operand.shape:
            return "self", dims[-1] if dims else -1
    if base in ("native_layer_norm", "_fused_rms_norm"):
        return "input", -1
    return None, 0


def zeroed(values: Tensor, dim: int, kept: int) -> Tensor:
    """The values with everything from `kept` on set to 0."""
    copy = values.clone(memory_format=torch.contiguous_format)
    copy.narrow(dim, kept, copy.shape[dim] - kept).zero_()
    return copy


def with_values(operand: Captured, values: Tensor) -> Captured:
    """An operand with other values."""
    other = Captured(values, copy=False)
    other.device = operand.device
    return other


def cut(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Rounded towards zero on store, or stored as a shorter type."""
    for dtype in (torch.float16, torch.bfloat16):
        if unit_roundoff(dtype) <= unit_roundoff(raw.dtype):
            continue
        short = raw.to(dtype).to(raw.dtype)
        if not torch.equal(short.nan_to_num(), raw.nan_to_num()):
            continue
        unit = unit_roundoff(dtype)
        if evidence.fits(evidence.want, evidence.bound + evidence.want.abs() * unit * 1.01):
            return Guess("stored in a shorter type", f"all results are {dtype} numbers within one rounding")
        if evidence.fits(evidence.want, evidence.bound + evidence.want.abs() * unit * 2.02):
            smaller = float((raw.abs() <= evidence.want.abs() + evidence.bound).double().mean())
            if smaller == 1.0:
                return Guess("truncating cast", f"all results are {dtype} numbers, cut towards zero")
    nonzero = evidence.want != 0
    off = (evidence.got != evidence.want) & nonzero
    if int(off.sum()) >= 8:
        smaller = float((evidence.got.abs() < evidence.want.abs())[off].double().mean())
        if smaller == 1.0 and evidence.fits(evidence.want, evidence.bound + evidence.want.abs() * 2.02 * unit_roundoff(raw.dtype)):
            return Guess("truncating cast", "every result is cut towards zero, within one unit in the last place")
    return None


def other_constant(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Another epsilon, or another constant in a sum."""
    call = evidence.call
    if isinstance(call.get("eps"), float):
        for eps in [0.0] + [10.0**-power for power in range(1, 13)] + [call.get("eps") * f for f in (2, 10, 0.1)]:
            found = evidence.expected_with("eps", eps)
            if found is not None and evidence.fits(*found):
                return Guess("epsilon", f"the result is exact for eps = {eps:g} instead of {call.get('eps'):g}")
    base = rules.base_name(call.name)
    added = call.get("other")
    if base in ("add", "sub") and isinstance(added, (int, float)) and not isinstance(added, bool):
        sign = 1.0 if base == "add" else -1.0
        instead = float(added) + sign * float((evidence.got - evidence.want).median())
        found = evidence.expected_with("other", instead)
        if found is not None and evidence.fits(*found, factor=4.0):
            kind = "epsilon" if abs(added) < 1e-2 else "another constant"
            return Guess(kind, f"the result is exact for {instead:.3g} instead of {added:g}")
    return None


def short_operands(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Operands rounded to fewer bits before they are multiplied."""
    call = evidence.call
    floats = [n for n, v in call.named.items() if isinstance(v, Captured) and v.dtype == torch.float32 and v.raw.dim() > 1]
    if rules.base_name(call.name) not in PRODUCTS and "convolution" not in call.name:
        return None
    for title, shorten in (("TF32", to_tf32), ("bf16", lambda t: t.bfloat16().float()), ("fp16", lambda t: t.half().float())):
        changes = {name: with_values(call.named[name], shorten(call.named[name].raw)) for name in floats}
        found = expectation(changed(call, changes), evidence.label, raw)
        if found is not None and evidence.fits(*found):
            return Guess("operands rounded", f"the result is exact for operands rounded to {title}")
    return None


def to_tf32(values: Tensor) -> Tensor:
    """Rounded to 11 significant bits, ties away from zero."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def short_sum(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Sums kept in fewer bits: the error beside the magnitude grows with the number of terms."""
    name, dim = summed(evidence.call)
    if name is None or evidence.call.name.startswith("_grouped"):
        return None
    operand = evidence.call.named[name]
    terms = operand.shape[dim]
    sizes, losses = [], []
    for kept in [k for k in (terms // 8, terms // 4, terms // 2, terms) if k >= 2]:
        with judging.out_of_sight():
            part = with_values(operand, zeroed(operand.raw, dim, kept) if kept < terms else operand.raw)
        got = again(evidence.func, evidence.call, evidence.label, {name: part})
        with judging.out_of_sight():
            found = evidence.expected_with(name, part)
            if got is None or found is None:
                return None
            magnitude = float(torch.linalg.vector_norm(found[0])) or 1.0
            sizes.append(kept)
            losses.append(float(torch.linalg.vector_norm(got.double() - found[0])) / magnitude)
    if len(losses) < 2 or losses[0] == 0:
        return None
    growth = math.log(losses[-1] / losses[0]) / math.log(sizes[-1] / sizes[0]) if losses[-1] > 0 else 0.0
    bits = -math.log2(losses[-1]) if 0 < losses[-1] < 1 else 0.0
    if growth >= 0.2 and 3 <= bits <= 14:
        return Guess(
            "low-precision accumulation",
            f"{bits:.1f} bits at {sizes[-1]} terms; the error grows as terms^{growth:.2f} from {sizes[0]} on",
        )
    return None


def moved(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """The right numbers in wrong places."""
    if raw.numel() < 4 or evidence.fits(evidence.want, factor=64.0):
        # A small error moves nothing.
        return None
    have = evidence.got.reshape(-1).sort().values
    want, order = evidence.want.reshape(-1).sort()
    bound = evidence.bound.reshape(-1)[order]
    if bool(((have - want).abs() <= bound * 2).all()):
        return Guess("layout", "the right numbers stand in wrong places")
    return None


def in_one_part(evidence: Evidence, raw: Tensor) -> Optional[Guess]:
    """Wrong in one corner only."""
    wrong = ~((evidence.got - evidence.want).abs() <= evidence.bound)
    count = int(wrong.sum())
    if count == 0 or raw.dim() == 0 or count * 2 > raw.numel():
        return None
    boxed = math.prod(high - low for low, high in box(wrong))
    if count * 2 < boxed:
        return None
    at_end = any(high == size and low > 0 for (low, high), size in zip(box(wrong), raw.shape))
    return Guess("wrong tail" if at_end else "wrong part", f"{count} of {raw.numel()} results: {region(wrong)}")


def box(mask: Tensor) -> List[Tuple[int, int]]:
    """The smallest box around what is true: first and one past the last index of each dimension."""
    spans = []
    for dim in range(mask.dim()):
        others = [d for d in range(mask.dim()) if d != dim]
        hit = mask.any(dim=others[0]) if len(others) == 1 else mask
        if len(others) > 1:
            hit = mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(dim=1)
        at = hit.nonzero().reshape(-1)
        spans.append((int(at[0]), int(at[-1]) + 1))
    return spans


def region(mask: Tensor) -> str:
    """That box as an index."""
    parts = []
    for (low, high), size in zip(box(mask), mask.shape):
        parts.append(":" if (low, high) == (0, size) else f"{low}:{high}")
    return "[" + ", ".join(parts) + f"] of {list(mask.shape)}"


EXPERIMENTS: Tuple[Callable[[Evidence, Tensor], Optional[Guess]], ...] = (
    not_finite,
    unwritten,
    shortened,
    cut,
    scaled,
    other_constant,
    short_operands,
    short_sum,
    moved,
    in_one_part,
)


# Settings.


def setting_of(
    call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any, judgement: Judgement
) -> Optional[str]:
    """Whether a switch of torch's explains an error: then the status becomes `setting`, and the line that changes it is told."""
    base = rules.base_name(call.name)
    if base not in PRODUCTS and "convolution" not in base:
        return None
    for unit, line in settings(call):
        parts: List[Judgement] = []
        try:
            expected = rules.find(call)(call)
            sizes = call.rerun(torch.abs)
        except NotChecked:
            return None
        got = results(call.signature, call.func, args, kwargs, returned)
        for (label, value), want, size in zip(got, expected, sizes):
            if isinstance(want, Real) and isinstance(value, Tensor):
                looser = Real(want.value, want.bound() + size * (2 * unit + unit * unit), want.arithmetic)
                parts.append(judging.judge_result(label, value, looser))
        if parts and all(part.status == judging.RIGHT for part in parts):
            judgement.status = judging.SETTING
            return line
    return None


def settings(call: Call) -> Iterator[Tuple[float, str]]:
    """Unit roundoffs that torch was allowed to use for this call, each with the line that forbids it."""
    device = call.captured()[0].device.type
    dtype = call.compute_dtype()
    if dtype == torch.float32:
        if torch.get_float32_matmul_precision() != "highest":
            unit = 2.0**-8 if torch.get_float32_matmul_precision() == "medium" else 2.0**-11
            yield unit, "float32 matmul precision is lowered: torch.set_float32_matmul_precision('highest')"
        if device == "cuda" and torch.backends.cuda.matmul.allow_tf32:
            yield 2.0**-11, "TF32 is on: torch.backends.cuda.matmul.allow_tf32 = False"
        if device == "cuda" and torch.backends.cudnn.allow_tf32 and "convolution" in call.name:
            yield 2.0**-11, "TF32 is on: torch.backends.cudnn.allow_tf32 = False"
        npu = getattr(torch, "npu", None)
        if device == "npu" and npu is not None:
            yield 2.0**-11, "HF32 may be on: torch.npu.matmul.allow_hf32 = False; torch.npu.conv.allow_hf32 = False"
    if device == "cuda" and dtype == torch.float16:
        if torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction:
            line = "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False"
            yield unit_roundoff(dtype), f"partial sums in fp16 are allowed: {line}"
    if device == "cuda" and dtype == torch.bfloat16:
        if torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction:
            line = "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False"
            yield unit_roundoff(dtype), f"partial sums in bf16 are allowed: {line}"
