"""The smallest model that trains, as the preset "tiny", and a training run of it for tests that start processes."""

from ado_model import PRESETS, ModelConfig
from ado_stream.train.config import load_config
from ado_stream.train.trainer import RunResult, run_training

TINY_MODEL = ModelConfig(num_layers=1, width=16, num_heads=1)


def train_tiny(settings: dict, resume: str = "auto") -> RunResult:
    """`run_training` with a config that `load_config` takes."""
    PRESETS["tiny"] = TINY_MODEL
    return run_training(load_config(settings), resume)
