"""The working folder of a run: its lock, and the unfinished work of an earlier run.

The working folder is `.prepare` inside a local corpus, or in the user's cache for a remote one. It holds the
fingerprint of the run that it was made for: earlier work is resumed only by the same run, and another run may remove
it only while no shard was begun.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ado_stream.corpus.manifest import JOIN, MANIFEST_NAME, MANIFEST_VERSION, decode_manifest, json_hash
from ado_stream.corpus.places import user_cache
from ado_stream.corpus.tokenizer import Tokenizer
from ado_stream.durable import write_durably
from ado_stream.errors import ConfigError
from ado_stream.prepare.corpus_output import CorpusOutput, LocalOutput, RemoteOutput
from ado_stream.prepare.input_files import InputFile
from ado_stream.prepare.journal import JOURNAL_NAME
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.regular_files import read_regular
from ado_stream.storage.object_locks import lock_if_free
from ado_stream.value_types import JsonObject

_WORK_FOLDER = ".prepare"
_STAGING = "corpus"
PARTS_FOLDER = "parts"  # of a run on a cluster, in place of a journal
PLAN_NAME = "plan"
_LOCK_NAME = "lock"


@dataclass(frozen=True)
class Plan:
    """Everything that the result depends on: settings, the given tokenizer's content; names, sizes, times and hashes of
    files.

    Not `skip_errors`: what is done up to the first unreadable record is the same with and without.
    """

    settings: JsonObject
    stamps: list[list[object]]  # of each file: its fields
    contents: list[str]  # of each file: a hash of its content

    @classmethod
    def of(cls, config: PrepareConfig, files: Sequence[InputFile], tokenizer: Tokenizer | None) -> "Plan":
        """The plan of a run; `tokenizer`: the one that `config` names, None when there is none to load."""
        settings = asdict(config)
        for key in ("inputs", "out", "val", "workers", "executor", "progress", "skip_errors"):
            del settings[key]
        for key, default in (("drop_duplicates_of_val", False), ("packing", JOIN)):
            if settings[key] == default:  # so that plans without it are those of releases that did not have it
                del settings[key]
        if tokenizer is not None:
            settings["tokenizer content"] = tokenizer.fingerprint
        return cls(settings, [list(asdict(file).values()) for file in files], [file.content for file in files])

    @property
    def fingerprint(self) -> str:
        """The `source` of corpus.json."""
        return json_hash([MANIFEST_VERSION, self.settings, self.stamps, self.contents])

    @property
    def older_fingerprint(self) -> str:
        """That of releases that hashed no content of input files."""
        return json_hash([MANIFEST_VERSION, self.settings, self.stamps])

    def encode(self) -> str:
        """What the working folder holds of its run."""
        return json.dumps(asdict(self))

    def difference(self, text: str) -> str:
        """What differs from the run of another plan's `text`, for an error message."""
        try:
            old = Plan(**json.loads(text))
            keys = [key for key in {**old.settings, **self.settings} if old.settings.get(key) != self.settings.get(key)]
            before, now = (
                {str(stamp[0]): (stamp, content) for stamp, content in zip(plan.stamps, plan.contents, strict=True)}
                for plan in (old, self)
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # of an older release, or damaged
            return "settings"
        paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
        more = [f"{len(paths) - 3} more files"] if len(paths) > 3 else []
        return ", ".join([*keys, *paths[:3], *more]) or "the order of the files"


def open_output(config: PrepareConfig) -> tuple[Path, CorpusOutput]:
    """The working folder, and the destination of the corpus."""
    if config.local_out is not None:
        work = config.local_out / _WORK_FOLDER
        return work, LocalOutput(config.local_out, work / _STAGING)
    work = user_cache("prepare", config.out)
    return work, RemoteOutput(config.out, work / _STAGING)


def is_complete(output: CorpusOutput, plan: Plan, out: str) -> bool:
    """Whether the corpus of `plan` is there already. Raises ConfigError when another one is, or as `check_whole`."""
    data = output.manifest()
    if data is None:
        return False
    where = f"{out.rstrip('/')}/{MANIFEST_NAME}"
    if decode_manifest(data, where).get("source") in (plan.fingerprint, plan.older_fingerprint):
        output.check_whole()
        return True
    raise ConfigError(
        f"{where}: a corpus of other input or settings is there already.\n"
        "  Nothing was changed. Remove it, or choose another --out."
    )


def begin_or_resume(work: Path, output: CorpusOutput, plan: Plan) -> None:
    """Prepares the working folder for `plan`. Raises ConfigError when it holds unfinished work of another one."""
    path = work / PLAN_NAME
    if path.exists() and read_regular(path) == plan.encode().encode():
        return
    if (work / JOURNAL_NAME).exists() or (work / PARTS_FOLDER).exists():
        difference = plan.difference(read_regular(path).decode(errors="replace") if path.exists() else "")
        raise ConfigError(
            f"{work}: an unfinished run over other input or settings; changed since: {difference}.\n"
            "  Remove this folder and run the command again, or undo the change to finish that run."
        )
    clear(work)
    output.check_writable()
    write_durably(path, plan.encode())


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
    """Holds the working folder's lock, and removes the folder at the end when nothing else is in it.

    It is removed under the lock, whose removed file then counts as locked for processes that have opened it. Raises
    ConfigError when another process has the lock.
    """
    with lock_if_free(work / _LOCK_NAME) as held:
        if not held:
            raise ConfigError(f"{work}: another process is writing this corpus; wait until it ends, or stop it.")
        try:
            yield
        finally:
            if os.listdir(work) == [_LOCK_NAME]:
                shutil.rmtree(work)
