"""Mixtures of a run's stages in place of the policy's; the policy inside keeps learning from the losses.

Invariant: the mixture of an update follows from the policy and the number of updates alone. The saved state is the
policy's, so stages may be given to a run that began without any, or taken from it.
"""

from collections.abc import Sequence

from ado_stream.policy.base_policy import Policy
from ado_stream.policy.guards import Guard
from ado_stream.value_types import Bools, Floats, JsonMapping, JsonObject

StageMixture = tuple[int, Floats | None]  # the step after the stage, and (K,) its own mixture


class StageMixtures(Guard):
    """In a stage with a mixture of its own that one, else the policy's.

    stages: one after another. mixture_lag: the mixture of update n is drawn at step n + 1 + mixture_lag.
    """

    kind = "stages"

    def __init__(self, policy: Policy, stages: Sequence[StageMixture], mixture_lag: int):
        self._stages, self._mixture_lag = stages, mixture_lag
        super().__init__(policy)

    @property
    def floor(self) -> float:
        """The least share in any mixture, of a stage or of the policy."""
        return min([self.policy.floor, *(float(own_K.min()) for _, own_K in self._stages if own_K is not None)])

    def health(self) -> JsonObject:
        """The policy's."""
        return self.policy.health()

    def state_dict(self) -> JsonObject:
        """The policy's."""
        return self.policy.state_dict()

    def load_state_dict(self, state: JsonMapping, names: Sequence[str] | None = None) -> None:
        """Continues from the policy's state."""
        self.policy.load_state_dict(state, names)
        self.step = self.policy.step
        self._after_load(names is None)

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        self.policy.update(loss_K, count_K)
        self._copy_fit()
        return self._mixture_after(self.step + 1)

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        return self._mixture_after(self.step)

    def _mixture_after(self, num_updates: int) -> Floats:
        drawn_at = num_updates + self._mixture_lag
        own_K = next((own_K for end, own_K in self._stages if drawn_at < end), None)
        return self.policy.mixture if own_K is None else own_K

    def _repr_bound(self) -> str:
        return f"stages to steps {[end for end, _ in self._stages]}"
