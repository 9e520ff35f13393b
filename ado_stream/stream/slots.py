"""The slots of the global batch that a rank reads; nothing else of the job's layout affects the stream."""

import math
from dataclasses import dataclass

from ado_stream.errors import ConfigError
from ado_stream.option_checks import whole
from ado_stream.stream.batch_draw import DrawSettings


@dataclass(frozen=True)
class RankSlots:
    """One rank's place among all; `replication` consecutive ranks read the same slots."""

    rank: int
    world_size: int
    replication: int
    found: bool = False  # by torch.distributed, and not given

    def check_group(self) -> None:
        """Raises ConfigError where torch.distributed was started after it was asked, and all ranks took the same."""
        if self.found and (now := _distributed_rank()) != (0, 1) and now != (self.rank, self.world_size):
            raise ConfigError(
                f"the data set was made as rank {self.rank} of {self.world_size}, but this is rank {now[0]} of {now[1]}"
                ": every rank would read the same samples.\n"
                "  Make it after torch.distributed.init_process_group, or give it rank= and world_size=."
            )

    @property
    def num_parts(self) -> int:
        """R: the number of different parts the global batch is cut into."""
        return self.world_size // self.replication

    def slots(self, draw: DrawSettings) -> slice:
        """This rank's slots [r B / R, (r + 1) B / R). Raises ConfigError with the nearest batch sizes that work."""
        global_batch_size, rows = draw.global_batch_size, draw.rows_per_sample
        for number, what in ((draw.num_lanes, "canonical_nodes"), (self.num_parts, "ranks")):
            if global_batch_size % (number * rows):
                both = math.lcm(draw.num_lanes, self.num_parts) * rows
                below = global_batch_size // both * both
                nearest = " or ".join(str(size) for size in (below, below + both) if size > 0)
                times = f"{what} {number}" + (f" x {rows}, the rows of a sample" if rows > 1 else "")
                raise ConfigError(
                    f"global_batch_size {global_batch_size} is not a multiple of {times}; nearest: {nearest}."
                )
        return self._part_of(draw.num_samples)

    def rows(self, draw: DrawSettings) -> slice:
        """This rank's rows of the global batch."""
        return self._part_of(draw.global_batch_size)

    def _part_of(self, number: int) -> slice:
        each, part = number // self.num_parts, self.rank // self.replication
        return slice(part * each, (part + 1) * each)


def make_rank_slots(rank: int | None, world_size: int | None, replication: int) -> RankSlots:
    """As given, else by torch.distributed when it runs, else one rank. Raises ConfigError for impossible numbers."""
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank= and world_size=, or neither.")
    found = rank is None or world_size is None
    if rank is None or world_size is None:
        rank, world_size = _distributed_rank()
    rank, world_size, replication = (
        whole("rank", rank),
        whole("world_size", world_size, 1),
        whole("replication", replication, 1),
    )
    if rank >= world_size:
        raise ConfigError(f"rank {rank} of world_size {world_size}; expected 0 <= rank < world_size.")
    if world_size % replication:
        raise ConfigError(f"replication {replication} does not divide the {world_size} ranks.")
    return RankSlots(rank, world_size, replication, found)


def _distributed_rank() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
