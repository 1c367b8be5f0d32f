"""Shows that what `toprope export` writes opens in transformers and computes the same: of a run that is trained here, and of
every record in hub/.

    python opened_by_transformers.py target/release/toprope

Ends with 1 where a logit lies further than 1e-4 of the largest one from `toprope eval`'s.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
BOUND = 1e-4


def toprope(binary, *arguments):
    subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True)


def apart(binary, folder, tokens, out):
    """The largest distance of a logit, of the largest."""
    toprope(binary, "eval", folder, "--tokens", ",".join(map(str, tokens)), "--logits", out)
    ours = load_file(out)["logits"]
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    lacking = [name for name in report["missing_keys"] if "shared_experts" not in name]
    assert not lacking and not report["mismatched_keys"], report
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main():
    binary, failed = sys.argv[1], False
    with tempfile.TemporaryDirectory() as room:
        room = Path(room)
        sources = {}
        for recipe in ("tiny-moe", "tiny-dense"):
            run = room / recipe
            toprope(binary, "train", recipe, "--run", run, "--steps", "20", "--unguarded")
            sources[f"a run of {recipe}"] = (run, [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100])
        for record in sorted((HERE / "hub").iterdir()):
            tokens = load_file(record / "expected.safetensors")["tokens"].tolist()
            sources[record.name] = (record, tokens)
        for number, (name, (source, tokens)) in enumerate(sources.items()):
            folder = room / f"exported-{number}"
            toprope(binary, "export", source, folder)
            far = apart(binary, folder, tokens, room / f"{number}.safetensors")
            print(f"{name}: {far:.1e} of the largest logit apart")
            failed |= not far < BOUND
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
