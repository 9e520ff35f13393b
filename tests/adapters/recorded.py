"""Runs an example with what its loader hands out and observes written down: `recorded.py LOG EXAMPLE ARGUMENT...`.

A line of LOG.RANK for each batch: {"step", "tokens": their hash, "mixture"}, and for each observation: {"observed",
"sums", "counts"}. KILL_AT_STEP=s kills the process when it asks for the batch of step s.
"""

import hashlib
import json
import os
import runpy
import signal
import sys

from ado_stream.loader import AdaptiveLoader


def main(log: str, example: str, *arguments: str) -> None:
    next_batch, observe = AdaptiveLoader._next, AdaptiveLoader.observe
    kill_at_step = int(os.environ.get("KILL_AT_STEP", -1))

    def write(**line) -> None:
        with open(f"{log}.{os.environ.get('RANK', 0)}", "a") as file:
            file.write(json.dumps(line) + "\n")

    def record_batch(loader):
        if loader.step == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = next_batch(loader)
        digest = hashlib.sha256(batch["tokens"].numpy().tobytes() + batch["domain"].numpy().tobytes()).hexdigest()
        write(step=batch["step"], tokens=digest, mixture=loader.mixture.tolist())
        return batch

    def record_observation(loader, sums_K, counts_K, **options):
        write(observed=loader.step - 1, sums=sums_K.tolist(), counts=counts_K.tolist())
        observe(loader, sums_K, counts_K, **options)

    AdaptiveLoader._next, AdaptiveLoader.observe = record_batch, record_observation
    sys.argv = [example, *arguments]
    runpy.run_path(example, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
