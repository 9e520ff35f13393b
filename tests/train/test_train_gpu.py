"""Training on a real GPU: a run against the CPU's, a resumed one against itself, and no wait in the hot loop.

Without a GPU the same runs on the CPU, so that the tests themselves are known to work before a GPU sees them.
"""

import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_model import Transformer
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.policy_registry import make_policy
from ado_stream.record import read_run
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.train.config import TrainSection, load_config
from ado_stream.train.distributed import World
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run import run_training
from ado_stream.train.step import TrainStep, make_optimizer
from tests.kernels.devices import DEVICE, ON_GPU
from tests.rounding import UNIT, rounding
from tests.train.micro import MICRO, perturbed_weights
from tests.train.test_train_run import Died, changed, dies_at

pytestmark = [pytest.mark.gpu] if ON_GPU else []


def losses_of(run_dir) -> list[float]:
    return [line["loss"] for line in read_run(run_dir)[1]["step"]]


@pytest.mark.slow
def test_a_run_has_the_cpus_losses(settings: dict, tmp_path):
    """As near as the CPU's own from weights perturbed by a sum's roundings in float32, or by four to bfloat16."""
    run_training(load_config(settings))
    expected = losses_of(settings["run_dir"])
    for dtype, size in (("float32", rounding(MICRO.mlp_width)), ("bfloat16", 4 * UNIT[torch.bfloat16])):
        config = changed(settings, run_dir=str(tmp_path / dtype), train={"device": DEVICE, "dtype": dtype})
        run_training(load_config(config))
        allowed = rounding_moves_losses(settings, tmp_path, expected, size)
        assert losses_of(config["run_dir"]) == pytest.approx(expected, abs=allowed)


def rounding_moves_losses(settings: dict, folder: Path, expected: list[float], size: float) -> float:
    """The most that a loss differs from the expected ones in three runs from perturbed weights (tests/rounding.py)."""
    most = 0.0
    for seed in range(3):
        config = changed(settings, run_dir=str(folder / f"perturbed by {size:.0e}, {seed}"))
        with perturbed_weights(size, seed):
            run_training(load_config(config))
        most = max(most, *np.abs(np.subtract(losses_of(config["run_dir"]), expected)))
    return most


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_goes_on_as_the_whole_one(settings: dict, tmp_path, monkeypatch, asynchronous: bool):
    """From the checkpoint of step 8, once step 10 was reached. Attention's backward pass may add in any order on a GPU;
    on a CPU nothing may."""
    settings = changed(settings, train={"device": DEVICE}, checkpoint={"asynchronous": asynchronous})
    run_training(load_config(settings))
    resumed = changed(settings, run_dir=str(tmp_path / "resumed"))
    with monkeypatch.context() as patch:
        dies_at(patch, 10)
        with pytest.raises(Died):
            run_training(load_config(resumed))
    run_training(load_config(resumed))
    expected = losses_of(settings["run_dir"])
    allowed = rounding_moves_losses(settings, tmp_path, expected, rounding(MICRO.mlp_width)) if ON_GPU else 0.0
    assert losses_of(resumed["run_dir"]) == pytest.approx(expected, rel=0, abs=allowed)
    events = [each["name"] for each in read_run(resumed["run_dir"])[1]["event"]]
    assert events.count("resume") == 1


def test_no_step_waits_for_the_gpu(tiny_corpus):
    """Once everything is compiled; torch refuses what synchronises."""
    corpus, device = open_corpus(tiny_corpus), torch.device(DEVICE)
    options = TrainSection(micro_batch_size=2)
    sizes = dataclasses.replace(MICRO, vocab_size=corpus.tokenizer.vocab_size, context_length=corpus.seq_len)
    parallel = ParallelModel(Transformer(sizes), World(0, 1, device), options)
    dataset = AdaptiveStreamingDataset(corpus.domains, global_batch_size=4, mixture_lag=4)
    step = TrainStep(parallel, make_optimizer(parallel.model, options), options, len(dataset.names))
    policy = make_policy("ado", dict.fromkeys(dataset.names, 1.0), start_step=1, ignore_steps=0, interval=1)
    with AdaptiveLoader(dataset, policy, pin_memory=ON_GPU, device=device) as loader, contextlib.ExitStack() as stack:
        for number, batch in enumerate(itertools.islice(loader, 8)):
            if number == 4 and ON_GPU:
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("error")
            outcome = step.update(*step.forward_backward(batch["tokens"], batch["domain"]), 1e-3)
            loader.observe(*outcome.for_policy(), reduced=True)
        assert policy.step == 8 - ON_GPU  # a GPU's numbers are read one step late
