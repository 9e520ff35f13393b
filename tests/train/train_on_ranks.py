"""A whole training run of the tiny model; rank 0 writes the record's step lines as JSON."""

import json
from pathlib import Path

from ado_stream.record import read_run
from tests.train.tiny_model import train_tiny


def main(settings: str, resume: str, out: str) -> None:
    """settings: a JSON file with a config that `load_config` takes."""
    result = train_tiny(json.loads(Path(settings).read_text()), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))
