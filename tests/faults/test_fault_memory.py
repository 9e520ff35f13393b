"""docs/faults.md M1: many large shards, many steps, a consumer that pauses; memory and descriptors stay flat."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ado_stream as ado
from tests.stream.helpers import changing_mixture, write_domain

pytestmark = pytest.mark.fault
NUM_DOMAINS, SHARDS, SHARD_BYTES = 64, 2, 16 << 20
ROW_TOKENS, BATCH, STEPS = 1025, 32, 10_000
PAUSE_S = 3.0  # by then everything that runs ahead has run into its bound


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> list[tuple[str, str]]:
    """64 domains that share the bytes of one data set on disk: 2 GB to read, 32 MB to write."""
    import numpy as np

    from tests.mds_writer import MDSWriter

    root = tmp_path_factory.mktemp("large")
    columns = {"tokens": f"ndarray:uint16:{ROW_TOKENS}"}
    with MDSWriter(out=str(root / "d0"), columns=columns, size_limit=SHARD_BYTES, hashes=["xxh64"]) as writer:
        row = np.arange(ROW_TOKENS, dtype=np.uint16)
        for _ in range(SHARDS * SHARD_BYTES // (2 * ROW_TOKENS + 4) - SHARDS):
            writer.write({"tokens": row})
    for number in range(1, NUM_DOMAINS):
        (root / f"d{number}").mkdir()
        for path in (root / "d0").iterdir():
            os.link(path, root / f"d{number}" / path.name)
    return [(f"d{number}", str(root / f"d{number}")) for number in range(NUM_DOMAINS)]


def own_memory() -> int:
    """Bytes of memory that belong to this process alone; pages of mapped shards are the kernel's to take back."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def measure(domains: list[tuple[str, str]]) -> None:
    """Runs the steps; prints memory and descriptors after a fifth of them, after a pause, and at the end."""
    data = ado.AdaptiveStreamingDataset([ado.Domain(name, local=path) for name, path in domains], BATCH, seed=1)
    begin = own_memory()
    points = []
    for batch in data:
        step = batch["step"]
        data.publish(step + 1 + data.mixture_lag, changing_mixture(step % 500, NUM_DOMAINS))
        if step in (STEPS // 5, STEPS):
            points.append((own_memory(), num_descriptors()))
        if step == STEPS // 5:
            time.sleep(PAUSE_S)
            points.append((own_memory(), num_descriptors()))
        if step == STEPS:
            break
    data.close()
    print(json.dumps({"begin": begin, "points": points, "closed": num_descriptors()}))


def test_m1_memory_and_descriptors_stay_flat(domains):
    command = [sys.executable, "-m", "tests.faults.test_fault_memory"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, input=json.dumps(domains), capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    (early, open_early), (paused, open_paused), (late, open_late) = seen["points"]
    batch_bytes = BATCH * ROW_TOKENS * 8
    assert early - seen["begin"] < 64 << 20  # a few batches, 128 shards' offsets, threads' stacks
    assert abs(paused - early) < 2 * batch_bytes + (4 << 20)  # nothing piles up while nobody takes batches
    assert abs(late - early) < 8 << 20
    assert abs(open_paused - open_early) <= 2
    assert abs(open_late - open_early) <= 2
    assert seen["closed"] <= open_early - NUM_DOMAINS  # closing lets go of every shard


FEW_DESCRIPTORS = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
import ado_stream as ado
from ado_stream.stream.sample_reader import SampleReader
reader = SampleReader(ado.Domain("d", local=sys.argv[1]))
ids = np.random.default_rng(0).permutation(reader.num_samples)[:4000]
assert (reader.read(ids)[:, 1] == ids % 7).all()
data = ado.AdaptiveStreamingDataset([ado.Domain("d", local=sys.argv[1])], 2000, mixture_lag=None)
seen = [int(row[1]) for _, batch in zip(range(10), data) for row in batch["tokens"]]
assert set(seen) == set(range(7))
data.close()
print(json.dumps(len(seen)))
"""


def test_m1_ten_thousand_local_shards_are_read_with_256_descriptors(tmp_path):
    """One sample a shard, so that a batch touches thousands; sample i is that of file i mod 7, under other names."""
    write_domain(tmp_path / "seven", 0, 7, shard_bytes=100)
    index = json.loads((tmp_path / "seven" / "index.json").read_text())
    index["shards"] = [shard for shard in index["shards"] if shard["samples"] == 1]
    assert len(index["shards"]) == 7
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10_000):
        entry = copy.deepcopy(index["shards"][number % 7])
        os.link(tmp_path / "seven" / entry["raw_data"]["basename"], folder / f"many.{number:05d}.mds")
        entry["raw_data"]["basename"] = f"many.{number:05d}.mds"
        index["shards"].append(entry)
    (folder / "index.json").write_text(json.dumps({**index, "shards": index["shards"][7:]}))
    command = [sys.executable, "-c", FEW_DESCRIPTORS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "20000"), done.stderr[-3000:]


if __name__ == "__main__":
    measure(json.load(sys.stdin))
