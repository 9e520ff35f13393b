"""Reads YAML from untrusted files and from KEY=VALUE words, to plain values that can be printed.

Whatever the libraries raise becomes a ConfigError: of a value that does not fit its tag, or a number of thousands of
digits, they raise ValueError, KeyError or AttributeError.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ado_stream.errors import ConfigError, NotFound
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject


def read_yaml(path: str | os.PathLike[str], kind: str, resolve: bool) -> JsonObject:
    """The mapping in a YAML file; `resolve`: with ${interpolations} replaced.

    kind: what the file is, for errors. Raises NotFound, ConfigError.
    """
    try:
        with _yaml_errors(f"{path}: not YAML"):
            data = read_regular(path, pipe=True)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such {kind} file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: not a {kind} file: {error.strerror or error}.") from None
    return parse_yaml(data, os.fspath(path), kind, resolve)


def parse_yaml(data: bytes, where: str, kind: str, resolve: bool = False) -> JsonObject:
    """As `read_yaml`, of the bytes of a file; `where` names it in errors. A key that is given twice is an error."""
    from omegaconf import OmegaConf

    try:
        with _yaml_errors(f"{where}: not YAML"):
            values = OmegaConf.to_container(OmegaConf.load(io.StringIO(data.decode())), resolve=resolve)
            repr(values)
    except OSError as error:  # OmegaConf's for a single number
        raise ConfigError(f"{where}: not a {kind} file: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a {kind} is a mapping of keys to values, not a list.")
    return {str(key): value for key, value in values.items()}


def parse_front_matter(data: bytes, where: str) -> object:
    """The YAML value in `data`, of a file that is no config of ours: of any length and shape. Raises ConfigError.

    Aliases are shared and not copied, so that a few bytes may stand for more than can be walked.
    """
    import yaml

    with _yaml_errors(f"{where}: not YAML"):
        return yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def parse_assignments(words: Sequence[str], kind: str, example: str) -> JsonObject:
    """The mapping of words such as "train.steps=300": dotted keys, values as YAML. Raises ConfigError.

    kind, example: what a word is called, and one, for errors.
    """
    from omegaconf import OmegaConf

    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{kind} {word!r} is not KEY=VALUE; for example {example}.")
    with _yaml_errors(f"{kind} {' '.join(words)!r:.80}: not KEY=VALUE in YAML"):
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
        repr(values)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def _yaml_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}.") from None
