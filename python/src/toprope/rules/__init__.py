"""What each operator may lose: a table from an operator's name to its rule.

A rule gets a `Call` and says what is expected of each result, in the order of `call.results`:

- a `Real`: an f64 value and a bound on the error of the arithmetic inside (rounding on store comes on top);
- a tensor or a number: that value, rounded once to the result's dtype, and nothing else;
- a `Verdict`: a check of its own (indices of a sort, contents that are random);
- None: an output that the call left out.

A rule raises `NotChecked` with the reason where it can't say. An operator without a rule is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from torch import Tensor

from ..call import Call, NotChecked
from ..real import ORACLE_UNIT, Real


@dataclass(frozen=True)
class Verdict:
    """A check that is no comparison by value: gives None where the result is right, else what is wrong."""

    check: Callable[[Tensor], Optional[str]]
    #: Why it can't be compared by value.
    reason: str
    #: Whether the check says everything there is to say of the result (else it reads "not comparable").
    complete: bool = False


Expected = Union[Real, Tensor, int, float, bool, Verdict, None]
Rule = Callable[[Call], Sequence[Expected]]

RULES: Dict[str, Rule] = {}

#: Operators that touch no numbers: nothing to check, and not counted.
BOOKKEEPING = frozenset(
    "_record_function_enter _record_function_enter_new _record_function_exit record_stream set_ resize_ "
    "_has_compatible_shallow_copy_type sym_size sym_stride sym_numel sym_storage_offset is_pinned is_same_size "
    "is_contiguous is_strides_like_format is_non_overlapping_and_dense size stride dim numel storage_offset "
    "prim_device _assert_async _functional_assert_async".split()
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a rule under operators' names, with or without an overload (`pow` or `pow.Scalar`)."""

    def enter(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return enter


def find(call: Call) -> Rule:
    """The rule for a call. `add_` and `add.out` are judged as `add` is."""
    if call.func.namespace not in ("aten", "prims", "npu", "torchvision", "mkldnn", "mkldnn_prepacked"):
        raise NotChecked(f"no rule for operators of the namespace {call.func.namespace}")
    base = base_name(call.name)
    overload = call.func._overloadname
    for name in (f"{call.name}.{overload}", call.name, f"{base}.{overload}", base):
        if name in RULES:
            return RULES[name]
    raise NotChecked(f"no rule for {call.func._schema.name}")


def base_name(name: str) -> str:
    """The name without the underscore of an operator that works in place."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def with_rerun(call: Call, bounded: Sequence[Optional[Real]]) -> List[Expected]:
    """Bounds from formulas around the values of torch's own f64 rerun; around the formulas' where torch has none.

    The two must agree: an oracle that contradicts itself judges nobody.
    """
    try:
        wanted = call.rerun()
    except NotChecked:
        return list(bounded)
    expected: List[Expected] = []
    for bound, want in zip(bounded, wanted):
        if bound is None or not isinstance(want, Tensor) or want.dtype != bound.value.dtype:
            expected.append(bound)
            continue
        if not _agree(bound, want):
            raise NotChecked("torch's f64 result and the rule's formula disagree")
        expected.append(bound.with_value(want))
    return expected


#: How much closer two f64 results must be than the bound on the arithmetic that is judged.
ORACLE_MARGIN = 2.0**-10


def _agree(formula: Real, want: Tensor) -> bool:
    """Whether two f64 results differ by far less than what is allowed to the device."""
    if formula.value.shape != want.shape:
        return formula.value.numel() == want.numel() == 0
    margin = ORACLE_MARGIN if formula.arithmetic.unit > 2 * ORACLE_UNIT else 1.0
    near = (formula.value - want).abs() <= formula.bound() * margin + want.abs() * ORACLE_UNIT
    return bool((near | (formula.value == want) | ~want.isfinite() | ~formula.bound().isfinite()).all())


def dims_of(value: Any) -> Optional[List[int]]:
    """An argument `dim` that may be a number, a list or absent."""
    if value is None:
        return None
    return [value] if isinstance(value, int) else list(value)


from . import attention, elementwise, movement, normal, optimizer, product, random, reduction  # noqa: E402,F401
