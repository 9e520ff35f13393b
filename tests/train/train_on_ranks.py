"""A whole training run of the tiny model; rank 0 writes the record's step lines as JSON."""

import json
import os
from pathlib import Path

from ado_stream.record import read_run
from ado_stream.train.train_step import TrainStep
from tests.rounding import rounding
from tests.train.tiny_model import TINY_MODEL, perturbed_weights, train_tiny


def perturbed(settings: str, seed: int, out: str) -> None:
    """As `main`, from parameters that are moved by what rounding may do to the widest operand."""
    with perturbed_weights(rounding(TINY_MODEL.mlp_width), seed):
        main(settings, "auto", out)


def poisoned(settings: str, step: int, out: str) -> None:
    """As `main`; the loss of `step` is NaN on the last rank alone."""
    forward_backward, calls = TrainStep.forward_backward, []

    def called(self, *arguments):
        sums_K, counts_K = forward_backward(self, *arguments)
        calls.append(None)
        if len(calls) == step + 1 and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            sums_K[0] = float("nan")
        return sums_K, counts_K

    TrainStep.forward_backward = called
    main(settings, "auto", out)


def main(settings: str, resume: str, out: str) -> None:
    """settings: a JSON file with a config that `load_config` takes."""
    result = train_tiny(json.loads(Path(settings).read_text()), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))
