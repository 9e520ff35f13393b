"""A whole training run of a small model; rank 0 writes what the record says of its steps as JSON."""

import json
from pathlib import Path

from ado_stream.record import read_run
from tests.rounding import rounding
from tests.train.micro import MICRO, perturbed_weights, train_micro


def perturbed(settings: str, seed: int, out: str) -> None:
    """As `main`, from parameters that are moved by what rounding may do to the widest operand."""
    with perturbed_weights(rounding(MICRO.mlp_width), seed):
        main(settings, "auto", out)


def main(settings: str, resume: str, out: str) -> None:
    """settings: a JSON file with what `load_config` takes."""
    result = train_micro(json.loads(Path(settings).read_text()), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))
