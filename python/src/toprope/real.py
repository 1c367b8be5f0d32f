"""Numbers that know how far a machine may be off: running error analysis in f64.

A `Real` is a tensor of exact-arithmetic values (as good as f64 gives them) beside a bound on the error that
arithmetic of a given unit roundoff may have made on the way there. Each operation carries the bounds of its operands
over and adds what its own roundings may add (Wilkinson; Higham, "Accuracy and Stability of Numerical Algorithms",
2nd ed., section 3.3). So the tolerance of a composite operator is its formula, written once in these operations:
cancellation, long sums and small denominators show up where they happen. Nothing here is fitted to a machine.

What one operation may lose, in units of `u` (half a unit in the last place, relative to the result):

- `+ - * /` and rounding on the way: 1 (division 5: the 2.5 ulp that OpenCL's full profile grants).
- elementary functions: the limits of OpenCL's full profile, twice the number as 1 ulp ≤ 2u: see `ULPS`.
- a sum of n terms in any order: n (Higham, section 4.2, n - 1 additions, one more where a unit truncates).
- results below the smallest normal number may become zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

#: Largest errors of elementary functions in ulp, from the OpenCL specification's table for single precision, full profile.
ULPS = {
    "divide": 2.5,
    "sqrt": 3.0,
    "rsqrt": 2.0,
    "exp": 3.0,
    "exp2": 3.0,
    "expm1": 3.0,
    "log": 3.0,
    "log2": 3.0,
    "log10": 3.0,
    "log1p": 2.0,
    "sin": 4.0,
    "cos": 4.0,
    "tan": 5.0,
    "tanh": 5.0,
    "atan": 5.0,
    "erf": 16.0,
    "erfc": 16.0,
    "pow": 16.0,
}

#: What f32 kernels' erf may be off beside 1, not beside itself: Abramowitz and Stegun, formula 7.1.26, 1 - p·t·e^(-x²):
#: 1.5e-7 of the formula, an exponential, three products and the difference.
ERF_ABSOLUTE = 1.5e-7 + (2 * 3.0 + 4) * 2.0**-24

#: What the oracle itself may lose: it computes in f64.
ORACLE_UNIT = 2.0**-53


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic that is judged: unit roundoff, largest and smallest normal number."""

    unit: float
    largest: float
    smallest: float

    @staticmethod
    def of(dtype: torch.dtype) -> "Arithmetic":
        """That in which torch computes operators of `dtype`: f32 for the 16-bit types, the type itself else."""
        info = torch.finfo(torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)
        return Arithmetic(info.eps / 2 + ORACLE_UNIT, info.max, info.tiny)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half of the distance from 1 to the next number of `dtype`."""
    return torch.finfo(dtype).eps / 2


Operand = Union["Real", float, int]


class Real:
    """Values (f64) and a bound on their error (f64, or None where they are exact)."""

    __slots__ = ("value", "error", "arithmetic")

    def __init__(self, value: Tensor, error: Optional[Tensor], arithmetic: Arithmetic) -> None:
        self.value = value
        self.error = error
        self.arithmetic = arithmetic

    # What every operation ends with.

    def bound(self) -> Tensor:
        """The error bound as a tensor of the value's shape."""
        return torch.zeros_like(self.value) if self.error is None else self.error

    def rounded(self, roundings: float = 1.0) -> "Real":
        """The same value after `roundings` roundings of the arithmetic."""
        arithmetic = self.arithmetic
        return self._lossy(roundings * arithmetic.unit, roundings * arithmetic.smallest, arithmetic.largest)

    def stored(self, dtype: torch.dtype) -> "Real":
        """The same value, put down in memory as `dtype` on the way (as an operator made of others does)."""
        info = torch.finfo(dtype)
        return self._lossy(info.eps / 2, info.tiny, info.max)

    def _lossy(self, relative: float, floor: float, largest: float) -> "Real":
        size = self.value.abs()
        error = size * relative
        error += floor
        if self.error is not None:
            error += self.error * (1.0 + relative)
        if size.numel() and not float(size.max()) * 2 < largest:
            # Beyond the range anything may come out; an exact infinity or NaN of the operands stays what it is.
            error = torch.where(size + error > largest, math.inf, error)
            error = torch.where(size.isfinite(), error, 0.0)
        if self.error is not None:
            error = error.nan_to_num_(nan=math.inf, posinf=math.inf)
        return Real(self.value, error, self.arithmetic)

    def moved(self, movement: Callable[[Tensor], Tensor]) -> "Real":
        """Values and bounds sent through something that only moves elements."""
        error = None if self.error is None else movement(self.error)
        return Real(movement(self.value), error, self.arithmetic)

    def with_value(self, value: Tensor) -> "Real":
        """The same bound around another f64 result of the same formula."""
        return Real(value, self.error, self.arithmetic)

    def _other(self, other: Operand) -> "Real":
        return other if isinstance(other, Real) else scalar(other, self.arithmetic)

    # Arithmetic.

    def __neg__(self) -> "Real":
        return Real(-self.value, self.error, self.arithmetic)

    def __add__(self, other: Operand) -> "Real":
        other = self._other(other)
        return Real(self.value + other.value, _added(self.error, other.error), self.arithmetic).rounded()

    def __sub__(self, other: Operand) -> "Real":
        return self + (-self._other(other))

    def __rsub__(self, other: Operand) -> "Real":
        return self._other(other) - self

    def __mul__(self, other: Operand) -> "Real":
        other = self._other(other)
        error = _product_error(self, other, torch.mul)
        return Real(self.value * other.value, error, self.arithmetic).rounded()

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> "Real":
        other = self._other(other)
        value = self.value / other.value
        error = None
        if self.error is not None or other.error is not None:
            # |a/b - a'/b'| ≤ (ea + |a/b|·eb) / (|b| - eb)
            below = other.value.abs() - other.bound()
            above = self.bound() + value.abs() * other.bound()
            error = torch.where(below > 0, above / below, math.inf)
            error = torch.where(above == 0, 0.0, error)
        return Real(value, error, self.arithmetic).rounded(2 * ULPS["divide"])

    def __rtruediv__(self, other: Operand) -> "Real":
        return self._other(other) / self

    def square(self) -> "Real":
        """x·x."""
        return self * self

    def abs(self) -> "Real":
        """|x|, exact."""
        return Real(self.value.abs(), self.error, self.arithmetic)

    def maximum(self, other: Operand) -> "Real":
        """The larger one, exact."""
        other = self._other(other)
        error = None
        if self.error is not None or other.error is not None:
            error = torch.maximum(self.bound(), other.bound())
        return Real(torch.maximum(self.value, other.value), error, self.arithmetic)

    def where(self, mask: Tensor, other: Operand) -> "Real":
        """This where the mask is true, the other elsewhere."""
        other = self._other(other)
        error = None
        if self.error is not None or other.error is not None:
            error = torch.where(mask, self.bound(), other.bound())
        return Real(torch.where(mask, self.value, other.value), error, self.arithmetic)

    # Elementary functions: the bound of the operand goes through the function itself where it bends, else its slope.

    def _function(self, name: str, value: Tensor, carried: Optional[Tensor]) -> "Real":
        return Real(value, carried, self.arithmetic).rounded(2 * ULPS[name])

    def sqrt(self) -> "Real":
        """√x; below a bound as large as x the error is √x itself."""
        value = self.value.sqrt()
        carried = None
        if self.error is not None:
            low = (self.value - self.error).clamp(min=0).sqrt()
            carried = torch.maximum(value - low, (self.value + self.error).sqrt() - value)
        return self._function("sqrt", value, carried)

    def rsqrt(self) -> "Real":
        """1/√x."""
        value = self.value.rsqrt()
        carried = None
        if self.error is not None:
            carried = (self.value - self.error).clamp(min=0).rsqrt() - value
        return self._function("rsqrt", value, carried)

    def exp(self) -> "Real":
        """eˣ."""
        value = self.value.exp()
        carried = None
        if self.error is not None:
            carried = torch.where(
                self.error < 1.0, value * torch.expm1(self.error), (self.value + self.error).exp() - value
            )
            carried = torch.where(value.isinf(), 0.0, carried)
        return self._function("exp", value, carried)

    def log(self) -> "Real":
        """ln x."""
        value = self.value.log()
        carried = None
        if self.error is not None:
            carried = -torch.log1p(-(self.error / self.value.abs()).clamp(max=1.0))
        return self._function("log", value, carried)

    def tanh(self) -> "Real":
        """tanh x, slope at most 1."""
        value = self.value.tanh()
        slope = None
        if self.error is not None:
            near = (self.value.abs() - self.error).clamp(min=0)
            slope = self.error * (1.0 - near.tanh().square())
        return self._function("tanh", value, slope)

    def erf(self) -> "Real":
        """erf x, slope 2/√π·e^(-x²)."""
        value = torch.erf(self.value)
        slope = None
        if self.error is not None:
            near = (self.value.abs() - self.error).clamp(min=0)
            slope = self.error * ((2.0 / math.sqrt(math.pi)) * (-near.square()).exp())
        if self.arithmetic.unit > ORACLE_UNIT * 4:
            slope = torch.full_like(value, ERF_ABSOLUTE) if slope is None else slope + ERF_ABSOLUTE
        return self._function("erf", value, slope)

    def sigmoid(self) -> "Real":
        """1/(1 + e⁻ˣ)."""
        return 1.0 / ((-self).exp() + 1.0)

    def power(self, exponent: float) -> "Real":
        """x to a number. Small whole powers and roots as torch computes them, `pow` else."""
        if exponent == 1.0:
            return self
        if exponent == 2.0:
            return self * self
        if exponent == 3.0:
            return self * self * self
        if exponent == 0.5:
            return self.sqrt()
        if exponent == -0.5:
            return self.rsqrt()
        if exponent == -1.0:
            return 1.0 / self
        value = self.value.pow(exponent)
        carried = None
        if self.error is not None:
            low = (self.value.abs() - self.error).clamp(min=0).pow(exponent)
            high = (self.value.abs() + self.error).pow(exponent)
            carried = torch.maximum((low - value.abs()).abs(), (high - value.abs()).abs())
        return self._function("pow", value, carried)

    # Sums.

    def sum(self, dims: Optional[Sequence[int]] = None, keepdim: bool = False) -> "Real":
        """A sum over `dims` (all, where none are given), in any order."""
        axes = _axes(self.value, dims)
        terms = 1
        for axis in axes:
            terms *= self.value.shape[axis]
        if not axes:
            return self
        value = self.value.sum(axes, keepdim=keepdim)
        size = self.value.abs() if self.error is None else self.value.abs() + self.error
        error = size.sum(axes, keepdim=keepdim) * (terms * self.arithmetic.unit)
        if self.error is not None:
            error += self.error.sum(axes, keepdim=keepdim)
        error = torch.where(value.isfinite(), error, 0.0).nan_to_num_(nan=math.inf, posinf=math.inf)
        # Partial sums may overflow where the sum does not.
        return Real(value, error, self.arithmetic).rounded(0.0)

    def mean(self, dims: Optional[Sequence[int]] = None, keepdim: bool = False) -> "Real":
        """The mean over `dims`."""
        total = self.sum(dims, keepdim)
        count = self.value.numel() / max(total.value.numel(), 1)
        return total / count if count else total

    def amax(self, dim: int) -> "Real":
        """The maximum along `dim`, kept, exact."""
        error = None if self.error is None else self.error.amax(dim, keepdim=True)
        return Real(self.value.amax(dim, keepdim=True), error, self.arithmetic)

    def matmul(self, other: "Real") -> "Real":
        """A product of matrices (batched): K products, added in any order, one rounding more where a unit truncates."""
        terms = self.value.shape[-1]
        value = self.value @ other.value
        size = self.value.abs() @ other.value.abs()
        error = size * ((terms + 1) * self.arithmetic.unit) + (terms + 1) * self.arithmetic.smallest
        carried = _product_error(self, other, torch.matmul)
        if carried is not None:
            error += carried * (1.0 + (terms + 1) * self.arithmetic.unit)
        error = torch.where(value.isfinite(), error, 0.0).nan_to_num_(nan=math.inf, posinf=math.inf)
        return Real(value, error, self.arithmetic).rounded(0.0)

    def transposed(self) -> "Real":
        """The last two dimensions exchanged."""
        return self.moved(lambda tensor: tensor.transpose(-2, -1))


def scalar(number: Union[float, int, Tensor], arithmetic: Arithmetic, unit: Optional[float] = None) -> Real:
    """A number from the program, rounded once to the arithmetic (or to a coarser `unit`) unless it is a short one."""
    value = torch.as_tensor(number, dtype=torch.float64)
    relative = arithmetic.unit if unit is None else max(unit, arithmetic.unit)
    mantissa = math.frexp(float(value))[0] if value.numel() == 1 and math.isfinite(float(value)) else 0.0
    if mantissa * 256 == int(mantissa * 256):
        # At most 8 significant bits: the same in every type that torch has.
        return Real(value, None, arithmetic)
    return Real(value, value.abs() * relative, arithmetic)


def _added(left: Optional[Tensor], right: Optional[Tensor]) -> Optional[Tensor]:
    if left is None:
        return right
    return left if right is None else left + right


def _product_error(left: Real, right: Real, product: Callable[[Tensor, Tensor], Tensor]) -> Optional[Tensor]:
    """|ab - a'b'| ≤ |a|·eb + ea·|b| + ea·eb; nothing where both are exact."""
    error = None
    if left.error is not None:
        right_size = right.value.abs() if right.error is None else right.value.abs() + right.error
        error = product(left.error, right_size)
    if right.error is not None:
        error = _added(error, product(left.value.abs(), right.error))
    if error is not None and bool(error.isnan().any()):
        # 0·∞: an exact infinity times something that has an error of 0, or an exact 0 times no bound at all.
        error = error.nan_to_num(nan=math.inf, posinf=math.inf)
    return error


def _axes(value: Tensor, dims: Optional[Sequence[int]]) -> Tuple[int, ...]:
    rank = value.dim()
    if dims is None or len(dims) == 0:
        return tuple(range(rank))
    return tuple(dim % rank if rank else 0 for dim in dims) if rank else ()
