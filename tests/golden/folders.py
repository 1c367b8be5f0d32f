"""Folders that `toprope` wrote, as transformers opens them, and how far its logits lie from `toprope eval`'s."""

import subprocess

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Of the largest logit.
BOUND = 1e-4


def toprope(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stderr)


def opened(folder):
    """The model; every parameter that transformers has must be in the folder."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    # Without shared experts transformers has matrices of no rows for them.
    lacking = [name for name in report["missing_keys"] if "shared_experts" not in name]
    assert not lacking and not report["mismatched_keys"], report
    return model


def apart(binary, folder, model, tokens, out):
    """The largest distance of a logit, of the largest: of `toprope eval` on a folder and of a model there."""
    toprope(binary, "eval", folder, "--tokens", ",".join(map(str, tokens)), "--logits", out)
    ours = load_file(out)["logits"]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return float((ours - theirs).abs().max() / theirs.abs().max())
