"""The files of this Python environment that the demo takes text from, each in exactly one domain by path and kind.

A quarter of the third-party Python files, chosen by a hash of their names, gives its docstrings to "docs"; the others
are source in "python". So no file is in two domains, and nothing held out in one domain is trained on in another.
"""

import gzip
import hashlib
import importlib.metadata
import io
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

UNLEARNABLE = "hashes"  # of installed files, from their packages' RECORD: like base64 in a scrape, nothing to learn
MAX_FILE_BYTES = 512 * 1024  # larger ones are mostly generated
MAX_COMPRESSED_BYTES = 64 * 1024
MAX_RECORD_BYTES = 16 << 20
MIN_FILE_CHARS = 120
_SKIPPED = {"__pycache__", "test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages",
            "ado_stream", "ado_kernels", "ado_model", "node_modules"}  # fmt: skip
_SUFFIXES = {
    ".py": "python", ".pyi": "stubs", ".pyx": "cython", ".pxd": "cython", ".pxi": "cython",
    ".h": "c-headers", ".hpp": "c-headers", ".cuh": "c-headers", ".inl": "c-headers",
    ".json": "json", ".rst": "readmes", ".md": "readmes", ".csv": "tables", ".afm": "tables",
}  # fmt: skip
_LICENCE = re.compile(r"licen[cs]e|copying|notice|third.?party", re.IGNORECASE)
_HASH = re.compile(r"sha256=([\w-]{43})")
_DOCSTRING = re.compile(r'^[ \t]*[rRuU]?"""(.{80,}?)"""', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class EnvironmentFile:
    """A candidate file of a domain; `name`: its path inside the environment, the same on every machine."""

    domain: str
    path: Path
    name: str

    @property
    def package(self) -> str:
        """The top folder, by which a package's share of a domain is limited."""
        return self.name.split("/", 1)[0]

    @property
    def order_key(self) -> bytes:
        """Sorts the files of a domain in a fixed pseudo-random order."""
        return _name_hash(self.name, 8)

    def read(self) -> str:
        """The file's text for its domain; empty when it is not text or too short."""
        try:
            raw = _read(self.path)
            text = raw.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):  # unreadable, damaged or not text: it is skipped
            return ""
        if "\0" in text:
            return ""
        if self.domain == "docs" and not self.name.endswith(".txt"):
            text = "\n\n".join(cleandoc(found) for found in _DOCSTRING.findall(text))
        elif self.domain == UNLEARNABLE:
            text = "\n".join(_HASH.findall(text))
        elif self.path.name == "METADATA":
            text = text.partition("\n\n")[2]  # the body is the package's README
        return text if len(text) >= MIN_FILE_CHARS else ""


def find_environment_files() -> list[EnvironmentFile]:
    """Every candidate file of the environment, in the order of their names."""
    found = [
        EnvironmentFile(domain, path, name)
        for domain, folder, extension in (("stdlib", "stdlib", ".py"), ("c-headers", "include", ".h"))
        for path, name in _files(Path(sysconfig.get_path(folder)))
        if name.endswith(extension)
    ]
    for root in package_roots():
        for path, name in _files(root):
            domain = _classify(name)
            if domain:
                found.append(EnvironmentFile(domain, path, name))
    unique = {source.name: source for source in found}
    return [unique[name] for name in sorted(unique)]


def package_roots() -> list[Path]:
    """The folders of installed packages, those of torch and numpy included, which may lie elsewhere."""
    roots = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    roots += [Path(str(importlib.metadata.distribution(name).locate_file(""))) for name in ("torch", "numpy")]
    return sorted({root.resolve() for root in roots if root.is_dir()})


def help_topics() -> Iterator[tuple[str, str]]:
    """(name, text) of the language reference that pydoc contains."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"pydoc/{name}.txt", topics[name]


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    """(path, name under root) of every file, without following links to folders."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in names:
            path = Path(folder, name)
            yield path, path.relative_to(root).as_posix()


def _name_hash(name: str, size_bytes: int) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=size_bytes).digest()


def _classify(name: str) -> str | None:
    """The domain of the file `name`, None when it is in none."""
    folder, _, base = name.rpartition("/")
    if ".dist-info" in folder:
        if base == "METADATA" and folder.endswith(".dist-info"):
            return "readmes"
        if base == "RECORD":
            return UNLEARNABLE
        return "licences" if _LICENCE.search(name.rpartition(".dist-info/")[2]) else None
    if _LICENCE.search(base) and not base.endswith(".py"):
        return "licences"
    if base.endswith(".json.gz"):
        return "json"
    domain = _SUFFIXES.get(os.path.splitext(base)[1])
    if domain == "python" and _name_hash(name, 1)[0] < 64:
        return "docs"
    return domain


def _read(path: Path) -> bytes:
    """The file's bytes, decompressed, or b"" when it is larger than hand-written text would be."""
    compressed = path.suffix == ".gz"
    limit_bytes = MAX_RECORD_BYTES if path.name == "RECORD" else MAX_FILE_BYTES
    if path.stat().st_size > (MAX_COMPRESSED_BYTES if compressed else limit_bytes):
        return b""
    raw = path.read_bytes()
    if not compressed:
        return raw
    with gzip.open(io.BytesIO(raw)) as file:
        decompressed = file.read(MAX_FILE_BYTES + 1)
    return decompressed if len(decompressed) <= MAX_FILE_BYTES else b""
