"""Small models with a training step: what the tests watch."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 61


class Block(nn.Module):
    """Attention and an MLP, as in nanoGPT."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width + 5), nn.Linear(2 * width + 5, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            y = F.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyGPT(nn.Module):
    """Two blocks and a head."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 40)
        self.blocks = nn.ModuleList([Block(40, 2, fused) for _ in range(2)])
        self.norm = nn.LayerNorm(40)
        self.head = nn.Linear(40, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of predicting each next token."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))[:, :-1]
        return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), tokens[:, 1:].reshape(-1))


class TinyVision(nn.Module):
    """Convolutions, group, batch and layer norm, pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)
        self.batch, self.group = nn.BatchNorm2d(8), nn.GroupNorm(3, 12)
        self.norm, self.drop, self.head = nn.LayerNorm(12), nn.Dropout(0.1), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of guessing the class 0, 1, 2, …"""
        x = F.max_pool2d(F.relu(self.batch(self.conv1(images))), 2)
        x = F.silu(self.group(self.conv2(x))).mean((2, 3))
        logits = self.head(self.drop(self.norm(x)))
        return F.cross_entropy(logits.float(), torch.arange(images.shape[0]) % 5)


class Training:
    """A model with its optimizer and batches from a seed."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype = torch.float32,
        optimizer: str = "AdamW",
        options: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.model = model.to(dtype)
        self.dtype = dtype
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=1e-3, **(options or {}))
        self.generator = torch.Generator().manual_seed(3)

    def batch(self) -> Tensor:
        """Tokens or images."""
        if isinstance(self.model, TinyVision):
            return torch.randn(4, 3, 12, 12, generator=self.generator).to(self.dtype)
        return torch.randint(0, VOCABULARY, (2, 23), generator=self.generator)

    def step(self) -> float:
        """Forward, backward, clipping, optimizer."""
        loss = self.model(self.batch())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def gpt(fused: bool = True, **options: Any) -> Training:
    """A `TinyGPT` from a fixed seed."""
    torch.manual_seed(0)
    return Training(TinyGPT(fused), **options)


def vision(**options: Any) -> Training:
    """A `TinyVision` from a fixed seed."""
    torch.manual_seed(0)
    return Training(TinyVision(), **options)
