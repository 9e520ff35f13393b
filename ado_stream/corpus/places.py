"""Where a corpus and its parts are: a folder of this machine or a URL, and the folder that caches it."""

import errno
import os
import re
import tempfile
from pathlib import Path

from ado_stream.corpus.manifest import json_hash
from ado_stream.corpus.tokenizer import BYTES, TOKENIZER_CONFIG_NAME, Tokenizer, load_tokenizer, load_tokenizer_file
from ado_stream.errors import ConfigError, NotFound
from ado_stream.storage import download

SCHEMES = ("s3", "gs", "azure", "azure-dl", "oci", "hf", "sftp", "dbfs", "alipan")  # of streaming's clients
LISTED_ENDINGS = (".yaml", ".yml")  # of the names of listed corpora
_SCHEME = re.compile(  # or what is meant to be one, as in s3:b or s3//b; not the C of C:/
    rf"\s*(?:([^/]{{2,}}?)\s*:(?=/)|({'|'.join(SCHEMES)}|file)\s*(?=:|\W?//))", re.IGNORECASE
)


def local_folder(url: str | os.PathLike[str]) -> Path | None:
    """The folder behind a path or file:// URL; None for an object store's URL.

    Raises ConfigError for an unknown scheme, which would otherwise fail after every retry, or be used as a folder.
    """
    path = os.fspath(url)
    if path.startswith(("file:///", "file://localhost/")):
        return download.local_path(path)
    found = _SCHEME.match(path)
    if found is None:
        return _possible(Path(os.path.expanduser(path)))
    scheme, rest = found[1] or found[2], path[found.end() :]
    written_so = found[0] == f"{scheme}:" and (re.match("//[^/]", rest) or scheme == "dbfs")
    if scheme not in SCHEMES or not written_so or not rest.strip("/"):
        near = f"; did you mean {scheme.lower()}:// and a path?" if scheme.lower() in (*SCHEMES, "file") else ""
        raise ConfigError(
            f"{url}: not a URL that can be read or written{near}\n"
            f"  Use a path, file://, or one of {', '.join(f'{name}://' for name in SCHEMES)}."
        )
    return None


def _possible(path: Path) -> Path:
    """`path`. Raises ConfigError where no file of this machine can be called so, which pathlib passes on unnamed."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{str(path)[:80]}...: cannot be a path: {error.strerror}.") from None
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise ConfigError(f"{str(path)!r:.80}: cannot be a path: {error}.") from None
    return path


def cache_home() -> Path:
    """The folder of the user's caches, which need not exist."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))


def user_cache(kind: str, url: str) -> Path:
    """The folder of the user's cache for work of this `kind` on the remote corpus at `url`."""
    return cache_home() / "ado-stream" / kind / json_hash(url)


def locate(url: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None) -> tuple[Path, str | None]:
    """The folder of the shards, and the corpus' URL or path if that folder caches it."""
    local = local_folder(url)
    if local is not None and cache_dir is None:
        return local, None
    remote = os.fspath(url).rstrip("/") if local is None else str(local)
    return Path(os.path.expanduser(cache_dir)) if cache_dir is not None else user_cache("corpora", remote), remote


def read_tokenizer(source: str, name: str) -> Tokenizer:
    """The tokenizer of the file `name` in the folder or at the URL `source`, or "bytes"; as `load_tokenizer` raises."""
    if name == BYTES:
        return load_tokenizer(BYTES)
    with tempfile.TemporaryDirectory(prefix="ado-") as folder:
        for each in (name, TOKENIZER_CONFIG_NAME):
            if (local := local_folder(source)) is not None and not (local / each).is_file():
                raise NotFound(f"{local / each}: no such file. Prepare the corpus again.")
            (Path(folder) / each).write_bytes(download.download_bytes(f"{source}/{each}"))
        try:
            return load_tokenizer_file(Path(folder) / name)
        except ConfigError as error:  # which names the copy
            raise ConfigError(str(error).replace(folder, source)) from None
