"""Mean losses of blocks of steps, over each domain's own samples: what laws are fitted to, in bounded memory.

A block sums the losses and samples of some steps in a row. Once 64 blocks are full, neighbours are merged in pairs and
blocks become twice as long; so a run of any length, known or not, is held as 32 to 64 blocks of equal length, and a
step costs the same at any time. Sums stay exact sums: merging loses resolution, no loss.
"""

from dataclasses import dataclass, replace

import numpy as np

from ado_stream.errors import ResumeError
from ado_stream.policy import state_codec
from ado_stream.value_types import Bools, Floats, Ints, JsonMapping, JsonObject

MAX_BLOCKS = 64
_FAR = 0.1  # a block whose shares exceed a mixture's by this much in sum, beyond chance, was drawn under another one
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
        # Random sampling alone exceeds shares by about 0.4 sum sqrt(p (1 - p) / N) in all; 0.5 leaves room.
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

    def load_state_dict(self, state: JsonMapping, source_K: Ints, num_saved: int) -> None:
        """Restores the blocks of `num_saved` domains; source_K: index of each domain in them, -1: new (no samples).

        Raises ResumeError for anything but blocks of such a shape.
        """
        length, num_steps = state_codec.whole_number(state, "length", 1), state_codec.whole_number(state, "num_steps")
        used = -(-num_steps // length)
        if used > MAX_BLOCKS:
            raise ResumeError(f"policy state: {num_steps} steps in blocks of {length} do not fit {MAX_BLOCKS} blocks.")
        self._total_M1[:used, 0] = state_codec.unpack(state.get("total"), "blocks' total", 0.0, (used,))
        for name, own_MK in zip(_SUMS, (self._loss_MK, self._samples_MK, self._place_MK), strict=True):
            sum_MK = state_codec.unpack(state.get(name), f"blocks' {name}", 0.0, (used, num_saved))
            own_MK[:used] = np.where(source_K >= 0, sum_MK[:, source_K], 0.0)
        self.length, self.num_steps = length, num_steps

    def _merge(self) -> None:
        for sum_MK in (self._loss_MK, self._samples_MK, self._place_MK, self._total_M1):
            sum_MK[: MAX_BLOCKS // 2] = sum_MK[::2] + sum_MK[1::2]
            sum_MK[MAX_BLOCKS // 2 :] = 0.0
        self.length *= 2
