"""Training on a GPU: losses against the CPU's, resumed against uninterrupted runs, no synchronisation in the hot loop.

Without a GPU the same runs use the CPU, so that the tests themselves are known to work before they run on a GPU.
"""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_stream.record import read_run
from ado_stream.train.run_config import TrainSection, load_config
from ado_stream.train.trainer import run_training
from tests.kernels.devices import DEVICE, ON_GPU
from tests.rounding import UNIT, rounding
from tests.train.hot_loop import adaptive_loop
from tests.train.run_helpers import SimulatedCrash, changed, crash_at
from tests.train.tiny_model import TINY_MODEL, perturbed_weights

pytestmark = [pytest.mark.gpu] if ON_GPU else []


def recorded_losses(run_dir) -> list[float]:
    return [line["loss"] for line in read_run(run_dir)[1]["step"]]


@pytest.mark.slow
def test_a_run_has_the_cpus_losses(settings: dict, tmp_path):
    """As near as the CPU's own from weights perturbed by a sum's roundings in float32, or by four to bfloat16."""
    run_training(load_config(settings))
    expected = recorded_losses(settings["run_dir"])
    for dtype, size in (("float32", rounding(TINY_MODEL.mlp_width)), ("bfloat16", 4 * UNIT[torch.bfloat16])):
        config = changed(settings, run_dir=str(tmp_path / dtype), train={"device": DEVICE, "dtype": dtype})
        run_training(load_config(config))
        allowed = rounding_moves_losses(settings, tmp_path, expected, size)
        assert recorded_losses(config["run_dir"]) == pytest.approx(expected, abs=allowed)


def rounding_moves_losses(settings: dict, folder: Path, expected: list[float], size: float) -> float:
    """The most that a loss differs from the expected ones in three runs from perturbed weights (tests/rounding.py)."""
    most = 0.0
    for seed in range(3):
        config = changed(settings, run_dir=str(folder / f"perturbed by {size:.0e}, {seed}"))
        with perturbed_weights(size, seed):
            run_training(load_config(config))
        most = max(most, *np.abs(np.subtract(recorded_losses(config["run_dir"]), expected)))
    return most


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_has_the_uninterrupted_ones_losses(settings: dict, tmp_path, monkeypatch, asynchronous: bool):
    """Resumed at step 8 after a crash in step 10. On a GPU attention's backward pass adds in any order."""
    settings = changed(settings, train={"device": DEVICE}, checkpoint={"asynchronous": asynchronous})
    run_training(load_config(settings))
    resumed = changed(settings, run_dir=str(tmp_path / "resumed"))
    with monkeypatch.context() as patch:
        crash_at(patch, 10)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(resumed))
    run_training(load_config(resumed))
    expected = recorded_losses(settings["run_dir"])
    allowed = rounding_moves_losses(settings, tmp_path, expected, rounding(TINY_MODEL.mlp_width)) if ON_GPU else 0.0
    assert recorded_losses(resumed["run_dir"]) == pytest.approx(expected, rel=0, abs=allowed)
    events = [each["name"] for each in read_run(resumed["run_dir"])[1]["event"]]
    assert events.count("resume") == 1


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("sample_losses", [False, True])
def test_no_step_waits_for_the_gpu(tiny_corpus, sample_losses):
    """After four steps that compile, torch raises an error for any call that synchronises."""
    options, device = TrainSection(micro_batch_size=2), torch.device(DEVICE)
    with (
        adaptive_loop(tiny_corpus, TINY_MODEL, options, device, 4, sample_losses) as (loader, train_on),
        contextlib.ExitStack() as stack,
    ):
        for number, batch in enumerate(itertools.islice(loader, 8)):
            if number == 4 and ON_GPU:
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("error")
            train_on(batch)
        assert loader.policy.step == 8 - ON_GPU  # a GPU's losses are read one step late
