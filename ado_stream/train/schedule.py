"""The learning rate of every step: linear warm-up, then half a cosine down to a fraction of the peak.

Source: SGDR without restarts (arXiv 1608.03983), with the warm-up of arXiv 1706.02677.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Peak rate, warm-up steps, total steps, and the last step's rate as a fraction of the peak."""

    peak: float
    warmup_steps: int
    steps: int
    min_frac: float

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - 1 - self.warmup_steps, 1)
        return self.peak * (self.min_frac + (1 - self.min_frac) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
