"""Throws away Numba's cached machine code when any source file of a package changed.

Numba's cache on disk compares a function with its own file only. Where compiled functions call others from other files,
a change there would leave the old machine code in use after an update of a checkout.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

_STAMP = "sources.sha1"


def drop_if_stale(package: Path) -> None:
    """Call before the compiled modules below the folder `package` are imported; does nothing when they are up to date.

    Where the folder cannot be written (an installed package) nothing is done: an installation renews every file.
    """
    digest = hashlib.sha1()
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    stamp = package / "__pycache__" / _STAMP
    with suppress(OSError):
        if stamp.read_text() == digest.hexdigest():
            return
    with suppress(OSError):
        stamp.parent.mkdir(exist_ok=True)
        for stale in package.rglob("__pycache__/*.nb[ic]"):
            stale.unlink(missing_ok=True)
        temporary = stamp.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest.hexdigest())
        os.replace(temporary, stamp)
