"""docs/faults.md X1: an index or a shard made to do harm. Typed errors, nothing written outside, nothing executed,
no huge allocation.
"""

import copy
import json
import pickle
import random
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import zstandard

import ado_stream as ado
from ado_stream.errors import AdoStreamError, ConfigError, IndexInvalid, ShardCorrupt
from ado_stream.stream.sample_reader import SampleReader
from tests.stream.helpers import write_domain

pytestmark = pytest.mark.fault
MUTATIONS = {"index": 300, "header": 200}
SPARE_BYTES = 1 << 30  # address space that a mutated index may at most ask for, above what the process has
EVIL_NAMES = [
    "../../evil.mds",
    "/tmp/evil.mds",
    "a/../../evil.mds",
    "evil\0.mds",
    "..",
    "",
    "back\\slash.mds",
    "half\ud800.mds",
    "x" * 256,
    7,
    None,
]
EVIL_VALUES = [None, True, -1, 0, 1, 2**31, 2**32, 2**63, 1e308, "", "x" * 10_000, "../../evil", [], {}, [[[]]], "pkl"]


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """A sound data set of 60 samples in 4 raw shards."""
    folder = tmp_path_factory.mktemp("sound") / "remote"
    write_domain(folder, 0, 60, shard_bytes=1000)
    return folder


@pytest.fixture
def domain(tmp_path) -> ado.Domain:
    """A domain whose remote is tmp_path/outside/remote and whose cache is tmp_path/outside/inner/cache."""
    remote, cache = tmp_path / "outside" / "remote", tmp_path / "outside" / "inner" / "cache"
    remote.mkdir(parents=True)
    return ado.Domain("evil", remote=str(remote), local=str(cache))


def place(domain: ado.Domain, sound: Path, index: bytes | None = None, shard: tuple[str, bytes] | None = None) -> None:
    """Fills the domain's remote with the sound data set, one file changed; empties its cache."""
    for path in sound.iterdir():
        (Path(domain.remote) / path.name).write_bytes(path.read_bytes())
    if index is not None:
        (Path(domain.remote) / "index.json").write_bytes(index)
    if shard is not None:
        (Path(domain.remote) / shard[0]).write_bytes(shard[1])
    for path in Path(domain.local).rglob("*"):
        if path.is_file():
            path.unlink()


def read_everything(domain: ado.Domain) -> np.ndarray:
    """Opens the data set and reads a few samples of every shard, as validation does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a mutation may take the hashes away
        reader = SampleReader(domain, vocab_size=65_536)
        ids = np.unique(np.linspace(0, reader.num_samples - 1, 40).astype(np.int64))
        return reader.read(ids)


def outside(domain: ado.Domain) -> set[Path]:
    """Every file around the cache and the remote."""
    root = Path(domain.local).parents[1]
    inside = (Path(domain.local), Path(domain.remote))
    files = (path for path in root.parent.rglob("*") if path.is_file())
    return {path for path in files if not any(path.is_relative_to(folder) for folder in inside)}


@pytest.fixture
def little_memory():
    """Caps the address space a little above what is in use: a huge allocation is a MemoryError, which is not ours."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, before[1]))
    try:
        with pytest.raises(MemoryError):
            bytes(2 * SPARE_BYTES)  # twice: threads that end meanwhile give their stacks back
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("part", ["raw_data", "zip_data"])
def test_a_basename_that_leaves_the_folder_is_index_invalid(domain, sound, name, part):
    index = json.loads((sound / "index.json").read_text())
    shard = index["shards"][1]
    shard["compression"] = "zstd" if part == "zip_data" else None
    shard[part] = {**shard["raw_data"], "basename": name}
    place(domain, sound, index=json.dumps(index).encode())
    before = outside(domain)
    with pytest.raises(IndexInvalid, match="basename"):
        read_everything(domain)
    assert outside(domain) == before


@pytest.fixture
def bomb() -> bytes:
    """A zstd stream of a few kB that unpacks to 2 GiB of zeros."""
    compressor = zstandard.ZstdCompressor().compressobj()
    block = bytes(1 << 20)
    return b"".join(compressor.compress(block) for _ in range(2048)) + compressor.flush()


def test_a_zstd_bomb_is_shard_corrupt(domain, sound, bomb, little_memory):
    index = json.loads((sound / "index.json").read_text())
    for number, shard in enumerate(index["shards"]):
        shard["compression"] = "zstd"
        shard["zip_data"] = {"basename": f"bomb{number}.mds.zstd", "bytes": len(bomb), "hashes": {}}
        (Path(domain.remote) / f"bomb{number}.mds.zstd").write_bytes(bomb)
    place(domain, sound, index=json.dumps(index).encode())
    with pytest.raises(ShardCorrupt, match="after 3 downloads"):
        read_everything(domain)
    cached = [path for path in Path(domain.local).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in cached) < 1 << 20


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_column_is_refused_as_tokens_and_never_loaded_beside_them(domain, tmp_path):
    from tests.mds_writer import MDSWriter

    trap = tmp_path / "trap"
    tokens = np.arange(16, dtype=np.uint16)
    Path(domain.remote).rmdir()
    with MDSWriter(
        out=domain.remote, columns={"aside": "pkl", "tokens": "ndarray:uint16:16"}, hashes=["xxh64"]
    ) as writer:
        for _ in range(8):
            writer.write({"aside": Bomb(trap), "tokens": tokens})
    np.testing.assert_array_equal(SampleReader(domain).read(np.arange(8)), np.tile(tokens, (8, 1)))
    with pytest.raises(ConfigError, match="pkl"):
        SampleReader(domain, token_column="aside")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Bomb(trap)))  # the trap itself works
    assert trap.exists()


def mutated(index: dict, generator: random.Random) -> bytes:
    """`index` with one value exchanged somewhere in its tree, or with a few bytes of its text changed."""
    if generator.random() < 0.3:
        text = bytearray(json.dumps(index).encode())
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(text))
            text[at : at + generator.randint(0, 2)] = generator.randbytes(generator.randint(0, 3))
        return bytes(text)
    changed = copy.deepcopy(index)
    node = changed
    while True:
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and generator.random() < 0.9:
            node = node[key]
            continue
        if generator.random() < 0.15 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = generator.choice(EVIL_VALUES)
        return json.dumps(changed).encode()


def test_mutations_of_the_index_are_typed_errors_or_harmless(domain, sound, little_memory):
    index = json.loads((sound / "index.json").read_text())
    generator = random.Random(17)
    truth = read_everything(ado.Domain("sound", local=str(sound)))
    before = outside(domain)
    refused = 0
    for _ in range(MUTATIONS["index"]):
        text = mutated(index, generator)
        place(domain, sound, index=text)
        try:
            read_everything(domain)
        except AdoStreamError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} is not ours: {error}; index {text!r}") from error
    assert refused > MUTATIONS["index"] // 2
    assert outside(domain) == before
    place(domain, sound)
    np.testing.assert_array_equal(read_everything(domain), truth)


def test_mutations_of_a_shards_header_are_typed_errors_or_harmless(domain, sound, little_memory):
    index = json.loads((sound / "index.json").read_text())
    for shard in index["shards"]:
        shard["raw_data"]["hashes"] = {}  # with hashes nothing of this would get past the cache
    name = index["shards"][2]["raw_data"]["basename"]
    generator = random.Random(18)
    refused = 0
    for _ in range(MUTATIONS["header"]):
        content = bytearray((sound / name).read_bytes())
        for _ in range(generator.randint(1, 3)):
            at = 4 * generator.randrange(20)
            content[at : at + 4] = generator.choice([generator.randbytes(4), b"\xff" * 4, bytes(4)])
        place(domain, sound, index=json.dumps(index).encode(), shard=(name, bytes(content)))
        try:
            assert read_everything(domain).shape == (40, 16)
        except AdoStreamError:
            refused += 1
    assert refused > MUTATIONS["header"] // 2
