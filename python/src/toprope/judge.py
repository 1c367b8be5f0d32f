"""Judges what a call gave: error beside the tolerance, effective bits beside those of a control."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from . import rules
from .call import Call, NotChecked, NotComparable, map_tree, results, tensors, unreadable
from .real import Real

RIGHT = "right"
WRONG = "wrong"
SETTING = "setting"
NOT_CHECKED = "not checked"
NOT_COMPARABLE = "not comparable"
BOOKKEEPING = "bookkeeping"

#: The f64 result itself is no better than this many bits.
BITS_MAX = 53.0


#: A tolerance beyond 1/COARSE of the result sees little.
COARSE = 8.0


@dataclass
class Judgement:
    """What was found of one call: its worst element, and how exact the whole is."""

    status: str
    reason: str = ""
    #: Which result is meant: `out`, or the name of the argument that was written.
    output: str = ""
    #: Where in that result the worst element lies.
    index: Optional[Tuple[int, ...]] = None
    got: Optional[float] = None
    want: Optional[float] = None
    #: |got - want| and what is allowed, of the worst element.
    error: Optional[float] = None
    tolerance: Optional[float] = None
    #: error / tolerance; infinite where nothing is allowed or a result is no number.
    units: float = 0.0
    #: How many elements are wrong, of how many.
    wrong: int = 0
    elements: int = 0
    #: Elements whose bound is infinite: arithmetic may overflow on the way there.
    unbounded: int = 0
    #: Whether the tolerance is so wide that little can be seen: more than an eighth of the result, by root mean square.
    coarse: bool = False
    #: -log2 of the root mean square error beside the root mean square of the result; of the control likewise.
    bits: Optional[float] = None
    control_bits: Optional[float] = None


@contextlib.contextmanager
def out_of_sight() -> Iterator[None]:
    """No dispatch mode, no default device, no gradient: what is computed here is ours."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def judge(call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any) -> Judgement:
    """Judges a call that has run. `args` and `kwargs` are the live ones: what it wrote is read from them."""
    try:
        return _judge(call, args, kwargs, returned)
    except NotComparable as reason:
        return Judgement(NOT_COMPARABLE, str(reason))
    except NotChecked as reason:
        return Judgement(NOT_CHECKED, str(reason))
    except Exception as error:  # a rule of ours that fails must not end the user's run; it shows in the report
        return Judgement(NOT_CHECKED, f"the rule failed: {type(error).__name__}: {str(error)[:160]}")


def _judge(call: Call, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any) -> Judgement:
    if call.signature.is_view:
        return judge_view(call.func, args, kwargs, returned)
    expected = list(rules.find(call)(call))
    got = results(call.signature, call.func, args, kwargs, returned)
    if len(got) != len(expected):
        raise NotChecked(f"the rule expects {len(expected)} results, there are {len(got)}")
    parts = []
    for (label, value), want in zip(got, expected):
        why_not = unreadable(value) if isinstance(value, Tensor) else None
        if why_not:
            raise NotChecked(why_not)
        if want is None and value is None:
            continue
        if want is None or value is None:
            if isinstance(value, Tensor) and value.numel() == 0:
                continue
            if value is None and not isinstance(want, rules.Verdict):
                parts.append(Judgement(WRONG, "a result is missing", output=label, units=math.inf))
            continue
        parts.append(judge_result(label, value, want))
    return worst_of(parts)


def worst_of(parts: List[Judgement]) -> Judgement:
    """One judgement of several results: the worst error, the fewest bits."""
    if not parts:
        return Judgement(RIGHT)
    order = [WRONG, RIGHT, NOT_CHECKED, NOT_COMPARABLE]
    parts.sort(key=lambda part: (order.index(part.status), -part.units))
    worst = parts[0]
    lost = [part for part in parts if part.bits is not None and part.control_bits is not None]
    if lost and worst.bits is None:
        fewest = min(lost, key=lambda part: (part.bits or 0.0) - (part.control_bits or 0.0))
        worst.bits, worst.control_bits = fewest.bits, fewest.control_bits
    return worst


def judge_result(label: str, value: Any, want: Any) -> Judgement:
    """One result beside what its rule expects."""
    if isinstance(want, rules.Verdict):
        problem = want.check(value)
        if problem:
            return Judgement(WRONG, problem, output=label, units=math.inf)
        return Judgement(RIGHT if want.complete else NOT_COMPARABLE, want.reason, output=label)
    value = as_tensor(value)
    want = want if isinstance(want, Real) else as_tensor(want)
    got = value.detach()
    got = got.resolve_conj().resolve_neg() if got.is_conj() or got.is_neg() else got
    got = got.cpu()
    shape = tuple(want.value.shape) if isinstance(want, Real) else tuple(want.shape)
    if tuple(got.shape) != shape:
        reason = f"the shape is {list(got.shape)}, {list(shape)} expected"
        return Judgement(WRONG, reason, output=label, units=math.inf)
    if isinstance(want, Real):
        return bounded(label, got, want)
    return exact(label, got, want)


def as_tensor(value: Any) -> Tensor:
    """A result that may be a number."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def exact(label: str, got: Tensor, want: Tensor) -> Judgement:
    """Nothing but the f64 result rounded once."""
    if got.dtype.is_floating_point != want.dtype.is_floating_point and want.dtype != torch.bool:
        want = want.to(torch.float64) if got.dtype.is_floating_point else want
    rounded = want.to(got.dtype)
    if torch.equal(got, rounded):
        judgement = Judgement(RIGHT, output=label, elements=got.numel(), error=0.0, tolerance=0.0)
    else:
        same = (got == rounded) | ((got != got) & (rounded != rounded))
        wrong = int((~same).sum())
        judgement = Judgement(RIGHT, output=label, elements=got.numel(), error=0.0, tolerance=0.0)
        if wrong:
            judgement.status, judgement.wrong, judgement.units = WRONG, wrong, math.inf
            judgement.reason = "not the exact result"
            if not got.dtype.is_complex:
                distance = (got.double() - rounded.double()).abs().nan_to_num(nan=math.inf)
                _point(judgement, got, rounded, torch.where(same, 0.0, distance + 1e-300), distance)
    if got.dtype.is_floating_point and want.dtype.is_floating_point:
        judgement.bits, judgement.control_bits = effective_bits(got, want.double())
    return judgement


def bounded(label: str, got: Tensor, expected: Real) -> Judgement:
    """Within the bound of the arithmetic inside and one rounding on store. Judged positively: NaN never passes for a number."""
    want = expected.value
    if not got.dtype.is_floating_point:
        return Judgement(NOT_CHECKED, f"a result of {got.dtype} where numbers were expected", output=label)
    info = torch.finfo(got.dtype)
    wide = got.double()
    bound = expected.bound().expand_as(want)
    store = info.eps / 2
    if store > expected.arithmetic.unit:
        bound = bound + (want.abs() + bound) * store
    # Gradual underflow on store, or none: results below the smallest normal number may be zero. Half precision keeps them.
    bound = bound + (info.tiny if got.dtype != torch.float16 else 2.0**-25)
    distance = (wide - want).abs()
    inside = distance <= bound
    elements = got.numel()
    judgement = Judgement(RIGHT, output=label, elements=elements, error=0.0, tolerance=0.0)
    if elements == 0:
        return judgement
    if bool(inside.all()):
        # The common case: all are numbers, all are right.
        ratio = distance / bound
    else:
        ratio, right = _beyond(wide, want, bound, distance, inside, info)
        judgement.wrong = int((~right).sum())
    if not math.isfinite(float(bound.max())):
        judgement.unbounded = int((~bound.isfinite() & want.isfinite()).sum())
        if judgement.unbounded == elements:
            return Judgement(NOT_CHECKED, "no finite bound: the arithmetic may overflow on the way", output=label)
    at = _point(judgement, got, want, ratio, distance)
    judgement.units = float(ratio.reshape(-1)[at])
    judgement.tolerance = float(bound.reshape(-1)[at])
    if judgement.wrong:
        judgement.status = WRONG
        judgement.reason = f"{judgement.wrong} of {elements} elements beyond the tolerance"
    judgement.bits, judgement.control_bits = effective_bits(got, want)
    size = float(torch.linalg.vector_norm(want))
    judgement.coarse = 0.0 < size < float(torch.linalg.vector_norm(bound)) * COARSE
    return judgement


def _beyond(
    wide: Tensor, want: Tensor, bound: Tensor, distance: Tensor, inside: Tensor, info: torch.finfo
) -> Tuple[Tensor, Tensor]:
    """Errors in units of the bound, and which elements are right, where infinities, NaN or large errors are among them."""
    unbounded = ~bound.isfinite() & want.isfinite()
    right = inside | (wide == want) | (wide.isnan() & want.isnan()) | unbounded
    # A result beyond the range of its type, or within the tolerance of that, becomes infinite.
    over = wide.isinf() & want.isfinite() & (wide.sign() == want.sign())
    right |= over & (want.abs() + bound >= info.max * (1 - info.eps))
    # Beyond the range in f64 already, or an infinity of the operands: the same infinity.
    right = torch.where(want.isinf(), wide == want, right)
    ratio = torch.where(right & ~inside, 0.0, (distance / bound).nan_to_num(nan=0.0, posinf=math.inf))
    ratio = torch.where(right, ratio, ratio.clamp(min=1.0 + 1e-9))
    return torch.where(~right & ~(wide.isfinite() & want.isfinite()), math.inf, ratio), right


def _point(judgement: Judgement, got: Tensor, want: Tensor, rank: Tensor, distance: Tensor) -> int:
    """Notes the element with the largest rank; gives its place in row-major order."""
    at = int(rank.reshape(-1).argmax())
    judgement.index = place(at, tuple(got.shape))
    judgement.got = float(got.reshape(-1)[at])
    judgement.want = float(want.reshape(-1)[at])
    judgement.error = float(distance.reshape(-1)[at])
    return at


def place(position: int, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """The index of the element that comes at `position` in row-major order."""
    index = []
    for size in reversed(shape):
        index.append(position % size)
        position //= size
    return tuple(reversed(index))


def effective_bits(got: Tensor, want: Tensor) -> Tuple[Optional[float], Optional[float]]:
    """Bits of a result and of the control: the f64 result, rounded once to the same dtype.

    Only finite numbers count whose exact value is normal: elsewhere an error is one of range, not of precision.
    """
    info = torch.finfo(got.dtype)
    have, size = got.double(), want.abs()
    counted = have.isfinite() & (size >= info.tiny) & (size <= info.max)
    # Scaled so that squares neither overflow nor vanish.
    largest = float(torch.where(counted, size, 0.0).max()) if size.numel() else 0.0
    if largest == 0.0:
        return None, None
    whole = float(torch.linalg.vector_norm(torch.where(counted, want / largest, 0.0)))

    def bits(values: Tensor) -> float:
        lost = float(torch.linalg.vector_norm(torch.where(counted, (values - want) / largest, 0.0)))
        return BITS_MAX if lost == 0.0 else min(max(0.0, -math.log2(lost / whole)), BITS_MAX)

    return bits(have), bits(want.to(got.dtype).double())


def judge_view(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any) -> Judgement:
    """A view moves nothing: the same sizes, strides and place, and the same bits when read through it."""

    def on_host(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.device.type == "cpu":
            return leaf.detach()
        host = torch.empty(0, dtype=leaf.dtype)
        return host.set_(leaf.untyped_storage().cpu(), leaf.storage_offset(), leaf.size(), leaf.stride())

    wanted = func(*map_tree(args, on_host), **map_tree(kwargs, on_host))
    got, want = tensors(returned), tensors(wanted)
    if len(got) != len(want):
        return Judgement(WRONG, f"{len(got)} views, {len(want)} expected", units=math.inf)
    for position, (have, should) in enumerate(zip(got, want)):
        label = "out" if len(got) == 1 else f"out[{position}]"
        if have.shape != should.shape or have.stride() != should.stride() or have.storage_offset() != should.storage_offset():
            reason = (
                f"the view has sizes {list(have.shape)}, strides {list(have.stride())} at {have.storage_offset()}; expected "
                f"{list(should.shape)}, {list(should.stride())} at {should.storage_offset()}"
            )
            return Judgement(WRONG, reason, output=label, units=math.inf)
        if have.dtype != should.dtype:
            return Judgement(WRONG, f"the view is of {have.dtype}, {should.dtype} expected", output=label, units=math.inf)
        if have.data_ptr() == should.data_ptr() and have.device.type == "cpu":
            continue
        judgement = exact(label, have.detach().cpu(), should.detach())
        if judgement.status == WRONG:
            return judgement
    return Judgement(RIGHT, output="out", elements=sum(t.numel() for t in got), error=0.0, tolerance=0.0)
