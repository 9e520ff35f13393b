"""The settings of `prepare`, checked before anything is started."""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ado_stream.corpus.manifest import JOIN, PACKINGS
from ado_stream.corpus.places import LISTED_ENDINGS, local_folder
from ado_stream.corpus.tokenizer import BYTES, bpe_vocabulary
from ado_stream.errors import ConfigError
from ado_stream.option_checks import flag, number, one_of, optional, path_text, path_texts, text, threads, whole
from ado_stream.prepare.hub_datasets import PREFIX, DataSet

_MIN_SHARD_BYTES = 1 << 12
_MAX_SHARD_BYTES = 1 << 31  # offsets inside a shard are uint32
LOCAL = "local"
_RAY = re.compile(r"ray(://[^\s/]+:[0-9]+)?")


@dataclass(frozen=True)
class PrepareConfig:
    """The settings of one `prepare`: paths as strings or path objects, for `inputs` and `val` one or many.

    `workers`, `executor` and `progress` change no byte of what it writes.
    """

    inputs: tuple[str, ...]  # files, folders, hf:NAME
    out: str  # local folder, or URL of one
    seq_len: int = 1024  # tokens a model reads at once; samples hold one more
    tokenizer: str = BYTES  # "bytes", "bpe:N", a Hugging Face tokenizer file, folder or name
    text_key: str = "text"  # dotted
    domain_key: str | None = None  # dotted; None: by the file's path
    val: tuple[str, ...] = ()  # files and folders of validation text
    val_frac: float = 0.0  # of the documents, by hash of their text
    drop_duplicates_of_val: bool = False  # leave out training documents that have the text of one in `val`
    skip_errors: bool = False  # count and skip unreadable records
    seed: int = 17  # of the sample a BPE is trained on
    shard_bytes: int = 1 << 24  # raw size of a shard
    packing: str = JOIN  # "join", "best-fit"
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))  # processes
    executor: str = LOCAL  # "local": `workers` processes; "ray" or "ray://HOST:PORT": all of a cluster
    progress: bool = False  # a bar on standard error

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that cannot work."""
        checked = {
            "inputs": path_texts("inputs", self.inputs),
            "val": path_texts("val", self.val),
            "out": path_text("out", self.out),
            "domain_key": optional(text, "domain_key", self.domain_key),
            "val_frac": number("validation fraction", self.val_frac, 0, 1),
            "seq_len": whole("seq_len", self.seq_len, 1),
            "seed": whole("seed", self.seed, -math.inf, math.inf),
            "workers": threads("workers", self.workers, 1),
            "shard_bytes": whole("shard_bytes", self.shard_bytes, _MIN_SHARD_BYTES, _MAX_SHARD_BYTES),
            "packing": one_of("packing", self.packing, PACKINGS),
            **{name: text(name, getattr(self, name)) for name in ("tokenizer", "text_key", "executor")},
            **{name: flag(name, getattr(self, name)) for name in ("drop_duplicates_of_val", "skip_errors", "progress")},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not self.inputs:
            raise ConfigError("no input: give at least one file or folder of text.")
        if self.val_frac == 1:
            raise ConfigError("validation fraction is 1, which leaves nothing to train on; expected less.")
        if self.val and self.val_frac:
            raise ConfigError("both validation files and a validation fraction are given; choose one of them.")
        if self.executor != LOCAL and not _RAY.fullmatch(self.executor):
            raise ConfigError(f"executor is {self.executor!r}; expected local, ray, or ray://HOST:PORT.")
        if self.drop_duplicates_of_val and not self.val:
            raise ConfigError(
                "duplicates of validation documents are to be dropped, but no validation files are given."
            )
        bpe_vocabulary(self.tokenizer)
        self._check_out()

    def _check_out(self) -> None:
        if self.out.rstrip("/").endswith(LISTED_ENDINGS):
            raise ConfigError(f"out is {self.out!r}: that names the list of a corpus.yaml. Choose another folder.")
        if self.local_out is None:
            if set(self.out) & set("?#") or not self.out.isprintable():
                raise ConfigError(
                    f"out is {self.out!r}: uploads drop what follows '?' or '#', so all files would have one key.\n"
                    "  Choose a URL without these characters, and without invisible ones."
                )
            return
        for given in (*self.inputs, *self.val):
            if given.startswith(PREFIX):
                given = DataSet.parse(given).name
            inside = Path(os.path.realpath(self.local_out))  # Path.resolve raises for links in a circle
            if inside.is_relative_to(os.path.realpath(given)):
                raise ConfigError(
                    f"out {self.out} is inside the input {given}: the corpus would become input of the next run.\n"
                    "  Choose a folder outside of it."
                )

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a record that are looked up."""
        return (self.text_key,) if self.domain_key is None else (self.text_key, self.domain_key)

    @property
    def on_ray(self) -> bool:
        """Whether a Ray cluster does the work."""
        return self.executor != LOCAL

    @property
    def local_out(self) -> Path | None:
        """The folder of a local corpus, None where `out` is an object store's URL."""
        return local_folder(self.out)
