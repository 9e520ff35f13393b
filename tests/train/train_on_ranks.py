"""A whole training run of a small model; rank 0 writes what the record says of its steps as JSON."""

import json
from pathlib import Path

from ado_model import PRESETS, ModelConfig
from ado_stream.record import read_run
from ado_stream.train.config import load_config
from ado_stream.train.run import run_training


def main(settings: str, resume: str, out: str) -> None:
    """settings: a JSON file with what `load_config` takes."""
    PRESETS["micro"] = ModelConfig(num_layers=1, width=16, num_heads=1)
    result = run_training(load_config(json.loads(Path(settings).read_text())), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))
