"""Writes the records in hub/: small random models in Hugging Face's own folders, and what transformers computes for them.

Each folder holds what `save_pretrained` wrote (config.json, weights in one file or in shards) and `expected.safetensors`:
`tokens` i32 [T], `logits` f32 [T, vocabulary], `loss` f32 [1] (the mean over the T - 1 next tokens) and
`gradient.<published name>` f32. All weights are exact in the dtype that they are stored in.

    python hub.py            # writes
    python hub.py --check    # computes again and compares with the committed files; writes nothing
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "hub"
TOKENS = 37
BOUND = 1e-5

LLAMA = dict(
    vocab_size=43, hidden_size=12, intermediate_size=22, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
)
DEEPSEEK = dict(
    vocab_size=37, hidden_size=14, intermediate_size=22, moe_intermediate_size=5, num_hidden_layers=2,
    num_attention_heads=3, num_key_value_heads=3, n_routed_experts=6, num_experts_per_tok=2, n_group=3, topk_group=2,
    n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=9, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=5, routed_scaling_factor=1.5, max_position_embeddings=64, num_mtp_layers=0,
)
YARN = dict(rope_type="yarn", rope_theta=120.0, factor=4.0, original_max_position_embeddings=16)

# name, architecture, overrides, dtype of the weights, seed, what else is done to the folder
CASES = [
    ("llama-default", "Llama", dict(head_dim=6, rope_parameters=dict(rope_type="default", rope_theta=300.0)),
     "float32", 1, {"shard": "6KB"}),
    ("llama-llama3", "Llama", dict(
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, hidden_size=16, num_attention_heads=4,
        rope_parameters=dict(rope_type="llama3", rope_theta=80.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=16)), "bfloat16", 2, {}),
    ("llama-linear", "Llama", dict(
        num_attention_heads=3, num_key_value_heads=3, rope_parameters=dict(
            rope_type="linear", rope_theta=90.0, factor=2.5)), "float16", 3, {"old": True}),
    ("llama-yarn", "Llama", dict(
        num_attention_heads=3, num_key_value_heads=1, head_dim=10, num_hidden_layers=1,
        rope_parameters=dict(YARN, truncate=False, beta_fast=4.0, beta_slow=0.5)), "bfloat16", 4, {}),
    ("qwen2-default", "Qwen2", dict(
        hidden_size=16, tie_word_embeddings=True, rope_parameters=dict(
            rope_type="default", rope_theta=1000.0)), "bfloat16", 5, {}),
    ("qwen2-yarn", "Qwen2", dict(
        hidden_size=18, num_attention_heads=3, num_key_value_heads=1, rope_parameters=dict(
            YARN, attention_factor=1.25)), "bfloat16", 6, {"old": True}),
    ("deepseek-default", "DeepseekV3", dict(
        rope_interleave=False, norm_topk_prob=False, n_group=1, topk_group=1, n_routed_experts=5,
        rope_parameters=dict(rope_type="default", rope_theta=50.0)), "float32", 7, {}),
    ("deepseek-yarn", "DeepseekV3", dict(
        q_lora_rank=7, n_shared_experts=2, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=0.7)),
     "bfloat16", 8, {}),
    ("deepseek-mscale", "DeepseekV3", dict(
        num_hidden_layers=1, rope_parameters=dict(YARN, mscale=0.6, mscale_all_dim=0.0)), "bfloat16", 9, {}),
    ("deepseek-fp8", "DeepseekV3", dict(
        hidden_size=20, intermediate_size=131, q_lora_rank=8, num_mtp_layers=1,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0)), "bfloat16", 10, {"fp8": True, "old": True}),
]


def draw(model, seed, dtype):
    """Parameters far from zero, exact in `dtype`: matrices N(0, 1/columns), norms near 1, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            drawn = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight"):
                drawn = 1 + 0.2 * drawn
            elif value.dim() == 1:
                drawn = 0.2 * drawn
            else:
                drawn = drawn * value.shape[-1] ** -0.5
            value.copy_(drawn.to(dtype))


def old_spelling(folder):
    """config.json as transformers 4 wrote it: rope_theta beside rope_scaling."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = rope if rope["type"] != "default" else None
    path.write_text(json.dumps(config, indent=2) + "\n")


def to_fp8(folder):
    """Every matrix of a layer in E4M3 with a scale for each 128 x 128 block, as DeepSeek publishes them; gives the weights
    that they stand for."""
    path = folder / "model.safetensors"
    weights, stored, meant = load_file(path), {}, {}
    for name, value in weights.items():
        quantised = value.dim() == 2 and ".layers." in name and "mlp.gate.weight" not in name
        if not quantised:
            stored[name] = value
            meant[name] = value.float()
            continue
        rows, columns = value.shape
        scales = torch.zeros(-(-rows // 128), -(-columns // 128))
        eight, whole = torch.zeros(value.shape, dtype=torch.float8_e4m3fn), torch.zeros(value.shape)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                scales[i, j] = value[block].float().abs().max() / 448
                eight[block] = (value[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
                whole[block] = eight[block].float() * scales[i, j]
        stored[name], stored[name + "_scale_inv"], meant[name] = eight, scales, whole
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return meant


def expect(model, tokens, gradients):
    model.zero_grad()
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])
    expected = {"tokens": tokens.int(), "logits": logits.detach(), "loss": loss.detach()[None]}
    if gradients:
        loss.backward()
        expected |= published(model)
    return {name: value.contiguous() for name, value in expected.items()}


def published(model):
    """Gradients under published names: transformers stacks the experts' matrices, the files do not."""
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(gradient):
                gate, up = both.chunk(2)
                base = name.removesuffix("gate_up_proj") + str(expert)
                gradients[f"gradient.{base}.gate_proj.weight"] = gate
                gradients[f"gradient.{base}.up_proj.weight"] = up
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(gradient):
                gradients[f"gradient.{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = down
        else:
            gradients[f"gradient.{name}"] = gradient
    return gradients


def write(folder, case):
    name, architecture, overrides, dtype, seed, extra = case
    dtype = getattr(torch, dtype)
    base = DEEPSEEK if architecture == "DeepseekV3" else LLAMA
    config = getattr(transformers, architecture + "Config")(
        **(base | overrides), bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = getattr(transformers, architecture + "ForCausalLM")(config)
    draw(model, seed, dtype)
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = torch.randint(config.vocab_size, (TOKENS,), generator=generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=extra.get("shard", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    # What is computed is what the folder holds: a model that was cast has cast its rotary tables too.
    if extra.get("fp8"):
        meant = to_fp8(folder)
        with tempfile.TemporaryDirectory() as plain:
            model.save_pretrained(plain)
            save_file(meant, Path(plain) / "model.safetensors", metadata={"format": "pt"})
            expected = expect(opened(plain), tokens, False)
    else:
        expected = expect(opened(folder), tokens, True)
    if extra.get("old"):
        old_spelling(folder)
        if not extra.get("fp8"):
            assert torch.equal(expect(opened(folder), tokens, False)["logits"], expected["logits"]), name
    save_file(expected, folder / "expected.safetensors")


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")


def check(name, fresh, committed):
    files = {path.name for path in fresh.iterdir()}
    assert files == {path.name for path in committed.iterdir()}, f"{name}: {files}"
    for path in sorted(fresh.glob("*.safetensors")):
        want, have = load_file(committed / path.name), load_file(path)
        assert want.keys() == have.keys(), f"{name}/{path.name}: other tensors"
        for key in want:
            a, b = want[key].float(), have[key].float()
            assert a.shape == b.shape and (a - b).abs().max() <= BOUND * a.abs().max().clamp(min=1e-3), f"{name}: {key}"
    print(f"{name}: as committed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / case[0]
            fresh.mkdir()
            write(fresh, case)
            committed = HERE / case[0]
            if arguments.check:
                check(case[0], fresh, committed)
                continue
            shutil.rmtree(committed, ignore_errors=True)
            shutil.copytree(fresh, committed)
            size = sum(path.stat().st_size for path in committed.iterdir())
            print(f"{case[0]}: {size} bytes")


if __name__ == "__main__":
    main()
