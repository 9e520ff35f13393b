"""The decoder-only transformer that ado-stream trains, and its presets.

It works on tensors and its own sizes alone: no data, policies or files. Dimensions as suffixes: B batch rows, T tokens,
D width, H heads, Q width of a head, V vocabulary, L layers, K domains.
"""

from ado_model.model_config import PRESETS, ModelConfig
from ado_model.transformer import Transformer

__all__ = ["PRESETS", "ModelConfig", "Transformer"]
