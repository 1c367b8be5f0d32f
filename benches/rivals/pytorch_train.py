#!/usr/bin/env python3
"""PyTorch's speed on the recipes bench-dense and bench-moe, each way that PyTorch offers.

    python pytorch_train.py bench-dense --best             every variant in its own process, then the best one
    python pytorch_train.py bench-moe --best --quick       the same with few steps
    python pytorch_train.py bench-dense --precision f32 --compile --attention padded      one variant
    python pytorch_train.py bench-dense --compile --kept   warms up, says so in a line, then measures --steps for each line it reads
    python pytorch_train.py tiny-dense --warmup 0 --steps 1      the first step of a small model

One JSON line per variant on standard output: variant, tokens_per_second (the median step after the warm-up),
peak memory of the measured steps, losses, versions and processor; with --best the last line is the fastest.

A step is forward, backward, gradient clipping, AdamW and, with experts, the balance term and the bias update: what
`toprope train` does in a step of the recipe. Batches are random tokens made before the clock starts.
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import typing



class Sizes(typing.NamedTuple):
    """Sizes of a recipe's model and batch."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 6
    sequence: int = 256
    batch: int = 16
    heads: int = 4
    rank: int = 64
    nope: int = 32
    rope: int = 16
    value: int = 32
    dense: int = 704


SIZES = {
    "bench-dense": Sizes(),
    "bench-moe": Sizes(),
    "tiny-dense": Sizes(264, 32, 2, 32, 4, 2, 16, 8, 4, 8, 64),
}
EXPERTS, TOP_K, EXPERT_SIZE = 8, 2, 176
CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, BALANCE_ALPHA, BIAS_SPEED = 1.0, 1e-3, 0.1, 1e-4, 1e-3
PARAMETERS = {"bench-dense": 6.06e6, "bench-moe": 9.45e6, "tiny-dense": 34240}

PRECISIONS = {
    "f32": "f32 throughout",
    "autocast": "f32 weights, torch.autocast to bf16",
    "bf16": "bf16 weights and gradients, f32 master weights and moments",
}
# A precision is dropped when its first step is this many times slower than the fastest variant.
PROBE_RATIO = 5
# One arena, no mmap and no trimming: freed memory stays with the process, so large buffers cost no page faults.
KEEPING_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


def build(torch, recipe, experts_as, attention_as, head_as):
    """The model as a module whose forward answers the loss; parameters are f32."""
    nn, F = torch.nn, torch.nn.functional
    VOCABULARY, WIDTH, LAYERS, SEQUENCE, _, HEADS, RANK, NOPE, ROPE, VALUE, DENSE_SIZE = SIZES[recipe]

    def linear(inputs, outputs):
        return nn.Linear(inputs, outputs, bias=False)

    class SwiGlu(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.gate_up, self.down = linear(WIDTH, 2 * size), linear(size, WIDTH)

        def forward(self, x):
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)

    class Attention(nn.Module):
        """Multi-head latent attention without query compression; the sequences are the batch."""

        def __init__(self):
            super().__init__()
            self.q = linear(WIDTH, HEADS * (NOPE + ROPE))
            self.kv_a = linear(WIDTH, RANK + ROPE)
            self.norm = nn.RMSNorm(RANK, eps=1e-6)
            self.kv_b = linear(RANK, HEADS * (NOPE + VALUE))
            self.o = linear(HEADS * VALUE, WIDTH)
            angle = torch.arange(SEQUENCE)[:, None] * 10000.0 ** -(torch.arange(0, ROPE, 2) / ROPE)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)

        def rotate(self, x):
            a, b = x[..., 0::2], x[..., 1::2]
            cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
            # Pairs are written apart: the same permutation on queries and keys leaves the scores alone.
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

        def forward(self, x):
            rows = x.shape[0]
            q = self.q(x).view(rows, SEQUENCE, HEADS, NOPE + ROPE).transpose(1, 2)
            q_nope, q_rope = q.split([NOPE, ROPE], dim=-1)
            latent, k_rope = self.kv_a(x).split([RANK, ROPE], dim=-1)
            kv = self.kv_b(self.norm(latent)).view(rows, SEQUENCE, HEADS, NOPE + VALUE).transpose(1, 2)
            k_nope, v = kv.split([NOPE, VALUE], dim=-1)
            q = torch.cat([q_nope, self.rotate(q_rope)], dim=-1)
            k_rope = self.rotate(k_rope[:, None]).expand(-1, HEADS, -1, -1)
            k = torch.cat([k_nope, k_rope.to(k_nope.dtype)], dim=-1)
            q, k, v = q.to(v.dtype), k.to(v.dtype), v
            if attention_as == "padded":
                # The flash kernel wants one size for q, k and v; otherwise PyTorch takes the plain way.
                v = F.pad(v, (0, NOPE + ROPE - VALUE))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., :VALUE]
            return self.o(out.transpose(1, 2).reshape(rows, SEQUENCE, HEADS * VALUE))

    class Experts(nn.Module):
        """One shared expert and EXPERTS routed ones, sigmoid scores, a bias for the choice, top-k normalised."""

        def __init__(self):
            super().__init__()
            self.shared = SwiGlu(EXPERT_SIZE)
            self.router = linear(WIDTH, EXPERTS)
            self.gate_up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * EXPERT_SIZE) * WIDTH**-0.5)
            self.down = nn.Parameter(torch.randn(EXPERTS, EXPERT_SIZE, WIDTH) * EXPERT_SIZE**-0.5)
            self.register_buffer("bias", torch.zeros(EXPERTS))
            self.register_buffer("load", torch.zeros(EXPERTS))

        def forward(self, x):
            flat = x.reshape(-1, WIDTH)
            with torch.autocast("cpu", enabled=False):
                scores = F.linear(flat.float(), self.router.weight.float()).sigmoid()
                indices = (scores + self.bias).topk(TOP_K, dim=-1).indices
                weights = scores.gather(1, indices)
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
                chosen = torch.zeros_like(scores).scatter(1, indices, 1.0)
                share = chosen.view(-1, SEQUENCE, EXPERTS).mean(1) * (EXPERTS / TOP_K)
                probability = (scores / scores.sum(-1, keepdim=True)).view(-1, SEQUENCE, EXPERTS).mean(1)
                balance = BALANCE_ALPHA * (share * probability).sum(-1).mean()
                with torch.no_grad():
                    load = chosen.sum(0)
                    self.load.copy_(load)
            # Rows sorted by expert: slot s of the sorted rows belongs to token order[s] // TOP_K.
            order = indices.reshape(-1).argsort(stable=True)
            token = order // TOP_K
            weight = weights.reshape(-1)[order][:, None]
            rows = flat[token]
            if experts_as == "loop":
                parts = []
                for expert, part in enumerate(rows.split(load.long().tolist())):
                    gate, up = (part @ self.gate_up[expert]).chunk(2, dim=-1)
                    parts.append((F.silu(gate) * up) @ self.down[expert])
                y = torch.cat(parts)
            elif experts_as == "grouped":
                ends = load.cumsum(0).to(torch.int32)
                dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else rows.dtype
                h = torch._grouped_mm(rows.to(dtype), self.gate_up.to(dtype), offs=ends)
                gate, up = h.chunk(2, dim=-1)
                y = torch._grouped_mm(F.silu(gate) * up, self.down.to(dtype), offs=ends)
            else:
                # Each expert's rows padded to the fullest expert's, in steps of 128 so that shapes repeat.
                capacity = -(-int(load.max().item()) // 128) * 128
                starts = load.cumsum(0) - load
                expert = indices.reshape(-1)[order]
                slot = expert * capacity + (torch.arange(len(order)) - starts[expert]).long()
                padded = rows.new_zeros(EXPERTS * capacity, WIDTH).index_copy(0, slot, rows)
                gate, up = torch.bmm(padded.view(EXPERTS, capacity, WIDTH), self.gate_up).chunk(2, dim=-1)
                y = torch.bmm(F.silu(gate) * up, self.down).reshape(-1, WIDTH)[slot]
            y = (y * weight).to(x.dtype)
            out = torch.zeros_like(flat).index_add(0, token, y)
            return out.view_as(x) + self.shared(x), balance

    class Block(nn.Module):
        def __init__(self, dense):
            super().__init__()
            self.norm_1, self.attention = nn.RMSNorm(WIDTH, eps=1e-6), Attention()
            self.norm_2, self.mlp = nn.RMSNorm(WIDTH, eps=1e-6), SwiGlu(DENSE_SIZE) if dense else Experts()
            self.dense = dense

        def forward(self, x):
            x = x + self.attention(self.norm_1(x))
            if self.dense:
                return x + self.mlp(self.norm_2(x)), 0.0
            y, balance = self.mlp(self.norm_2(x))
            return x + y, balance

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            dense = 1 if recipe == "bench-moe" else LAYERS
            self.blocks = nn.ModuleList([Block(layer < dense) for layer in range(LAYERS)])
            self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-6), linear(WIDTH, VOCABULARY)

        def forward(self, tokens, targets):
            x, balance = self.embedding(tokens), 0.0
            for block in self.blocks:
                x, term = block(x)
                balance = balance + term
            x, targets = self.norm(x).reshape(-1, WIDTH), targets.reshape(-1)
            if head_as == "whole":
                loss = F.cross_entropy(self.head(x).float(), targets)
            else:
                # A quarter of the logits at a time, computed again for the gradient: less memory, more products.
                def part(x, targets):
                    return F.cross_entropy(self.head(x).float(), targets, reduction="sum")

                checkpoint = torch.utils.checkpoint.checkpoint
                pieces = zip(x.chunk(4), targets.chunk(4))
                loss = sum(checkpoint(part, a, b, use_reentrant=False) for a, b in pieces) / len(targets)
            return loss + balance

    torch.manual_seed(1)
    model = Model()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.dim() == 2):
            parameter.normal_(std=0.02)
    return model


def measured(arguments):
    """Warms one variant up in this process, gives its name, and then for ever the record of its next steps."""
    import torch

    imported = resident_peak_bytes()
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("highest")
    model = build(torch, arguments.recipe, arguments.experts, arguments.attention, arguments.head)
    parameters = sum(p.numel() for p in model.parameters())
    assert abs(parameters / PARAMETERS[arguments.recipe] - 1) < 0.002, f"{parameters} parameters"
    weights = list(model.parameters())
    master = weights
    if arguments.precision == "bf16":
        master = [p.detach().clone().requires_grad_() for p in weights]
        for parameter in weights:
            parameter.data = parameter.data.bfloat16()
    optimizer = adamw(master, LEARNING_RATE, WEIGHT_DECAY)
    experts = [block.mlp for block in model.blocks if not block.dense]
    loss_of = torch.compile(model) if arguments.compile else model
    sizes = SIZES[arguments.recipe]
    windows = torch.randint(sizes.vocabulary, (4, sizes.batch, sizes.sequence + 1))

    def step(index):
        window = windows[index % len(windows)]
        tokens, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "autocast"):
            loss = loss_of(tokens, targets)
        loss.backward()
        update(weights, master, optimizer)
        with torch.no_grad():
            for layer in experts:
                layer.bias += BIAS_SPEED * torch.sign(layer.load.mean() - layer.load)
        return loss.item()

    indices = itertools.count()
    losses = [step(next(indices)) for _ in range(arguments.warmup)]
    peak_of_all = resident_peak_bytes()
    yield {"ready": variant_name(arguments), "torch": torch.__version__}
    for seconds, more, peak in rounds(lambda: step(next(indices)), arguments.steps):
        losses += more
        median = statistics.median(seconds)
        yield {
            "recipe": arguments.recipe,
            "variant": variant_name(arguments),
            "tokens_per_second": round(sizes.batch * sizes.sequence / median, 1),
            "step_seconds_median": round(median, 4),
            "step_seconds": [round(s, 4) for s in seconds],
            "peak_memory_bytes": peak,
            "peak_memory_with_warmup_bytes": max(peak, peak_of_all),
            "peak_memory_of_import_bytes": imported,
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "parameters": parameters,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            **processor(),
        }


def adamw(master, learning_rate, weight_decay):
    """Fused AdamW; weights of one dimension do not decay."""
    import torch

    groups = [
        {"params": [p for p in master if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in master if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def update(weights, master, optimizer):
    """From the weights' gradients to the next weights, by way of the f32 ones where those are apart."""
    import torch

    if master is not weights:
        for wide, narrow in zip(master, weights):
            wide.grad = narrow.grad.float()
            narrow.grad = None
    torch.nn.utils.clip_grad_norm_(master, CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if master is not weights:
        with torch.no_grad():
            torch._foreach_copy_(weights, master)


def rounds(step, steps):
    """For ever: the seconds of so many steps, their losses, and the peak of resident memory since the round began."""
    while True:
        reset_resident_peak()
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
        yield seconds, losses, resident_peak_bytes()


def told(records, kept):
    """Prints the first record, or, kept, that the warm-up is over and then a record for each line of standard input."""
    ready = next(records)
    if not kept:
        print(json.dumps(next(records)))
        return
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(next(records)), flush=True)


def resident_peak_bytes():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) * 1024


def reset_resident_peak():
    """Linux: the peak starts again from what is resident now, so compilation does not count as training."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def processor():
    with open("/proc/cpuinfo") as file:
        text = file.read()
    flags = set((re.search(r"^flags\s*: (.*)$", text, re.M) or [None, ""])[1].split())
    known = re.compile(r"avx|fma$|amx|f16c|bf16")
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    return {
        "cpu": name.group(1) if name else platform.machine(),
        "cpu_flags": sorted(f for f in flags if known.search(f)),
    }


def variant_name(arguments):
    parts = [arguments.precision, "compile" if arguments.compile else "eager", f"attention-{arguments.attention}"]
    parts += [f"experts-{arguments.experts}"] if arguments.recipe == "bench-moe" else []
    parts += ["head-chunked"] if arguments.head == "chunked" else []
    parts += ["keeping-allocator"] if os.environ.get("MALLOC_MMAP_MAX_") == "0" else []
    return " ".join(parts)


def in_own_process(arguments, precision, compiled, attention, experts, head="whole", keeping=False, probe=False):
    """One variant in a fresh process, so that memory and compiled code of the others do not show. None if it fails."""
    command = [sys.executable, __file__, arguments.recipe, "--precision", precision, "--attention", attention]
    command += ["--experts", experts, "--head", head, "--threads", str(arguments.threads)]
    warmup, steps = (0, 1) if probe else (arguments.warmup, arguments.steps)
    command += ["--warmup", str(warmup), "--steps", str(steps)]
    command += ["--compile"] if compiled else []
    environment = {**os.environ, **(KEEPING_ALLOCATOR if keeping else {})}
    environment["OMP_NUM_THREADS"] = str(arguments.threads)
    name = " ".join(command[3:])
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=arguments.variant_seconds_max
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: took longer than {arguments.variant_seconds_max} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"{name}: failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    record = json.loads(done.stdout.strip().splitlines()[-1])
    record["setting"] = {"precision": precision, "attention": attention, "experts": experts}
    record["compiled"] = compiled
    record["probe"] = probe
    print(json.dumps(record), flush=True)
    return record


def best(arguments):
    """Eager in every way; the fastest two ways of each precision compiled; then allocator and head of the fastest.

    A precision whose first step alone is several times slower than the fastest so far is dropped after that step:
    without AVX-512 or AMX, PyTorch's bf16 products are tens of times slower than its f32 ones.
    """
    ways = ["loop", "padded", "grouped"] if arguments.recipe == "bench-moe" else ["loop"]
    records = []
    for precision in PRECISIONS:
        if records:
            probe = in_own_process(arguments, precision, False, "padded", ways[0], probe=True)
            fastest = max(r["tokens_per_second"] for r in records if r)
            if probe is None or probe["tokens_per_second"] * PROBE_RATIO < fastest:
                continue
        eager = [
            in_own_process(arguments, precision, False, attention, experts)
            for attention in ("plain", "padded")
            for experts in ways
        ]
        eager = sorted((r for r in eager if r), key=lambda r: -r["tokens_per_second"])
        records += eager
        # Padding's shapes follow the data, so compiled code would be compiled again and again.
        settings = [r["setting"] for r in eager if r["setting"]["experts"] != "padded"]
        records += [in_own_process(arguments, compiled=True, **setting) for setting in settings[:2]]
    records = [r for r in records if r]
    assert records, "no variant ran"
    fastest = max(records, key=lambda r: r["tokens_per_second"])
    for head, keeping in (("whole", True), ("chunked", False), ("chunked", True)):
        setting = {"compiled": fastest["compiled"], "head": head, "keeping": keeping, **fastest["setting"]}
        again = in_own_process(arguments, **setting)
        records += [again] if again else []
    first = [r["loss_first"] for r in records]
    assert max(first) - min(first) < 0.02, f"variants start from different losses: {first}"
    fastest = max(records, key=lambda r: r["tokens_per_second"])
    print(json.dumps({"best": True, "variants": len(records), **fastest}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(PARAMETERS))
    parser.add_argument("--best", action="store_true", help="try the variants, each in its own process")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="f32")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    parser.add_argument("--attention", choices=["plain", "padded"], default="padded", help="v as it is, or padded")
    parser.add_argument("--experts", choices=["loop", "padded", "grouped"], default="loop")
    parser.add_argument("--head", choices=["whole", "chunked"], default="whole")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9, help="measured steps")
    parser.add_argument("--quick", action="store_true", help="1 step to warm up, 3 measured")
    parser.add_argument("--kept", action="store_true", help="measure --steps again for each line of standard input")
    parser.add_argument("--variant-seconds-max", type=float, default=300)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.warmup, arguments.steps = 1, 3
    if arguments.best:
        best(arguments)
    else:
        told(measured(arguments), arguments.kept)


if __name__ == "__main__":
    main()
