"""Random operators: no two devices draw the same numbers. What can be said of them without comparing is checked."""

from __future__ import annotations

import math
from typing import Callable, List, Optional

import torch
from torch import Tensor

from ..call import Call, NotChecked
from . import Expected, Verdict, rule

#: How far a sample mean may lie from the expected one, in standard errors: 1 in 500 million by chance.
SIGMAS = 6.0


def distribution(mean: float, deviation: float, low: float, high: float) -> Callable[[Tensor], Optional[str]]:
    """A check of range and mean."""

    def check(got: Tensor) -> Optional[str]:
        values = got.detach().cpu().double()
        if not values.numel():
            return None
        if not bool(values.isfinite().all()):
            return "a random number is not finite"
        if float(values.min()) < low or float(values.max()) > high:
            return f"a random number lies outside of {low:g} to {high:g}"
        error = abs(float(values.mean()) - mean)
        # Numbers of 16 bits are rounded: up to 2^-8 of their size.
        allowed = SIGMAS * deviation / math.sqrt(values.numel()) + 2.0**-8 * (abs(mean) + deviation) + 1e-300
        return None if error <= allowed else f"the mean is {mean + error:g} away, {mean:g} expected"

    return check


def drawn(check: Callable[[Tensor], Optional[str]]) -> List[Expected]:
    """One random result."""
    return [Verdict(check, "random; range and mean are checked")]


@rule("rand", "rand_like")
def uniform_unit(call: Call) -> List[Expected]:
    """Uniform on [0, 1)."""
    return drawn(distribution(0.5, math.sqrt(1 / 12), 0.0, 1.0))


@rule("uniform")
def uniform(call: Call) -> List[Expected]:
    """Uniform on [from, to)."""
    low, high = float(call.get("from")), float(call.get("to"))
    slack = 2.0**-8 * max(abs(low), abs(high))
    return drawn(distribution((low + high) / 2, (high - low) * math.sqrt(1 / 12), low - slack, high + slack))


@rule("randn", "randn_like")
def normal_unit(call: Call) -> List[Expected]:
    """Normal."""
    return drawn(distribution(0.0, 1.0, -10.0, 10.0))


@rule("normal")
def normal(call: Call) -> List[Expected]:
    """Normal with mean and deviation."""
    mean, deviation = call.get("mean"), call.get("std")
    if not isinstance(mean, float) or not isinstance(deviation, float):
        return drawn(lambda got: None if bool(got.isfinite().all()) else "a random number is not finite")
    return drawn(distribution(mean, deviation, mean - 10 * deviation, mean + 10 * deviation))


@rule("bernoulli")
def bernoulli(call: Call) -> List[Expected]:
    """Zeros and ones."""
    chance = call.get("p")
    if not isinstance(chance, float):
        return drawn(lambda got: None if bool(((got == 0) | (got == 1)).all()) else "neither 0 nor 1")
    return drawn(distribution(chance, math.sqrt(chance * (1 - chance)), 0.0, 1.0))


@rule("randint", "randint_like", "random")
def whole(call: Call) -> List[Expected]:
    """Whole numbers of a range."""
    low, high = call.get("low", "from") or 0, call.get("high", "to")
    if high is None:
        return drawn(lambda got: None)
    return drawn(
        lambda got: None
        if not got.numel() or (float(got.min()) >= low and float(got.max()) < high)
        else f"a random number lies outside of {low} to {high}"
    )


@rule("randperm")
def permutation(call: Call) -> List[Expected]:
    """Each number once."""
    count = call.get("n")

    def check(got: Tensor) -> Optional[str]:
        same = torch.equal(got.cpu().long().sort().values, torch.arange(count))
        return None if same else "not a permutation"

    return drawn(check)


@rule("multinomial", "exponential", "geometric", "cauchy", "log_normal", "poisson")
def other(call: Call) -> List[Expected]:
    """Finite and not negative."""
    if call.name.rstrip("_") == "cauchy":
        return drawn(lambda got: None)
    return drawn(
        lambda got: None if not got.numel() or bool((got >= 0).all()) else "negative, or not a number"
    )


@rule("native_dropout", "_fused_dropout")
def dropout(call: Call) -> List[Expected]:
    """The mask is random, the output follows from it; told apart by the output alone: 0, or x/(1 - p)."""
    x, p = call.real("input", "self"), float(call.get("p"))
    if call.name == "_fused_dropout":
        p = 1.0 - p
    if call.get("train") is False:
        raise NotChecked("dropout that drops nothing")
    scaled = x * (1.0 / (1.0 - p) if p < 1 else 0.0)
    unit = call.storage_unit()

    # Where the operand holds zeros the output says nothing of the mask.
    zeros = float((x.value == 0).double().mean()) > 0.1

    def check(got: Tensor) -> Optional[str]:
        have = got.detach().cpu().double()
        kept = (have - scaled.value).abs() <= scaled.bound() + unit * scaled.value.abs()
        if not bool((kept | (have == 0)).all()):
            return "an output is neither 0 nor x/(1 - p)"
        share = distribution(1.0 - p, math.sqrt(p * (1 - p)), 0.0, 1.0)
        return None if zeros else share((have != 0) | (scaled.value == 0))

    mask = Verdict(distribution(1.0 - p, math.sqrt(p * (1 - p)), 0.0, 1.0), "random; its share of ones is checked")
    return [Verdict(check, "random; values and share of zeros are checked"), mask]
