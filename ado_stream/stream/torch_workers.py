"""What DataLoaders of torch and accelerate may do with a data set that reads in threads of its own; what is refused.

One worker, which is a fork, may read; then step and cursors are in that process alone.
"""

import sys
from types import FrameType
from typing import NoReturn

from torch.utils.data import get_worker_info

from ado_stream.errors import ConfigError


def is_worker() -> bool:
    """Whether this process is the one worker of a DataLoader. Raises ConfigError where there are more."""
    worker = get_worker_info()
    if worker is not None and worker.num_workers > 1:
        raise ConfigError(
            f"DataLoader(num_workers={worker.num_workers}): every worker would serve the same batches. Use "
            f"num_workers 0 or 1; reading already runs in threads."
        )
    return worker is not None


def refuse_second_split(num_ranks: int) -> None:
    """Raises ConfigError where accelerate would split the rows of one of several ranks among all of them.

    It tells a data set nothing of itself, but is among the callers, and among those of a worker, which is a fork.
    """
    frame: FrameType | None = sys._getframe() if num_ranks > 1 else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            raise ConfigError(
                f"accelerate would hand out the rows of one of {num_ranks} ranks to all of them; each reads its own "
                "already.\n  Give it an AdaptiveLoader, which it leaves as it is, or do not prepare the DataLoader."
            )
        frame = frame.f_back


def missing_attribute(name: str, attribute: str, caller: FrameType | None) -> Exception:
    """What a loader raises for an attribute that it does not have; accelerate looks for a DataLoader's to copy it."""
    if caller is not None and caller.f_globals.get("__name__") == "accelerate.data_loader":
        return ConfigError(
            f"accelerate cannot copy the {name}, as skip_first_batches does: it knows its step, and load_state_dict "
            "restores it.\n  Leave the call out, and give the loader to register_for_checkpointing."
        )
    return AttributeError(f"{name!r} object has no attribute {attribute!r}")


def refuse_pickling(name: str) -> NoReturn:
    """Raises ConfigError: a worker that is not a fork asks for a copy of what shares memory."""
    raise ConfigError(
        f"{name} cannot be pickled: it shares memory and threads with this process. Use num_workers=0 (reading runs in "
        "threads), or multiprocessing_context='fork'."
    )


def refuse_state() -> NoReturn:
    """Raises ConfigError: the step is asked for in a process that does not read."""
    raise ConfigError(
        "a DataLoader's worker reads this data set; its step and cursors are in that process alone.\n"
        "  Use num_workers=0 (reading runs in threads), or torchdata's StatefulDataLoader, which saves the worker's "
        "state."
    )
