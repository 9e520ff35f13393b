"""A train step of a small model, and the hot loop of loader, step and policy, for tests on a CPU and on a GPU."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.policy_registry import make_policy
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import StepOutcome, TrainStep, make_optimizer
from tests.rounding import perturb

ONE_CPU = DistributedContext(0, 1, torch.device("cpu"))


def build_step(
    sizes: ModelConfig,
    options: TrainSection,
    num_domains: int,
    context: DistributedContext = ONE_CPU,
    replication: int = 1,
    perturbed: tuple[float, int] = (0.0, 0),
) -> tuple[TrainStep, ParallelModel, torch.optim.AdamW]:
    """A train step with its model and optimizer; the model's weights are drawn from torch's generator.

    perturbed: how far parameters are moved from there, and a seed (tests/rounding.py).
    """
    model = Transformer(sizes)
    perturb(model, *perturbed)
    parallel = ParallelModel(model, context, options)
    optimizer = make_optimizer(parallel.model, options)
    return TrainStep(parallel, optimizer, options, num_domains, replication), parallel, optimizer


@contextlib.contextmanager
def adaptive_loop(
    corpus_dir: Path,
    sizes: ModelConfig,
    options: TrainSection,
    device: torch.device,
    prefetch: int,
    sample_losses: bool = False,
) -> Iterator[tuple[AdaptiveLoader, Callable[[dict], StepOutcome]]]:
    """(a loader under ADO that refits at every step, a function that trains on a batch and observes its losses)."""
    corpus = open_corpus(corpus_dir)
    sizes = dataclasses.replace(sizes, vocab_size=corpus.tokenizer.vocab_size, context_length=corpus.seq_len)
    dataset = AdaptiveStreamingDataset(corpus.domains, global_batch_size=4, mixture_lag=4)
    step, _, _ = build_step(sizes, options, len(dataset.names), DistributedContext(0, 1, device))
    policy = make_policy("ado", dict.fromkeys(dataset.names, 1.0), start_step=1, ignore_steps=0, interval=1)
    with AdaptiveLoader(dataset, policy, prefetch, pin_memory=device.type == "cuda", device=device) as loader:

        def train_on(batch: dict) -> StepOutcome:
            losses = torch.zeros(4, dtype=torch.float64, device=device) if sample_losses else None
            sums = step.forward_backward(batch["tokens"], batch["domain"], sample_losses_B=losses)
            outcome = step.update(*sums, 1e-3, losses)
            loader.observe(*outcome.for_policy(), reduced=True)
            return outcome

        yield loader, train_on
