"""The demo's plan: sizes of the text and of the runs, the policies and the two corpora they are tried on.

Every policy is tried on text with an unlearnable domain, as scrapes have; natural and target also without that domain.
A folder holds one plan: the same plan resumes it, another one is refused, because the text and the runs in it would not
match the report.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ado_stream.demo.environment_files import UNLEARNABLE
from ado_stream.durable import damage_errors, write_durably
from ado_stream.errors import ConfigError, DataError
from ado_stream.json_files import decode_json
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject

PLAN_NAME = "demo.json"
POLICIES = ("natural", "uniform", "ado", "target")
CLEAN = {f"clean {policy}": policy for policy in ("natural", "target")}  # run: policy, without the unlearnable domain
_MIN_STEPS = 40


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the text, of the runs and of their validation. Equal plans give the same numbers."""

    seed: int
    quick: bool
    steps: int
    batch_size: int
    seq_len: int
    size_frac: float  # of the text, see demo/raw_text.py
    held_out_frac: float
    val_samples_per_domain: int
    tokenizer: str = "bpe:2048"

    @classmethod
    def create(cls, seed: int, quick: bool, steps: int | None) -> "DemoPlan":
        """A plan of minutes on two cores, with `quick` of seconds. Raises ConfigError for too few steps."""
        if steps is not None and steps < _MIN_STEPS:
            raise ConfigError(f"demo: {steps} steps are too few for a policy to act; at least {_MIN_STEPS}.")
        if quick:
            return cls(seed, True, steps or 40, 8, 64, size_frac=0.05, held_out_frac=0.2, val_samples_per_domain=16)
        return cls(seed, False, steps or 500, 32, 64, size_frac=0.2, held_out_frac=0.06, val_samples_per_domain=200)

    def save_or_compare(self, out: Path) -> None:
        """Writes the plan into `out`. Raises ConfigError if another plan is there."""
        path = out / PLAN_NAME
        if path.exists():
            with damage_errors(path):
                earlier = decode_json(read_regular(path), JsonObject, PLAN_NAME, DataError)
            other = [f"{key} {earlier.get(key)}" for key, value in asdict(self).items() if earlier.get(key) != value]
            if other:
                raise ConfigError(
                    f"{out}: holds a demo with other settings ({', '.join(other)}).\n"
                    "  Give the same settings to resume it, choose another --out, or remove the folder."
                )
            return
        write_durably(path, json.dumps(asdict(self), indent=1) + "\n")

    def train_settings(self, run: str, corpus: Path, tokens: Mapping[str, int], run_dir: Path) -> JsonObject:
        """The training config of `run`, of POLICIES or CLEAN; the others differ only in the policy and its prior.

        tokens: of each domain of the corpus.
        """
        policy = CLEAN.get(run, run)
        prior = {name: float(count) * (name != UNLEARNABLE) for name, count in tokens.items()} if run in CLEAN else {}
        return {
            "corpus": str(corpus),
            "run_dir": str(run_dir),
            "seed": self.seed,
            "model": {"preset": "micro", "context_length": self.seq_len},
            "data": {"global_batch_size": self.batch_size, "mixture_lag": 4, "prefetch": 3, "io_threads": 2},
            "policy": {"name": policy, "options": self._ado_options() if policy == "ado" else {}, "prior": prior},
            "train": {"steps": self.steps, "warmup_steps": self.steps // 10},
            "checkpoint": {"every_steps": 0, "keep": 1},
            "evaluate": {"every_steps": 0, "max_samples_per_domain": self.val_samples_per_domain},
            "log": {"every_steps": max(1, self.steps // 5)},
        }

    def _ado_options(self) -> JsonObject:
        """ADO's schedule for a run of minutes: start after a sixth of it, ignore the warm-up, smooth over few steps."""
        return {
            "start_step": self.steps // 6,
            "ignore_steps": self.steps // 10,
            "interval": max(2, self.steps // 25),
            "floor": 0.01,
            "fit": {"smooth_window": 2 * (self.steps // 24) + 1, "every": 1},
        }
