"""Calls without data: written, read, drawn again, judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chips import A, BadChip, tail_of_k
from tiny import gpt, vision

import toprope
from toprope.cases import CasesError, draw, read_cases, replay, spec_of
from toprope.call import Captured

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases of two steps of two models."""
    path = tmp_path_factory.mktemp("cases") / "cases.jsonl"
    gpt_steps, vision_steps = gpt(options={"fused": True}), vision()
    with toprope.lockstep() as run:
        for _ in range(2):
            gpt_steps.step()
            vision_steps.step()
    assert run.write_cases(path) > 100
    return path


def test_a_case_holds_no_data(recorded: Path) -> None:
    for case in read_cases(recorded):
        assert case["version"] == 1 and case["count"] >= 1
        for text in (json.dumps(case["args"]), json.dumps(case["kwargs"])):
            assert "data" not in text
    products = [case for case in read_cases(recorded) if case["operator"] == "aten.mm.default"]
    spec = products[0]["args"][0]["tensor"]
    assert set(spec) <= {"shape", "stride", "dtype", "low", "high", "zeros", "negative", "whole"}


def test_all_cases_agree_on_a_right_chip(recorded: Path) -> None:
    outcomes = [replay(case, CPU, seed) for seed in (0, 1) for case in read_cases(recorded)]
    wrong = [o for o in outcomes if o.judgement is not None and o.judgement.status == "wrong"]
    assert not wrong, [(o.case["operator"], o.judgement.reason, o.judgement.units) for o in wrong if o.judgement]
    judged = [o for o in outcomes if o.judgement is not None and o.judgement.status == "right"]
    assert len(judged) >= 0.95 * len(outcomes), [(o.case["operator"], o.reason) for o in outcomes if o not in judged]


def test_a_bad_chip_is_found_from_cases(recorded: Path) -> None:
    with BadChip(A.mm.default, tail_of_k):
        outcomes = [replay(case, CPU) for case in read_cases(recorded)]
    wrong = {o.case["operator"] for o in outcomes if o.judgement is not None and o.judgement.status == "wrong"}
    assert wrong == {"aten.mm.default"}


def test_drawn_tensors_keep_bands_strides_and_seeds() -> None:
    source = (torch.randn(6, 8) * 2.0**-10).t()
    spec = spec_of(Captured(source, copy=False))
    one, two, other = draw(spec, 5), draw(spec, 5), draw(spec, 6)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.stride() == source.stride() and one.shape == source.shape
    assert float(one.abs().max()) <= 2.0 ** (spec["high"] + 1) and float(one.abs().min()) >= 2.0 ** spec["low"]
    row = torch.randn(1, 5).expand(4, 5)
    assert draw(spec_of(Captured(row, copy=False)), 0).stride() == (0, 1)
    ends = torch.tensor([2, 5, 9])
    drawn = draw(spec_of(Captured(ends, copy=False)), 0)
    assert int(drawn[-1]) == 9 and bool((drawn.diff() >= 0).all())


def test_an_ignored_target_is_a_mark_and_no_range() -> None:
    targets = torch.tensor([3, 7, -100, 0, 5])
    spec = spec_of(Captured(targets, copy=False))
    assert (spec["mark"], spec["marked"], spec["least"], spec["most"]) == (-100, 0.2, 0, 7)
    drawn = draw({**spec, "shape": [500], "stride": [1], "distinct": False}, 1)
    assert set(drawn.tolist()) <= {-100, *range(8)} and 50 < int((drawn == -100).sum()) < 150


def test_unknown_operators_are_listed_as_not_run() -> None:
    for name, reason in (
        ("aten.no_such_thing.default", "no operator"),
        ("mm", "three parts"),
        ("their.kernel.default", "no operator"),
    ):
        outcome = replay({"version": 1, "operator": name, "args": [], "kwargs": {}}, CPU)
        assert outcome.judgement is None and reason in outcome.reason


def test_impossible_operands_are_not_run() -> None:
    spec = {"shape": [2, 3], "stride": [3, 1], "dtype": "float99"}
    outcome = replay({"version": 1, "operator": "aten.t.default", "args": [{"tensor": spec}], "kwargs": {}}, CPU)
    assert outcome.judgement is None and "float99" in outcome.reason
    good = {"shape": [2, 3], "stride": [3, 1], "dtype": "float32"}
    outcome = replay({"version": 1, "operator": "aten.mm.default", "args": [{"tensor": good}] * 2, "kwargs": {}}, CPU)
    assert outcome.judgement is None and "does not run it" in outcome.reason


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no cases"),
        ("{", "1: no JSON"),
        ('{"version": 1}', "`operator`"),
        ('{"version": 2, "operator": "aten.mm.default", "args": []}', "version 2"),
        ('{"version": 1, "operator": "aten.mm.default"}', "`args`"),
    ],
)
def test_a_bad_file_gives_one_clear_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(text)
    with pytest.raises(CasesError, match=message):
        read_cases(path)
    with pytest.raises(CasesError, match="cannot be read"):
        read_cases(tmp_path / "none.jsonl")
