"""The smallest model that trains, as preset "micro", for tests that start processes."""

from ado_model import PRESETS, ModelConfig
from ado_stream.train.config import load_config
from ado_stream.train.run import RunResult, run_training

MICRO = ModelConfig(num_layers=1, width=16, num_heads=1)


def train_micro(settings: dict, resume: str = "auto") -> RunResult:
    """`run_training` of what `load_config` takes."""
    PRESETS["micro"] = MICRO
    return run_training(load_config(settings), resume)
