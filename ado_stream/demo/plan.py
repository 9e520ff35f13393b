"""What a demo will do: sizes, settings of both runs, and the folder's own note of them.

A folder belongs to one plan. A demo that was stopped goes on when started again with the same plan; another plan in the
same folder is refused, since its text and runs would not be what the report says.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ado_stream.errors import ConfigError

NOTE = "demo.json"
POLICIES = ("ado", "natural")
_LEAST_STEPS = 20


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the text, of the two runs and of their validation. Two plans that are equal give the same numbers."""

    seed: int
    quick: bool
    steps: int
    batch_size: int
    seq_len: int
    val_frac: float
    val_samples_per_domain: int
    tokenizer: str = "bpe:4096"

    @classmethod
    def of(cls, seed: int, quick: bool, steps: int | None) -> "DemoPlan":
        """The plan for minutes on two cores, or with `quick` for seconds. Raises ConfigError for too few steps."""
        if steps is not None and steps < _LEAST_STEPS:
            raise ConfigError(f"demo: {steps} steps are too few for a policy to act; at least {_LEAST_STEPS}.")
        if quick:
            return cls(seed, True, steps or 30, batch_size=8, seq_len=128, val_frac=0.2, val_samples_per_domain=16)
        return cls(seed, False, steps or 300, batch_size=16, seq_len=128, val_frac=0.06, val_samples_per_domain=96)

    def claim(self, out: Path) -> None:
        """Writes the plan into `out`, or checks that the one there is the same. Raises ConfigError if it is not."""
        path = out / NOTE
        if path.exists():
            earlier = json.loads(path.read_text())
            other = [f"{key} {earlier.get(key)}" for key, value in asdict(self).items() if earlier.get(key) != value]
            if other:
                raise ConfigError(
                    f"{out}: holds a demo with other settings ({', '.join(other)}).\n"
                    "  Give the same settings to go on with it, choose another --out, or remove the folder."
                )
            return
        out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(path)

    def train_settings(self, policy: str, corpus: Path, run_dir: Path) -> dict[str, Any]:
        """The training config of one run; the runs differ in nothing but the policy."""
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
        """ADO's schedule for a run of minutes: act after a sixth of it, leave out the warm-up, smooth over little."""
        return {
            "start_step": self.steps // 6,
            "ignore_steps": self.steps // 10,
            "interval": max(2, self.steps // 25),
            "floor": 0.01,
            "fit": {"smooth_window": 2 * (self.steps // 24) + 1, "every": 1},
        }
