"""Compares the model in deepseek_v3.py with transformers' DeepseekV3 on the same weights and packed batch."""

import torch
import transformers
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

from deepseek_v3 import attention_mask, embed, forward

BOUND = 1e-5


def theirs_config(config):
    """transformers' configuration; it spells RoPE's keys differently from the published config.json."""
    known = {
        key: config[key]
        for key in """vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers
        num_attention_heads n_routed_experts routed_scaling_factor kv_lora_rank q_lora_rank
        qk_rope_head_dim v_head_dim qk_nope_head_dim n_group topk_group num_experts_per_tok first_k_dense_replace
        norm_topk_prob hidden_act max_position_embeddings rms_norm_eps tie_word_embeddings rope_interleave
        attention_bias""".split()
    }
    # Its shared expert cannot be absent: one is built and its weights are left at zero.
    known["n_shared_experts"] = max(config["n_shared_experts"], 1)
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    if config["rope_scaling"] is not None:
        rope |= config["rope_scaling"]
        rope["rope_type"] = rope.pop("type")
    return theirs.DeepseekV3Config(
        **known,
        num_key_value_heads=config["num_attention_heads"],
        rope_parameters=rope,
        attn_implementation="eager",
        experts_implementation="eager",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def load(module, weights, prefix, experts):
    """Copies weights[prefix + name] into the module; it stacks the experts' matrices, the published files don't."""
    missing = []
    state = module.state_dict()
    for name, target in state.items():
        if name.endswith("experts.gate_up_proj"):
            base = prefix + name.removesuffix("gate_up_proj")
            value = torch.stack(
                [
                    torch.cat([weights[f"{base}{e}.gate_proj.weight"], weights[f"{base}{e}.up_proj.weight"]])
                    for e in range(experts)
                ]
            )
        elif name.endswith("experts.down_proj"):
            base = prefix + name.removesuffix("down_proj")
            value = torch.stack([weights[f"{base}{e}.down_proj.weight"] for e in range(experts)])
        elif prefix + name in weights:
            value = weights[prefix + name]
        else:
            missing.append(name)
            value = torch.zeros_like(target)
        assert value.shape == target.shape, f"{prefix}{name}: {value.shape} is not {target.shape}"
        target.copy_(value)
    return missing


@torch.no_grad()
def compare(weights, batch, config):
    """Largest differences of the trunk's logits and of each depth's, asserted to lie within BOUND."""
    experts = config["n_routed_experts"]
    model = theirs.DeepseekV3ForCausalLM(theirs_config(config)).eval()
    missing = load(model, weights, "", experts)
    assert all("shared_experts" in name and not config["n_shared_experts"] for name in missing), missing
    visible = attention_mask(batch)
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = batch["positions"][None]
    out = model.model(batch["tokens"][None], attention_mask=mask, position_ids=positions, use_cache=False)
    hidden = out.last_hidden_state
    ours = forward(weights, batch, config)["logits"]
    logits = [model.lm_head(hidden)[0]]

    # Its modules read [embedding, hidden] after the final norm: the published weights' convention.
    if not config["mtp_hidden_states_first"] and config["mtp_chain_post_norm"]:
        for depth in range(1, config["num_nextn_predict_layers"] + 1):
            layer = config["num_hidden_layers"] + depth - 1
            module = MtpLayer(model.config, theirs.DeepseekV3DecoderLayer, theirs.DeepseekV3RMSNorm, layer).eval()
            prefix = f"model.layers.{layer}."
            renamed = {}
            for name, value in weights.items():
                if name.startswith(prefix):
                    rest = name.removeprefix(prefix)
                    own = rest.startswith(("enorm", "hnorm", "eh_proj"))
                    norm = rest.startswith("shared_head.norm")
                    renamed["post_norm.weight" if norm else rest if own else f"mtp_block.{rest}"] = value
            assert not load(module, renamed, "", experts)
            table = weights["model.embed_tokens.weight"]
            hidden = module(
                embed(batch[f"mtp_tokens.{depth}"], table)[None],
                hidden,
                position_embeddings=model.model.rotary_emb(hidden, positions),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=None,
            )
            logits.append(model.lm_head(hidden)[0])

    differences = [(a - b).abs().max().item() for a, b in zip(ours, logits)]
    for difference, expected in zip(differences, logits):
        bound = BOUND * max(1.0, expected.abs().max().item())
        assert difference <= bound, f"differs from transformers: {differences}"
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "difference": [float(f"{d:.2g}") for d in differences],
    }
