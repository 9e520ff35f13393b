"""Numba's machine code on disk: discarded when a source changed, and compiled by a process that computes nothing.

Numba's cache compares a function with its own file only. Where compiled functions call others from other files, a
change there would leave the old machine code in use after an update of a checkout.

And a process that compiles a kernel runs other bits than every later one: it links what the kernel calls from the
callee's own machine code, later processes from a copy that was optimised a second time, and sums whose order is free
then come out differently in the last place. A run that compiled and was resumed would not equal one that was not
interrupted. So another process compiles, once per machine, and every process that computes loads from the disk.

Where neither the package nor the user's cache folder can be written, Numba refuses to import the kernels; a private
folder below the temporary directory is used then.
"""

import fcntl
import functools
import hashlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

_PACKAGE = Path(__file__).parent
_STAMP = "sources.sha1"
_COMPILING = "ADO_KERNELS_COMPILING"  # in the environment of the process that compiles
_DEADLINE_S = 600.0  # a group takes half a minute on a busy core; the lock is held no longer than this


def clear_stale_cache(package: Path) -> None:
    """Deletes compiled code below `package` unless its sources are the ones it was compiled from.

    To be called before the compiled modules are imported. Where the folder cannot be written (an installed package)
    nothing is done: an installation renews every file.
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
        temporary = stamp.with_suffix(f".{os.getpid()}")  # complete before it is visible: others read it meanwhile
        temporary.write_text(digest)
        os.replace(temporary, stamp)


def use_writable_cache(package: Path) -> None:
    """Points Numba and Triton to a private temporary folder where their own caches cannot be written, and logs it.

    To be called before numba and triton are imported: both read their settings then. A user's setting is kept if it
    can be written; Numba would go on to its other folders then, Triton would not.
    """
    home = Path(os.path.expanduser("~"))
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    numba_folders = [package / "__pycache__", user_cache / "numba"]
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        numba_folders.insert(0, Path(given))
    triton_home = Path(os.environ.get("TRITON_HOME") or home)
    redirected = {}
    if not any(map(_can_write, numba_folders)):
        redirected["NUMBA_CACHE_DIR"] = "numba"
    if not _can_write(Path(os.environ.get("TRITON_CACHE_DIR") or triton_home / ".triton")):
        redirected["TRITON_CACHE_DIR"] = "triton"
    if not redirected:
        return
    folder = _private_temporary_folder(package)
    for variable, name in redirected.items():
        os.environ[variable] = str(folder / name)  # inherited: processes started from here log nothing
    if numba := sys.modules.get("numba"):  # has read its settings already
        numba.config.reload_config()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # torchrun starts each rank anew: the first of a machine has logged it
    logging.getLogger(__name__).warning(
        "no writable folder for compiled kernels; using %s (set %s to choose another)", folder, ", ".join(redirected)
    )


def _can_write(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def _private_temporary_folder(package: Path) -> Path:
    """A folder that no other user can have prepared: what Numba loads from it is executed.

    Its name holds the sources' digest, since clear_stale_cache does not look there. Where another user owns the name, a
    new folder is used by this process and its children only. Raises OSError where there is no temporary folder.
    """
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:
        raise OSError(
            "no folder for compiled kernels can be written; set NUMBA_CACHE_DIR and TRITON_CACHE_DIR"
        ) from None
    folder = temporary / f"ado-kernels-{os.getuid()}-{_digest(package)[:16]}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="ado-kernels-"))


@functools.cache
def ensure_compiled(group: str) -> None:
    """Returns when the Numba kernels of `group` ("ops" or "fit") are on disk, compiled by another process.

    Any number of processes may call it; one compiles. Where there is no folder to write, or compiling took longer than
    ten minutes, nothing is done, and every process compiles what it uses, into Numba's own cache if any.
    """
    if _COMPILING in os.environ:
        return
    folder = _PACKAGE / "__pycache__"
    if not _can_write(folder) and (given := os.environ.get("NUMBA_CACHE_DIR")):
        folder = Path(given)
    stamp = folder / f"{group}-{_compiler_key()}.compiled"
    if stamp.exists():
        return
    with suppress(OSError, subprocess.TimeoutExpired):
        folder.mkdir(parents=True, exist_ok=True)
        # a link to another file is not followed, which would be emptied: the folder may be one that users share
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(folder / f"{group}.lock", flags, 0o666), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():  # another process may have compiled while this one waited for the lock
                _compile_in_a_process(group, stamp)


def _compile_in_a_process(group: str, stamp: Path) -> None:
    path = os.pathsep.join([str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ado_kernels.compile_numba", group],
        env={**os.environ, "PYTHONPATH": path, _COMPILING: "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=_DEADLINE_S,
    )
    if done.returncode == 0:
        stamp.touch()


def compile_in_background(group: str) -> None:
    """Starts `ensure_compiled` in a thread, so that the kernels are compiled before their first use."""
    threading.Thread(target=ensure_compiled, args=(group,), daemon=True).start()


def _digest(package: Path) -> str:
    digest = hashlib.sha1()
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    return digest.hexdigest()


def _compiler_key() -> str:
    """A digest of what Numba's cache depends on besides the sources: versions, processor, settings."""
    import numba
    from llvmlite import binding

    settings = [os.environ.get(f"NUMBA_{name}") for name in ("CACHE_DIR", "CPU_NAME", "CPU_FEATURES")]
    parts = (sys.version, numba.__version__, binding.get_host_cpu_name(), settings)
    return hashlib.sha1(repr(parts).encode()).hexdigest()[:16]
