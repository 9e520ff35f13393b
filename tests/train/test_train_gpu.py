"""Training on a GPU: losses against the CPU's, resumed against uninterrupted runs, no synchronisation in the hot loop.

Without a GPU the same runs use the CPU, so that the tests themselves are known to work before they run on a GPU.
"""

import contextlib
import itertools

import pytest
import torch

from ado_stream.record import read_run
from ado_stream.train.config import TrainSection, load_config
from ado_stream.train.trainer import run_training
from tests.kernels.devices import DEVICE, ON_GPU
from tests.train.hot_loop import adaptive_loop
from tests.train.run_helpers import SimulatedCrash, changed, crash_at
from tests.train.tiny_model import TINY_MODEL

pytestmark = [pytest.mark.gpu] if ON_GPU else []


def recorded_losses(run_dir) -> list[float]:
    return [line["loss"] for line in read_run(run_dir)[1]["step"]]


def test_a_run_has_the_cpus_losses(settings: dict, tmp_path):
    """float32: the same sums in another order, 1e-5 nats in a step and ten times that after twelve. bfloat16: 2^-6."""
    run_training(load_config(settings))
    expected = recorded_losses(settings["run_dir"])
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 2**-6)):
        config = changed(settings, run_dir=str(tmp_path / dtype), train={"device": DEVICE, "dtype": dtype})
        run_training(load_config(config))
        assert recorded_losses(config["run_dir"]) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_has_the_uninterrupted_ones_losses(settings: dict, tmp_path, monkeypatch, asynchronous: bool):
    """Resumed at step 8 after a crash in step 10. Attention's backward pass may add in any order: losses to 1e-3."""
    settings = changed(settings, train={"device": DEVICE}, checkpoint={"asynchronous": asynchronous})
    run_training(load_config(settings))
    resumed = changed(settings, run_dir=str(tmp_path / "resumed"))
    with monkeypatch.context() as patch:
        crash_at(patch, 10)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(resumed))
    run_training(load_config(resumed))
    assert recorded_losses(resumed["run_dir"]) == pytest.approx(recorded_losses(settings["run_dir"]), abs=1e-3)
    events = [each["name"] for each in read_run(resumed["run_dir"])[1]["event"]]
    assert events.count("resume") == 1


def test_no_step_waits_for_the_gpu(tiny_corpus):
    """After four steps that compile, torch raises an error for any call that synchronises."""
    options, device = TrainSection(micro_batch_size=2), torch.device(DEVICE)
    with (
        adaptive_loop(tiny_corpus, TINY_MODEL, options, device, prefetch=4) as (loader, train_on),
        contextlib.ExitStack() as stack,
    ):
        for number, batch in enumerate(itertools.islice(loader, 8)):
            if number == 4 and ON_GPU:
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("error")
            train_on(batch)
        assert loader.policy.step == 8 - ON_GPU  # a GPU's losses are read one step late
