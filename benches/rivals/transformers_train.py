#!/usr/bin/env python3
"""Speed of training a published model in full with transformers and PyTorch, each way that they offer.

    python transformers_train.py FOLDER --best                        each variant in its own process, then the best one
    python transformers_train.py FOLDER --precision autocast --micro 4 --compile          one variant
    python transformers_train.py FOLDER --precision bf16 --micro 4 --kept      warms up, says so in a line, then measures a
                                                                               step for each line it reads

FOLDER is a Hugging Face folder. A step is 16 sequences of 512 random tokens: forward and backward of --micro at a time, gradient
clipping and fused AdamW. One JSON line for each variant as pytorch_train.py prints them. The search measures a quarter of a
step (4 sequences): each micro-batch is the same work. On two cores 4 sequences are 2,048 rows, which fill every product; more at
once is only more memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
from pytorch_train import (  # noqa: E402
    KEEPING_ALLOCATOR,
    PRECISIONS,
    PROBE_RATIO,
    adamw,
    processor,
    resident_peak_bytes,
    rounds,
    told,
    update,
)

SEQUENCE, BATCH, SEARCHED = 512, 16, 4
LEARNING_RATE, WEIGHT_DECAY = 2e-5, 0.1


def measured(arguments):
    """Warms one variant up in this process, gives its name, and then for ever the record of its next steps."""
    import torch
    import transformers

    imported = resident_peak_bytes()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("highest")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.train()
    weights = list(model.parameters())
    master = weights
    if arguments.precision == "bf16":
        master = [p.detach().clone().requires_grad_() for p in weights]
        model.to(torch.bfloat16)
    optimizer = adamw(master, LEARNING_RATE, WEIGHT_DECAY)
    cross_entropy = torch.nn.functional.cross_entropy

    def mean_loss(tokens, targets):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        if arguments.head == "whole":
            return cross_entropy(model.lm_head(hidden).float(), targets)

        # A sequence's logits at a time, computed again for the gradient: less memory, more products.
        def part(x, targets):
            return cross_entropy(model.lm_head(x).float(), targets, reduction="sum")

        checkpoint = torch.utils.checkpoint.checkpoint
        pieces = zip(hidden.split(SEQUENCE), targets.split(SEQUENCE))
        return sum(checkpoint(part, a, b, use_reentrant=False) for a, b in pieces) / len(targets)

    loss_of = torch.compile(mean_loss) if arguments.compile else mean_loss
    generator = torch.Generator().manual_seed(1)
    shape = (max(BATCH, arguments.micro), SEQUENCE + 1)
    window = torch.randint(model.config.vocab_size, shape, generator=generator)

    def step(sequences):
        total = 0.0
        for first in range(0, sequences, arguments.micro):
            part = window[first : first + arguments.micro]
            tokens, targets = part[:, :-1].contiguous(), part[:, 1:].flatten()
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "autocast"):
                loss = loss_of(tokens, targets) * (arguments.micro / sequences)
            loss.backward()
            total += loss.item()
        update(weights, master, optimizer)
        return total

    losses = [step(arguments.micro)]
    peak_of_all = resident_peak_bytes()
    yield {"ready": variant_name(arguments), "torch": torch.__version__}
    for seconds, more, peak in rounds(lambda: step(arguments.sequences), arguments.steps):
        losses += more
        median = statistics.median(seconds)
        yield {
            "variant": variant_name(arguments),
            "tokens_per_second": round(arguments.sequences * SEQUENCE / median, 1),
            "step_seconds": [round(s, 4) for s in seconds],
            "sequences": arguments.sequences,
            "peak_memory_bytes": peak,
            "peak_memory_with_warmup_bytes": max(peak, peak_of_all),
            "peak_memory_of_import_bytes": imported,
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "parameters": sum(p.numel() for p in weights),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            **processor(),
        }


def variant_name(arguments):
    parts = [arguments.precision, "compile" if arguments.compile else "eager", f"micro-batch-{arguments.micro}"]
    parts += ["head-chunked"] if arguments.head == "chunked" else []
    parts += ["keeping-allocator"] if os.environ.get("MALLOC_MMAP_MAX_") == "0" else []
    return " ".join(parts)


def flags(precision, micro, compiled, head):
    """The command line of a setting."""
    more = ["--compile"] if compiled else []
    return ["--precision", precision, "--micro", str(micro), "--head", head, *more]


def in_own_process(arguments, precision, micro, compiled=False, head="whole", keeping=False):
    """One variant in a fresh process. None if it fails."""
    chosen = flags(precision, micro, compiled, head)
    command = [sys.executable, __file__, arguments.model, *chosen, "--threads", str(arguments.threads)]
    command += ["--sequences", str(SEARCHED), "--steps", "1"]
    environment = {**os.environ, **(KEEPING_ALLOCATOR if keeping else {}), "OMP_NUM_THREADS": str(arguments.threads)}
    limit = arguments.variant_seconds_max
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{' '.join(chosen)}: took longer than {limit} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"{' '.join(chosen)}: failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    record = json.loads(done.stdout.strip().splitlines()[-1])
    record["setting"] = {"precision": precision, "micro": micro, "compiled": compiled, "head": head, "keeping": keeping}
    print(json.dumps(record), flush=True)
    return record


def best(arguments):
    """Each precision eager with one sequence at a time and with four; the fastest compiled; then allocator and head.

    A precision whose first variant is several times slower than the fastest so far is tried no further.
    """
    speed = lambda record: record["tokens_per_second"]
    records = []
    for precision in ("autocast", "bf16", "f32"):
        for micro in (4, 1):
            record = in_own_process(arguments, precision, micro)
            if record is None:
                continue
            records.append(record)
            if speed(record) * PROBE_RATIO < max(map(speed, records)):
                break
    assert records, "no variant ran"
    for change in ({"compiled": True}, {"keeping": True}, {"head": "chunked"}):
        setting = max((r for r in records if r), key=speed)["setting"]
        records.append(in_own_process(arguments, **{**setting, **change}))
    records = [r for r in records if r]
    # So many sequences in the first step, so the same tokens; bf16 rounds.
    for micro in (1, 4):
        first = [r["loss_first"] for r in records if r["setting"]["micro"] == micro]
        assert not first or max(first) - min(first) < 0.05 * min(first), f"variants start from different losses: {first}"
    print(json.dumps({"best": True, "variants": len(records), **max(records, key=speed)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--best", action="store_true", help="try the variants, each in its own process")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="autocast")
    parser.add_argument("--micro", type=int, default=4, help="sequences at once")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    parser.add_argument("--head", choices=["whole", "chunked"], default="whole")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=BATCH, help="of a step")
    parser.add_argument("--steps", type=int, default=1, help="measured steps")
    parser.add_argument("--kept", action="store_true", help="measure --steps again for each line of standard input")
    parser.add_argument("--variant-seconds-max", type=float, default=300)
    arguments = parser.parse_args()
    if arguments.sequences % arguments.micro:
        parser.error("--sequences is a multiple of --micro")
    if arguments.best:
        best(arguments)
    else:
        told(measured(arguments), arguments.kept)


if __name__ == "__main__":
    main()
