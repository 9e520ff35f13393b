"""A whole training run of a small model; rank 0 writes what the record says of its steps as JSON."""

import json
from pathlib import Path

from ado_stream.record import read_run
from tests.train.micro import train_micro


def main(settings: str, resume: str, out: str) -> None:
    """settings: a JSON file with what `load_config` takes."""
    result = train_micro(json.loads(Path(settings).read_text()), resume)
    steps = read_run(result.run_dir)[1]["step"]
    Path(out).write_text(json.dumps({"stopped": result.stopped, "steps": steps}))
