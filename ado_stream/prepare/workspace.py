"""The working folder of a run: its lock, and what an earlier run left in it.

The working folder is `.prepare` inside a local corpus, or in the user's cache for a remote one. It holds the
fingerprint of the run that it was made for: earlier work is resumed only by the same run, and another run may remove
it only while no shard was begun.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ado_stream.corpus.corpus import user_cache
from ado_stream.corpus.manifest import MANIFEST_NAME, MANIFEST_VERSION, decode_manifest, json_hash
from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.corpus_output import CorpusOutput, LocalOutput, RemoteOutput
from ado_stream.prepare.input_files import InputFile
from ado_stream.prepare.packing import JOURNAL_NAME
from ado_stream.storage.object_locks import lock_if_free

_WORK_FOLDER = ".prepare"
_STAGING = "corpus"
_PLAN_NAME = "plan"
_LOCK_NAME = "lock"


def plan_fingerprint(config: PrepareConfig, files: Sequence[InputFile]) -> str:
    """Hash of everything that the result depends on: settings, and the files' names, sizes and times.

    Not of `skip_errors`: what is done up to the first unreadable record is the same with and without.
    """
    settings = asdict(config)
    for key in ("inputs", "out", "val", "workers", "progress", "skip_errors"):
        del settings[key]
    stamps = [[*asdict(file).values(), os.stat(file.path).st_mtime_ns] for file in files]
    return json_hash([MANIFEST_VERSION, settings, stamps])


def open_output(config: PrepareConfig) -> tuple[Path, CorpusOutput]:
    """The working folder, and where the corpus goes."""
    if config.local_out is not None:
        work = config.local_out / _WORK_FOLDER
        return work, LocalOutput(config.local_out, work / _STAGING)
    work = user_cache("prepare", config.out)
    return work, RemoteOutput(config.out, work / _STAGING)


def is_complete(output: CorpusOutput, plan: str, out: str) -> bool:
    """Whether the corpus of `plan` is there already. Raises ConfigError when another one is."""
    data = output.manifest()
    if data is None:
        return False
    where = f"{out.rstrip('/')}/{MANIFEST_NAME}"
    if decode_manifest(data, where).get("source") == plan:
        return True
    raise ConfigError(
        f"{where}: a corpus of other input or settings is there already.\n"
        "  Nothing was changed. Remove it, or choose another --out."
    )


def begin_or_resume(work: Path, output: CorpusOutput, plan: str) -> None:
    """Prepares the working folder for `plan`. Raises ConfigError when it holds unfinished work of another one."""
    path = work / _PLAN_NAME
    if path.exists() and path.read_text() == plan:
        return
    if (work / JOURNAL_NAME).exists():
        raise ConfigError(
            f"{work}: an unfinished run over other input or settings.\n"
            "  Repeat that run's command to finish it, or remove this folder to start again."
        )
    clear(work)
    output.check_writable()
    write_durably(path, plan)


def clear(work: Path) -> None:
    """Empties the working folder but for its lock, which this process holds."""
    for path in work.iterdir():
        if path.name == _LOCK_NAME:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the working folder's lock. Raises ConfigError when another process has it."""
    with lock_if_free(work / _LOCK_NAME) as held:
        if not held:
            raise ConfigError(f"{work}: another process is writing this corpus; wait until it ends, or stop it.")
        yield
