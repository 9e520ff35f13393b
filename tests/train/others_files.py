"""Commands for which every file's permissions hold, also where root runs them; their exit codes and errors as JSON."""

import contextlib
import ctypes
import io
import json
from pathlib import Path

from ado_model import PRESETS
from ado_stream.cli.main import main
from tests.train.tiny_model import TINY_MODEL

_CAPABILITY_VERSION = 0x20080522  # linux/capability.h


def run_verbs(commands: list[list[str]], out: str) -> None:
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
    PRESETS["tiny"] = TINY_MODEL
    found = []
    for command in commands:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            found.append([main(command), errors.getvalue()])
    Path(out).write_text(json.dumps(found))
