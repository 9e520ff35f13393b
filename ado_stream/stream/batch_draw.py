"""The draw of a step's global batch: domains by the mixture, positions by the cursors. Pure functions.

Systematic resampling (docs/math.md section 7; Carpenter, Clifford, Fearnhead 1999): one u in [0, 1) a step; point j of
B takes the domain whose interval of the cumulative mixture holds (u + j) / B. So E[c_k] = B p_k and |c_k - B p_k| < 1
at every step. The points are then shuffled over the slots. `multinomial` draws each slot on its own.
Cost O(B + K).

A row of a batch that is several samples long takes consecutive positions of one domain; one that is a part of a sample
has the sample's other parts beside it. So cursors count whole samples at any sequence length.
"""

from dataclasses import dataclass

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.stream import numba_order
from ado_stream.stream.sample_order import hash_key
from ado_stream.value_types import Array, Floats, Ints

SAMPLINGS = ("systematic", "multinomial")


@dataclass(frozen=True)
class DrawSettings:
    """What the draw depends on besides cursors and mixtures.

    global_batch_size: rows. samples_per_row, rows_per_sample: one of them is 1.
    """

    global_batch_size: int
    num_lanes: int
    seed: int
    sampling: str
    samples_per_row: int = 1
    rows_per_sample: int = 1

    @property
    def num_samples(self) -> int:
        """B: samples of one step."""
        return self.global_batch_size * self.samples_per_row // self.rows_per_sample


@dataclass(frozen=True)
class StepDraw:
    """The global batch of one step, before any byte is read."""

    step: int
    mixture_K: Floats  # (K,) float64, in force
    domain_B: Array  # (B,) int32: the domain of every slot, which holds one sample
    position_B: Ints  # (B,) int64: its place in the order of domain and lane


def draw_step(settings: DrawSettings, step: int, mixture_K: Floats, cursors_KC: Ints) -> StepDraw:
    """The draw of `step`; moves `cursors_KC` (int64), the next position of every domain and lane, in place."""
    num_drawn = settings.global_batch_size // settings.rows_per_sample
    domain_R = draw_domains(mixture_K, num_drawn, settings.seed, step, settings.sampling)
    domain_B = np.repeat(domain_R, settings.samples_per_row)
    return StepDraw(step, mixture_K, domain_B, advance(domain_B, cursors_KC))


def draw_domains(mixture_K: Floats, num_slots: int, seed: int, step: int, sampling: str) -> Array:
    """(B,) int32: the domain of every slot of step `step`'s global batch.

    mixture_K: (K,) float64 >= 0, not all 0; its sum is divided out. Raises ConfigError for an unknown `sampling`.
    """
    domain_B = np.empty(num_slots, np.int32)
    if sampling == "systematic":
        u = numba_order.uniform(hash_key("draw", seed, step), np.uint64(0))
        numba_order.systematic(mixture_K, u, hash_key("slots", seed, step), domain_B)
    elif sampling == "multinomial":
        numba_order.multinomial(mixture_K, hash_key("draw", seed, step), domain_B)
    else:
        raise ConfigError(f"sampling '{sampling}'; expected one of {', '.join(SAMPLINGS)}.")
    return domain_B


def advance(domain_B: Array, cursors_KC: Ints) -> Ints:
    """(B,) int64: each slot's position in its domain's order, in its lane; moves `cursors_KC` (int64) in place.

    Slot j belongs to lane floor(j C / B), so lane c fills the slots [c B / C, (c + 1) B / C) when C divides B. Within
    a lane, slots are served in ascending order: any run of slots of one domain reads consecutive positions.
    """
    position_B = np.empty(domain_B.size, np.int64)
    numba_order.advance(domain_B, cursors_KC, position_B)
    return position_B
