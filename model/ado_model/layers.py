"""The parts of one transformer block.

Modules and parameters carry the names of Hugging Face's Qwen3, which has the same parts; so exporting is a renaming.
Sources: RMSNorm arXiv 1910.07467; rotary embedding arXiv 2104.09864, in the half-split layout of GPT-NeoX; SwiGLU
arXiv 2002.05202; RMSNorm on queries and keys arXiv 2010.04245, per head with one weight a channel as in Qwen3.
"""

import torch
from torch import Tensor, nn

from ado_kernels import rms_norm, rms_norm_rope, swiglu
from ado_model.attention import AttentionMask, attention
from ado_model.model_config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight along the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add_and_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual), in one pass over memory."""
        return rms_norm(x, self.weight, self.eps, residual)

    def norm_and_rotate(self, x_BTHQ: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Norm of each head, its channels i and i + Q/2 then rotated by their position's angle, in one pass."""
        return rms_norm_rope(x_BTHQ, self.weight, cos, sin, self.eps)


def rotary_tables(num_tokens: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, (T, Q/2) float64: the angle of channel i is t theta^(-2i/Q).

    On the CPU whatever the default device: a GPU rounds cos and sin otherwise, and "meta" has no values.
    """
    frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64, device="cpu") / head_width)
    position = torch.arange(num_tokens, dtype=torch.float64, device="cpu")
    angle = position[:, None] * frequency  # float32 angles lose digits
    return angle.cos(), angle.sin()


class Attention(nn.Module):
    """Causal multi-head self-attention over (B, T, D), with normed and rotated queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_width = config.num_heads, config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_width, config.norm_eps)
        self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: AttentionMask | None = None) -> Tensor:
        by_head = (*x_BTD.shape[:2], self.num_heads, self.head_width)
        query = self.q_norm.norm_and_rotate(self.q_proj(x_BTD).view(by_head), cos, sin)
        key = self.k_norm.norm_and_rotate(self.k_proj(x_BTD).view(by_head), cos, sin)
        value = self.v_proj(x_BTD).view(by_head)
        mixed = attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(x_BTD.shape))
        return out


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) over (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x_BTD), self.up_proj(x_BTD)))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind an RMSNorm and added to the residual stream.

    Adding a branch to the stream is left to the next norm, which does both in one pass; so a block takes and returns
    (branch, stream), both (B, T, D), whose sum is the usual residual stream.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, branch_BTD: Tensor, stream_BTD: Tensor | None, cos: Tensor, sin: Tensor, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor]:
        if stream_BTD is None:  # the first block: the embedding is the stream, and nothing has to be added yet
            normed, stream_BTD = self.input_layernorm(branch_BTD), branch_BTD
        else:
            normed, stream_BTD = self.input_layernorm.add_and_norm(branch_BTD, stream_BTD)
        normed, stream_BTD = self.post_attention_layernorm.add_and_norm(
            self.self_attn(normed, cos, sin, mask), stream_BTD
        )
        return self.mlp(normed), stream_BTD
