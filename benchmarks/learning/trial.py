"""One seed of one scenario: a beginning that all policies share, then a branch for each.

The first steps of a run decide up to 0.06 nats that have nothing to do with mixtures. So the first tenth is trained
once, with the natural mixture; every policy goes on from its model, optimizer and place in the data, and is first
shown the losses of that tenth, as if it had been there. Differences between branches are then the mixture's, and
chance: a branch of the natural mixture with other samples measures that.

Everything is the product's: data set, loader, model, optimizer and learning rate, losses. Invariant: with one thread
the numbers of a cell depend on the corpus, the scenario, the seed and the policy alone.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import ado_stream as ado
from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.policy.base_policy import Policy, RunContext
from ado_stream.policy.policy_registry import make_run_policy
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import detect_context
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.train_step import LearningRateSchedule, TrainStep, make_optimizer
from ado_stream.train.validation import Validator
from benchmarks.learning.scenarios import BASELINE, CONTROL, DUPLICATES, EXHAUSTED, UNLEARNABLE, Scenario

MADE = (UNLEARNABLE, DUPLICATES, EXHAUSTED)
LAG = 8
_PEAK_RATE_TIMES_WIDTH = 0.46
_VAL_SAMPLES, _VAL_SAMPLES_MIDWAY = 400, 100  # of each domain
_MIDWAY = 5  # validations in a run, in its second half, for steps to a loss


@dataclass(frozen=True)
class Sizes:
    """Of the model and of a run."""

    num_layers: int = 2
    width: int = 64
    num_heads: int = 2
    batch_size: int = 32
    steps: int = 1200

    @property
    def shared_steps(self) -> int:
        """Steps before the policies part."""
        return self.steps // 10


class Trial:
    """The shared beginning of a scenario's seed, in memory, and `branch`."""

    def __init__(self, corpus: Path, scenario: Scenario, seed: int, sizes: Sizes):
        self.scenario, self.seed, self.sizes = scenario, seed, sizes
        opened = open_corpus(corpus)
        size = {name: each["splits"]["train"]["tokens"] for name, each in opened.manifest["domains"].items()}
        by_size = sorted((name for name in size if name not in MADE), key=size.__getitem__)
        self.trained = by_size[scenario.without :]
        self.measured = by_size[: scenario.without] or self.trained
        self.wanted = self.trained if scenario.only is None else self.trained[1::3][: scenario.only]
        total = sum(size[name] for name in self.trained)
        self.prior = {name: (1.0 - scenario.share) * size[name] / total for name in self.trained}
        if scenario.made:
            self.prior[scenario.made] = scenario.share
        self.size = {name: size[name] for name in self.measured}
        domains = [domain for domain in opened.domains if domain.name in self.prior]
        self.names = [domain.name for domain in domains]
        self.prior = {name: self.prior[name] for name in self.names}  # in the data set's order, as the policy's
        self._domains = [dataclasses.replace(domain, prior=self.prior[domain.name]) for domain in domains]
        config = ModelConfig(
            sizes.num_layers, sizes.width, sizes.num_heads, 64 * -(-opened.tokenizer.vocab_size // 64), opened.seq_len
        )
        self._options = TrainSection(steps=sizes.steps, device="cpu", dtype="float32")
        self._context = detect_context("cpu")
        warmup = sizes.steps // 10
        self._rate = LearningRateSchedule(_PEAK_RATE_TIMES_WIDTH / sizes.width, warmup, sizes.steps, 0.1)
        torch.manual_seed(seed)
        self._parallel = ParallelModel(Transformer(config), self._context, self._options)
        self._optimizer = make_optimizer(self._parallel.model, self._options)
        self._step = TrainStep(self._parallel, self._optimizer, self._options, len(self.names))
        val = open_corpus(corpus, "val")
        self._validators = {
            num: Validator(val, self.measured, num, self._context, 200) for num in (_VAL_SAMPLES, _VAL_SAMPLES_MIDWAY)
        }
        self._losses: list[tuple[np.ndarray, np.ndarray]] = []  # of the shared steps: mean losses, samples
        self._begin()

    def branch(self, spec: str) -> dict[str, Any]:
        """The rest of the run under the policy that `spec` names, and what came of it; JSON-able."""
        model, optimizer, stream = self._snapshot
        self._parallel.model.load_state_dict(model)
        self._optimizer.load_state_dict(copy.deepcopy(optimizer))
        policy = self._policy(spec)
        for loss_K, count_K in self._losses:
            policy.update(loss_K, count_K)
        other_draws = spec == CONTROL
        dataset = self._dataset(self.seed + 1000 if other_draws else self.seed)
        if not other_draws:
            dataset.load_state_dict(stream)
        losses = list(self._losses)
        midway: dict[int, dict[str, Any]] = {}
        with ado.AdaptiveLoader(dataset, policy=policy) as loader:
            self._train(loader, self.sizes.shared_steps, losses, midway)
        samples_K = np.sum([count_K for _, count_K in losses], axis=0)
        return {
            "policy": spec,
            "final": self._validate(_VAL_SAMPLES),
            "midway": midway,
            "share": dict(zip(self.names, (samples_K / samples_K.sum()).tolist(), strict=True)),
            "mixture": dict(zip(self.names, policy.mixture.tolist(), strict=True)),
            "health": policy.health(),
            # of every step, for replays; float32 is what the model computes
            "losses": [[_digits(loss) for loss in loss_K.tolist()] for loss_K, _ in losses],
            "samples": [count_K.astype(int).tolist() for _, count_K in losses],
        }

    def facts(self) -> dict[str, Any]:
        """What the outcome needs to know of this trial; JSON-able."""
        return {"names": self.names, "measured": self.measured, "wanted": self.wanted, "size": self.size}

    def _begin(self) -> None:
        with ado.AdaptiveLoader(self._dataset(self.seed), policy=self._policy(BASELINE)) as loader:
            self._train(loader, 0, self._losses, {})
            stream = loader.state_dict()["stream"]
        state = self._parallel.model.state_dict(), self._optimizer.state_dict()
        self._snapshot = (*copy.deepcopy(state), stream)

    def _train(
        self, loader: ado.AdaptiveLoader, begin: int, losses: list[tuple[np.ndarray, np.ndarray]], midway: dict
    ) -> None:
        end = self.sizes.shared_steps if begin == 0 else self.sizes.steps
        every = max(1, (self.sizes.steps - self.sizes.steps // 2) // _MIDWAY)
        for step, batch in zip(range(begin, end), loader, strict=False):
            sums_K, counts_K = self._step.forward_backward(batch["tokens"], batch["domain"])
            outcome = self._step.update(sums_K, counts_K, self._rate(step))
            sums_K, counts_K = outcome.for_policy()
            loss_K = (sums_K / counts_K).numpy()  # NaN where a domain was absent
            losses.append((loss_K, np.bincount(batch["domain"].numpy(), minlength=len(self.names)).astype(float)))
            loader.observe(sums_K, counts_K, reduced=True)
            if begin and step + 1 < end and step + 1 > self.sizes.steps // 2 and (step + 1) % every == 0:
                midway[step + 1] = self._validate(_VAL_SAMPLES_MIDWAY)

    def _dataset(self, seed: int) -> ado.AdaptiveStreamingDataset:
        return ado.AdaptiveStreamingDataset(
            self._domains, global_batch_size=self.sizes.batch_size, seed=seed, mixture_lag=LAG
        )

    def _policy(self, spec: str) -> Policy:
        """The policy of "name:option=value,...": the options in YAML, "wanted" for the weights of what is wanted."""
        name, _, rest = spec.partition("@")[0].partition(":")
        wanted = {each: float(self.prior[each] if each in self.wanted else 0.0) for each in self.names}
        if name == "oracle":
            return ado.make_policy("fixed", self.prior, weights={**self.prior, str(self.scenario.made): 0.0})
        if name == "wanted":
            return ado.make_policy("fixed", self.prior, weights=wanted)
        if rest == "wanted":
            options: dict[str, Any] = {"weights": wanted}
        else:
            options = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
            options = {key: yaml.safe_load(value) for key, value in options.items()}
        dataset = self._dataset(self.seed)
        sizes = dict(zip(dataset.names, dataset.num_samples.tolist(), strict=True))
        run = RunContext(self.sizes.steps, self.sizes.batch_size, LAG, sizes)
        return make_run_policy(name, self.prior, options, (), run)

    def _validate(self, num_samples: int) -> dict[str, Any]:
        """{domain: nats per token} and bits per byte of the measured domains."""
        found = self._validators[num_samples](self._parallel.loss)
        assert found is not None
        return {
            "loss": dict(zip(self.measured, found.domain_loss_K.tolist(), strict=True)),
            "bits_per_byte": dict(zip(self.measured, found.bits_per_byte_K.tolist(), strict=True)),
        }


def _digits(loss: float) -> float | None:
    """`loss` in JSON, NaN as null; exact, so that a replay gives the policy's mixtures again to the bit."""
    return None if math.isnan(loss) else loss
