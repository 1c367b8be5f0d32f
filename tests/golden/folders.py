"""Folders that `toprope` wrote, as transformers opens them, and how far its logits lie from `toprope eval`'s."""

import argparse
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
# Prediction modules are told as weights that transformers has no place for; what it lacks is an error below.
logging.set_verbosity_error()

# Of the largest logit.
BOUND = 1e-4
HUB = Path(__file__).parent / "hub"


def asked(description):
    """The command line: the binary, and which records of hub/ are looked at."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toprope", help="the binary")
    parser.add_argument("--only", metavar="RECORD,RECORD", help="these records of hub/, not all")
    return parser


def records(arguments):
    """Their folders; a record that is not there is an error."""
    names = arguments.only.split(",") if arguments.only else sorted(each.name for each in HUB.iterdir())
    for name in names:
        assert (HUB / name).is_dir(), f"hub/ has no record {name}"
    return [HUB / name for name in names]


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
