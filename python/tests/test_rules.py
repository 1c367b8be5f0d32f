"""Right devices are not called wrong: torch's own CPU kernels, each operator in each dtype, over many magnitudes.

And a rule is no rubber stamp: a result that is off by a few units of its tolerance is called wrong (`test_judge.py`).
"""

from __future__ import annotations

from typing import Callable, Dict, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import toprope

A = torch.ops.aten
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Draw:
    """Operands of one seed in one dtype."""

    def __init__(self, seed: int, dtype: torch.dtype, scale: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.scale = dtype, scale

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers."""
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return (values * scale * self.scale).to(self.dtype)

    def positive(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Positive numbers."""
        return self.normal(*shape, scale=scale).abs() + torch.finfo(self.dtype).tiny

    def whole(self, below: int, *shape: int) -> Tensor:
        """Whole numbers from 0."""
        return torch.randint(below, shape, generator=self.generator)

    def mask(self, *shape: int) -> Tensor:
        """Booleans."""
        return torch.rand(*shape, generator=self.generator) < 0.5


Sample = Callable[[Draw], object]

SAMPLES: Dict[str, Sample] = {
    "add": lambda d: A.add(d.normal(5, 7), d.normal(7), alpha=0.3),
    "add scalar": lambda d: A.add(d.normal(5, 7), 1e-3),
    "add_ in place": lambda d: d.normal(64).add_(d.normal(64)),
    "sub": lambda d: A.sub(d.normal(5, 7), d.normal(5, 1)),
    "mul": lambda d: A.mul(d.normal(5, 7), d.normal(5, 7)),
    "mul scalar": lambda d: A.mul(d.normal(5, 7), 0.1),
    "div": lambda d: A.div(d.normal(5, 7), d.positive(5, 7)),
    "div scalar": lambda d: A.div(d.normal(5, 7), 3.0),
    "reciprocal": lambda d: A.reciprocal(d.positive(99)),
    "sqrt": lambda d: A.sqrt(d.positive(99)),
    "rsqrt": lambda d: A.rsqrt(d.positive(99)),
    "pow 2": lambda d: A.pow(d.normal(99), 2),
    "pow 3": lambda d: A.pow(d.normal(99), 3),
    "pow 1.7": lambda d: A.pow(d.positive(99), 1.7),
    "pow tensors": lambda d: A.pow(d.positive(99), d.normal(99)),
    "exp": lambda d: A.exp(d.normal(500)),
    "log": lambda d: A.log(d.positive(500)),
    "log1p": lambda d: A.log1p(d.positive(500)),
    "expm1": lambda d: A.expm1(d.normal(500)),
    "sin": lambda d: A.sin(d.normal(500, scale=9)),
    "cos": lambda d: A.cos(d.normal(500, scale=9)),
    "tanh": lambda d: A.tanh(d.normal(500)),
    "erf": lambda d: A.erf(d.normal(500)),
    "sigmoid": lambda d: A.sigmoid(d.normal(500, scale=4)),
    "silu": lambda d: A.silu(d.normal(500, scale=4)),
    "gelu": lambda d: F.gelu(d.normal(500)),
    "gelu tanh": lambda d: F.gelu(d.normal(500), approximate="tanh"),
    "gelu_backward": lambda d: A.gelu_backward(d.normal(500), d.normal(500)),
    "gelu_backward tanh": lambda d: A.gelu_backward(d.normal(500), d.normal(500), approximate="tanh"),
    "silu_backward": lambda d: A.silu_backward(d.normal(500), d.normal(500, scale=3)),
    "sigmoid_backward": lambda d: A.sigmoid_backward(d.normal(99), A.sigmoid(d.normal(99))),
    "tanh_backward": lambda d: A.tanh_backward(d.normal(99), A.tanh(d.normal(99))),
    "softplus": lambda d: F.softplus(d.normal(99, scale=5)),
    "softplus_backward": lambda d: A.softplus_backward(d.normal(99), d.normal(99, scale=9), 1.0, 20.0),
    "softmax masked": lambda d: F.softmax(
        d.normal(9, 40).masked_fill(d.mask(9, 40), torch.finfo(d.dtype).min) - d.positive(9, 1, scale=99), -1
    ),
    "leaky_relu": lambda d: F.leaky_relu(d.normal(99), 0.1),
    "elu": lambda d: F.elu(d.normal(99)),
    "hardswish": lambda d: F.hardswish(d.normal(99, scale=3)),
    "addcmul": lambda d: A.addcmul(d.normal(99), d.normal(99), d.normal(99), value=0.001),
    "addcdiv": lambda d: A.addcdiv(d.normal(99), d.normal(99), d.positive(99), value=-0.01),
    "lerp small": lambda d: A.lerp(d.normal(99), d.normal(99), 0.1),
    "lerp large": lambda d: A.lerp(d.normal(99), d.normal(99), 0.9),
    "foreach add": lambda d: torch._foreach_add([d.normal(9), d.normal(3)], [d.normal(9), d.normal(3)], alpha=0.5),
    "foreach mul": lambda d: torch._foreach_mul([d.normal(9), d.normal(3)], 0.9),
    "foreach lerp": lambda d: torch._foreach_lerp([d.normal(9)], [d.normal(9)], 0.1),
    "foreach addcmul": lambda d: torch._foreach_addcmul([d.normal(9)], [d.normal(9)], [d.normal(9)], 0.1),
    "foreach addcdiv": lambda d: torch._foreach_addcdiv([d.normal(9)], [d.normal(9)], [d.positive(9)], [-0.1]),
    "foreach sqrt": lambda d: torch._foreach_sqrt([d.positive(9), d.positive(3)]),
    "foreach norm": lambda d: torch._foreach_norm([d.normal(90), d.normal(3)]),
    "sum": lambda d: A.sum(d.normal(33, 65)),
    "sum dim": lambda d: A.sum(d.normal(33, 65), [0]),
    "sum long": lambda d: A.sum(d.normal(20000)),
    "mean": lambda d: A.mean(d.normal(33, 65)),
    "mean dim": lambda d: A.mean(d.normal(33, 65), [-1], True),
    "var": lambda d: A.var(d.normal(33, 65), [1], correction=1),
    "std": lambda d: torch.std(d.normal(33, 65)),
    "var_mean": lambda d: torch.var_mean(d.normal(33, 65), dim=1),
    "norm": lambda d: torch.linalg.vector_norm(d.normal(33, 65)),
    "norm 1": lambda d: torch.linalg.vector_norm(d.normal(33, 65), ord=1, dim=0),
    "norm inf": lambda d: torch.linalg.vector_norm(d.normal(33, 65), ord=float("inf")),
    "prod": lambda d: A.prod(d.normal(9)),
    "cumsum": lambda d: A.cumsum(d.normal(9, 40), 1),
    "logsumexp": lambda d: torch.logsumexp(d.normal(9, 40), 1),
    "softmax": lambda d: F.softmax(d.normal(9, 40, scale=3), -1),
    "softmax first": lambda d: F.softmax(d.normal(9, 40, scale=3), 0),
    "log_softmax": lambda d: F.log_softmax(d.normal(9, 40, scale=3), -1),
    "softmax_backward": lambda d: A._softmax_backward_data(d.normal(9, 40), F.softmax(d.normal(9, 40), -1), -1, d.dtype),
    "log_softmax_backward": lambda d: A._log_softmax_backward_data(
        d.normal(9, 40), F.log_softmax(d.normal(9, 40), -1), -1, d.dtype
    ),
    "nll_loss": lambda d: F.nll_loss(F.log_softmax(d.normal(30, 11), -1), d.whole(11, 30)),
    "nll_loss sum": lambda d: F.nll_loss(d.normal(30, 11), d.whole(11, 30), reduction="sum", ignore_index=3),
    "nll_loss none": lambda d: F.nll_loss(d.normal(30, 11), d.whole(11, 30), reduction="none"),
    "mse_loss": lambda d: F.mse_loss(d.normal(30, 11), d.normal(30, 11)),
    "bce": lambda d: F.binary_cross_entropy_with_logits(d.normal(30), d.mask(30).to(d.dtype)),
    "embedding_backward": lambda d: A.embedding_dense_backward(d.normal(64, 9), d.whole(10, 64), 10, -1, False),
    "index_put add": lambda d: A.index_put(d.normal(10, 9), [d.whole(10, 64)], d.normal(64, 9), True),
    "index_add": lambda d: A.index_add(d.normal(10, 9), 0, d.whole(10, 64), d.normal(64, 9)),
    "scatter_add": lambda d: A.scatter_add(d.normal(10, 9), 0, d.whole(10, 6, 9), d.normal(6, 9)),
    "avg_pool": lambda d: F.avg_pool2d(d.normal(2, 3, 8, 8), 2),
    "adaptive_pool": lambda d: F.adaptive_avg_pool2d(d.normal(2, 3, 8, 8), 2),
    "mm": lambda d: A.mm(d.normal(17, 200), d.normal(200, 9)),
    "mm transposed": lambda d: A.mm(d.normal(200, 17).t(), d.normal(9, 200).t()),
    "bmm": lambda d: A.bmm(d.normal(3, 17, 40), d.normal(3, 40, 9)),
    "addmm": lambda d: A.addmm(d.normal(9), d.normal(17, 40), d.normal(40, 9)),
    "addmm scaled": lambda d: A.addmm(d.normal(9), d.normal(17, 40), d.normal(40, 9), beta=0.3, alpha=-1.7),
    "baddbmm": lambda d: A.baddbmm(d.normal(3, 17, 9), d.normal(3, 17, 40), d.normal(3, 40, 9), beta=0.5, alpha=2.0),
    "mv": lambda d: A.mv(d.normal(17, 40), d.normal(40)),
    "dot": lambda d: A.dot(d.normal(400), d.normal(400)),
    "addr": lambda d: A.addr(d.normal(3, 4), d.normal(3), d.normal(4)),
    "conv": lambda d: F.conv2d(d.normal(2, 4, 9, 9), d.normal(6, 4, 3, 3), d.normal(6), padding=1),
    "conv groups": lambda d: F.conv1d(d.normal(2, 4, 19), d.normal(4, 1, 3), None, groups=4),
    "conv transposed": lambda d: F.conv_transpose2d(d.normal(2, 4, 5, 5), d.normal(4, 3, 3, 3), d.normal(3), stride=2),
    "layer_norm": lambda d: F.layer_norm(d.normal(9, 40) + d.normal(1), (40,), d.normal(40), d.normal(40)),
    "layer_norm plain": lambda d: F.layer_norm(d.normal(9, 40), (40,)),
    "group_norm": lambda d: F.group_norm(d.normal(2, 6, 5, 5), 3, d.normal(6), d.normal(6)),
    "batch_norm eval": lambda d: F.batch_norm(d.normal(4, 6, 5), d.normal(6), d.positive(6) + 0.5, d.normal(6), d.normal(6)),
    "batch_norm train": lambda d: F.batch_norm(
        d.normal(4, 6, 5), d.normal(6), d.positive(6), d.normal(6), d.normal(6), training=True
    ),
    "attention": lambda d: F.scaled_dot_product_attention(d.normal(2, 3, 40, 16), d.normal(2, 3, 40, 16), d.normal(2, 3, 40, 16)),
    "attention causal": lambda d: F.scaled_dot_product_attention(
        d.normal(2, 3, 70, 16), d.normal(2, 3, 70, 16), d.normal(2, 3, 70, 16), is_causal=True
    ),
    "attention mask": lambda d: F.scaled_dot_product_attention(
        d.normal(2, 3, 20, 16), d.normal(2, 3, 30, 16), d.normal(2, 3, 30, 16), d.mask(20, 30) | torch.eye(20, 30).bool()
    ),
    "cast up": lambda d: d.normal(99).to(torch.float64),
    "cast bf16": lambda d: d.normal(99).to(torch.bfloat16),
    "cast int": lambda d: d.normal(99, scale=50).to(torch.int64),
    "cat": lambda d: torch.cat([d.normal(2, 3), d.normal(4, 3)]),
    "where": lambda d: torch.where(d.mask(5, 6), d.normal(5, 6), 0.1),
    "masked_fill": lambda d: d.normal(5, 6).masked_fill(d.mask(5, 6), float("-inf")),
    "index": lambda d: d.normal(9, 4)[d.whole(9, 20)],
    "gather": lambda d: torch.gather(d.normal(9, 4), 0, d.whole(9, 3, 4)),
    "topk": lambda d: torch.topk(d.normal(9, 14), 3),
    "topk unordered": lambda d: torch.topk(d.normal(9, 14), 3, sorted=False),
    "sort": lambda d: torch.sort(d.normal(9, 14), descending=True),
    "argmax": lambda d: torch.argmax(d.normal(9, 14), -1),
    "max dim": lambda d: torch.max(d.normal(9, 14), 0),
    "max_pool": lambda d: F.max_pool2d(d.normal(2, 3, 8, 8), 2, return_indices=True),
    "clamp": lambda d: d.normal(99).clamp(-0.5, 0.7),
    "round": lambda d: d.normal(99, scale=9).round(),
    "compare": lambda d: d.normal(99) < d.normal(99),
    "item": lambda d: d.normal(1).item(),
    "unbind": lambda d: d.normal(4, 5).unbind(1),
    "arange": lambda d: torch.arange(0, 3, 0.1, dtype=d.dtype),
    "copy": lambda d: d.normal(8, 8).copy_(d.normal(8).float()),
    "tril": lambda d: d.normal(8, 8).tril(),
}

#: What torch itself does not run on the CPU.
NOT_ON_CPU = {
    ("expm1", torch.float16),
}


def backward_of(forward: Callable[..., Tensor], *operands: Tensor) -> None:
    """Runs a forward and its backward with random gradients."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    result = forward(*leaves)
    generator = torch.Generator().manual_seed(9)
    result.backward(torch.randn(result.shape, generator=generator).to(result.dtype) * 1e-2)


SAMPLES.update(
    {
        "attention backward": lambda d: backward_of(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            *(d.normal(2, 3, 70, 16) for _ in range(3)),
        ),
        "layer_norm backward": lambda d: backward_of(
            lambda x, w, b: F.layer_norm(x + 1, (40,), w, b), d.normal(9, 40), d.normal(40), d.normal(40)
        ),
        "group_norm backward": lambda d: backward_of(
            lambda x, w, b: F.group_norm(x, 3, w, b), d.normal(2, 6, 5, 5), d.normal(6), d.normal(6)
        ),
        "batch_norm backward": lambda d: backward_of(
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), d.normal(4, 6, 5), d.normal(6), d.normal(6)
        ),
        "conv backward": lambda d: backward_of(
            lambda x, w, b: F.conv2d(x, w, b, padding=1), d.normal(3, 4, 9, 9), d.normal(6, 4, 3, 3), d.normal(6)
        ),
        "pool backward": lambda d: backward_of(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2), d.normal(2, 3, 8, 8)),
        "cross_entropy backward": lambda d: backward_of(
            lambda x: F.cross_entropy(x, torch.arange(30) % 11).reshape(1), d.normal(30, 11)
        ),
    }
)


def wrong_of(run: toprope.lockstep) -> List[str]:
    """What a run called wrong or left unchecked, as text."""
    found = []
    for group in run.groups.values():
        judgement = group.worst.judgement
        if judgement.status in ("wrong", "not checked"):
            found.append(f"{judgement.status}: {group.worst.operator} {judgement.reason} {judgement.units:.3g}")
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", list(SAMPLES))
def test_torch_on_the_cpu_is_right(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scales = (1.0,) if dtype == torch.float16 else (1.0, 2.0**-20)
    for seed, scale in enumerate(scales):
        draw = Draw(seed, dtype, scale)
        if scale != 1.0 and name in ("exp", "expm1", "pow tensors", "cast int", "sin", "cos"):
            continue
        with toprope.lockstep() as run:
            try:
                SAMPLES[name](draw)
            except (RuntimeError, NotImplementedError) as error:
                if "not implemented for" in str(error):
                    pytest.skip(f"torch does not run it: {error}")
                raise
        assert wrong_of(run) == [], f"scale {scale}"
        assert run.report().coverage["checked"] > 0
