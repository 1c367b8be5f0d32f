"""What a run tells: statuses, settings, views, shapes, operators without a rule, reports."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chips import A, BadChip, first, tail_of_k
from tiny import gpt

import toprope


def statuses(run: Any) -> dict:
    return {group.worst.operator: group.worst.judgement.status for group in run.groups.values()}


def test_another_oracle_is_refused() -> None:
    with pytest.raises(ValueError, match="cpu:f64"):
        toprope.lockstep(against="cuda:0")


def test_a_run_is_entered_once() -> None:
    with toprope.lockstep() as run:
        torch.zeros(1)
    with pytest.raises(RuntimeError, match="new one"):
        run.__enter__()


def test_an_operator_without_a_rule_reads_not_checked() -> None:
    with toprope.lockstep() as run:
        torch.linalg.inv(torch.eye(3))
        torch.fft.fft(torch.ones(4))
    report = run.report()
    assert report.verdict == "inconclusive" or report.coverage["not_checked"] > 0
    assert all(item["reason"] for item in report.not_checked)
    assert any("no rule for" in item["reason"] for item in report.not_checked)


def test_nothing_checked_is_no_agreement() -> None:
    with toprope.lockstep() as run:
        torch.ones(3, device="meta").add(1)
    assert run.report().verdict == "inconclusive"
    assert "says nothing" in run.table()


def test_random_numbers_are_not_comparable_but_their_range_is_checked() -> None:
    with toprope.lockstep() as run:
        torch.rand(1000)
        torch.randn(1000)
        torch.randperm(10)
        torch.empty(100).bernoulli_(0.3)
    assert set(statuses(run).values()) == {"not comparable", "right"}
    with BadChip(A.rand.default, first(lambda y: y + 0.5)), toprope.lockstep() as run:
        torch.rand(1000)
    assert run.first_wrong is not None and "outside" in run.first_wrong.judgement.reason


def test_a_view_with_other_strides_is_wrong() -> None:
    with BadChip(A.t.default, lambda f, a, k: f(*a).contiguous()), toprope.lockstep() as run:
        torch.randn(3, 4).t()
    assert run.first_wrong is not None and "strides" in run.first_wrong.judgement.reason


def test_a_copy_with_one_wrong_bit_is_wrong() -> None:
    def flip(y: torch.Tensor) -> torch.Tensor:
        y.view(torch.int32)[5] ^= 1
        return y

    with BadChip(A.clone.default, first(flip)), toprope.lockstep() as run:
        torch.randn(9).clone()
    assert run.first_wrong is not None and run.first_wrong.judgement.index == (5,)


def test_another_shape_is_wrong() -> None:
    with BadChip(A.mm.default, first(lambda y: y[:-1])), toprope.lockstep() as run:
        torch.mm(torch.randn(3, 4), torch.randn(4, 5))
    assert run.first_wrong is not None and "shape" in run.first_wrong.judgement.reason


def test_operands_are_those_before_an_operator_in_place() -> None:
    x = torch.arange(5.0)
    with toprope.lockstep() as run:
        x.mul_(2).add_(x)
        x[1:].copy_(x[:-1].clone())
        torch.add(x, x, out=x)
    assert run.report().first_wrong is None and run.report().coverage["not_checked"] == 0


def test_lowered_matmul_precision_is_a_setting_and_no_defect() -> None:
    def rounded(func: Any, args: Any, kwargs: Any) -> Any:
        return func(*(a.bfloat16().float() for a in args))

    try:
        torch.set_float32_matmul_precision("medium")
        with BadChip(A.mm.default, rounded), toprope.lockstep() as run:
            torch.mm(torch.randn(9, 40), torch.randn(40, 9))
    finally:
        torch.set_float32_matmul_precision("highest")
    report = run.report()
    assert report.first_wrong is None and report.verdict == "agree"
    assert [item["operator"] for item in report.settings] == ["aten.mm.default"]
    assert "set_float32_matmul_precision('highest')" in report.settings[0]["setting"]


def test_only_the_steps_asked_for() -> None:
    made = gpt()
    with toprope.lockstep(steps=range(2, 3)) as run:
        for _ in range(3):
            made.step()
    assert run.report().steps == [2]


def test_compiled_code_is_seen() -> None:
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("this torch cannot turn compiled code into eager code")
    compiled = torch.compile(lambda x: torch.sin(x) * 2)
    with toprope.lockstep() as run:
        compiled(torch.randn(3))
    assert {"aten.sin.default", "aten.mul.Tensor"} <= set(statuses(run))


def test_tensors_made_of_others_are_seen_through() -> None:
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    pair = two(torch.randn(3, 20), torch.randn(3, 20))
    other = two(torch.randn(20, 4), torch.randn(20, 4))
    with BadChip(A.mm.default, tail_of_k), toprope.lockstep() as run:
        torch.mm(pair, other)
    assert run.wrong_calls == 2 and run.first_wrong.operator == "aten.mm.default"


def test_a_default_device_is_not_ours() -> None:
    x = torch.randn(4, 6)
    torch.set_default_device("meta")
    try:
        with toprope.lockstep() as run:
            torch.nn.functional.layer_norm(x, (6,)).index_add(0, torch.zeros(4, dtype=torch.int64, device="cpu"), x)
    finally:
        torch.set_default_device(None)
    assert run.report().first_wrong is None and run.report().coverage["not_checked"] == 0, run.table()


def test_a_tolerance_that_sees_little_is_told() -> None:
    with toprope.lockstep() as run:
        torch.ones(300, 1, dtype=torch.bfloat16).expand(300, 3).contiguous().t().contiguous().prod(1)
    assert run.report().coverage["coarse"] == 1
    assert "coarse: 1 checked" in run.table()


def test_json_is_one_line_without_infinities() -> None:
    with BadChip(A.mm.default, first(lambda y: y * math.nan)), toprope.lockstep() as run:
        torch.mm(torch.randn(3, 4), torch.randn(4, 5))
    line = run.json()
    assert "\n" not in line
    told = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["verdict"] == "differ" and told["first_wrong"]["operator"] == "aten.mm.default"
    for key in ("operator", "layer", "step", "error", "tolerance", "defect_guess", "reproducer"):
        assert key in told["first_wrong"]
    with toprope.lockstep() as run:
        torch.mm(torch.randn(3, 4), torch.randn(4, 5))
    assert json.loads(run.json())["first_wrong"] is None


def test_the_page_is_whole_and_escaped() -> None:
    with BadChip(A.mm.default, tail_of_k), toprope.lockstep() as run:
        torch.mm(torch.randn(3, 20), torch.randn(20, 5))
    page = run.html()
    assert page.startswith("<!doctype html>") and "aten.mm.default" in page and "<module>" not in page
    assert "http" not in page


@pytest.mark.parametrize("drawn", [True, False], ids=["operands from seeds", "operands of the run"])
def test_a_reproducer_shows_the_fault_on_its_own(drawn: bool, tmp_path: Path) -> None:
    def only_ours(func: Any, args: Any, kwargs: Any) -> Any:
        """Wrong in one band of values only, which random operands do not meet."""
        ours = drawn or bool((args[0] == 0.3).any())
        return tail_of_k(func, args, kwargs) if ours else func(*args)

    a = torch.randn(3, 20)
    a[1, 1] = 0.3
    with BadChip(A.mm.default, only_ours), toprope.lockstep() as run:
        torch.mm(a, torch.randn(5, 20).t())
    script = run.report().first_wrong["reproducer"]
    assert ("drawn from seeds" in script) == drawn
    (tmp_path / "repro.py").write_text(script)
    assert _run(tmp_path, "repro.py").returncode == 0
    chip = (
        "import runpy, torch\n"
        "from torch import library as extension\n"
        "right = torch.ops.aten.mm.default\n"
        "chip = extension.Library('aten', 'IMPL')\n"
        "def wrong(a, b):\n"
        "    a = a.clone(); a[:, 16:] = 0\n"
        "    return (a[:, :, None] * b[None]).sum(1)\n"
        "chip.impl('mm', wrong, 'CPU')\n"
        "runpy.run_path('repro.py', run_name='__main__')\n"
    )
    (tmp_path / "on_the_chip.py").write_text(chip)
    shown = _run(tmp_path, "on_the_chip.py")
    assert shown.returncode == 1 and "WRONG" in shown.stdout, shown.stdout + shown.stderr


def _run(folder: Path, script: str) -> subprocess.CompletedProcess:
    """A script with torch in reach and nothing of ours."""
    return subprocess.run([sys.executable, "-W", "ignore", script], cwd=folder, capture_output=True, text=True, env=_clean())


def _clean() -> dict:
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
