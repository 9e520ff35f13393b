"""Which rows of the global batch this process reads: the only thing about the world that the stream needs to know."""

from dataclasses import dataclass

from ado_stream.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This rank among all; `replication` consecutive ranks read the same rows."""

    rank: int
    size: int
    replication: int

    @property
    def readers(self) -> int:
        """R: how many different parts the global batch is cut into."""
        return self.size // self.replication

    def slots(self, global_batch_size: int, num_lanes: int) -> tuple[int, int]:
        """This rank's slots [r B / R, (r + 1) B / R). Raises ConfigError with the nearest batch sizes that work."""
        for divisor, what in ((num_lanes, "canonical_nodes"), (self.readers, "ranks")):
            if divisor < 1 or global_batch_size < 1 or global_batch_size % divisor:
                below = global_batch_size // divisor * divisor if divisor > 0 else 0
                nearest = " or ".join(str(size) for size in (below, below + divisor) if size > 0)
                raise ConfigError(
                    f"global_batch_size {global_batch_size} is not a multiple of {what} {divisor}; nearest: {nearest}."
                )
        part = global_batch_size // self.readers
        reader = self.rank // self.replication
        return reader * part, (reader + 1) * part


def world_of(rank: int | None, size: int | None, replication: int) -> World:
    """The world as given, else torch.distributed's when it runs, else one rank. Raises ConfigError when impossible."""
    if (rank is None) != (size is None):
        raise ConfigError("give both rank= and world_size=, or neither.")
    if rank is None or size is None:
        rank, size = _running_world()
    if not 0 <= rank < size:
        raise ConfigError(f"rank {rank} of world_size {size}; expected 0 <= rank < world_size.")
    if replication < 1 or size % replication:
        raise ConfigError(f"replication {replication} does not divide the {size} ranks.")
    return World(rank, size, replication)


def _running_world() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
