#!/usr/bin/env python3
"""Time to recover of `torchrun --max-restarts` when its worker is killed, on the model of bench-moe.

    python pytorch_recover.py --kills 3          prints one JSON object: seconds and redone steps of each kill

The trainer that torchrun starts is this same file with --train: the usual pattern, a checkpoint every few steps,
written aside and renamed, the newest one loaded at start. A kill is SIGKILL at a random moment between two
checkpoints; recovery is the time from the kill to the end of the first step that had not been done before, less what
a step takes: the redone steps are part of it.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(__file__))
from pytorch_train import SIZES, build  # noqa: E402

EVERY = 10  # steps between checkpoints


def train(folder, steps):
    import torch

    torch.set_num_threads(2)
    sizes = SIZES["bench-moe"]
    model = build(torch, "bench-moe", "loop", "plain", "whole")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    path, first = os.path.join(folder, "checkpoint.pt"), 0
    if os.path.exists(path):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.sequence + 1), generator=torch.Generator().manual_seed(1))
    log = open(os.path.join(folder, "log"), "a")
    for step in range(first, steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.write(json.dumps({"step": step + 1, "time": time.time(), "pid": os.getpid()}) + "\n")
        log.flush()
        if (step + 1) % EVERY == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path + ".new")
            os.replace(path + ".new", path)


def read(folder):
    try:
        with open(os.path.join(folder, "log")) as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", metavar="FOLDER")
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    steps = 14 + 16 * arguments.kills
    if arguments.train:
        return train(arguments.train, steps)
    folder = tempfile.mkdtemp(prefix="pytorch-recover-")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--max-restarts=100"]
    command += ["--monitor-interval=0.1", __file__, "--train", folder]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, redone = [], []
    for kill in range(arguments.kills):
        goal = 14 + 16 * kill
        while not read(folder) or read(folder)[-1]["step"] < goal:
            assert run.poll() is None, "torchrun ended early"
            time.sleep(0.02)
        time.sleep(random.random() * 0.5)
        lines = read(folder)
        last = lines[-1]
        usual = statistics.median(b["time"] - a["time"] for a, b in zip(lines, lines[1:]) if a["pid"] == b["pid"])
        killed = time.time()
        os.kill(last["pid"], signal.SIGKILL)
        new = None
        while new is None:
            later = [line for line in read(folder) if line["pid"] != last["pid"] and line["time"] > killed]
            new = next((line for line in later if line["step"] > last["step"]), None)
            time.sleep(0.02)
        seconds.append(round(new["time"] - killed - usual, 2))
        redone.append(len(later) - 1)
    run.wait()
    print(json.dumps({"seconds": seconds, "steps_redone": redone, "step_seconds": round(usual, 3)}))


if __name__ == "__main__":
    main()
