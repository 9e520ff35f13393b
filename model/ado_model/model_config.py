"""Sizes of the transformer and the presets: what is known of a model before it is built."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one decoder-only transformer.

    num_layers L, width D, num_heads H (D = H Q), vocab_size V, context_length: the longest sequence in tokens.
    rope_theta is the base of the rotary embedding's wavelengths, norm_eps is added under every RMSNorm's root.
    end_token: the token that ends a document; attention then stays within documents. None: it sees the whole sequence.
    Raises ValueError for sizes that cannot work.
    """

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int = 50304
    context_length: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    end_token: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}; it must be at least 1")
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"model width {self.width} cannot be split over {self.num_heads} heads of even width; "
                f"choose a multiple of {2 * self.num_heads}"
            )

    @property
    def head_width(self) -> int:
        """Q, the width of one attention head."""
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP: 8/3 of the width, rounded up to a multiple of 8.

        Three matrices of that width cost what two of four times the width do (Shazeer, arXiv 2002.05202).
        """
        return 8 * math.ceil(self.width / 3)

    @property
    def num_parameters(self) -> int:
        """All trained numbers; the tied embedding counts once."""
        attention = 4 * self.width**2 + 2 * self.head_width
        mlp = 3 * self.width * self.mlp_width
        return self.vocab_size * self.width + self.num_layers * (attention + mlp + 2 * self.width) + self.width

    def flops_per_token(self, num_tokens: int | None = None) -> int:
        """Floating-point operations to train on one token of a sequence of `num_tokens` (default: the context).

        6 N + 12 L H Q T: forward and backward of every matrix, and of attention without the causal saving
        (Chowdhery et al., arXiv 2204.02311, appendix B). N counts the tied embedding once, as the output layer.
        """
        attention = 12 * self.num_layers * self.width * (num_tokens or self.context_length)
        return 6 * self.num_parameters + attention


PRESETS = {
    "micro": ModelConfig(num_layers=2, width=64, num_heads=2),
    "nano": ModelConfig(num_layers=4, width=128, num_heads=2),
    "70M": ModelConfig(num_layers=6, width=512, num_heads=8),
    "124M": ModelConfig(num_layers=12, width=768, num_heads=12),
    "1.3B": ModelConfig(num_layers=24, width=2048, num_heads=16),
}
