#!/usr/bin/env python3
"""Time of bf16 products in PyTorch (oneDNN): torch.matmul, right side as it lies or transposed, into new memory or into old.

    python pytorch_products.py [--threads 2] [--kept]

Prints one JSON object: for each product the seconds of the fastest form (the median of half a second's runs). With --kept it
warms up, says so in a line, and measures again for each line of standard input.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
from pytorch_train import processor, told  # noqa: E402

# m, n, k: as crates/devices/cpu/examples/products.rs has them.
PRODUCTS = [(1024, 1024, 1024), (4096, 704, 256)]
SECONDS = 0.5


def median_seconds(job):
    job()
    seconds, began = [], time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measured(arguments):
    import torch

    torch.set_num_threads(arguments.threads)
    jobs = {}
    for m, n, k in PRODUCTS:
        a = torch.randn(m, k).bfloat16()
        sides = {"as it lies": torch.randn(k, n).bfloat16(), "transposed": torch.randn(n, k).bfloat16().T}
        out = torch.empty(m, n, dtype=torch.bfloat16)
        forms = jobs[m, n, k] = {}
        for side, b in sides.items():
            forms[f"right side {side}"] = lambda a=a, b=b: torch.matmul(a, b)
            forms[f"right side {side}, into old memory"] = lambda a=a, b=b, out=out: torch.matmul(a, b, out=out)
    yield {"ready": True}
    while True:
        products = []
        for (m, n, k), forms in jobs.items():
            seconds = {form: median_seconds(job) for form, job in forms.items()}
            fastest = min(seconds, key=seconds.get)
            products.append({"m": m, "n": n, "k": k, "form": fastest, "seconds": seconds[fastest], "all": seconds})
        yield {
            "products": products,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
            **processor(),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kept", action="store_true", help="measure again for each line of standard input")
    arguments = parser.parse_args()
    told(measured(arguments), arguments.kept)


if __name__ == "__main__":
    main()
