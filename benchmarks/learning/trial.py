"""One seed of one scenario: a beginning that all policies share, then a branch for each.

The first steps of a run decide up to 0.06 nats that have nothing to do with mixtures. So the first tenth is trained
once, with the natural mixture; every policy goes on from its model, optimizer and place in the data, and is first
shown the losses of that tenth, as if it had been there. Differences between branches are then the mixture's, and
chance: a branch of the natural mixture with other samples measures that.

Everything is the product's: data set, loader, model, optimizer and learning rate, losses. The beginning is a checkpoint
on disk, and so is what a part of a run leaves that ran out of time. Invariant: with one thread the numbers of a cell
depend on the corpus, the sizes, the scenario, the seed and the policy alone, not on where it was stopped.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
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
from ado_stream.train.distributed import detect_context
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import LearningRateSchedule, TrainStep, make_optimizer
from ado_stream.train.validation import Validator
from benchmarks.common import size
from benchmarks.learning.scenarios import BASELINE, CONTROL, DUPLICATES, EXHAUSTED, UNLEARNABLE, Scenario, Sizes

MADE = (UNLEARNABLE, DUPLICATES, EXHAUSTED)
LAG = 8
_PEAK_RATE_TIMES_WIDTH = 0.46
_VAL_SAMPLES, _VAL_SAMPLES_MIDWAY, _VAL_SAMPLES_LAWS = size((400, 100, 50), (4, 2, 2))  # of each domain
_LAW_VALIDATIONS = 50  # in a run, for policies whose laws are of validation losses
_BEGINNING = "beginning"
_MIDWAY = 5  # validations in a run, in its second half, for steps to a loss


class OutOfTime(Exception):
    """The deadline came; what was reached is on disk, and the same call goes on from there."""


class Trial:
    """The shared beginning of a scenario's seed, and `branch`.

    home: folder of the seed's checkpoints. deadline: time.time() at which training stops with OutOfTime; None: never.
    """

    def __init__(
        self, corpus: Path, scenario: Scenario, seed: int, sizes: Sizes, home: Path, deadline: float | None = None
    ):
        self.scenario, self.seed, self.sizes = scenario, seed, sizes
        self._home, self._deadline = home, deadline
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
        on_card = sizes.device != "cpu"
        self._options = TrainSection(
            steps=sizes.steps, device=sizes.device, micro_batch_size=sizes.micro_batch_size, compile=on_card
        )
        self._context = detect_context(sizes.device)
        self._loading: dict[str, Any] = {"device": self._context.device, "pin_memory": True} if on_card else {}
        warmup = sizes.steps // 10
        self._rate = LearningRateSchedule(_PEAK_RATE_TIMES_WIDTH / sizes.width, warmup, sizes.steps, 0.1)
        torch.manual_seed(seed)
        self._parallel = ParallelModel(Transformer(config), self._context, self._options)
        self._optimizer = make_optimizer(self._parallel.model, self._options)
        self._step = TrainStep(self._parallel, self._optimizer, self._options, len(self.names))
        self._val = val = open_corpus(corpus, "val")
        self._validators = {
            num: Validator(val, self.measured, num, self._context, sizes.val_rows)
            for num in (_VAL_SAMPLES, _VAL_SAMPLES_MIDWAY)
        }

    def branch(self, spec: str) -> dict[str, Any]:
        """The rest of the run under the policy that `spec` names, and what came of it; JSON-able."""
        begin = self._beginning()
        policy, other_draws = self._policy(spec), spec == CONTROL
        progress = self._load(spec)
        if progress is None:
            for loss_K, count_K in begin["losses"].numpy():
                policy.update(loss_K, count_K)
        dataset = self._dataset(self.seed + 1000 if other_draws else self.seed)
        if progress is None and not other_draws:
            dataset.load_state_dict(begin["loader"]["stream"])
        with ado.AdaptiveLoader(dataset, policy=policy, **self._loading) as loader:
            if progress is None:
                progress = {**begin, "loader": None}
            reached = self._train(spec, loader, progress, self.sizes.steps, laws_validate="laws=validation" in spec)
        samples_K = reached["losses"][:, 1].sum(dim=0).numpy()
        final = self._validate(_VAL_SAMPLES)
        self._path(spec).unlink(missing_ok=True)
        return {
            "policy": spec,
            "final": final,
            "midway": reached["midway"],
            "share": dict(zip(self.names, (samples_K / samples_K.sum()).tolist(), strict=True)),
            "mixture": dict(zip(self.names, policy.mixture.tolist(), strict=True)),
            "health": policy.health(),
            "losses": [[_or_none(loss) for loss in loss_K] for loss_K in reached["losses"][:, 0].tolist()],
            "samples": reached["losses"][:, 1].to(torch.int64).tolist(),
        }

    def replay(self, spec: str, cell: Mapping[str, Any]) -> Iterator[Policy]:
        """The policy of `spec` after each of the cell's steps, given what the cell's policy was given.

        For policies that see training losses alone. With the cell's own policy its mixtures come out again, to the bit.
        """
        policy = self._policy(spec)
        for loss_K, count_K in zip(cell["losses"], cell["samples"], strict=True):
            policy.update(np.array(loss_K, np.float64), np.array(count_K, np.float64))
            yield policy

    def facts(self) -> dict[str, Any]:
        """What the outcome needs to know of this trial; JSON-able."""
        return {"names": self.names, "measured": self.measured, "wanted": self.wanted, "size": self.size}

    @property
    def _evaluate_every(self) -> int:
        return max(1, self.sizes.steps // _LAW_VALIDATIONS)

    def _beginning(self) -> dict[str, Any]:
        """The checkpoint after the shared steps, trained if it is not there; what is loaded is left to the caller."""
        found = self._load(_BEGINNING)
        if found is not None and found["step"] == self.sizes.shared_steps:
            return found
        with ado.AdaptiveLoader(self._dataset(self.seed), policy=self._policy(BASELINE), **self._loading) as loader:
            found = self._train(_BEGINNING, loader, found, self.sizes.shared_steps)
        self._save(_BEGINNING, found)
        return found

    def _train(
        self,
        name: str,
        loader: ado.AdaptiveLoader,
        progress: dict[str, Any] | None,
        end: int,
        laws_validate: bool = False,
    ) -> dict[str, Any]:
        """The progress at step `end`, from `progress` on; None: from the model as it is. Saves it when out of time."""
        begin, losses = 0, list[np.ndarray]()
        midway: dict[int, dict[str, Any]] = {}
        if progress is not None:
            begin, midway = progress["step"], dict(progress["midway"])
            losses = list(progress["losses"].numpy())
            self._parallel.model.load_state_dict(progress["model"])
            self._optimizer.load_state_dict(progress["optimizer"])
            if progress["loader"] is not None:
                loader.load_state_dict(progress["loader"])
        every = max(1, (self.sizes.steps - self.sizes.steps // 2) // _MIDWAY)
        validator = None
        if laws_validate:
            validator = Validator(self._val, self.names, _VAL_SAMPLES_LAWS, self._context, self.sizes.val_rows)

        def reached(step: int) -> dict[str, Any]:
            return {
                "step": step,
                "model": self._parallel.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "loader": loader.state_dict(),
                "losses": torch.from_numpy(np.array(losses)),
                "midway": midway,
            }

        for step, batch in zip(range(begin, end), loader, strict=False):
            sums_K, counts_K = self._step.forward_backward(batch["tokens"], batch["domain"])
            outcome = self._step.update(sums_K, counts_K, self._rate(step))
            sums_K, counts_K = outcome.for_policy()
            loss_K = (sums_K / counts_K).cpu().numpy()  # NaN where a domain was absent
            domain_B = batch["domain"].cpu().numpy()
            losses.append(np.stack([loss_K, np.bincount(domain_B, minlength=len(self.names)).astype(float)]))
            loader.observe(sums_K, counts_K, reduced=True)
            done = step + 1
            if validator is not None and done % self._evaluate_every == 0:
                found = validator(self._parallel.loss)
                assert found is not None
                loader.observe_validation(found.domain_loss_K, found.domain_tokens_K / self.sizes.seq_len)
            if name != _BEGINNING and self.sizes.steps // 2 < done < end and done % every == 0:
                midway[done] = self._validate(_VAL_SAMPLES_MIDWAY)
            if self._deadline is not None and time.time() > self._deadline and done < end:
                self._save(name, reached(done))
                raise OutOfTime(f"{name}: step {done:,} of {end:,}")
        return reached(end)

    def _path(self, name: str) -> Path:
        return self._home / f".{name}.pt"

    def _save(self, name: str, progress: dict[str, Any]) -> None:
        temporary = self._path(name).with_suffix(".tmp")
        torch.save({**progress, "sizes": dataclasses.asdict(self.sizes)}, temporary)
        temporary.replace(self._path(name))

    def _load(self, name: str) -> dict[str, Any] | None:
        if not self._path(name).exists():
            return None
        found: dict[str, Any] = torch.load(self._path(name), map_location="cpu")
        if found["sizes"] != dataclasses.asdict(self.sizes):
            raise SystemExit(f"{self._path(name)}: of runs of other sizes ({found['sizes']}); choose another --out.")
        return found

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
        run = RunContext(self.sizes.steps, self.sizes.batch_size, LAG, sizes, evaluate_every_steps=self._evaluate_every)
        return make_run_policy(name, self.prior, options, (), run)

    def _validate(self, num_samples: int) -> dict[str, Any]:
        """{domain: nats per token} and bits per byte of the measured domains."""
        found = self._validators[num_samples](self._parallel.loss)
        assert found is not None
        return {
            "loss": dict(zip(self.measured, found.domain_loss_K.tolist(), strict=True)),
            "bits_per_byte": dict(zip(self.measured, found.bits_per_byte_K.tolist(), strict=True)),
        }


def _or_none(loss: float) -> float | None:
    """`loss` in JSON, NaN as null; exact, so that a replay gives the policy's mixtures again to the bit."""
    return None if math.isnan(loss) else loss
