#!/usr/bin/env python3
"""Golden record of single operators: PyTorch's own, with gradients by autograd, into operators.safetensors.

    python operators.py             write operators.safetensors beside this file
    python operators.py --check     compute again and compare with the committed file; writes nothing

Tensors are named <operator>.<case>.<operand>. Inputs are f32; PyTorch computes in f64 and the results are rounded
to f32 once, so they stand for the exact value (`router` and `adamw` are computed in f32: they come from transformers
and torch.optim as they are). <operand>_gradient is the gradient of sum(output * output_gradient). The metadata has
one JSON object of attributes for each <operator>.<case>.
"""

import argparse
import json
import math
import pathlib

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3TopkRouter

from deepseek_v3 import balance_loss, route

FORMAT = "toprope-golden-operators-1"
GENERATOR = torch.Generator()
TENSORS, ATTRIBUTES = {}, {}


def normal(*shape, scale=1.0):
    return torch.randn(shape, generator=GENERATOR) * scale


def integers(high, *shape):
    return torch.randint(high, shape, generator=GENERATOR)


def store(case, attributes, **operands):
    assert case not in ATTRIBUTES, case
    ATTRIBUTES[case] = attributes
    for name, value in operands.items():
        dtype = torch.float32 if value.is_floating_point() else torch.int32
        TENSORS[f"{case}.{name}"] = value.detach().to(dtype).contiguous().clone()


def record(case, function, attributes=None, **inputs):
    """Runs function(**inputs, **attributes) in f64; it answers {output: tensor}. Float inputs get gradients.

    An output whose name ends in "_" has no gradient of its own (a by-product, such as lse).
    """
    attributes = attributes or {}
    wide = {k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    outputs = function(**wide, **attributes)
    upstream = {k: normal(*v.shape).double() for k, v in outputs.items() if not k.endswith("_")}
    sum((outputs[k] * g).sum() for k, g in upstream.items()).backward()
    gradients = {f"{k}_gradient": v.grad for k, v in wide.items() if v.is_floating_point() and v.grad is not None}
    gradients |= {f"{k}_gradient": g for k, g in upstream.items()}
    results = {k.rstrip("_"): v for k, v in outputs.items()}
    store(case, attributes, **inputs, **results, **gradients)


def rms_norm():
    def compute(x, weight, epsilon):
        out = F.rms_norm(x, (x.shape[-1],), weight, epsilon)
        return {"out": out, "rstd_": torch.rsqrt(x.pow(2).mean(-1) + epsilon)}

    for case, rows, width, scale in (("plain", 7, 13, 1), ("wide", 3, 129, 4), ("one", 1, 1, 1), ("small", 5, 8, 1e-3)):
        epsilon = {"epsilon": 1e-6 if case != "small" else 1e-5}
        record(f"rms_norm.{case}", compute, epsilon, x=normal(rows, width, scale=scale), weight=1 + normal(width))


def swiglu():
    def compute(gate, up):
        return {"out": F.silu(gate) * up}

    record("swiglu.plain", compute, gate=normal(7, 11), up=normal(7, 11))
    record("swiglu.large", compute, gate=normal(3, 17, scale=40), up=normal(3, 17, scale=100))


def activation():
    functions = {
        "silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu,
        "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    }  # fmt: skip
    for name, function in functions.items():
        x = torch.cat([normal(23), torch.tensor([-60.0, -9.0, 9.0, 60.0, 1e-20, -1e-20])])
        record(f"activation.{name}", lambda x, function=function: {"out": function(x)}, x=x)


def attention():
    """q [Tq, Hq, Dqk], k [Tk, Hk, Dqk], v [Tk, Hk, Dv]; query head h reads key head h * Hk / Hq."""

    def compute(q, k, v, segment_start, scale, query_offset, cache_length):
        queries, keys = q.shape[0], k.shape[0]
        position = torch.arange(queries)[:, None] + query_offset
        j = torch.arange(keys)[None, :]
        mask = (j <= position) & (j >= segment_start[:, None]) & (j < cache_length)
        assert mask.any(-1).all()
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        repeated = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = torch.einsum("ihd,jhd->ihj", q, repeated) * scale
        lse = scores.masked_fill(~mask[:, None, :], -math.inf).logsumexp(-1)
        return {"out": out, "lse_": lse}

    def case(name, queries, keys, hq, hk, dqk, dv, starts, offset=0, length=None, scale=None, spread=1.0):
        attributes = {
            "scale": dqk**-0.5 if scale is None else scale,
            "query_offset": offset,
            "cache_length": keys if length is None else length,
        }
        record(
            f"attention.{name}", compute, attributes,
            q=normal(queries, hq, dqk, scale=spread), k=normal(keys, hk, dqk, scale=spread), v=normal(keys, hk, dv),
            segment_start=torch.tensor(starts),
        )  # fmt: skip

    case("causal", 13, 13, 3, 3, 8, 8, [0] * 13)
    case("segments", 17, 17, 2, 2, 6, 5, [0] * 5 + [5] + [6] * 7 + [13] * 4)
    case("grouped", 11, 11, 6, 2, 12, 7, [0] * 4 + [4] * 7, scale=0.4)
    case("offset", 3, 19, 4, 2, 5, 9, [0, 0, 2], offset=12)
    case("cache", 2, 16, 2, 1, 4, 4, [0, 3], offset=8, length=10)
    case("single_token", 1, 1, 1, 1, 2, 3, [0])
    case("long", 70, 70, 1, 1, 6, 4, [0] * 33 + [33] * 37)
    case("steep", 9, 9, 1, 1, 8, 4, [0] * 9, spread=8.0)


def rope():
    """x [T, H, D] rotated by multiplication of complex numbers; table [P, 2, D/2] holds cos, then sin."""

    def compute(x, positions, table, layout, inverse):
        cos, sin = table.detach()[positions].unbind(1)
        turn = torch.complex(cos, -sin if inverse else sin)[:, None, :]
        if layout == "interleaved":
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return {"out": torch.view_as_real(pairs * turn).flatten(-2)}
        pairs = torch.complex(*x.chunk(2, dim=-1)) * turn
        return {"out": torch.cat([pairs.real, pairs.imag], dim=-1)}

    for layout in ("interleaved", "half"):
        for inverse in (False, True):
            size, tokens = 6, 9
            angle = torch.arange(12)[:, None] * 10000.0 ** -(torch.arange(0, size, 2) / size)
            table = torch.stack([angle.cos(), angle.sin()], dim=1)
            positions = torch.cat([torch.arange(5), torch.arange(4)]) + integers(4, tokens)
            attributes = {"layout": layout, "inverse": inverse}
            case = f"rope.{layout}{'_inverse' if inverse else ''}"
            x = normal(tokens, 2, size)
            record(case, compute, attributes, x=x, positions=positions, table=table)


def rope_frequencies():
    """YaRN's angular frequencies by transformers, for DeepSeek-V3's published settings and for odd ones."""
    published = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    odd = published | {
        "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 100, "beta_fast": 9.0,
        "mscale": 0.707, "mscale_all_dim": 0.5,
    }  # fmt: skip
    for case, size, parameters in (("published", 64, published), ("odd", 18, odd)):
        config = DeepseekV3Config(
            qk_rope_head_dim=size,
            max_position_embeddings=int(parameters["factor"] * parameters["original_max_position_embeddings"]),
            rope_parameters=dict(parameters),
        )
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        attributes = parameters | {"rope_size": size, "cos_sin_factor": factor}
        store(f"rope_frequencies.{case}", attributes, frequencies=frequencies)


def linear_cross_entropy():
    """x [T, W], weight [V, W]; loss is the mean over targets that are not -1, row_loss 0 where they are."""

    def compute(x, weight, targets):
        logits = F.linear(x, weight)
        rows = F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
        return {
            "loss": F.cross_entropy(logits, targets, ignore_index=-1),
            "row_loss_": rows,
            "lse_": logits.logsumexp(-1),
        }

    targets = integers(37, 11)
    targets[[0, 4, 10]] = -1
    record("linear_cross_entropy.ignored", compute, x=normal(11, 9), weight=normal(37, 9), targets=targets)
    record("linear_cross_entropy.one", compute, x=normal(1, 5), weight=normal(3, 5), targets=integers(3, 1))
    steep = {"x": normal(5, 8, scale=8), "weight": normal(67, 8, scale=8)}
    record("linear_cross_entropy.steep", compute, **steep, targets=integers(67, 5))


def softmax():
    record("softmax.plain", lambda x: {"out": x.softmax(-1)}, x=normal(5, 13, scale=4))


def product():
    def compute(a, b):
        return {"out": a @ b, "row_sums_": (a @ b).sum(-1)}

    for case, m, k, n in (("plain", 7, 13, 5), ("one", 1, 1, 1), ("tall", 33, 3, 2), ("deep", 2, 97, 3)):
        record(f"product.{case}", compute, a=normal(m, k), b=normal(k, n))


def grouped_product():
    """Rows sorted by expert; expert e has rows offsets[e] to offsets[e+1] and the matrix weight[e] [K, N]."""

    def compute(a, weight, offsets):
        ends = offsets.tolist()
        return {"out": torch.cat([a[i:j] @ weight[e] for e, (i, j) in enumerate(zip(ends, ends[1:]))])}

    offsets = torch.tensor([0, 4, 4, 5, 12, 12])
    record("grouped_product.empty_experts", compute, a=normal(12, 6), weight=normal(5, 6, 7), offsets=offsets)


def gather():
    """Rows of a table; the gradient adds up repeated rows. Index -1 gives zeros and no gradient."""

    def compute(table, indices):
        return {"out": F.embedding(indices.clamp(min=0), table) * (indices >= 0)[:, None]}

    indices = torch.tensor([3, 0, 3, -1, 6, 3, 0, -1])
    record("gather.repeated", compute, table=normal(7, 5), indices=indices)


def router():
    """transformers' router: logits [T, E] to weights [T, E], zero where not chosen; gradients of x, weight, logits."""
    cases = {
        "plain": dict(experts=5, top_k=2, groups=1, kept=1, norm=True, scaling=1.0, bias=0.0),
        "groups": dict(experts=12, top_k=4, groups=4, kept=2, norm=True, scaling=2.5, bias=0.2),
        "unnormalised": dict(experts=6, top_k=3, groups=1, kept=1, norm=False, scaling=1.5, bias=0.1),
        "top_1": dict(experts=8, top_k=1, groups=2, kept=1, norm=False, scaling=1.0, bias=0.1),
        "all": dict(experts=4, top_k=4, groups=2, kept=2, norm=True, scaling=1.0, bias=0.1),
    }
    for case, c in cases.items():
        config = DeepseekV3Config(
            hidden_size=7, n_routed_experts=c["experts"], num_experts_per_tok=c["top_k"], n_group=c["groups"],
            topk_group=c["kept"], norm_topk_prob=c["norm"], routed_scaling_factor=c["scaling"],
        )  # fmt: skip
        module = DeepseekV3TopkRouter(config)
        x = normal(13, 7).requires_grad_()
        module.weight.data = normal(c["experts"], 7)
        module.e_score_correction_bias = normal(c["experts"]) * c["bias"]
        logits, weights, indices = module(x)
        logits.retain_grad()
        dense = torch.zeros(13, c["experts"]).scatter(1, indices, weights)
        upstream = normal(13, c["experts"])
        (dense * upstream).sum().backward()
        chosen = torch.zeros(13, c["experts"]).scatter(1, indices, 1.0)
        sizes = {"n_routed_experts": c["experts"], "num_experts_per_tok": c["top_k"], "n_group": c["groups"]}
        sizes |= {"topk_group": c["kept"], "norm_topk_prob": c["norm"], "routed_scaling_factor": c["scaling"]}
        names = {"gate.weight": module.weight, "gate.e_score_correction_bias": module.e_score_correction_bias}
        _, ours, _, margin = route(x, names, "gate", sizes)
        assert torch.allclose(ours, dense, rtol=1e-6) and margin > 1e-4, f"router.{case}: differs, or a near tie"
        attributes = {
            "top_k": c["top_k"], "groups": c["groups"], "groups_kept": c["kept"], "normalise": c["norm"],
            "scaling": c["scaling"], "epsilon": 1e-20,
        }  # fmt: skip
        store(
            f"router.{case}", attributes, x=x, weight=module.weight, bias=module.e_score_correction_bias,
            logits=logits, scores=logits.sigmoid(), weights=dense, chosen=chosen.int(), load=chosen.sum(0).int(),
            weights_gradient=upstream, x_gradient=x.grad, weight_gradient=module.weight.grad,
            logits_gradient=logits.grad,
        )  # fmt: skip


def balance():
    """The sequence-wise balance loss from logits; counts by plain affinity (V3 eq. 18) or as given in chosen."""
    for counts in ("affinity", "selected"):
        rows, length, experts, top_k, alpha = 3, 7, 6, 2, 0.01
        chosen = torch.zeros(rows * length, experts)
        chosen.scatter_(1, normal(rows * length, experts).topk(top_k).indices, 1.0)

        def compute(logits, chosen, rows, top_k, alpha, counts):
            config = {
                "n_routed_experts": logits.shape[1], "num_experts_per_tok": top_k, "aux_loss_alpha": alpha,
                "balance_counts": counts,
            }  # fmt: skip
            return {"loss": balance_loss(logits.sigmoid(), chosen.double(), config, rows)[0]}

        attributes = {"rows": rows, "top_k": top_k, "alpha": alpha, "counts": counts}
        logits = normal(rows * length, experts)
        record(f"balance.{counts}", compute, attributes, logits=logits, chosen=chosen.int())


def adamw():
    """torch.optim.AdamW, f32, five steps: the state after each step, [5, ...]."""
    cases = {
        "decay": dict(lr=[1e-2, 8e-3, 6e-3, 4e-3, 2e-3], decay=0.1, betas=(0.9, 0.95), epsilon=1e-8),
        "plain": dict(lr=[3e-4] * 5, decay=0.0, betas=(0.9, 0.999), epsilon=1e-6),
    }
    for case, c in cases.items():
        parameter = normal(5, 7).requires_grad_()
        initial = parameter.detach().clone()
        gradients = normal(5, 5, 7)
        gradients[1, 0] = 0.0
        gradients[:, 1] = 0.0
        gradients[:, 2] *= 1e-7
        optimizer = torch.optim.AdamW(
            [parameter], betas=c["betas"], eps=c["epsilon"], weight_decay=c["decay"], foreach=False
        )
        history = {"parameters": [], "first_moments": [], "second_moments": []}
        for rate, gradient in zip(c["lr"], gradients):
            optimizer.param_groups[0]["lr"] = rate
            parameter.grad = gradient.clone()
            optimizer.step()
            state = optimizer.state[parameter]
            history["parameters"].append(parameter.detach().clone())
            history["first_moments"].append(state["exp_avg"].clone())
            history["second_moments"].append(state["exp_avg_sq"].clone())
        attributes = {
            "learning_rates": c["lr"], "weight_decay": c["decay"], "beta1": c["betas"][0], "beta2": c["betas"][1],
            "epsilon": c["epsilon"],
        }  # fmt: skip
        history = {k: torch.stack(v) for k, v in history.items()}
        store(f"adamw.{case}", attributes, initial=initial, gradients=gradients, **history)


def clip():
    """torch.nn.utils.clip_grad_norm_ over three tensors: the norm before, the gradients after."""
    for case, bound in (("active", 1.0), ("idle", 100.0)):
        gradients = [normal(4, 3), normal(7), normal(1)]
        parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, bound, foreach=False)
        operands = {f"gradient.{i}": g for i, g in enumerate(gradients)}
        operands |= {f"clipped.{i}": p.grad for i, p in enumerate(parameters)}
        store(f"clip.{case}", {"clip_norm": bound}, norm=norm, **operands)


OPERATORS = [
    rms_norm, swiglu, activation, attention, rope, rope_frequencies, linear_cross_entropy, softmax, product,
    grouped_product, gather, router, balance, adamw, clip,
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    path = pathlib.Path(__file__).parent / "operators.safetensors"
    check = parser.parse_args().check
    torch.set_num_threads(1)
    for index, operator in enumerate(OPERATORS):
        GENERATOR.manual_seed(1000 + index)
        operator()
    metadata = {case: json.dumps(attributes) for case, attributes in ATTRIBUTES.items()}
    metadata |= {"format": FORMAT, "torch": torch.__version__, "transformers": transformers.__version__}
    if not check:
        save_file(TENSORS, path, metadata=metadata)
        path.chmod(0o644)
        print(f"{path.name}: {len(ATTRIBUTES)} cases, {len(TENSORS)} tensors, {path.stat().st_size} bytes")
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS), f"{path}: other tensors; write the record again"
        for name, value in TENSORS.items():
            stored = file.get_tensor(name)
            assert stored.dtype == value.dtype, f"{path}: {name} has another dtype"
            assert torch.allclose(stored, value, rtol=1e-5, atol=1e-6), f"{path}: {name} differs"
    print(f"{path.name}: agrees")


if __name__ == "__main__":
    main()
