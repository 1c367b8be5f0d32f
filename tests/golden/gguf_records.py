"""Writes the records in gguf/ from those in hub/, with the `gguf` package: the same models under ggml's names, so that
hub/'s `expected.safetensors` holds for them too; and one file with blocks of every format beside what they stand for.

    pip install gguf torch safetensors
    python gguf_records.py            # writes
    python gguf_records.py --check    # writes elsewhere and compares with the committed files
"""

import argparse
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.torch import load_file

HERE = Path(__file__).parent
BLOCKS = [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.F16, Kind.BF16]
# Where the f16 numbers of a block begin; any bytes will do for the others.
SCALES = {
    Kind.Q8_0: [0], Kind.Q4_0: [0], Kind.Q4_1: [0, 2], Kind.Q5_0: [0], Kind.Q5_1: [0, 2], Kind.Q4_K: [0, 2],
    Kind.Q5_K: [0, 2], Kind.Q6_K: [208],
}


def blocks(path):
    """Three blocks of each format, drawn at random, and their elements by the package's own dequantisation."""
    random = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, "blocks")
    for kind in BLOCKS:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        raw = random.integers(0, 256, (3, size), dtype=np.uint8)
        for at in SCALES.get(kind, []):
            raw[:, at : at + 2] = random.normal(0, 0.1, (3, 1)).astype(np.float16).view(np.uint8)
        if kind not in SCALES:
            whole = random.normal(0, 1, (3, 32)).astype(np.float32)
            raw = gguf.quants.quantize(whole, kind).view(np.uint8)
        want = dequantize(raw, kind).astype(np.float32)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(f"want.{kind.name}", want)
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(name):
    """Published tensors of a record in f32, eight-bit ones with their scales applied."""
    folder, tensors = HERE / "hub" / name, {}
    for shard in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(shard)
    whole = {}
    for key, value in tensors.items():
        if key.endswith("_scale_inv"):
            continue
        number = value.float()
        if key + "_scale_inv" in tensors:
            scales = tensors[key + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            number = number * scales[: number.shape[0], : number.shape[1]]
        whole[key] = number.numpy()
    return json.loads((folder / "config.json").read_text()), whole


def pairs(rows, heads):
    """Rows of each head as llama.cpp's converter reorders them for Llama."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def base(writer, config, theta):
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])


def named(writer, architecture, layers, tensors):
    names = gguf.get_tensor_name_map(architecture, layers)
    for key, value in tensors.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        # ggml keeps vectors in f32; matrices alternate between the formats that lose nothing here.
        exact = np.array_equal(value.astype(np.float16).astype(np.float32), value)
        if value.ndim > 1 and exact and "v_proj" in key:
            value = value.astype(np.float16)
        writer.add_tensor(name, np.ascontiguousarray(value))


def llama(path, record, architecture):
    config, tensors = weights(record)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    base(writer, config, config["rope_parameters"]["rope_theta"])
    writer.add_head_count_kv(groups)
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    if architecture == "llama":
        for key, value in tensors.items():
            if "q_proj" in key or "k_proj" in key:
                tensors[key] = pairs(value, heads if "q_proj" in key else groups)
    kind = gguf.MODEL_ARCH.LLAMA if architecture == "llama" else gguf.MODEL_ARCH.QWEN2
    named(writer, kind, config["num_hidden_layers"], tensors)
    close(writer)


def deepseek(path, record, split):
    config, tensors = weights(record)
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    scaling = config["rope_scaling"]
    writer = gguf.GGUFWriter(path, "deepseek2")
    base(writer, config, config["rope_theta"])
    writer.add_head_count_kv(1 if split else heads)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope if split else nope + rope)
    writer.add_value_length(rank if split else value)
    if split:
        writer.add_key_length_mla(nope + rope)
        writer.add_value_length_mla(value)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    whole = {}
    for key, number in tensors.items():
        if ".mlp.experts." in key:
            layer, _, matrix = key.partition(".mlp.experts.")
            _, _, matrix = matrix.partition(".")
            whole.setdefault(f"{layer}.mlp.experts.{matrix}", []).append((int(key.split(".")[5]), number))
        elif split and "kv_b_proj" in key:
            by_head = number.reshape(heads, nope + value, rank)
            whole[key.replace("kv_b_proj", "k_b_proj")] = by_head[:, :nope].swapaxes(1, 2)
            whole[key.replace("kv_b_proj", "v_b_proj")] = by_head[:, nope:]
        else:
            whole[key.replace("e_score_correction_bias", "e_score_correction.bias")] = number
    for key, number in whole.items():
        if isinstance(number, list):
            whole[key] = np.stack([matrix for _, matrix in sorted(number, key=lambda entry: entry[0])])
    named(writer, gguf.MODEL_ARCH.DEEPSEEK2, config["num_hidden_layers"], whole)
    close(writer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere) if check else HERE / "gguf"
        folder.mkdir(exist_ok=True)
        blocks(folder / "blocks.gguf")
        llama(folder / "llama.gguf", "llama-default", "llama")
        llama(folder / "qwen2.gguf", "qwen2-default", "qwen2")
        deepseek(folder / "deepseek2.gguf", "deepseek-fp8", False)
        deepseek(folder / "deepseek2-split.gguf", "deepseek-fp8", True)
        for path in sorted(folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size} bytes")
            if check:
                assert path.read_bytes() == (HERE / "gguf" / path.name).read_bytes(), f"{path.name} differs"


if __name__ == "__main__":
    main()
