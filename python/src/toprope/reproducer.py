"""A script of its own that shows one wrong call: torch, the operands, the f64 result, and an exit code."""

from __future__ import annotations

import base64
import ctypes
import inspect
import zlib
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from . import cases
from . import judge as judging
from .call import Call, Captured, NotChecked, by_name
from .judge import Judgement

#: Operands beyond this many bytes are not written into a script.
DATA_MAX = 8 << 20

TEMPLATE = '''"""{operator} on {device}: wrong by {error:.6g} where {tolerance:.6g} is allowed ({output}{index}).

{layer}{origin}
Needs torch and nothing else. Exits with 1 where the result is wrong, with 0 where it is right.
"""
import math
import sys

import torch
from torch import Tensor
from typing import Any, Dict

DEVICE = torch.device(sys.argv[1] if len(sys.argv) > 1 else "{device}")


{maker}

def placed(tensor):
    """On the device with its strides kept."""
    if DEVICE.type == "cpu" or not tensor.numel():
        return tensor.to(DEVICE) if not tensor.numel() else tensor
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    flat = torch.as_strided(tensor, (extent,), (1,)).to(DEVICE)
    return torch.as_strided(flat, tensor.shape, tensor.stride())


def wide(leaf):
    """The same argument for the same call in f64 on the CPU."""
    if isinstance(leaf, list):
        return [wide(item) for item in leaf]
    if isinstance(leaf, torch.Tensor):
        return leaf.cpu().to(torch.float64) if leaf.is_floating_point() else leaf.cpu()
    if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
        return torch.float64
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


OPERATOR = torch.ops.{operator}
arguments = {{
{arguments}}}
exact = {{name: wide(value) for name, value in arguments.items()}}


def result(arguments):
    """The number in question."""
    returned = OPERATOR(**arguments)
    return float(({result})[{position}])


got = result(arguments)
want = {want!r}  # the f64 result, by Toprope's rule for this operator
try:
    print("f64 on the CPU: ", result(exact))
except Exception as problem:
    print("f64 on the CPU:  torch does not run it:", str(problem).splitlines()[0])
tolerance = {tolerance!r}  # derived from the operator's arithmetic
error = abs(got - want)
print("expected:       ", want)
print("got:            ", got, "on", DEVICE)
print("error:          ", error, "allowed:", tolerance)
right = got == want or error <= tolerance
print("right" if right else "WRONG")
sys.exit(0 if right else 1)
'''

GIVEN = '''def given(text, shape, stride, dtype):
    """A tensor of the run that was watched."""
    import base64
    import zlib

    if not text:
        return torch.empty_strided(shape, stride, dtype=dtype)
    flat = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=dtype)
    return torch.as_strided(flat, shape, stride)

'''


def reproducer(func: Any, call: Call, judgement: Judgement, device: str, layer: str) -> Optional[str]:
    """The script for a wrong call; None where it can't be written (no single number is wrong, or too much data).

    Operands are drawn from a seed, in the bands of the call's own, where that shows the fault too; else they are the
    call's.
    """
    if judgement.index is None or judgement.want is None or judgement.tolerance is None:
        return None
    try:
        drawn = _drawn(func, call, device)
        if drawn is not None:
            specs, found = drawn
            return _script(func, call, found, device, layer, specs)
        if sum(_extent(c) * c.raw.element_size() for c in call.captured()) > DATA_MAX:
            return None
        return _script(func, call, judgement, device, layer, None)
    except Exception:  # a script that can't be written must not end the user's run
        return None


def _drawn(func: Any, call: Call, device: str) -> Optional[Tuple[Dict[int, Tuple[Any, int]], Judgement]]:
    """Seeds with which drawn operands show the fault."""
    target = torch.device(device)
    for seed in range(3):
        specs: Dict[int, Tuple[Any, int]] = {}

        def tensor(operand: Captured) -> Tensor:
            spec, number = cases.spec_of(operand), 1000 * seed + len(specs)
            specs[id(operand)] = (spec, number)
            return cases.placed(cases.draw(spec, number), target)

        try:
            with judging.out_of_sight():
                args, kwargs = _with_tensors(call, tensor)
                again = Call(func, args, kwargs)
            returned = func(*args, **kwargs)
        except (NotChecked, RuntimeError, ValueError, TypeError, IndexError):
            return None
        with judging.out_of_sight():
            judgement = judging.judge(again, args, kwargs, returned)
        if judgement.status == judging.WRONG and judgement.index is not None:
            return specs, judgement
    return None


def _with_tensors(call: Call, tensor: Callable[[Captured], Tensor]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    def mapped(tree: Any) -> Any:
        if isinstance(tree, (list, tuple)):
            return [mapped(item) for item in tree]
        return tensor(tree) if isinstance(tree, Captured) else tree

    return tuple(mapped(item) for item in call.args), {key: mapped(value) for key, value in call.kwargs.items()}


def _script(
    func: Any, call: Call, judgement: Judgement, device: str, layer: str, specs: Optional[Dict[int, Tuple[Any, int]]]
) -> str:
    named = by_name(func, call.args, call.kwargs)
    lines = []
    for argument in func._schema.arguments:
        lines.append(f"    {argument.name!r}: {_source(named[argument.name], specs)},\n")
    return TEMPLATE.format(
        operator=str(func),
        device=device,
        error=judgement.error if judgement.error is not None else float("nan"),
        tolerance=judgement.tolerance,
        output=judgement.output,
        index=list(judgement.index or ()),
        layer=f"Seen in {layer}. " if layer else "",
        origin="Operands are drawn from seeds, in the bands of the run's." if specs else "Operands are those of the run.",
        maker=(inspect.getsource(cases.draw) + "\n") if specs else GIVEN,
        arguments="".join(lines),
        result=_result(call, judgement.output),
        position=judgement.index or "()",
        want=judgement.want,
    )


def _source(value: Any, specs: Optional[Dict[int, Tuple[Any, int]]]) -> str:
    """An argument as Python source."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_source(item, specs) for item in value) + "]"
    if isinstance(value, Captured):
        if specs is not None:
            spec, seed = specs[id(value)]
            return f"placed(draw({spec!r}, {seed}))"
        return f"placed(given({_data(value)!r}, {value.shape!r}, {value.raw.stride()!r}, {value.dtype!r}))"
    if isinstance(value, torch.device):
        return "DEVICE"
    if isinstance(value, float):
        return f"float({str(value)!r})" if value != value or value in (float("inf"), -float("inf")) else repr(value)
    if value is None or isinstance(value, (bool, int, str, torch.dtype, torch.layout, torch.memory_format)):
        return repr(value)
    return "None"


def _extent(operand: Captured) -> int:
    raw = operand.raw
    return 1 + sum((size - 1) * step for size, step in zip(raw.shape, raw.stride())) if raw.numel() else 0


def _data(operand: Captured) -> str:
    """The operand's memory, compressed, as text."""
    raw, count = operand.raw, _extent(operand)
    if not count:
        return ""
    content = ctypes.string_at(raw.data_ptr(), count * raw.element_size())
    return base64.b64encode(zlib.compress(content, 6)).decode()


def _result(call: Call, label: str) -> str:
    """Where a result is found after the call, as Python source."""
    name, _, rest = label.partition("[")
    inside = f"[{rest}" if rest else ""
    if name in call.signature.written:
        return f'arguments["{name}"]{inside}'
    fresh: List[str] = []
    schema = call.func._schema
    count = sum(1 for again in call.signature.returns_written if not again)
    for index, result in enumerate(schema.returns):
        if not call.signature.returns_written[index]:
            fresh.append(result.name or (f"out{index}" if count > 1 else "out"))
    if len(schema.returns) == 1:
        return f"returned{inside}"
    return f"returned[{fresh.index(name)}]{inside}"
