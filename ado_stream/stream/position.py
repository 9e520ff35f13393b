"""Where a stream stands: its next step, its cursors, and the draws of the last steps.

Invariant: a Position never changes; a stream moves on by one assignment. So an exception that a signal raises, or a
state that another thread saves, finds the stream before a step or after it, never between.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ado_stream.errors import ConfigError
from ado_stream.option_checks import whole
from ado_stream.stream.batch_draw import DrawSettings, StepDraw, advance, draw_step
from ado_stream.value_types import Floats, Ints

KEPT_STEPS = 64  # draws kept after their batches were yielded
KEPT = f"the last {KEPT_STEPS} steps are kept, and steps ahead whose mixture is published."


@dataclass(frozen=True)
class Position:
    """step: yielded next. cursors_KC: int64, of every domain and lane before it. kept: the last draws, in order."""

    step: int
    cursors_KC: Ints
    kept: tuple[StepDraw, ...] = ()

    def after(self, draw: StepDraw) -> "Position":
        """The position once the batch of `draw`, of this step, has been handed out."""
        assert draw.step == self.step
        cursors_KC = self.cursors_KC.copy()
        advance(draw.domain_B, cursors_KC)
        return Position(self.step + 1, cursors_KC, (*self.kept[1 - KEPT_STEPS :], draw))

    def kept_draw(self, step: int) -> StepDraw | None:
        """The draw of a step yielded before, if it is kept."""
        return next((draw for draw in self.kept if draw.step == step), None)

    def draw(self, settings: DrawSettings, step: int, mixture: Callable[[int], Floats]) -> StepDraw:
        """The draw of `step`, kept or ahead. Raises ConfigError for an earlier one, and what `mixture` raises."""
        if (kept := self.kept_draw(step)) is not None:
            return kept
        if whole("step", step) < self.step:
            raise ConfigError(f"step {step} is not available at step {self.step}: {KEPT}")
        cursors_KC = self.cursors_KC.copy()
        for ahead in range(self.step, step + 1):
            draw = draw_step(settings, ahead, mixture(ahead), cursors_KC)
        return draw
