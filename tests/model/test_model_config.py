"""The presets have the sizes that their names say, and impossible sizes are refused."""

import pytest
import torch

from ado_model import PRESETS, ModelConfig, Transformer


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("nano", 7_231_104), ("70M", 44_662_016), ("124M", 123_588_864), ("1.3B", 1_311_481_856)],
)
def test_preset_parameter_counts(name: str, num_parameters: int):
    config = PRESETS[name]
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in Transformer(config).parameters())
    assert config.num_parameters == built == num_parameters
    assert config.vocab_size == 50304
    assert config.context_length == 1024


@pytest.mark.parametrize(("width", "mlp_width"), [(128, 344), (512, 1368), (768, 2048), (2048, 5464)])
def test_mlp_width_is_eight_thirds_rounded_up_to_a_multiple_of_eight(width: int, mlp_width: int):
    assert ModelConfig(num_layers=1, width=width, num_heads=2).mlp_width == mlp_width


def test_flops_per_token_count_matrices_and_attention():
    config = PRESETS["124M"]
    assert config.flops_per_token(1024) == 6 * 123_588_864 + 12 * 12 * 12 * 64 * 1024


@pytest.mark.parametrize(
    ("change", "message"), [({"num_layers": 0}, "num_layers is 0"), ({"width": 130, "num_heads": 4}, "multiple of 8")]
)
def test_impossible_sizes_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"num_layers": 1, "width": 64, "num_heads": 2, **change})
