"""A tiny Llama of Hugging Face, as users run it. Needs transformers; says so loudly where it is not there."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from chips import A, BadChip, first, tail_of_k

import toprope

sys.path.insert(0, str(Path(__file__).parent.parent / "figures"))

if importlib.util.find_spec("transformers") is None:
    if os.environ.get("TOPROPE_TORCH_REQUIRED"):
        raise RuntimeError("TOPROPE_TORCH_REQUIRED is set and transformers is not there")
    warnings.warn("SKIPPED, NOTHING WAS TESTED: transformers is not installed", stacklevel=1)
    pytest.skip("SKIPPED, NOTHING WAS TESTED: transformers is not installed", allow_module_level=True)

from huggingface import OPTIMIZERS, Training  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention, optimizer", [("eager", "foreach"), ("sdpa", "fused")])
def test_llama_is_right(attention: str, optimizer: str, dtype: torch.dtype) -> None:
    training = Training("llama", attention, dtype, OPTIMIZERS[optimizer])
    with toprope.lockstep() as run:
        for _ in range(2):
            training.step()
    report = run.report()
    assert report.first_wrong is None, run.table()
    assert report.coverage["share"] >= 0.98 and report.coverage["not_checked"] == 0, run.table()
    assert len(report.operators) > 30


@pytest.mark.parametrize(
    "operator, wrong, layer, guess",
    [
        (A.mm.default, tail_of_k, "model.layers.0.mlp.down_proj", None),
        (A.rsqrt.default, first(lambda y: y * 1.001), "model.layers.0.input_layernorm", "wrong scale"),
        (A._scaled_dot_product_flash_attention_for_cpu.default, first(lambda y: y * 2), "model.layers.0.self_attn", "doubled"),
        (A.silu_backward.default, first(lambda y: y.bfloat16().float()), "model.layers.1.mlp.act_fn", "shorter type"),
    ],
    ids=["tail of K", "scale of a root", "doubled attention", "gradient in bf16"],
)
def test_a_defect_in_llama_is_named_first(operator: Any, wrong: Any, layer: str, guess: str) -> None:
    training = Training("llama", "sdpa", torch.float32, OPTIMIZERS["fused"])
    with BadChip(operator, wrong), toprope.lockstep() as run:
        training.step()
    told: Dict[str, Any] = run.report().first_wrong or {}
    assert told["operator"] == str(operator)
    if guess is not None:
        assert told["layer"] == layer
        assert guess in told["defect_guess"]
