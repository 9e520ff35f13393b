"""Children start with everything imported, whichever test was the first to use the fork server."""

import json
import sys
from pathlib import Path


def imported(out: str) -> None:
    Path(out).write_text(json.dumps(list(sys.modules)))


def test_children_import_next_to_nothing(ranks):
    """The fork server ignores preloaded modules that do not exist; every child then spends two seconds more."""
    heavy = {"ado_stream.train.trainer", "torch._dynamo", "safetensors.torch", "boto3", "numba.np.arrayobj"}
    assert heavy <= set(ranks(1, imported))
