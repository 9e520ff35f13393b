"""Numba's machine code on disk: thrown away when a source changed, and compiled by nobody who computes with it.

Numba's cache compares a function with its own file only. Where compiled functions call others from other files, a
change there would leave the old machine code in use after an update of a checkout.

And a process that compiles a kernel runs other bits than every later one: it links what the kernel calls from the
callee's own machine code, later processes from a copy that was optimised a second time, and sums whose order is free
then come out differently in the last place. A run that compiled and was resumed would not equal one that was not
interrupted. So another process compiles, once per machine, and all that compute load from the disk.
"""

import fcntl
import functools
import hashlib
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_PACKAGE = Path(__file__).parent
_STAMP = "sources.sha1"
_COMPILING = "ADO_KERNELS_COMPILING"  # in the environment of the process that compiles
_DEADLINE_S = 600.0  # a group takes half a minute on a busy core; whoever waits for the lock waits no longer either


def drop_if_stale(package: Path) -> None:
    """Call before the compiled modules below the folder `package` are imported; does nothing when they are up to date.

    Where the folder cannot be written (an installed package) nothing is done: an installation renews every file.
    """
    digest = _digest(package)
    stamp = package / "__pycache__" / _STAMP
    with suppress(OSError):
        if stamp.read_text() == digest:
            return
    with suppress(OSError):
        stamp.parent.mkdir(exist_ok=True)
        for pattern in ("__pycache__/*.nb[ic]", "__pycache__/*.compiled"):
            for stale in package.rglob(pattern):
                stale.unlink(missing_ok=True)
        temporary = stamp.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        os.replace(temporary, stamp)


@functools.cache
def compile_apart(group: str) -> None:
    """Returns when the Numba kernels of `group` ("ops" or "fit") are on disk, compiled by another process.

    Any number of processes may ask; one compiles. Where the package's folder cannot be written, or compiling took
    longer than ten minutes, nothing is done, and every process compiles what it uses, into Numba's own cache if any.
    """
    if _COMPILING in os.environ:
        return
    folder = _PACKAGE / "__pycache__"
    stamp = folder / f"{group}-{_circumstances()}.compiled"
    if stamp.exists():
        return
    with suppress(OSError, subprocess.TimeoutExpired), open(folder / f"{group}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            path = os.pathsep.join([str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, "-m", "ado_kernels.compile", group],
                env={**os.environ, "PYTHONPATH": path, _COMPILING: "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=_DEADLINE_S,
            )
            if done.returncode == 0:
                stamp.touch()


def compile_behind(group: str) -> None:
    """Starts `compile_apart` in a thread, so that the kernels are there when they are first asked for."""
    threading.Thread(target=compile_apart, args=(group,), daemon=True).start()


def _digest(package: Path) -> str:
    digest = hashlib.sha1()
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    return digest.hexdigest()


def _circumstances() -> str:
    """What Numba's cache depends on besides the sources."""
    import numba
    from llvmlite import binding

    settings = [os.environ.get(f"NUMBA_{name}") for name in ("CACHE_DIR", "CPU_NAME", "CPU_FEATURES")]
    parts = (sys.version, numba.__version__, binding.get_host_cpu_name(), settings)
    return hashlib.sha1(repr(parts).encode()).hexdigest()[:16]
