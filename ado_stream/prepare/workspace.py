"""Where a run works and writes, and whether it may: the plan, the lock, what an earlier run left.

The working folder is `.prepare` inside a local corpus, or in the user's cache for a remote one. It holds the hash of
the plan it was made for: work is gone on with only under the same plan, and thrown away only before it came to
anything.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ado_stream.corpus import manifest as manifests
from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.output import LocalTarget, RemoteTarget, Target
from ado_stream.prepare.packing import JOURNAL_NAME
from ado_stream.prepare.source import SourceFile
from ado_stream.storage.object_locks import lock_if_free

_WORK_FOLDER = ".prepare"
_PLAN_NAME = "plan"
_LOCK_NAME = "lock"
_STAGING = "corpus"


def plan_of(config: PrepareConfig, files: Sequence[SourceFile]) -> str:
    """Hash of everything that the result depends on: settings, and the files' names, sizes and times.

    Not of `skip_errors`: what is done up to the first unreadable record is the same with and without.
    """
    settings = asdict(config)
    for key in ("inputs", "out", "val", "workers", "progress", "skip_errors"):
        del settings[key]
    stamps = [[*asdict(file).values(), os.stat(file.path).st_mtime_ns] for file in files]
    return manifests.fingerprint([manifests.VERSION, settings, stamps])


def places_of(config: PrepareConfig) -> tuple[Path, Target]:
    """The working folder and the target."""
    if not config.is_remote:
        return config.local_out / _WORK_FOLDER, LocalTarget(
            config.local_out, config.local_out / _WORK_FOLDER / _STAGING
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    work = cache / "ado-stream" / "prepare" / manifests.fingerprint(config.out)
    return work, RemoteTarget(config.out, work / _STAGING)


def is_complete(target: Target, plan: str, out: str) -> bool:
    """Whether the corpus of `plan` is there already. Raises ConfigError when another one is."""
    data = target.manifest()
    if data is None:
        return False
    where = f"{out.rstrip('/')}/{manifests.FILE_NAME}"
    if manifests.decode_manifest(data, where).get("source") == plan:
        return True
    raise ConfigError(
        f"{where}: a corpus of other input or settings is there already.\n"
        "  Nothing was changed. Remove it, or choose another --out."
    )


def begin_or_resume(work: Path, target: Target, plan: str) -> None:
    """Readies the working folder for `plan`; other work in it must not have come to anything yet."""
    path = work / _PLAN_NAME
    if path.exists() and path.read_text() == plan:
        return
    if (work / JOURNAL_NAME).exists():
        raise ConfigError(
            f"{work}: an unfinished run over other input or settings.\n"
            "  Repeat that run's command to finish it, or remove this folder to start afresh."
        )
    clear(work)
    target.check_writable()
    write_durably(path, plan.encode())


def clear(work: Path) -> None:
    """Empties the working folder, of which this process holds the lock."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the working folder's lock. Raises ConfigError when another process has it."""
    with lock_if_free(work / _LOCK_NAME) as held:
        if not held:
            raise ConfigError(f"{work}: another process is writing this corpus; wait for it, or end it.")
        yield
