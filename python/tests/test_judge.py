"""The judge and the arithmetic of bounds: what passes, what does not, and that NaN never does."""

from __future__ import annotations

import math

import pytest
import torch

from toprope.judge import bounded, effective_bits, exact, place
from toprope.real import Arithmetic, Real, scalar, unit_roundoff

F32 = Arithmetic.of(torch.float32)


def real(*values: float) -> Real:
    return Real(torch.tensor(values, dtype=torch.float64), None, F32)


def test_a_result_just_inside_passes_and_one_just_outside_does_not() -> None:
    want = real(1.0) + real(2.0)
    bound = float(want.bound())
    assert bound == pytest.approx(3.0 * 2.0**-24, rel=1e-6)
    inside = torch.tensor([3.0 + bound * 0.9], dtype=torch.float64)
    outside = torch.tensor([3.0 + bound * 1.1], dtype=torch.float64)
    assert bounded("out", inside, want).status == "right"
    judged = bounded("out", outside, want)
    assert (judged.status, judged.wrong) == ("wrong", 1)
    assert judged.units == pytest.approx(1.1, rel=1e-6)


@pytest.mark.parametrize("got", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_passes_for_one(got: float) -> None:
    judged = bounded("out", torch.tensor([got, 3.0]), real(1.0, 2.0) + real(2.0, 1.0))
    assert judged.status == "wrong" and judged.units == math.inf and judged.index == (0,)


def test_infinities_of_the_operands_must_come_out() -> None:
    want = real(-math.inf, 1.0) + real(2.0, 1.0)
    assert bounded("out", torch.tensor([-math.inf, 2.0]), want).status == "right"
    assert bounded("out", torch.tensor([-3e38, 2.0]), want).status == "wrong"
    assert bounded("out", torch.tensor([math.inf, 2.0]), want).status == "wrong"


def test_beyond_the_range_of_the_type_infinity_is_right() -> None:
    want = real(60000.0) * real(2.0)
    assert bounded("out", torch.tensor([math.inf], dtype=torch.float16), want).status == "right"
    assert bounded("out", torch.tensor([-math.inf], dtype=torch.float16), want).status == "wrong"
    assert bounded("out", torch.tensor([60000.0], dtype=torch.float16), want).status == "wrong"


def test_a_store_in_16_bits_adds_half_a_unit() -> None:
    want = real(1.0 + 2.0**-8)
    assert bounded("out", torch.tensor([1.0], dtype=torch.bfloat16), want).status == "right"
    assert bounded("out", torch.tensor([1.0 + 2.0**-6], dtype=torch.bfloat16), want).status == "wrong"


def test_exact_means_rounded_once_to_nearest() -> None:
    want = torch.tensor([1.0 + 2.0**-9 + 2.0**-12], dtype=torch.float64)
    assert exact("out", want.bfloat16(), want).status == "right"
    assert exact("out", torch.tensor([1.0 + 2.0**-7], dtype=torch.bfloat16), want).status == "wrong"


def test_cancellation_is_in_the_bound() -> None:
    large, small = real(1e8), real(1.0)
    difference = (large + small) - large
    assert float(difference.value) == 1.0
    assert float(difference.bound()) > 1e8 * 2.0**-24
    assert float((small + small).bound()) < 1e-6


def test_a_sum_may_be_off_by_its_terms_times_its_size() -> None:
    values = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)
    total = Real(values, None, F32).sum()
    assert float(total.value) == 0.0
    assert float(total.bound()) == pytest.approx(100 * 100 * 2.0**-24, rel=1e-6)


def test_every_f32_computation_of_a_formula_stays_within_its_bound() -> None:
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-6, 1.0, 1e4):
        x = (torch.randn(4000, generator=generator) * scale).float()
        y = (torch.randn(4000, generator=generator).abs() * scale + 1e-3).float()
        a, b = Real(x.double(), None, F32), Real(y.double(), None, F32)
        for formula in (
            lambda p, q: (p * q + p) / q,
            lambda p, q: (p * p + q * q).sqrt() / q,
            lambda p, q: (p * p * 1e-8 + q).rsqrt() * p,
            lambda p, q: ((p / q).tanh() + 1.0) * 0.5,
            lambda p, q: (p - q).sum() if isinstance(p, Real) else (p - q).sum(),
            lambda p, q: (p / (p.abs() + q)).exp(),
            lambda p, q: (q / 3.0 + 1.0).log() * p,
        ):
            got, want = formula(x, y), formula(a, b)
            assert bool(((got.double() - want.value).abs() <= want.bound()).all())


def test_program_numbers_are_rounded_unless_short() -> None:
    assert scalar(0.5, F32).error is None and scalar(3, F32).error is None
    assert float(scalar(0.1, F32).bound()) == pytest.approx(0.1 * 2.0**-24, rel=1e-6)
    assert float(scalar(0.1, F32, unit_roundoff(torch.bfloat16)).bound()) == pytest.approx(0.1 * 2.0**-8)


def test_bits_beside_the_control() -> None:
    want = torch.linspace(1.0, 2.0, 1001, dtype=torch.float64) * math.pi
    bits, control = effective_bits(want.float(), want)
    assert bits == control and 24.0 < control < 27.0
    bits, control = effective_bits(want.bfloat16().float(), want)
    assert bits < 11.0 < 24.0 < control
    assert effective_bits(torch.zeros(3), torch.zeros(3, dtype=torch.float64)) == (None, None)


def test_a_place_in_row_major_order() -> None:
    assert place(0, ()) == () and place(7, (2, 3, 4)) == (0, 1, 3) and place(23, (2, 3, 4)) == (1, 2, 3)
