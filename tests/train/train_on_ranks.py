"""A whole training run of a small model; rank 0 writes what the record says of its steps as JSON.

usage: train_on_ranks.py SETTINGS.json RESUME OUT     (run by the tests, alone or under torchrun)
"""

import json
import sys
from pathlib import Path

from ado_model import PRESETS, ModelConfig
from ado_stream.record import read_run
from ado_stream.train.config import load_config
from ado_stream.train.run import run_training


def main(settings: str, resume: str, out: str) -> None:
    PRESETS["micro"] = ModelConfig(num_layers=1, width=16, num_heads=1)
    result = run_training(load_config(json.loads(Path(settings).read_text())), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))


if __name__ == "__main__":
    main(*sys.argv[1:])
