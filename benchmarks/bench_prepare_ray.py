"""Does a Ray cluster prepare a corpus as fast as local processes do, and how does it scale with nodes?

    python -m benchmarks prepare_ray [--mb N] [--rounds N]

The Python source of this environment as 32 files; a BPE of 8,192 ids, trained before. `prepare` on it with two local
workers and on a local Ray cluster of two nodes of one core, whole commands in turn, over all files and over two: the
differences leave out what either takes to start. Then, of the same files, the seconds of every task and of the
coordinator between them, by which a terabyte in 10,000 files of many sizes is simulated: tasks go to free cores as Ray
hands them out. Bars: the cluster takes at most 1.1 times as long; 16 nodes of 64 cores, a core for ten files, are used
to nine tenths.
"""

import argparse
import heapq
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import bar, python_texts, run_ado_stream, seconds_in_turn, size, write_result

FILES, FEW, SUBMITTED = size((32, 2, 1000), (3, 1, 10))
MOST_RATIO, LEAST_USE = 1.1, 0.9
SIMULATED_FILES, SIMULATED_MB = size((10_000, 1e6), (10, 100.0))
CORES = 64
NODES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=size(60, 1), help="of text (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_text(folder, args.mb)
        with _cluster():
            timed = _whole_commands(folder, args.rounds)
            submit_s = _submit_seconds()
        tasks = _task_seconds(folder)
    ratio = round(timed["ray_s"] / timed["local_s"], 3)
    used = {nodes: round(_use(tasks, nodes, submit_s), 3) for nodes in NODES}
    payload = {"text_mb": args.mb, **timed, "ratio": ratio, "submit_ms": round(1e3 * submit_s, 2), "tasks": tasks}
    payload[f"share_of_{CORES}_cores_a_node_used"] = used
    bars = [
        bar("time on two Ray nodes over that of two local workers", ratio, MOST_RATIO),
        bar("simulated use of 16 nodes", used[16], LEAST_USE, True),
    ]
    write_result("prepare_ray", payload, bars)


def _write_text(folder: Path, megabytes: int) -> None:
    from ado_stream.corpus.tokenizer import train_tokenizer

    texts = list(python_texts(int(megabytes * 1e6)))
    for number in range(FILES):
        with open(folder / f"{number:02}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": text, "set": "code"}) + "\n" for text in texts[number::FILES])
    (folder / "bpe").mkdir()
    train_tokenizer(texts[::10], size("bpe:8192", "bpe:300")).save(folder / "bpe")


class _cluster:  # noqa: N801 - used as a function
    """Two nodes of one core, which RAY_ADDRESS names."""

    def __enter__(self) -> None:
        from ray.cluster_utils import Cluster

        root = Path(__file__).parents[1]
        os.environ["PYTHONPATH"] = os.pathsep.join(str(root / part) for part in (".", "kernels", "model"))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
        self._cluster = Cluster(initialize_head=True, head_node_args=node)
        self._cluster.add_node(**node)
        os.environ["RAY_ADDRESS"] = self._cluster.address

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()


def _whole_commands(folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds, without start, of `prepare` on two local workers and on the cluster."""

    def command(executor: str, files: int) -> None:
        shutil.rmtree(folder / executor, ignore_errors=True)
        inputs = [str(folder / f"{number:02}.jsonl") for number in range(files)]
        options = ["--domain-key", "set", "--tokenizer", str(folder / "bpe"), "--json", "--executor", executor]
        run_ado_stream("prepare", *inputs, "--out", str(folder / executor), *options, "--workers", str(size(2, 1)))

    pairs = [(executor, files) for executor in ("local", "ray") for files in (FEW, FILES)]
    calls = [lambda pair=pair: command(*pair) for pair in pairs]
    seconds = dict(zip(pairs, map(statistics.median, seconds_in_turn(calls, rounds, warmup=0)), strict=True))
    manifests = [json.loads((folder / executor / "corpus.json").read_bytes()) for executor in ("local", "ray")]
    assert manifests[0] == manifests[1], "the corpora differ"
    least_s = 0.01  # of a quick run, whose commands differ by less than a start varies
    each = {f"{it}_s": max(seconds[it, FILES] - seconds[it, FEW], least_s) for it in ("local", "ray")}
    starts = {f"{executor}_command_s": seconds[executor, FILES] for executor in ("local", "ray")}
    return {name: round(value, 2) for name, value in (each | starts).items()}


def _submit_seconds() -> float:
    """Seconds of the coordinator for a task that does nothing."""
    from ado_stream.prepare.ray_executor import RayExecutor

    with RayExecutor("ray") as executor:
        executor.submit(int).result(60)
        begun_s = time.perf_counter()
        for future in [executor.submit(int) for _ in range(SUBMITTED)]:
            future.result(60)
        return (time.perf_counter() - begun_s) / SUBMITTED


def _task_seconds(folder: Path) -> dict[str, float]:
    """Of a run with one worker in this process: seconds a MB of input of tasks, and of the coordinator beside them."""
    from ado_stream.prepare import ray_executor, worker_pool
    from ado_stream.prepare.coordinator import prepare
    from ado_stream.prepare.prepare_config import PrepareConfig

    spent: dict[str, list[float]] = {}

    class Timed(worker_pool._Here):
        num_workers = 1

        def __init__(self, address: str):
            pass

        def check_shared(self, paths: Iterable[Path]) -> None:
            pass

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            begun_s = time.perf_counter()
            future = super().submit(fn, *args, **kwargs)
            spent.setdefault(args[1].__name__, []).append(time.perf_counter() - begun_s)
            return future

    ray_executor.RayExecutor = Timed  # type: ignore[assignment,misc]
    inputs = tuple(str(folder / f"{number:02}.jsonl") for number in range(FILES))
    config = PrepareConfig(
        inputs, str(folder / "timed"), domain_key="set", tokenizer=str(folder / "bpe"), executor="ray"
    )
    begun_s = time.perf_counter()
    prepare(config)
    whole_s = time.perf_counter() - begun_s
    megabytes = sum(os.path.getsize(path) for path in inputs) / 1e6
    num_shards = len(list((folder / "timed").rglob("*.mds.zstd")))
    in_tasks_s = sum(map(sum, spent.values()))
    return {
        "tokenise_s_per_mb": sum(spent["tokenise_part"]) / megabytes,
        "shard_s": sum(spent["write_shards"]) / num_shards,
        "shards_per_mb": num_shards / megabytes,
        "coordinator_s": whole_s - in_tasks_s,
    }


def _use(tasks: dict[str, float], nodes: int, submit_s: float) -> float:
    """The share of the cores' time that tasks take, of a terabyte in files of log-normal sizes."""
    from ado_stream.prepare.packing import shards_at_once

    sizes = np.random.default_rng(0).lognormal(0, 0.5, SIMULATED_FILES)
    sizes = np.sort(sizes * SIMULATED_MB / sizes.sum())[::-1]
    parts = [tasks["tokenise_s_per_mb"] * megabytes for megabytes in sizes]
    num_shards = round(tasks["shards_per_mb"] * SIMULATED_MB)
    at_once = shards_at_once(num_shards, nodes * CORES)
    shards = [tasks["shard_s"] * at_once] * (num_shards // at_once)
    elapsed_s = tasks["coordinator_s"] + sum(_makespan(each, nodes * CORES, submit_s) for each in (parts, shards))
    return (sum(parts) + sum(shards)) / (elapsed_s * nodes * CORES)


def _makespan(task_s: Iterable[float], cores: int, submit_s: float) -> float:
    """When the last of the tasks ends, which go to the core that is free first, `submit_s` after one another."""
    free = [0.0] * cores
    submitted = 0.0
    for seconds in task_s:
        submitted += submit_s
        heapq.heapreplace(free, max(free[0], submitted) + seconds)
    return max(free)


if __name__ == "__main__":
    main()
