"""Changes of JSON files that tests damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Applies `change` to what the file holds."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
