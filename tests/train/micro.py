"""The smallest model that trains, as preset "micro", for tests that start processes."""

import contextlib
from collections.abc import Iterator

import pytest

from ado_model import PRESETS, ModelConfig, Transformer
from ado_stream.train.config import load_config
from ado_stream.train.run import RunResult, run_training
from tests.rounding import perturb

MICRO = ModelConfig(num_layers=1, width=16, num_heads=1)


@contextlib.contextmanager
def perturbed_weights(size: float, seed: int) -> Iterator[None]:
    """Models that are made meanwhile start from perturbed parameters (tests/rounding.py)."""
    plain = Transformer.initialise

    def initialise(model: Transformer) -> None:
        plain(model)
        perturb(model, size, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "initialise", initialise)
        yield


def train_micro(settings: dict, resume: str = "auto") -> RunResult:
    """`run_training` of what `load_config` takes."""
    PRESETS["micro"] = MICRO
    return run_training(load_config(settings), resume)
