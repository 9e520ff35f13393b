"""How long until the first batch: fresh, and resumed at step 1,000,000? From shards on the local disk.

8 domains, 1025 uint16 tokens a sample, batch 64. Timed from the start of a fresh process: imports, loading of compiled
code, indexes, the state and the checks of shards are included. StreamingDataset beside it: fresh, and resumed in the
middle of its epoch. Prints seconds; no bar.
"""

import statistics
import tempfile
import time
from pathlib import Path

import ado_stream as ado
from benchmarks.common import rounds_in_turn, size, write_result
from benchmarks.stream_data import BATCH, our_domains, their_dataset, write_domains

ROUNDS = 5
SAMPLES = size(6000, 40)
LATE_STEP = 1_000_000


def ours_s(asked_at: float, local: Path, names: list[str], step: int) -> float:
    """Seconds from `asked_at` to the batch of `step`."""
    dataset = ado.AdaptiveStreamingDataset(our_domains(local, names), BATCH, mixture_lag=None)
    if step:
        state = dataset.state_dict()
        state["step"] = step
        for domain in state["domains"].values():
            domain["cursors"] = [step * BATCH // len(names)]
        dataset.load_state_dict(state)
    assert next(iter(dataset))["step"] == step
    seconds = time.monotonic() - asked_at
    dataset.close()
    return seconds


def theirs_s(asked_at: float, local: Path, names: list[str], samples: int) -> float:
    """Seconds from `asked_at` until StreamingDataset's first batch, resumed after `samples` of its epoch."""
    from torch.utils.data import DataLoader

    dataset = their_dataset(local, names)
    if samples:
        dataset.load_state_dict(dataset.state_dict(num_samples=samples, from_beginning=True))
    next(iter(DataLoader(dataset, batch_size=BATCH, num_workers=0)))
    return time.monotonic() - asked_at


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = write_domains(local, SAMPLES, compression=None)
        contestants = {
            "ours, step 0": (ours_s, local, names, 0),
            f"ours, step {LATE_STEP:,}": (ours_s, local, names, LATE_STEP),
            "streaming, fresh": (theirs_s, local, names, 0),
            "streaming, half an epoch in": (theirs_s, local, names, SAMPLES * len(names) // 2),
        }
        seconds = rounds_in_turn(contestants, ROUNDS)
    write_result("stream_start", {"first_batch_s": {name: statistics.median(v) for name, v in seconds.items()}})


if __name__ == "__main__":
    main()
