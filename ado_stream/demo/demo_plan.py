"""The settings of a demo: sizes, both runs, and the copy of them in the demo's folder.

A folder belongs to one plan: a stopped demo is resumed by the same plan, and another one is refused, since the report
would mix the text and runs of two plans.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError

PLAN_NAME = "demo.json"
POLICIES = ("ado", "natural")
_MIN_STEPS = 20


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the text, of the two runs and of their validation. Equal plans give the same numbers."""

    seed: int
    quick: bool
    steps: int
    batch_size: int
    seq_len: int
    val_frac: float
    val_samples_per_domain: int
    tokenizer: str = "bpe:4096"

    @classmethod
    def create(cls, seed: int, quick: bool, steps: int | None) -> "DemoPlan":
        """A plan of minutes on two cores, with `quick` of seconds. Raises ConfigError for too few steps."""
        if steps is not None and steps < _MIN_STEPS:
            raise ConfigError(f"demo: {steps} steps are too few for a policy to act; at least {_MIN_STEPS}.")
        if quick:
            return cls(seed, True, steps or 30, batch_size=8, seq_len=128, val_frac=0.2, val_samples_per_domain=16)
        return cls(seed, False, steps or 300, batch_size=16, seq_len=128, val_frac=0.06, val_samples_per_domain=96)

    def save_or_compare(self, out: Path) -> None:
        """Writes the plan into `out`. Raises ConfigError if another plan is there."""
        path = out / PLAN_NAME
        if path.exists():
            earlier = json.loads(path.read_text())
            other = [f"{key} {earlier.get(key)}" for key, value in asdict(self).items() if earlier.get(key) != value]
            if other:
                raise ConfigError(
                    f"{out}: holds a demo with other settings ({', '.join(other)}).\n"
                    "  Give the same settings to resume it, choose another --out, or remove the folder."
                )
            return
        write_durably(path, json.dumps(asdict(self), indent=1) + "\n")

    def train_settings(self, policy: str, corpus: Path, run_dir: Path) -> dict[str, Any]:
        """The training config of one run; the runs differ only in the policy."""
        return {
            "corpus": str(corpus),
            "run_dir": str(run_dir),
            "seed": self.seed,
            "model": {"preset": "nano", "context_length": self.seq_len},
            "data": {"global_batch_size": self.batch_size, "mixture_lag": 4, "prefetch": 3, "io_threads": 2},
            "policy": {"name": policy, "options": self._ado_options() if policy == "ado" else {}},
            "train": {"steps": self.steps, "warmup_steps": self.steps // 10},
            "checkpoint": {"every_steps": 0, "keep": 1},
            "evaluate": {"every_steps": 0, "max_samples_per_domain": self.val_samples_per_domain},
            "log": {"every_steps": max(1, self.steps // 10)},
        }

    def _ado_options(self) -> dict[str, Any]:
        """ADO's schedule for a run of minutes: start after a sixth of it, ignore the warm-up, smooth over few steps."""
        return {
            "start_step": self.steps // 6,
            "ignore_steps": self.steps // 10,
            "interval": max(2, self.steps // 25),
            "floor": 0.01,
            "fit": {"smooth_window": 2 * (self.steps // 24) + 1, "every": 1},
        }
