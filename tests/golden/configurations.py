"""Configurations, initial parameters and packed batches of the golden records. See deepseek_v3.py and README.md."""

import math

import torch


def is_bias(name):
    return name.endswith("e_score_correction_bias")


BASE = {
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "max_position_embeddings": 64,
    "q_lora_rank": None,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
    # Ours, for training.
    "mtp_hidden_states_first": False,
    "mtp_chain_post_norm": True,
    "mtp_loss_lambda": 0.3,
    "aux_loss_alpha": 0.02,
    "balance_counts": "affinity",
    "bias_update_speed": 0.003,
    "batch_size": 2,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-8,
    "clip_norm": 2.0,
    "learning_rates": [2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 7e-3, 6e-3, 4e-3, 2e-3, 1e-3],
    "initial_bias_range": 0.0,
}

CONFIGS = {
    # No experts: MLA without query compression, plain RoPE.
    "dense": {
        "vocab_size": 31, "hidden_size": 13, "intermediate_size": 19, "moe_intermediate_size": 7,
        "num_hidden_layers": 2, "num_attention_heads": 3, "kv_lora_rank": 9, "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4, "v_head_dim": 7, "first_k_dense_replace": 2, "n_routed_experts": 5,
        "num_experts_per_tok": 2, "sequence_length": 13,
    },
    # Experts without groups, one prediction depth, weights that are not normalised, half-split RoPE.
    "moe": {
        "vocab_size": 29, "hidden_size": 12, "intermediate_size": 17, "moe_intermediate_size": 5,
        "num_hidden_layers": 3, "num_attention_heads": 3, "kv_lora_rank": 7, "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4, "v_head_dim": 5, "first_k_dense_replace": 1, "n_routed_experts": 5,
        "num_experts_per_tok": 2, "norm_topk_prob": False, "rope_interleave": False,
        "num_nextn_predict_layers": 1, "sequence_length": 13, "batch_size": 3,
    },
    # Everything: query compression, YaRN, groups, scaling, two shared experts, a bias that matters, two depths.
    "full": {
        "vocab_size": 37, "hidden_size": 11, "intermediate_size": 15, "moe_intermediate_size": 3,
        "num_hidden_layers": 2, "num_attention_heads": 3, "q_lora_rank": 10, "kv_lora_rank": 8,
        "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 5, "first_k_dense_replace": 1,
        "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
        "n_shared_experts": 2, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 2,
        "sequence_length": 17, "initial_bias_range": 0.1, "bias_update_speed": 0.01,
        "rope_theta": 100.0, "max_position_embeddings": 64,
        "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0,
            "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.8,
        },
    },
    # Experts from the first layer on (some get no token), one head, no shared expert, top-1, query compression
    # without YaRN.
    "single": {
        "vocab_size": 23, "hidden_size": 10, "intermediate_size": 14, "moe_intermediate_size": 3,
        "num_hidden_layers": 2, "num_attention_heads": 1, "q_lora_rank": 11, "kv_lora_rank": 6,
        "qk_nope_head_dim": 5, "qk_rope_head_dim": 2, "v_head_dim": 9, "first_k_dense_replace": 0,
        "n_routed_experts": 12, "n_group": 3, "topk_group": 1, "num_experts_per_tok": 1,
        "n_shared_experts": 0, "norm_topk_prob": False, "routed_scaling_factor": 1.5,
        "sequence_length": 11,
    },
    # Muon: matrices wider and higher than the other side, experts that get no token, a prediction depth.
    "muon": {
        "vocab_size": 19, "hidden_size": 10, "intermediate_size": 14, "moe_intermediate_size": 4,
        "num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 6, "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 2, "v_head_dim": 7, "first_k_dense_replace": 1, "n_routed_experts": 6,
        "num_experts_per_tok": 1, "num_nextn_predict_layers": 1, "sequence_length": 9,
        "muon": {"momentum": 0.95, "nesterov": True, "steps": 5},
    },
}  # fmt: skip


def parameter_shapes(config):
    """{name: shape} of everything that the configuration has, in the published weights' names."""
    c = config
    width, heads = c["hidden_size"], c["num_attention_heads"]
    query = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], width)}

    def mlp(prefix, size):
        for name, shape in (("gate", (size, width)), ("up", (size, width)), ("down", (width, size))):
            shapes[f"{prefix}.{name}_proj.weight"] = shape

    for layer in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        prefix = f"model.layers.{layer}"
        if layer >= c["num_hidden_layers"]:
            shapes[f"{prefix}.enorm.weight"] = (width,)
            shapes[f"{prefix}.hnorm.weight"] = (width,)
            shapes[f"{prefix}.eh_proj.weight"] = (width, 2 * width)
        shapes[f"{prefix}.input_layernorm.weight"] = (width,)
        attention = f"{prefix}.self_attn"
        if c["q_lora_rank"] is None:
            shapes[f"{attention}.q_proj.weight"] = (query, width)
        else:
            shapes[f"{attention}.q_a_proj.weight"] = (c["q_lora_rank"], width)
            shapes[f"{attention}.q_a_layernorm.weight"] = (c["q_lora_rank"],)
            shapes[f"{attention}.q_b_proj.weight"] = (query, c["q_lora_rank"])
        shapes[f"{attention}.kv_a_proj_with_mqa.weight"] = (c["kv_lora_rank"] + c["qk_rope_head_dim"], width)
        shapes[f"{attention}.kv_a_layernorm.weight"] = (c["kv_lora_rank"],)
        expanded = heads * (c["qk_nope_head_dim"] + c["v_head_dim"])
        shapes[f"{attention}.kv_b_proj.weight"] = (expanded, c["kv_lora_rank"])
        shapes[f"{attention}.o_proj.weight"] = (width, heads * c["v_head_dim"])
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
        if layer < c["first_k_dense_replace"]:
            mlp(f"{prefix}.mlp", c["intermediate_size"])
        else:
            shapes[f"{prefix}.mlp.gate.weight"] = (c["n_routed_experts"], width)
            shapes[f"{prefix}.mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
            for expert in range(c["n_routed_experts"]):
                mlp(f"{prefix}.mlp.experts.{expert}", c["moe_intermediate_size"])
            if c["n_shared_experts"]:
                mlp(f"{prefix}.mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
        if layer >= c["num_hidden_layers"]:
            shapes[f"{prefix}.shared_head.norm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    shapes["lm_head.weight"] = (c["vocab_size"], width)
    return shapes


def initial_parameters(config, generator):
    """Matrices N(0, 1/columns), norms near 1, embedding N(0, 1): far from zero, so that every term shows."""
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        x = torch.randn(shape, generator=generator)
        if is_bias(name):
            x = x.clamp(-2, 2) * config["initial_bias_range"]
        elif len(shape) == 1:
            x = 1 + 0.2 * x
        elif name != "model.embed_tokens.weight":
            x = x / math.sqrt(shape[1])
        parameters[name] = x
    return parameters


def packed_batch(config, generator):
    """Random documents packed into rows of sequence_length tokens.

    Each row is cut from a window of sequence_length + 1 tokens, so its last target may lie beyond the row.
    A row's border ends a document part; nothing is looked up beyond the window or the document: -1 there.
    """
    rows, length, depths = config["batch_size"], config["sequence_length"], config["num_nextn_predict_layers"]
    columns = ["tokens", "targets", "positions", "segment_start"]
    columns += [f"mtp_{kind}.{depth}" for depth in range(1, depths + 1) for kind in ("tokens", "targets")]
    batch = {name: [] for name in columns}
    for row in range(rows):
        window = torch.randint(config["vocab_size"], (length + 1,), generator=generator).tolist()
        document, starts = [], [0]
        while len(document) <= length:
            size = int(torch.randint(1, length, (1,), generator=generator))
            document += [len(starts)] * size
            starts.append(starts[-1] + size)
        for i in range(length):
            start = starts[document[i] - 1]

            def token_at(offset, i=i):
                j = i + offset
                return window[j] if j <= length and document[j] == document[i] else -1

            batch["tokens"].append(window[i])
            batch["targets"].append(token_at(1))
            batch["positions"].append(i - start)
            batch["segment_start"].append(row * length + start)
            for depth in range(1, depths + 1):
                batch[f"mtp_tokens.{depth}"].append(token_at(depth))
                batch[f"mtp_targets.{depth}"].append(token_at(depth + 1))
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    for name, values in batch.items():
        if name.startswith(("targets", "mtp_targets")):
            assert (values >= 0).any(), f"{name}: no valid target in a batch"
    return batch
