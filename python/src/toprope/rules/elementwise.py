"""Operators that work on each element alone, and their `_foreach_` forms."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List

import torch

from ..call import Call, Captured, NotChecked, Operands
from ..real import ULPS, Real
from . import Expected, base_name, rule, with_rerun

Formula = Callable[[Operands], Real]

#: Formulas by the operator's name.
FORMULAS: Dict[str, Formula] = {}


def formula(*names: str) -> Callable[[Formula], Formula]:
    """Enters a formula, and a rule made of it."""

    def enter(function: Formula) -> Formula:
        def judged(call: Call) -> List[Expected]:
            if not call.floating():
                wanted = call.rerun()
                if not wanted[0].dtype.is_floating_point:
                    return wanted
            return with_rerun(call, [function(call)])

        for name in names:
            FORMULAS[name] = function
            rule(name)(judged)
        return function

    return enter


def other(c: Operands) -> Real:
    """The second operand of a binary operator."""
    return c.real("other", "scalar", "scalars")


def alpha(c: Operands, product: Real) -> Real:
    """`alpha` times the second operand of a sum."""
    factor = c.get("alpha")
    return product if factor is None or factor == 1 else c.put_down(product * c.real("alpha"))


formula("add")(lambda c: c.real("self") + alpha(c, other(c)))
formula("sub")(lambda c: c.real("self") - alpha(c, other(c)))
formula("rsub")(lambda c: other(c) - alpha(c, c.real("self")))
formula("mul")(lambda c: c.real("self") * other(c))
formula("reciprocal")(lambda c: 1.0 / c.real("self"))
formula("sqrt")(lambda c: c.real("self").sqrt())
formula("exp")(lambda c: c.real("self").exp())
formula("log")(lambda c: c.real("self").log())
formula("tanh")(lambda c: c.real("self").tanh())
formula("erf")(lambda c: c.real("self").erf())
formula("sigmoid")(lambda c: c.real("self").sigmoid())
formula("square")(lambda c: c.real("self").square())
formula("silu")(lambda c: c.real("self") / ((-c.real("self")).exp() + 1.0))


@formula("rsqrt")
def _rsqrt(c: Operands) -> Real:
    # torch's CPU kernels may store the root of 16-bit numbers before they divide.
    x = c.real("self")
    return 1.0 / c.put_down(x.sqrt()) if c.kept_short() else x.rsqrt()


@formula("div", "true_divide")
def _div(c: Operands) -> Real:
    if c.get("rounding_mode") is not None:
        raise NotChecked("a rounded quotient may differ by one")
    return c.real("self") / other(c)


def _plain(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A function of one exact operand: its error is the function's own."""

    @formula(name)
    def _(c: Operands) -> Real:
        x = c.real("self")
        return Real(function(x.value), None, x.arithmetic).rounded(2 * ULPS[name])


for _name in ("exp2", "expm1", "log2", "log10", "log1p", "sin", "cos", "tan", "atan", "erfc"):
    _plain(_name, getattr(torch, _name))


@formula("pow")
def _pow(c: Operands) -> Real:
    base, exponent = c.real("self"), c.real("exponent")
    if isinstance(c.get("exponent"), Captured):
        whole = None
    else:
        whole = float(c.get("exponent"))
    if whole == 3.0:
        return c.put_down(base * base) * base
    if whole is not None and exponent.error is None:
        return base.power(whole)
    value = base.value.pow(exponent.value)
    # An exponent that was rounded: xᵉ⁺ᵈ = xᵉ·e^(d·ln x).
    turned = exponent.bound() * base.value.abs().clamp(min=torch.finfo(torch.float64).tiny).log().abs()
    carried = value.abs() * torch.expm1(turned)
    return Real(value, carried, base.arithmetic).rounded(2 * ULPS["pow"])


@formula("addcmul")
def _addcmul(c: Operands) -> Real:
    product = c.real("tensor1") * c.real("tensor2")
    return c.real("self") + product * c.real("value", "scalars")


@formula("addcdiv")
def _addcdiv(c: Operands) -> Real:
    numerator = c.real("tensor1") * c.real("value", "scalars")
    return c.real("self") + numerator / c.real("tensor2")


@formula("lerp")
def _lerp(c: Operands) -> Real:
    start, end, weight = c.real("self"), c.real("end", "tensors1"), c.real("weight", "weights")
    # torch's two forms; which one it takes depends on the weight.
    near = start + weight * (end - start)
    far = end - (end - start) * (1.0 - weight)
    error = torch.maximum(near.bound(), far.bound())
    return Real(near.value, error, near.arithmetic)


@formula("silu_backward")
def _silu_backward(c: Operands) -> Real:
    x = c.real("self")
    gate = x.sigmoid()
    return c.real("grad_output") * gate * (x * (1.0 - gate) + 1.0)


@formula("sigmoid_backward")
def _sigmoid_backward(c: Operands) -> Real:
    y = c.real("output")
    return c.put_down(c.real("grad_output") * c.put_down(1.0 - y)) * y


@formula("tanh_backward")
def _tanh_backward(c: Operands) -> Real:
    y = c.real("output")
    return c.real("grad_output") * c.put_down(1.0 - c.put_down(y * y))


def _tanh_argument(x: Real) -> Real:
    return (x * x * x * 0.044715 + x) * math.sqrt(2.0 / math.pi)


@formula("gelu")
def _gelu(c: Operands) -> Real:
    x = c.real("self")
    if c.get("approximate") == "tanh":
        return x * 0.5 * (_tanh_argument(x).tanh() + 1.0)
    return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1.0)


@formula("gelu_backward")
def _gelu_backward(c: Operands) -> Real:
    x, gradient = c.real("self"), c.real("grad_output")
    if c.get("approximate") == "tanh":
        t = _tanh_argument(x).tanh()
        inner = (x * x * (3 * 0.044715) + 1.0) * math.sqrt(2.0 / math.pi)
        slope = (t + 1.0) * 0.5 + x * 0.5 * (1.0 - t * t) * inner
        return gradient * slope
    below = ((x * math.sqrt(0.5)).erf() + 1.0) * 0.5
    density = (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return gradient * (below + x * density)


@formula("softplus")
def _softplus(c: Operands) -> Real:
    x, beta = c.real("self"), c.real("beta")
    scaled = x * beta
    # ln(1 + eᵘ) = max(u, 0) + ln(1 + e^-|u|)
    value = torch.log1p((-scaled.value.abs()).exp())
    tail = Real(value, scaled.error, scaled.arithmetic).rounded(2 * (ULPS["log1p"] + ULPS["exp"]))
    soft = (scaled.maximum(0.0) + tail).rounded(2 * (ULPS["log1p"] + ULPS["exp"])) / beta
    return x.where(scaled.value > float(c.get("threshold")), soft)


@formula("softplus_backward")
def _softplus_backward(c: Operands) -> Real:
    x, gradient = c.real("self"), c.real("grad_output")
    scaled = x * c.real("beta")
    power = scaled.exp()
    return gradient.where(scaled.value > float(c.get("threshold")), gradient * power / (power + 1.0))


@formula("log_sigmoid_forward")
def _log_sigmoid(c: Operands) -> Real:
    raise NotChecked("log_sigmoid keeps a buffer whose content is the device's own")


@formula("logaddexp")
def _logaddexp(c: Operands) -> Real:
    a, b = c.real("self"), other(c)
    value = torch.logaddexp(a.value, b.value)
    size = torch.maximum(a.value.abs(), b.value.abs()) + math.log(2.0)
    return Real(value, size * (16 * a.arithmetic.unit), a.arithmetic).rounded()


@formula("leaky_relu")
def _leaky_relu(c: Operands) -> Real:
    x = c.real("self")
    return x.where(x.value > 0, x * c.real("negative_slope"))


@formula("leaky_relu_backward")
def _leaky_relu_backward(c: Operands) -> Real:
    gradient = c.real("grad_output")
    return gradient.where(c.wide("self") > 0, gradient * c.real("negative_slope"))


@formula("elu")
def _elu(c: Operands) -> Real:
    x = c.real("self")
    inner = x * c.real("input_scale")
    bent = Real(torch.expm1(inner.value), inner.error, x.arithmetic).rounded(2 * ULPS["expm1"])
    return (x.where(x.value > 0, bent * c.real("alpha"))) * c.real("scale")


@formula("mse_loss_backward")
def _mse_loss_backward(c: Operands) -> Real:
    gradient = (c.real("self") - c.real("target")) * 2.0 * c.real("grad_output")
    return gradient / c.wide("self").numel() if c.get("reduction") == 1 else gradient


@formula("hardswish")
def _hardswish(c: Operands) -> Real:
    x = c.real("self")
    gate = (x + 3.0).maximum(0.0)
    gate = gate.where(gate.value < 6.0, 6.0)
    return x * gate / 6.0


@rule("arange", "linspace")
def row(call: Call) -> List[Expected]:
    """start + i·step: whole numbers exactly, others within a product, a sum and a rounded step beside the largest."""
    want = call.rerun()[0]
    if not want.dtype.is_floating_point or not bool((want != want.round()).any()):
        return [want]
    arithmetic = call.arithmetic()
    error = torch.full_like(want, float(want.abs().max()) * 3 * arithmetic.unit)
    return [Real(want, error, arithmetic)]


#: How the arguments of `_foreach_` operators are called in the operator for one tensor.
_FOREACH_NAMES = {
    "scalar": "other",
    "scalars": "other",
    "tensors1": "end",
    "weights": "weight",
}


def foreach_operands(call: Call) -> List[Operands]:
    """The operands of each tensor in a `_foreach_` call, named as in the operator for one tensor."""
    lists = [name for name, value in call.named.items() if isinstance(value, (list, tuple))]
    if not lists:
        raise NotChecked("a _foreach_ operator without a list")
    name = base_name(call.name)[len("_foreach_") :]
    count = len(call.named[lists[0]])
    each: List[Operands] = []
    for index in range(count):
        named: Dict[str, Any] = {}
        for key, value in call.named.items():
            target = _FOREACH_NAMES.get(key, key)
            if name in ("addcmul", "addcdiv") and key == "scalars":
                target = "value"
            if isinstance(value, (list, tuple)):
                named[target] = value[index]
            elif isinstance(value, Captured) and key == "scalars":
                named[target] = float(value.wide.reshape(-1)[index])
            else:
                named[target] = value
        each.append(Operands(named))
    return each


#: `_foreach_` operators that round nothing: torch's own result on the CPU is the only one there is.
_FOREACH_EXACT = (
    "copy zero neg abs sign maximum minimum clamp_max clamp_min ceil floor round trunc clone max".split()
)


def _foreach(name: str) -> None:
    @rule(f"_foreach_{name}")
    def judged(call: Call) -> List[Expected]:
        function = FORMULAS[name]
        return with_rerun(call, [function(operands) for operands in foreach_operands(call)])


for _name in sorted(FORMULAS):
    _foreach(_name)

for _name in _FOREACH_EXACT:
    rule(f"_foreach_{_name}")(lambda call: call.rerun())
