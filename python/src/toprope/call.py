"""One call of an operator: its operands as they were before it ran, and the same call again in f64 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from .real import Arithmetic, Real, scalar, unit_roundoff

#: Classes of tensors that hold their own numbers.
PLAIN = (Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", Tensor))

LOW_PRECISION = (torch.bfloat16, torch.float16)


class NotChecked(Exception):
    """Why a call can't be judged; its text goes into the report."""


class NotComparable(NotChecked):
    """Why two right devices may give different results."""


class Captured:
    """A tensor operand as it was before the call."""

    __slots__ = ("raw", "dtype", "shape", "stride", "device", "_wide")

    def __init__(self, tensor: Tensor, copy: bool) -> None:
        """Keeps `tensor`'s values on the CPU: a copy where `copy` says that the call may change them."""
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)
        self.stride = tuple(tensor.stride())
        self.device = tensor.device
        raw = tensor.detach()
        if raw.is_conj() or raw.is_neg():
            raw = raw.resolve_conj().resolve_neg()
        if raw.device.type != "cpu":
            raw = raw.cpu()
        elif copy:
            raw = raw.clone()
        self.raw = raw
        self._wide: Optional[Tensor] = None

    @property
    def wide(self) -> Tensor:
        """The values in f64 (complex128 for complex numbers; as they are for integers and booleans)."""
        if self._wide is None:
            if self.dtype.is_floating_point:
                self._wide = self.raw.to(torch.float64)
            elif self.dtype.is_complex:
                self._wide = self.raw.to(torch.complex128)
            else:
                self._wide = self.raw
        return self._wide


def map_tree(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and dictionaries with every leaf replaced."""
    if isinstance(tree, (list, tuple)):
        return type(tree)([map_tree(item, leaf) for item in tree])
    if isinstance(tree, dict):
        return {key: map_tree(item, leaf) for key, item in tree.items()}
    return leaf(tree)


def leaves(tree: Any) -> List[Any]:
    """Every leaf of nested lists, tuples and dictionaries, in order."""
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in leaves(item)]
    return [tree]


def tensors(tree: Any) -> List[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


#: Arguments that are written though the schema does not say so.
SECRETLY_WRITTEN = {
    "aten::native_batch_norm": ("running_mean", "running_var"),
    "aten::cudnn_batch_norm": ("running_mean", "running_var"),
}


@dataclass(frozen=True)
class Signature:
    """What an operator's schema says about writing and aliasing (and what two schemas keep to themselves)."""

    written: Tuple[str, ...]
    #: For each return: whether it is one of the written arguments again.
    returns_written: Tuple[bool, ...]
    #: Whether a return shares memory with an argument that is not written.
    is_view: bool

    @staticmethod
    def of(func: Any) -> "Signature":
        """Read from the schema."""
        schema = func._schema
        written = tuple(
            argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ) + SECRETLY_WRITTEN.get(schema.name, ())
        returns_written = tuple(
            result.alias_info is not None and result.alias_info.is_write for result in schema.returns
        )
        is_view = not written and any(result.alias_info is not None for result in schema.returns)
        return Signature(written, returns_written, is_view)


_signatures: Dict[Any, Signature] = {}


def signature(func: Any) -> Signature:
    """The signature of an operator, read once."""
    if func not in _signatures:
        _signatures[func] = Signature.of(func)
    return _signatures[func]


def by_name(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Every argument of a call by the name that the schema gives it, defaults filled in."""
    named: Dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
        else:
            named[argument.name] = None
    return named


class Operands:
    """Arguments by name, tensors among them as `Captured`: what a rule reads."""

    def __init__(self, named: Dict[str, Any]) -> None:
        self.named = named

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operator has; None where it has none of them."""
        for name in names:
            if name in self.named:
                return self.named[name]
        return None

    def wide(self, name: str) -> Tensor:
        """A tensor argument in f64."""
        operand = self.named[name]
        if not isinstance(operand, Captured):
            raise NotChecked(f"argument {name} is no tensor")
        return operand.wide

    def captured(self) -> List[Captured]:
        """All tensor arguments."""
        return [leaf for leaf in leaves(self.named) if isinstance(leaf, Captured)]

    def floating(self) -> List[Captured]:
        """All arguments that are tensors of floating point numbers."""
        return [leaf for leaf in self.captured() if leaf.dtype.is_floating_point]

    def compute_dtype(self) -> torch.dtype:
        """What the tensors' dtypes promote to: tensors of no dimension give way to others."""
        ranked = [c for c in self.floating() if c.shape] or self.floating()
        if not ranked:
            return torch.get_default_dtype()
        dtype = ranked[0].dtype
        for operand in ranked[1:]:
            dtype = torch.promote_types(dtype, operand.dtype)
        return dtype

    def arithmetic(self) -> Arithmetic:
        """The arithmetic in which torch computes on these operands."""
        return Arithmetic.of(self.compute_dtype())

    def storage_unit(self) -> float:
        """Unit roundoff of the operands' own dtype."""
        return unit_roundoff(self.compute_dtype())

    def put_down(self, x: Real) -> Real:
        """A value that torch's own composition stores between its parts: rounded where the operands have 16 bits."""
        dtype = self.compute_dtype()
        return x.stored(dtype) if dtype in LOW_PRECISION else x

    def kept_short(self) -> bool:
        """Whether torch's CPU kernels may keep sums of these operands in 16 bits (other devices' keep them in f32)."""
        return self.compute_dtype() in LOW_PRECISION and all(c.device.type == "cpu" for c in self.captured())

    def added_up(self, total: Real, size: Tensor, additions: float) -> Real:
        """A sum of that size, each of whose additions such a kernel rounds to 16 bits."""
        if not self.kept_short() or additions <= 0:
            return total
        return Real(total.value, total.bound() + size * (additions * self.storage_unit()), total.arithmetic)

    def real(self, *names: str) -> Real:
        """An argument as a number with an error bound: tensors are exact, program numbers rounded to the tensors' dtype.

        (torch's type promotion gives a Python number the dtype of the tensor beside it.)
        """
        operand = self.get(*names)
        arithmetic = self.arithmetic()
        if isinstance(operand, Captured):
            if operand.dtype.is_complex:
                raise NotChecked("complex numbers have no rule here")
            wide = operand.wide.to(torch.float64)
            if not operand.shape and operand.dtype != self.compute_dtype():
                # A tensor of no dimensions takes the dtype of the tensor beside it, as a number does.
                return scalar(wide, arithmetic, self.storage_unit())
            return Real(wide, None, arithmetic)
        if operand is None:
            raise NotChecked(f"argument {names[0]} is missing")
        if isinstance(operand, complex):
            raise NotChecked("complex numbers have no rule here")
        return scalar(operand, arithmetic, self.storage_unit())


class Call(Operands):
    """A call with its operands captured, and its f64 rerun."""

    def __init__(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Captures the operands; to be made before the operator runs."""
        self.func = func
        self.signature = signature(func)
        copy = bool(self.signature.written)

        def capture(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            why_not = unreadable(leaf)
            if why_not:
                raise NotChecked(why_not)
            return Captured(leaf, copy)

        self.args = map_tree(args, capture)
        self.kwargs = map_tree(kwargs, capture)
        super().__init__(by_name(func, self.args, self.kwargs))

    @property
    def name(self) -> str:
        """The operator without overload or namespace, as `add_`."""
        return self.func._schema.name.split("::")[-1]

    def rerun(self, transform: Optional[Callable[[Tensor], Tensor]] = None) -> List[Any]:
        """The results of the same call in f64 on the CPU, in the order of `results` (without their names).

        `transform` is applied to every floating point operand first (`torch.abs` gives the magnitude of what is
        linear in each operand).
        """
        return self._again(lambda operand: self._widened(operand, transform))

    def replay(self) -> List[Any]:
        """The results of the same call on the CPU in the operands' own dtypes."""
        return self._again(lambda operand: operand.raw.clone(), widen=False)

    def _widened(self, operand: Captured, transform: Optional[Callable[[Tensor], Tensor]]) -> Tensor:
        wide = operand.wide
        if transform is not None and operand.dtype.is_floating_point:
            return transform(wide)
        # The rerun may write into it.
        return wide.clone() if self.signature.written else wide

    def _again(self, operand_of: Callable[[Captured], Tensor], widen: bool = True) -> List[Any]:
        def swapped(leaf: Any) -> Any:
            if isinstance(leaf, Captured):
                return operand_of(leaf)
            if isinstance(leaf, torch.device):
                return torch.device("cpu")
            if widen and isinstance(leaf, torch.dtype) and leaf.is_floating_point:
                return torch.float64
            if widen and isinstance(leaf, torch.dtype) and leaf.is_complex:
                return torch.complex128
            return leaf

        args = map_tree(self.args, swapped)
        kwargs = map_tree({k: v for k, v in self.kwargs.items() if k != "pin_memory"}, swapped)
        if widen and "dtype" in self.named and self._makes_default_floats():
            kwargs["dtype"] = torch.float64
        try:
            returned = self.func(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise NotChecked(f"the CPU does not run it in f64: {first[:160]}") from error
        return [value for _, value in results(self.signature, self.func, args, kwargs, returned)]

    def _makes_default_floats(self) -> bool:
        """Whether a factory was asked for nothing and will make floats of torch's default dtype."""
        if self.named.get("dtype") is not None or self.captured():
            return False
        return self.name in ("rand", "randn", "zeros", "ones", "empty", "linspace", "logspace") or any(
            isinstance(leaf, float) for leaf in leaves(self.args)
        )


def results(
    sig: Signature, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any
) -> List[Tuple[str, Any]]:
    """What a call gave, with names: returned values that are new, then every argument that it wrote.

    Lists are taken apart (`self[2]`); an output that the call left out is None.
    """
    if len(sig.returns_written) == 1:
        returned = (returned,)
    elif returned is None:
        returned = ()
    named = by_name(func, args, kwargs)
    entries: List[Tuple[str, Any]] = []
    fresh = sum(1 for again in sig.returns_written if not again)
    for position, (value, again) in enumerate(zip(returned, sig.returns_written)):
        if not again:
            label = func._schema.returns[position].name or (f"out{position}" if fresh > 1 else "out")
            entries.append((label, value))
    entries += [(name, named[name]) for name in sig.written]
    flat: List[Tuple[str, Any]] = []
    for label, value in entries:
        if isinstance(value, (list, tuple)):
            flat += [(f"{label}[{index}]", item) for index, item in enumerate(value)]
        else:
            flat.append((label, value))
    return flat


def unreadable(tensor: Tensor) -> Optional[str]:
    """Why a tensor's values can't be read as plain numbers; None where they can."""
    if tensor.layout != torch.strided:
        return f"layout {tensor.layout} is not read"
    if tensor.is_quantized:
        return "quantized tensors are not read"
    if tensor.device.type == "meta":
        return "a tensor of the meta device has no values"
    if type(tensor) not in PLAIN:
        return f"a tensor of the class {type(tensor).__name__} is not read"
    return None
