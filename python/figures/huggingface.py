"""Figures on models of Hugging Face: calls, share checked, false alarms, cost with and without lockstep.

    python figures/huggingface.py [--steps 20] [--models llama,qwen2,deepseek_v3,gpt2] [--dtypes float32,bfloat16]
        [--attention eager,sdpa] [--optimizers for-loop,foreach,fused]

Tiny configurations, made here, random weights, AdamW in all its forms. Needs transformers. Exits with 1 where a right
machine was called wrong, or less than 98 % of the calls were checked.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from typing import Any, Callable, Dict, List

import torch

import toprope

VOCABULARY = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def llama(attention: str) -> Any:
    """A Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=attention))


def qwen2(attention: str) -> Any:
    """A Qwen2 with grouped queries."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, attn_implementation=attention))


def deepseek_v3(attention: str) -> Any:
    """A DeepSeek-V3 with latent attention and experts."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32}
    latent = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    config = DeepseekV3Config(
        **SIZES, **experts, **latent, num_key_value_heads=4, first_k_dense_replace=1, attn_implementation=attention
    )
    return DeepseekV3ForCausalLM(config)


def gpt2(attention: str) -> Any:
    """A GPT-2 with dropout outside of attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, attn_pdrop=0.0, attn_implementation=attention)
    )


MODELS: Dict[str, Callable[[str], Any]] = {"llama": llama, "qwen2": qwen2, "deepseek_v3": deepseek_v3, "gpt2": gpt2}

OPTIMIZERS: Dict[str, Dict[str, bool]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class Training:
    """A model, its optimizer and its batches."""

    def __init__(self, name: str, attention: str, dtype: torch.dtype, optimizer: Dict[str, bool], seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = MODELS[name](attention).to(dtype).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, **optimizer)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self) -> torch.Tensor:
        """One training step; gives the loss."""
        tokens = torch.randint(0, VOCABULARY, (2, 33), generator=self.generator)
        loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(name: str, attention: str, dtype: torch.dtype, optimizer: str, steps: int) -> Any:
    """The report of a watched training, and the seconds that the same steps take unwatched."""
    plain = Training(name, attention, dtype, OPTIMIZERS[optimizer])
    plain.step()
    begin = time.perf_counter()
    for _ in range(steps):
        plain.step()
    without = time.perf_counter() - begin
    watched = Training(name, attention, dtype, OPTIMIZERS[optimizer])
    with toprope.lockstep() as run:
        for _ in range(steps):
            watched.step()
    return run.report(), without


def main(arguments: List[str]) -> int:
    """Prints a row for each combination."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--attention", default="eager,sdpa")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="of the Llama; the others take foreach")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    totals: Dict[str, int] = collections.Counter()
    print(f"torch {torch.__version__}, {options.steps} steps each, {options.threads} thread(s)")
    print("| model | attention | dtype | AdamW | operators | calls | checked | false alarms | s without | s with | times |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    worst = 1.0
    for name in options.models.split(","):
        for attention in options.attention.split(","):
            for dtype in options.dtypes.split(","):
                for optimizer in options.optimizers.split(",") if name == "llama" else ("foreach",):
                    report, without = measure(name, attention, getattr(torch, dtype), optimizer, options.steps)
                    totals["calls"] += report.calls
                    totals["wrong"] += report.wrong_calls
                    worst = min(worst, report.coverage["share"])
                    seconds = report.cost["seconds"]
                    print(
                        f"| {name} | {attention} | {dtype} | {optimizer} | {len(report.operators)} | {report.calls} | "
                        f"{report.coverage['share']:.2%} | {report.wrong_calls} | {without:.2f} | {seconds:.2f} | "
                        f"{seconds / without:.0f} |",
                        flush=True,
                    )
                    for item in report.not_checked:
                        totals[f"{item['status']}: {item['operator']}: {item['reason']}"] += item["calls"]
                    if report.first_wrong is not None:
                        print(report.table(3), flush=True)
    wrong = totals.pop("wrong")
    print(f"{totals.pop('calls')} calls, {wrong} called wrong, least share checked {worst:.2%}")
    for text, count in totals.items():
        print(f"{text} ×{count}")
    return 0 if worst >= 0.98 and wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
