"""Mean losses of blocks of steps, over each domain's own samples: what laws are fitted to, in bounded memory.

A block sums the losses and samples of some steps in a row. Once 64 blocks are full, neighbours are merged in pairs and
blocks become twice as long; so a run of any length, known or not, is held as 32 to 64 blocks of equal length, and a
step costs the same at any time. Sums stay exact sums: merging loses resolution, no loss.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ado_stream.errors import ResumeError
from ado_stream.policy import state_codec
from ado_stream.value_types import Bools, Floats, Ints, JsonObject

MAX_BLOCKS = 64
_FAR = 0.1  # share of a block's samples that a mixture gives to other domains, from which on it is another mixture's
_SUMS = ("loss", "samples", "place")


@dataclass(frozen=True)
class BlockPoints:
    """M finished blocks. Where a domain was absent, samples are 0, own samples and losses NaN.

    step_M: their first steps. own_KM: a domain's own samples at the block's middle. loss_KM: mean losses, nats.
    samples_KM: samples with a valid loss. total_M: samples of all domains.
    """

    step_M: Ints
    own_KM: Floats
    loss_KM: Floats
    samples_KM: Floats
    total_M: Floats

    @property
    def spacing(self) -> float:
        """Steps from one block to the next, in the mean; there must be two."""
        return float(self.step_M[-1] - self.step_M[0]) / (len(self.step_M) - 1)

    def moved(self, offset_K: Floats) -> "BlockPoints":
        """With `offset_K` more own samples."""
        return replace(self, own_KM=np.maximum(self.own_KM + offset_K[:, None], 0.5))

    def where(self, kept_M: Bools) -> "BlockPoints":
        """Only the blocks that are True in `kept_M`."""
        return BlockPoints(*(values[..., kept_M] for values in vars(self).values()))

    def recent(self, num_blocks: int) -> tuple[Floats, Floats]:
        """(K,) mean losses, NaN where absent, and samples of the newest `num_blocks` blocks."""
        samples_KM = self.samples_KM[:, -num_blocks:]
        samples_K = samples_KM.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (np.nan_to_num(self.loss_KM[:, -num_blocks:]) * samples_KM).sum(axis=1) / samples_K, samples_K


class BlockHistory:
    """Blocks of K domains, oldest first; the newest may be unfinished.

    num_steps: steps so far. first_step: of a block is block x `length`.
    """

    def __init__(self, num_domains: int):
        self.length = 1  # steps a block
        self.num_steps = 0
        self._loss_MK = np.zeros((MAX_BLOCKS, num_domains))  # sum of loss x samples
        self._samples_MK = np.zeros((MAX_BLOCKS, num_domains))  # samples with a valid loss
        self._place_MK = np.zeros((MAX_BLOCKS, num_domains))  # sum of place x samples
        self._total_M1 = np.zeros((MAX_BLOCKS, 1))  # samples of all domains, whatever their losses

    @property
    def num_blocks(self) -> int:
        """Finished blocks."""
        return self.num_steps // self.length

    def record(self, place_K: Floats, loss_K: Floats, count_K: Floats, seen_K: Bools) -> None:
        """Adds one step: its losses, valid where `seen_K`, their samples, and each domain's own samples by then."""
        block = self.num_steps // self.length
        if block == MAX_BLOCKS:
            self._merge()
            block //= 2
        samples_K = np.where(seen_K, count_K, 0.0)
        self._samples_MK[block] += samples_K
        self._loss_MK[block] += np.where(seen_K, loss_K, 0.0) * samples_K
        self._place_MK[block] += place_K * samples_K
        self._total_M1[block] += count_K.sum()
        self.num_steps += 1

    def points(self, first_step: int) -> "BlockPoints":
        """The finished blocks that begin at `first_step` or later."""
        first = -(-first_step // self.length)
        chosen = slice(first, self.num_blocks)
        samples_KM = self._samples_MK[chosen].T
        with np.errstate(invalid="ignore"):  # 0 / 0 of absent domains
            return BlockPoints(
                self.length * np.arange(first, self.num_blocks),
                self._place_MK[chosen].T / samples_KM,
                self._loss_MK[chosen].T / samples_KM,
                samples_KM,
                self._total_M1[chosen, 0],
            )

    def first_step_under(self, mixture_K: Floats) -> int:
        """The step from which on all blocks were drawn under about this mixture."""
        points = self.points(0)
        total_M = np.maximum(points.total_M, 1.0)
        excess_M = np.maximum(points.samples_KM / total_M - mixture_K[:, None], 0.0).sum(axis=0)
        by_chance = 0.5 * np.sqrt(mixture_K * (1.0 - mixture_K)).sum()
        far_M = np.flatnonzero(excess_M > _FAR + by_chance / np.sqrt(total_M))
        return int(points.step_M[far_M[-1]]) + self.length if len(far_M) else 0

    def offsets_under(self, mixture_K: Floats, first_step: int) -> Floats:
        """(K,) to be added to own samples: what they would be, had this mixture been drawn before `first_step`, too."""
        points = self.points(0)
        total_M = np.cumsum(points.total_M) - 0.5 * points.total_M  # at the blocks' middles, as own_KM is
        known_KM = (points.step_M >= first_step) & (points.samples_KM > 0.0)
        offset_KM = np.where(known_KM, mixture_K[:, None] * total_M - points.own_KM, 0.0)
        return np.asarray(offset_KM.sum(axis=1) / np.maximum(np.count_nonzero(known_KM, axis=1), 1))

    def state_dict(self) -> JsonObject:
        """The blocks as JSON values."""
        used = slice(0, -(-self.num_steps // self.length))
        sums = zip(_SUMS, (self._loss_MK, self._samples_MK, self._place_MK), strict=True)
        return {
            "length": self.length,
            "num_steps": self.num_steps,
            **{name: state_codec.pack(sum_MK[used]) for name, sum_MK in sums},
            "total": state_codec.pack(self._total_M1[used, 0]),
        }

    def load_state_dict(self, state: Any, source_K: Ints) -> None:
        """Restores the saved blocks; source_K: index of each domain in them, -1 for a new one (no samples).

        Raises ResumeError for anything but blocks of such a shape.
        """
        try:
            length, num_steps = int(state["length"]), int(state["num_steps"])
            sums = [state_codec.unpack(state[name], f"blocks' {name}") for name in _SUMS]
            total_M = state_codec.unpack(state["total"], "blocks' total")
        except (TypeError, KeyError, ValueError):
            raise ResumeError("policy state: the blocks of losses cannot be read.") from None
        used = -(-num_steps // length) if length > 0 else -1
        if not 0 <= used <= MAX_BLOCKS or num_steps < 0 or total_M.shape != (used,):
            raise ResumeError(f"policy state: {num_steps} steps in blocks of {length} do not fit {MAX_BLOCKS} blocks.")
        for sum_MK, own_MK in zip(sums, (self._loss_MK, self._samples_MK, self._place_MK), strict=True):
            if sum_MK.ndim != 2 or len(sum_MK) != used or sum_MK.shape[1] <= source_K.max(initial=0):
                raise ResumeError(f"policy state: blocks of shape {sum_MK.shape}, expected ({used}, domains).")
            own_MK[:] = 0.0
            own_MK[:used] = np.where(source_K >= 0, sum_MK[:, source_K], 0.0)
        self._total_M1[:] = 0.0
        self._total_M1[:used, 0] = total_M
        self.length, self.num_steps = length, num_steps

    def _merge(self) -> None:
        for sum_MK in (self._loss_MK, self._samples_MK, self._place_MK, self._total_M1):
            sum_MK[: MAX_BLOCKS // 2] = sum_MK[::2] + sum_MK[1::2]
            sum_MK[MAX_BLOCKS // 2 :] = 0.0
        self.length *= 2
