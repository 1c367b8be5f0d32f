#!/usr/bin/env python3
"""Golden record of a DeepSeek-V3 training step, written from the papers.

A plain PyTorch model (functions over a dictionary of tensors with the names of the published weights),
its packed-batch losses, gradients, expert-bias update and ten AdamW steps, for a few tiny configurations.
Its trunk and its multi-token-prediction modules are first checked against transformers' DeepseekV3.

    python deepseek_v3.py             check against transformers, then write <name>.safetensors beside this file
    python deepseek_v3.py --check     compute again and compare with the committed files; writes nothing

Sources: "V2" = DeepSeek-V2 (arXiv 2405.04434), "V3" = DeepSeek-V3 Technical Report (arXiv 2412.19437),
YaRN = arXiv 2309.00071. README.md beside this file describes names, metadata and tolerances.
"""

import argparse
import json
import math
import pathlib
import sys
import unittest.mock

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from configurations import BASE, CONFIGS, initial_parameters, is_bias, packed_batch

STEPS = 10
FORMAT = "toprope-golden-deepseek-v3-1"

# ---------------------------------------------------------------------------------------------------------
# The model. `w` is {name of the published weights: tensor}; T = batch * sequence tokens, flattened.
# ---------------------------------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def swiglu(x, w, prefix):
    gate = F.linear(x, w[f"{prefix}.gate_proj.weight"])
    up = F.linear(x, w[f"{prefix}.up_proj.weight"])
    return F.linear(F.silu(gate) * up, w[f"{prefix}.down_proj.weight"])


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_frequencies(config):
    """Angular frequencies [rope/2] in f64 and the factor on cos and sin (YaRN sections 3.2 and 3.4)."""
    size, base = config["qk_rope_head_dim"], config["rope_theta"]
    plain = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    scaling = config["rope_scaling"]
    if scaling is None:
        return plain, 1.0

    def dimension_with_rotations(rotations):
        length = scaling["original_max_position_embeddings"]
        return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_with_rotations(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension_with_rotations(scaling["beta_slow"])), size - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(size // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    frequencies = plain / scaling["factor"] * ramp + plain * (1 - ramp)
    factor = scaling["factor"]
    return frequencies, yarn_mscale(factor, scaling["mscale"]) / yarn_mscale(factor, scaling["mscale_all_dim"])


def softmax_scale(config):
    """1/sqrt(d_qk), times mscale_all_dim's factor squared under YaRN (DeepSeek's published modelling code)."""
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["mscale_all_dim"]:
        scale *= yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def rotate(x, positions, config):
    """RoPE on x [T, heads, rope]. Interleaved: pairs (0,1), (2,3), ...; else pairs (i, i + rope/2).

    The output keeps the input's order of dimensions. transformers writes the rotated pairs apart instead; the
    same permutation on queries and keys, so scores agree.
    """
    frequencies, factor = rope_frequencies(config)
    angle = positions.to(torch.float64)[:, None] * frequencies
    cos = (angle.cos() * factor).to(x.dtype)[:, None, :]
    sin = (angle.sin() * factor).to(x.dtype)[:, None, :]
    if config["rope_interleave"]:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def latent_attention(x, w, prefix, batch, config):
    """Multi-head latent attention (V2 section 2.1, V3 section 2.1.1) within documents."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    eps, tokens = config["rms_norm_eps"], x.shape[0]
    if config["q_lora_rank"] is None:
        q = F.linear(x, w[f"{prefix}.q_proj.weight"])
    else:
        q = F.linear(x, w[f"{prefix}.q_a_proj.weight"])
        q = rms_norm(q, w[f"{prefix}.q_a_layernorm.weight"], eps)
        q = F.linear(q, w[f"{prefix}.q_b_proj.weight"])
    q_nope, q_rope = q.view(tokens, heads, nope + rope).split([nope, rope], dim=-1)
    latent, k_rope = F.linear(x, w[f"{prefix}.kv_a_proj_with_mqa.weight"]).split([rank, rope], dim=-1)
    latent = rms_norm(latent, w[f"{prefix}.kv_a_layernorm.weight"], eps)
    kv = F.linear(latent, w[f"{prefix}.kv_b_proj.weight"]).view(tokens, heads, nope + value)
    k_nope, v = kv.split([nope, value], dim=-1)
    q_rope = rotate(q_rope, batch["positions"], config)
    k_rope = rotate(k_rope[:, None, :], batch["positions"], config).expand(-1, heads, -1)
    q = torch.cat([q_nope, q_rope], dim=-1)
    k = torch.cat([k_nope, k_rope], dim=-1)

    scores = torch.einsum("ihd,jhd->hij", q, k) * softmax_scale(config)
    scores = scores.masked_fill(~attention_mask(batch), -math.inf)
    out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(tokens, heads * value)
    return F.linear(out, w[f"{prefix}.o_proj.weight"])


def attention_mask(batch):
    """[T, T]: token i sees token j when segment_start[i] <= j <= i."""
    index = torch.arange(batch["tokens"].shape[0])
    return (index[None, :] <= index[:, None]) & (index[None, :] >= batch["segment_start"][:, None])


def top_k_mask(scores, k):
    """1 at the k largest of each row, and the smallest distance between a chosen and a refused score."""
    ordered = scores.sort(dim=-1, descending=True)
    chosen = torch.zeros_like(scores).scatter_(-1, ordered.indices[..., :k], 1.0)
    margin = math.inf
    if k < scores.shape[-1]:
        gap = ordered.values[..., k - 1] - ordered.values[..., k]
        margin = gap[gap.isfinite()].min().item() if gap.isfinite().any() else math.inf
    return chosen, margin


def route(x, w, prefix, config):
    """Scores [T, E] after the sigmoid, weights [T, E] (0 where not chosen), chosen [T, E], margin.

    V3 section 2.1.2: the bias takes part in the choice only, the weights come from the scores alone. Groups:
    a group's score is the sum of its two best biased scores; the best `topk_group` groups stay.
    """
    experts, top_k = config["n_routed_experts"], config["num_experts_per_tok"]
    groups = config["n_group"]
    scores = F.linear(x, w[f"{prefix}.weight"]).sigmoid()
    with torch.no_grad():
        biased = scores + w[f"{prefix}.e_score_correction_bias"]
        margin = math.inf
        if groups > 1:
            by_group = biased.view(-1, groups, experts // groups)
            group_score = by_group.topk(2, dim=-1).values.sum(-1)
            kept, margin = top_k_mask(group_score, config["topk_group"])
            biased = by_group.masked_fill(kept[..., None] == 0, -math.inf).view(-1, experts)
        chosen, expert_margin = top_k_mask(biased, top_k)
    weights = scores * chosen
    if config["norm_topk_prob"]:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return scores, weights * config["routed_scaling_factor"], chosen, min(margin, expert_margin)


def balance_loss(scores, chosen, config, rows):
    """Sequence-wise balance loss (V3 eq. 17-20): alpha * mean over the rows of sum_i f_i P_i, and a margin.

    f_i = E / (K S) * tokens of the row that have expert i among the K best affinities (eq. 18: no bias, no
    groups; with balance_counts "selected" the experts really chosen are counted instead); a constant for the
    gradient. P_i = the row's mean of the affinities normalised over all experts.
    """
    experts, top_k = config["n_routed_experts"], config["num_experts_per_tok"]
    margin = math.inf
    with torch.no_grad():
        if config["balance_counts"] == "affinity":
            chosen, margin = top_k_mask(scores, top_k)
        f = chosen.view(rows, -1, experts).mean(1) * experts / top_k
    p = (scores / scores.sum(-1, keepdim=True)).view(rows, -1, experts).mean(1)
    return config["aux_loss_alpha"] * (f * p).sum(-1).mean(), margin


def moe(x, w, prefix, config, record):
    """Shared experts plus the weighted routed experts (V3 eq. 12)."""
    scores, weights, chosen, margin = route(x, w, f"{prefix}.gate", config)
    out = torch.zeros_like(x)
    for expert in range(config["n_routed_experts"]):
        rows = chosen[:, expert].nonzero()[:, 0]
        y = swiglu(x[rows], w, f"{prefix}.experts.{expert}") * weights[rows, expert, None]
        out = out.index_add(0, rows, y)
    if config["n_shared_experts"]:
        out = out + swiglu(x, w, f"{prefix}.shared_experts")
    record["moe"][prefix] = {"scores": scores, "weights": weights, "chosen": chosen}
    record["margin"] = min(record["margin"], margin)
    return out


def block(x, w, prefix, dense, batch, config, record):
    eps = config["rms_norm_eps"]
    h = rms_norm(x, w[f"{prefix}.input_layernorm.weight"], eps)
    x = x + latent_attention(h, w, f"{prefix}.self_attn", batch, config)
    h = rms_norm(x, w[f"{prefix}.post_attention_layernorm.weight"], eps)
    x = x + (swiglu(h, w, f"{prefix}.mlp") if dense else moe(h, w, f"{prefix}.mlp", config, record))
    record["activations"][prefix] = x
    return x


def embed(tokens, table):
    """Rows of the table; the zero vector where the token is -1."""
    return F.embedding(tokens.clamp(min=0), table) * (tokens >= 0)[:, None]


def forward(w, batch, config):
    """Logits of the main head and of each prediction depth, plus what the losses and the tests need."""
    record = {"moe": {}, "activations": {}, "margin": math.inf}
    layers, eps = config["num_hidden_layers"], config["rms_norm_eps"]
    table, head = w["model.embed_tokens.weight"], w["lm_head.weight"]
    x = embed(batch["tokens"], table)
    for layer in range(layers):
        dense = layer < config["first_k_dense_replace"]
        x = block(x, w, f"model.layers.{layer}", dense, batch, config, record)
    normed = rms_norm(x, w["model.norm.weight"], eps)
    logits = [F.linear(normed, head)]
    # V3 section 2.2, eq. 21-24. The report leaves open on which side of the final norm h^{k-1} is taken and the
    # published weights fix the order of eh_proj's columns: see mtp_* in README.md.
    previous = normed if config["mtp_chain_post_norm"] else x
    for depth in range(1, config["num_nextn_predict_layers"] + 1):
        prefix = f"model.layers.{layers + depth - 1}"
        h = rms_norm(previous, w[f"{prefix}.hnorm.weight"], eps)
        e = rms_norm(embed(batch[f"mtp_tokens.{depth}"], table), w[f"{prefix}.enorm.weight"], eps)
        both = [h, e] if config["mtp_hidden_states_first"] else [e, h]
        x = F.linear(torch.cat(both, dim=-1), w[f"{prefix}.eh_proj.weight"])
        x = block(x, w, prefix, False, batch, config, record)
        normed = rms_norm(x, w[f"{prefix}.shared_head.norm.weight"], eps)
        logits.append(F.linear(normed, head))
        previous = normed if config["mtp_chain_post_norm"] else x
    record["logits"] = logits
    return record


def losses(record, batch, config):
    """{main, mtp, balance, total}: main + lambda/D * sum of the depths' means + the layers' balance losses."""
    depths = config["num_nextn_predict_layers"]
    logits = record["logits"]
    main = F.cross_entropy(logits[0], batch["targets"], ignore_index=-1)
    mtp = logits[0].new_zeros(())
    for depth in range(1, depths + 1):
        mtp = mtp + F.cross_entropy(logits[depth], batch[f"mtp_targets.{depth}"], ignore_index=-1)
    mtp = mtp * (config["mtp_loss_lambda"] / depths) if depths else mtp
    balance = logits[0].new_zeros(())
    for layer in record["moe"].values():
        loss, margin = balance_loss(layer["scores"], layer["chosen"], config, config["batch_size"])
        balance = balance + loss
        record["margin"] = min(record["margin"], margin)
    return {"main": main, "mtp": mtp, "balance": balance, "total": main + mtp + balance}


# ---------------------------------------------------------------------------------------------------------
# Training: clipping, AdamW, bias update.
# ---------------------------------------------------------------------------------------------------------


class Unrounded:
    """`torch`, with another dtype under the name of bfloat16."""

    def __init__(self, dtype):
        self.bfloat16 = dtype

    def __getattr__(self, name):
        return getattr(torch, name)


def train(initial, batches, config, dtype):
    """STEPS steps over the cycled batches. Everything that the record holds, as tensors and lists."""
    w = {name: value.to(dtype).clone().requires_grad_(not is_bias(name)) for name, value in initial.items()}
    trained = {name: value for name, value in w.items() if not is_bias(name)}
    muon = config.get("muon")
    outside = ("model.embed_tokens.weight", "lm_head.weight")
    hidden = [p for name, p in trained.items() if muon and p.dim() >= 2 and name not in outside]
    others = [p for p in trained.values() if not any(p is matrix for matrix in hidden)]
    # Decay on every matrix, the embedding and the head too; none on the norms' weights.
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() >= 2], "weight_decay": config["weight_decay"]},
                {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
            ],
            betas=(config["adam_beta1"], config["adam_beta2"]),
            eps=config["adam_epsilon"],
            foreach=False,
        )
    ]
    if muon:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                weight_decay=config["weight_decay"],
                momentum=muon["momentum"],
                nesterov=muon["nesterov"],
                ns_steps=muon["steps"],
                adjust_lr_fn="match_rms_adamw",
            )
        )
    curve = {key: [] for key in ("main", "mtp", "balance", "total", "gradient_norm")}
    steps, first, margin = {}, None, math.inf
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        record = forward(w, batch, config)
        parts = losses(record, batch, config)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts["total"].backward()
        if first is None:
            # An expert that no token chose has a gradient of zero, not none.
            gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained.items()}
            first = {"record": record, "gradients": gradients}
        norm = torch.sqrt(sum((p.grad.pow(2).sum() for p in trained.values() if p.grad is not None)))
        scale = min(1.0, config["clip_norm"] / (norm.item() + 1e-6))
        for p in trained.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad * scale
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config["learning_rates"][step]
        optimizers[0].step()
        # PyTorch's Muon rounds to bf16 before it iterates; here it iterates in the record's own precision.
        with unittest.mock.patch.object(torch.optim._muon, "torch", Unrounded(dtype)):
            for optimizer in optimizers[1:]:
                optimizer.step()
        for key, value in parts.items():
            curve[key].append(value.item())
        curve["gradient_norm"].append(norm.item())
        margin = min(margin, record["margin"])
        for prefix, layer in record["moe"].items():
            # V3 section 2.1.2: an overloaded expert's bias falls by gamma, an underloaded one's rises.
            load = layer["chosen"].sum(0)
            bias = w[f"{prefix}.gate.e_score_correction_bias"]
            bias += config["bias_update_speed"] * torch.sign(load.mean() - load)
            steps.setdefault(f"{prefix}.gate.expert_load", []).append(load.to(torch.int32))
            steps.setdefault(f"{prefix}.gate.e_score_correction_bias", []).append(bias.clone())
    final = {name: value.detach().clone() for name, value in w.items()}
    steps = {name: torch.stack(values) for name, values in steps.items()}
    return {"curve": curve, "steps": steps, "final": final, "margin": margin, **first}


# ---------------------------------------------------------------------------------------------------------
# The record and its check.
# ---------------------------------------------------------------------------------------------------------


def build(name, overrides):
    """Tensors and metadata of one record. The seed is the first whose choices of experts stand clear of ties."""
    config = {**BASE, **CONFIGS[name], **overrides}
    for seed in range(1, 200):
        generator = torch.Generator().manual_seed(seed)
        initial = initial_parameters(config, generator)
        batches = [packed_batch(config, generator) for _ in range(2)]
        wide = train(initial, batches, config, torch.float64)
        if wide["margin"] >= 1e-4:
            break
    else:
        sys.exit(f"{name}: no seed keeps the router clear of ties")
    run = train(initial, batches, config, torch.float32)
    for key, value in run["steps"].items():
        if key.endswith("expert_load"):
            assert torch.equal(value, wide["steps"][key]), f"{name}: f32 and f64 route differently in {key}"

    tensors = dict(initial)
    for index, batch in enumerate(batches):
        for key, value in batch.items():
            tensors[f"batch.{index}.{key}"] = value.to(torch.int32)
    for key, value in run["gradients"].items():
        tensors[f"gradient.{key}"] = value
        tensors[f"gradient_f64.{key}"] = wide["gradients"][key]
    for key, value in run["final"].items():
        tensors[f"final.{key}"] = value
    for key, value in run["steps"].items():
        tensors[f"steps.{key}"] = value
    for index, value in enumerate(run["record"]["logits"]):
        tensors[f"logits.{index}"] = value.detach()
    for key, value in run["record"]["activations"].items():
        tensors[f"activation.{key}"] = value.detach()
    for key, value in run["record"]["moe"].items():
        tensors[f"routing.{key}.gate.weights"] = value["weights"].detach()

    def largest(a, b):
        return {key: (a[key].double() - b[key]).abs().max().item() for key in a}

    metadata = {
        "format": FORMAT,
        "name": name,
        "seed": seed,
        "config": config,
        "curve": {"f32": run["curve"], "f64": wide["curve"]},
        "noise": {
            "gradient": largest(run["gradients"], wide["gradients"]),
            "final": largest(run["final"], wide["final"]),
        },
        "routing_margin": wide["margin"],
    }
    return initial, batches, config, tensors, metadata


def relative(a, b):
    """Largest absolute difference over b's largest absolute value."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, help="folder")
    parser.add_argument("--only", metavar="NAME", help="one record")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a configuration key")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    overrides = {key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)}
    from against_transformers import compare

    for name in [arguments.only] if arguments.only else CONFIGS:
        initial, batches, config, tensors, metadata = build(name, overrides)
        metadata["transformers"] = compare(initial, batches[0], config)
        curve, noise = metadata["curve"], metadata["noise"]
        difference = max(abs(a - b) / b for a, b in zip(curve["f32"]["total"], curve["f64"]["total"]))
        gradient = max(relative(tensors[f"gradient.{k}"], tensors[f"gradient_f64.{k}"]) for k in noise["gradient"])
        print(
            f"{name}: seed {metadata['seed']}, margin {metadata['routing_margin']:.1e}, "
            f"transformers {metadata['transformers']['difference']}, loss {curve['f32']['total'][0]:.6f} -> "
            f"{curve['f32']['total'][-1]:.6f}, f32 noise: loss {difference:.1e}, gradient {gradient:.1e}, "
            f"final {max(noise['final'].values()):.1e}"
        )
        path = arguments.out / f"{name}.safetensors"
        if arguments.check:
            check(path, tensors, metadata)
            continue
        encoded = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=encoded)
        path.chmod(0o644)


def check(path, tensors, metadata):
    """The committed record must hold what this machine computes: integers exactly, floats closely."""
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors), f"{path}: other tensors; write the record again"
        assert json.loads(file.metadata()["config"]) == metadata["config"], f"{path}: other configuration"
        for name, value in tensors.items():
            stored = file.get_tensor(name)
            if stored.dtype == torch.int32:
                assert torch.equal(stored, value), f"{path}: {name} differs"
            else:
                bound = 1e-9 if stored.dtype == torch.float64 else 2e-4 if name.startswith("final.") else 2e-5
                assert torch.allclose(stored, value, rtol=bound, atol=bound), f"{path}: {name} differs"
    print(f"{path.name}: agrees")


if __name__ == "__main__":
    main()
