"""Calls without their data: written by a run, drawn again from a seed and judged anywhere. The format is in CASES.md."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from . import judge as judging
from . import rules
from .call import Call, Captured, NotChecked, by_name
from .guess import Guess, History, guess, setting_of
from .judge import Judgement
from .rules.attention import FORWARD

VERSION = 1

#: Bands of values are taken from this many calls of each case; further ones are counted only.
BANDS_FROM = 4


class CasesError(Exception):
    """A file of cases that can't be read, with the place."""


# Specifications of tensors.


def spec_of(operand: Captured) -> Dict[str, Any]:
    """What is kept of a tensor: sizes, strides, dtype and the bands that its values lie in."""
    spec: Dict[str, Any] = {
        "shape": list(operand.shape),
        "stride": list(operand.stride),
        "dtype": str(operand.dtype).replace("torch.", ""),
    }
    values = operand.raw
    if not values.numel():
        return spec
    if operand.dtype == torch.bool:
        spec["true"] = round(float(values.double().mean()), 4)
    elif operand.dtype.is_floating_point:
        wide = values.double()
        size = wide.abs()
        counted = size.isfinite() & (size > 0)
        spec["zeros"] = round(float((size == 0).double().mean()), 4)
        spec["negative"] = round(float((wide < 0).double().mean()), 4)
        if bool(counted.any()):
            spec["low"] = math.floor(math.log2(float(torch.where(counted, size, math.inf).min())))
            spec["high"] = math.floor(math.log2(float(torch.where(counted, size, 0.0).max())))
        infinite = float((wide == -math.inf).double().mean())
        if infinite:
            spec["minus_infinity"] = round(infinite, 4)
        if operand.dtype.itemsize >= 4 and bool((wide == wide.round()).all()):
            # Counters and steps.
            spec["whole"] = True
    elif not operand.dtype.is_complex:
        flat = values.reshape(-1)
        below = flat < 0
        if bool(below.any()) and not bool(below.all()) and int(flat[below].min()) == int(flat[below].max()):
            # A mark (as the target that a loss ignores) among numbers from 0: no number of that range.
            spec["mark"], spec["marked"] = int(flat[below][0]), round(float(below.double().mean()), 4)
            flat = flat[~below]
        spec["least"], spec["most"] = int(flat.min()), int(flat.max())
        ordered = flat.sort().values
        spec["distinct"] = not bool((ordered.diff() == 0).any())
        spec["sorted"] = bool(torch.equal(ordered, flat))
    return spec


def merge_specs(old: Dict[str, Any], new: Dict[str, Any]) -> None:
    """Widens the bands of `old` by those of another call."""
    for key in ("low", "least"):
        if key in new:
            old[key] = min(old.get(key, new[key]), new[key])
    if "mark" in new:
        old.setdefault("mark", new["mark"])
    for key in ("high", "most", "zeros", "negative", "minus_infinity", "true", "marked"):
        if key in new:
            old[key] = max(old.get(key, new[key]), new[key])
    for key in ("distinct", "sorted", "whole"):
        if key in old:
            old[key] = old[key] and new.get(key, False)


def draw(spec: Dict[str, Any], seed: int) -> Tensor:
    """A tensor of a specification on the CPU, the same for the same seed: magnitudes uniform in their exponent."""
    shape, stride = spec["shape"], spec["stride"]
    dtype = getattr(torch, spec["dtype"])
    count = math.prod(shape)
    if count == 0:
        return torch.empty_strided(shape, stride, dtype=dtype)
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride))
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(3, extent, dtype=torch.float64, generator=generator)
    if dtype == torch.bool:
        values = chance[0] < spec.get("true", 0.5)
    elif dtype.is_floating_point:
        low, high = spec.get("low", 0), spec.get("high", 0)
        values = torch.exp2(low + (high + 1 - low) * chance[0])
        if spec.get("whole"):
            values = values.floor().clamp(min=1)
        values = values.clamp(max=torch.finfo(dtype).max)
        values = torch.where(chance[1] < spec.get("negative", 0.5), -values, values)
        values = torch.where(chance[2] < spec.get("zeros", 0.0), 0.0, values)
        values = torch.where(chance[2] > 1 - spec.get("minus_infinity", 0.0), -math.inf, values)
    elif dtype.is_complex:
        values = torch.complex(chance[0], chance[1])
    else:
        least, most = spec.get("least", 0), spec.get("most", 1)
        if spec.get("distinct") and most - least + 1 >= extent and most - least < 2**24:
            values = least + torch.randperm(most - least + 1, generator=generator)[:extent]
        else:
            values = torch.randint(least, most + 1, (extent,), generator=generator)
        if spec.get("sorted"):
            values = values.sort().values
            values[-1] = most
        if "mark" in spec:
            values = torch.where(chance[0] < spec.get("marked", 0.0), spec["mark"], values)
    return torch.as_strided(values.to(dtype), shape, stride)


# Trees of arguments as JSON.


def encode(tree: Any, tensor: Callable[[Captured], Any]) -> Any:
    """Arguments as JSON values; tensors by `tensor`."""
    if isinstance(tree, (list, tuple)):
        return [encode(item, tensor) for item in tree]
    if isinstance(tree, Captured):
        return {"tensor": tensor(tree)}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).replace("torch.", "")}
    if isinstance(tree, torch.device):
        return {"device": True}
    if isinstance(tree, torch.layout):
        return {"layout": str(tree).replace("torch.", "")}
    if isinstance(tree, torch.memory_format):
        return {"memory_format": str(tree).replace("torch.", "")}
    if isinstance(tree, torch.Generator):
        return None
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": str(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise NotChecked(f"an argument of the class {type(tree).__name__} is not written")


def decode(tree: Any, tensor: Callable[[Dict[str, Any]], Any], device: torch.device) -> Any:
    """The other way round."""
    if isinstance(tree, list):
        return [decode(item, tensor, device) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensor(tree["tensor"])
    if "device" in tree:
        return device
    if "float" in tree:
        return float(tree["float"])
    for kind in ("dtype", "layout", "memory_format"):
        if kind in tree:
            value = getattr(torch, str(tree[kind]), None)
            if value is None:
                raise NotChecked(f"this torch has no {kind} {tree[kind]!r}")
            return value
    raise NotChecked(f"an argument {sorted(tree)} is not known")


def note_case(cases: Dict[str, Any], call: Call) -> None:
    """Enters a call into the collection of a run."""

    def plain(operand: Captured) -> Dict[str, Any]:
        return {"shape": list(operand.shape), "stride": list(operand.stride), "dtype": str(operand.dtype)[6:]}

    try:
        outline = [encode(list(call.args), plain), {k: encode(v, plain) for k, v in call.kwargs.items()}]
    except NotChecked:
        return
    key = str(call.func) + json.dumps(outline, sort_keys=True)
    case = cases.get(key)
    if case is None:
        cases[key] = {
            "version": VERSION,
            "operator": str(call.func),
            "args": encode(list(call.args), spec_of),
            "kwargs": {k: encode(v, spec_of) for k, v in call.kwargs.items()},
            "count": 1,
        }
        return
    case["count"] += 1
    if case["count"] <= BANDS_FROM:
        fresh = [encode(list(call.args), spec_of), [encode(v, spec_of) for v in call.kwargs.values()]]
        held = [case["args"], list(case["kwargs"].values())]
        for old, new in zip(_specs(held), _specs(fresh)):
            merge_specs(old, new)


def _specs(tree: Any) -> Iterator[Dict[str, Any]]:
    if isinstance(tree, list):
        for item in tree:
            yield from _specs(item)
    elif isinstance(tree, dict) and "tensor" in tree:
        yield tree["tensor"]


def write_cases(cases: Dict[str, Any], path: Any) -> int:
    """One line for each case; gives their number."""
    with open(path, "w", encoding="utf-8") as file:
        for case in cases.values():
            file.write(json.dumps(case, sort_keys=True) + "\n")
    return len(cases)


def read_cases(path: Any) -> List[Dict[str, Any]]:
    """All cases of a file; a line that is none is an error with its place."""
    cases = []
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CasesError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
        except ValueError as error:
            raise CasesError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(case, dict) or not isinstance(case.get("operator"), str):
            raise CasesError(f"{path}:{number}: a case needs an `operator`; see CASES.md")
        if case.get("version") != VERSION:
            raise CasesError(f"{path}:{number}: version {case.get('version')!r}; this toprope reads version {VERSION}")
        if not isinstance(case.get("args"), list) or not isinstance(case.get("kwargs", {}), dict):
            raise CasesError(f"{path}:{number}: `args` must be a list and `kwargs` an object; see CASES.md")
        cases.append(case)
    if not cases:
        raise CasesError(f"{path}: no cases in it")
    return cases


# Replay.


@dataclass
class Outcome:
    """What came of one case: `judgement` is None where it was not run, `reason` says why."""

    case: Dict[str, Any]
    judgement: Optional[Judgement]
    reason: str = ""
    shapes: Tuple[Tuple[int, ...], ...] = ()
    dtypes: Tuple[str, ...] = ()
    guess: Optional[Guess] = None


def resolve(name: str) -> Any:
    """The operator of a name as `aten.mm.default`."""
    parts = name.split(".")
    if len(parts) != 3:
        raise NotChecked("an operator's name has three parts, as aten.mm.default")
    try:
        return getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])
    except (AttributeError, RuntimeError) as error:
        raise NotChecked(f"this torch has no operator {name}") from error


def operands_of(case: Dict[str, Any], device: torch.device, seed: int) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    """The arguments of a case, drawn from `seed` and put on `device`."""
    counter = [zlib.crc32(case["operator"].encode()) + seed * 1_000_003]

    def tensor(spec: Dict[str, Any]) -> Tensor:
        counter[0] += 1
        try:
            return placed(draw(spec, counter[0]), device)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise NotChecked(f"a tensor of the case can't be made: {error}") from error

    args = tuple(decode(case["args"], tensor, device))
    kwargs = {key: decode(value, tensor, device) for key, value in case.get("kwargs", {}).items()}
    return args, kwargs


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device with its strides kept, overlapping ones too."""
    if device.type == "cpu":
        return tensor
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    flat = torch.as_strided(tensor, (extent,), (1,)).to(device)
    return torch.as_strided(flat, tensor.shape, tensor.stride())


def replay(case: Dict[str, Any], device: torch.device, seed: int = 0) -> Outcome:
    """Draws a case's operands, runs it on the device and judges it."""
    try:
        func = resolve(case["operator"])
        name = func._schema.name.split("::")[-1]
        if rules.base_name(name) in rules.BOOKKEEPING:
            return Outcome(case, None, "touches no numbers")
        args, kwargs = operands_of(case, device, seed)
        if name.endswith("_backward") and name[: -len("_backward")] in FORWARD:
            args, kwargs = consistent(func, args, kwargs)
        call = Call(func, args, kwargs)
        returned = func(*args, **kwargs)
    except NotChecked as reason:
        return Outcome(case, None, str(reason))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Outcome(case, None, f"the device does not run it: {first[:200]}")
    with judging.out_of_sight():
        judgement = judging.judge(call, args, kwargs, returned)
        if judgement.status == judging.WRONG:
            judgement.reason = setting_of(call, args, kwargs, returned, judgement) or judgement.reason
    found = None
    if judgement.status == judging.WRONG:
        found = guess(History(), func, call, args, kwargs, returned, judgement)
    shapes = tuple(operand.shape for operand in call.captured())
    dtypes = tuple(dict.fromkeys(str(operand.dtype)[6:] for operand in call.captured()))
    return Outcome(case, judgement, judgement.reason, shapes, dtypes, found)


def consistent(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    """Attention's backward needs the output and log-sums of its own forward: these are computed, not drawn."""
    named = by_name(func, args, kwargs)
    forward = getattr(torch.ops.aten, func._schema.name.split("::")[-1][: -len("_backward")]).default
    known = {a.name: named[a.name] for a in forward._schema.arguments if named.get(a.name) is not None}
    if "compute_log_sumexp" in {a.name for a in forward._schema.arguments}:
        known["compute_log_sumexp"] = True
    returned = forward(**known)
    fresh = {"out": returned[0], "logsumexp": returned[1]}
    positions = {argument.name: index for index, argument in enumerate(func._schema.arguments)}
    replaced = list(args)
    for name, value in fresh.items():
        if positions[name] < len(replaced):
            replaced[positions[name]] = value
        else:
            kwargs[name] = value
    return tuple(replaced), kwargs
