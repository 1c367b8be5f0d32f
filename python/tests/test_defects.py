"""A defect in one operator is named first; right chips have none."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch
from chips import DEFECTS, HELD_OUT, BadChip
from tiny import Training, gpt, vision

import toprope


def training(options: Dict[str, Any]) -> Training:
    """The training that shows a defect."""
    options = dict(options)
    mixed, loud = options.pop("mixed", False), options.pop("loud", False)
    if options.pop("images", False):
        return vision(**options)
    made = gpt(**options)
    if loud:
        # Scores beyond 88, whose powers leave f32.
        with torch.no_grad():
            made.model.blocks[0].qkv.weight *= 40
    if mixed:
        step = made.step

        def in_bf16() -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return step()

        made.step = in_bf16  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("name", [*DEFECTS, *HELD_OUT])
def test_a_defect_is_named_first(name: str) -> None:
    operator, wrong, kind, options = {**DEFECTS, **HELD_OUT}[name]
    made = training(options)
    chip = BadChip(operator, wrong())
    with chip, toprope.lockstep() as run:
        made.step()
        if run.first_wrong is None:
            made.step()
    assert chip.times > 0, "the defect was never reached"
    assert run.first_wrong is not None
    assert run.first_wrong.operator == str(operator)
    assert {finding.operator for finding in run.wrong} == {str(operator)}
    first = run.report().first_wrong
    assert first is not None
    assert first["layer"] and first["step"] in (1, 2)
    if kind:
        assert first["defect_guess"] is not None and kind in first["defect_guess"], first["defect_guess"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["fused attention", "attention in parts", "vision", "SGD", "fused AdamW", "mixed"])
def test_a_right_chip_is_right(kind: str, dtype: torch.dtype) -> None:
    made = {
        "fused attention": lambda: gpt(dtype=dtype, options={"foreach": False}),
        "attention in parts": lambda: gpt(fused=False, dtype=dtype, options={"foreach": True}),
        "vision": lambda: vision(dtype=dtype),
        "SGD": lambda: gpt(dtype=dtype, optimizer="SGD", options={"momentum": 0.9, "nesterov": True}),
        "fused AdamW": lambda: gpt(dtype=dtype, options={"fused": True}),
        "mixed": lambda: training({"mixed": True, "dtype": dtype}),
    }[kind]()
    with toprope.lockstep() as run:
        for _ in range(2):
            made.step()
    report = run.report()
    assert report.first_wrong is None, run.table()
    assert report.not_checked == [item for item in report.not_checked if item["status"] == "not comparable"], run.table()
    assert report.coverage["share"] >= 0.98, run.table()
    assert report.steps[:2] == [1, 2]


def test_layers_are_named_in_both_passes() -> None:
    made = gpt()
    with toprope.lockstep() as run:
        made.step()
    places = {(g.worst.operator, g.worst.place.phase, g.worst.place.layer) for g in run.groups.values()}
    attention = "aten._scaled_dot_product_flash_attention_for_cpu"
    assert (f"{attention}.default", "forward", "blocks.1") in places
    assert (f"{attention}_backward.default", "backward", "blocks.1") in places
    assert ("aten.native_layer_norm_backward.default", "backward", "blocks.0.norm2") in places
    assert any(phase == "optimizer" and layer == "blocks.0.qkv.weight" for _, phase, layer in places)


def test_the_run_is_not_changed() -> None:
    plain = gpt()
    losses = [plain.step() for _ in range(3)]
    watched = gpt()
    with toprope.lockstep():
        assert [watched.step() for _ in range(3)] == losses
    for ours, theirs in zip(watched.model.parameters(), plain.model.parameters()):
        assert torch.equal(ours, theirs)
