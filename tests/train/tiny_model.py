"""The smallest model that trains, as the preset "tiny", and a training run of it for tests that start processes."""

import contextlib
from collections.abc import Iterator

import pytest

from ado_model import PRESETS, ModelConfig, Transformer
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import RunResult, run_training
from tests.rounding import perturb

TINY_MODEL = ModelConfig(num_layers=1, width=16, num_heads=1)


@contextlib.contextmanager
def perturbed_weights(size: float, seed: int) -> Iterator[None]:
    """Models created inside start from perturbed parameters (tests/rounding.py)."""
    plain = Transformer.initialise

    def initialise(model: Transformer) -> None:
        plain(model)
        perturb(model, size, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "initialise", initialise)
        yield


def train_tiny(settings: dict, resume: str = "auto") -> RunResult:
    """`run_training` with a config that `load_config` takes."""
    PRESETS["tiny"] = TINY_MODEL
    return run_training(load_config(settings), resume)
