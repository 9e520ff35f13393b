"""Every benchmark runs to its end at the smallest size, with each of its options, and records what it promises.

A benchmark is a file of benchmarks/ that can be run: a new one is run here without being named. The tables hold only
what more there is to know of some.
"""

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import bench_multinode
from benchmarks.__main__ import modules
from benchmarks.common import QUICK_ENVIRONMENT
from tests.benchmarks.quick_run import run_benchmark
from tests.train.child_processes import finish

ROOT = Path(benchmarks.__file__).parents[1]
NO_CARD = {"CUDA_VISIBLE_DEVICES": ""}
TRAIN, VAL = (f"{ROOT}/tests/data/corpus/{name}.jsonl.zst" for name in ("train-000", "val"))
GUARD = 'if __name__ == "__main__"'
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if GUARD in path.read_text() and path != ROOT / "benchmarks/__main__.py"
}

# Runs with options, in turn in one folder; what is not here runs once, without any.
LEARNING = ["--text", TRAIN, "--val", VAL, "--out", "runs", "--workers", "1", "--steps", "30"]
ONE_CELL = [*LEARNING, "--scenario", "clean", "--seed", "1", "--policy", "natural", "target", "--size", "small"]
RUNS: dict[str, list[list[str]]] = {
    "benchmarks.bench_documents": [["--device", "cpu"]],
    "benchmarks.bench_fit": [["--golden", f"{ROOT}/tests/golden"]],
    "benchmarks.bench_learning": [
        [*ONE_CELL, "--minutes", "0"],
        ONE_CELL,
        ["--out", "runs", "--steps", "30", "--mechanism"],
        ["--out", "runs", "--name", "python", "--docs", "docs/learning.md"],
    ],
    "benchmarks.bench_loop": [["--pairs", "2", "--steps", "2"]],
    "benchmarks.bench_policy": [["--full", "--late-step", "30"]],
    "benchmarks.bench_prepare": [
        [],
        ["--input", TRAIN, "--domain-key", "meta.pile_set_name", "--repeats", "1", "--workers", "1"],
    ],
    "benchmarks.bench_prepare_rate": [["--mb", "1", "--tokenizer-size", "400"]],
    "benchmarks.bench_prepare_ray": [["--mb", "1", "--rounds", "1"]],
    "benchmarks.bench_sample_losses": [["--device", "cpu"]],
    "benchmarks.bench_sensitivity": [["--steps", "60", "--seeds", "1"]],
    "benchmarks.bench_tokens_in_place": [["--rounds", "1"]],
    "benchmarks.bench_train": [["--device", "cpu"]],
    "benchmarks.kernels": [["--smoke", "--budget-s", "400", "--only", "swiglu", "domain_loss"]],
}
# What needs a card, and cannot be run here even in small; all the rest of what a card runs, a CPU runs too.
NEED_CARD: dict[str, list[list[str]]] = {
    "benchmarks.bench_documents": [["--device", "cuda"]],
    "benchmarks.bench_learning": [["--out", "runs", "--size", "124m"]],  # 2.5 billion tokens
    "benchmarks.bench_sample_losses": [["--device", "cuda"]],
    "benchmarks.bench_train": [["--device", "cuda"]],
    "benchmarks.kernels": [[], ["--tune"]],  # figures, and launches, of the card at hand
}
NOT_IN_ALL = {"--full": "learning: every scenario and seed, by the same calls"}
# Kept records of whole runs that lack fields which are recorded now: a run on a quiet machine renews them.
STALE = {
    "domain_loss_cpu", "fit", "linear_cross_entropy_cpu", "multinode", "policy", "prepare_rate", "stream_local",
    "stream_repeats",
}  # fmt: skip
OF_OTHER_PACKAGES = {"megatron_over_GPTDataset", "bar: megatron_over_GPTDataset"}  # which no extra installs
MARKS = {
    "benchmarks.bench_multinode": [pytest.mark.slow, pytest.mark.privileged],  # six interpreters
    "benchmarks.bench_prepare_ray": [pytest.mark.slow],  # a cluster takes ten seconds to start
}
DEFAULT_RUN = ("bench_cache_limit", "bench_fit", "bench_stream_draw", "bench_linear_cross_entropy", "bench_loop")


def marked(module: str) -> Any:
    """The others are slow, being many of a kind."""
    marks = MARKS.get(module, [] if module.endswith(DEFAULT_RUN) else [pytest.mark.slow])
    return pytest.param(module, marks=marks, id=module.removeprefix("benchmarks.").removeprefix("bench_"))


@pytest.mark.parametrize("module", [marked(module) for module in SOURCES])
def test_every_benchmark_runs_to_its_end_and_records_what_it_promises(module, children, tmp_path):
    (tmp_path / "docs").mkdir()
    printed = ""
    for options in RUNS.get(module, [[]]):
        child = children.start(run_benchmark, module, options, str(tmp_path), **QUICK_ENVIRONMENT, **NO_CARD)
        finish(child)
        printed += child.log.read_text()
    recorded = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(recorded) == 1, list(recorded)
    ((name, record),) = recorded.items()
    assert all(math.isfinite(number) for number in numbers(record))
    kept = ROOT / "benchmarks/results" / f"{name}.json"
    if kept.exists():
        promised = {field for field in fields(json.loads(kept.read_text())) if field not in OF_OTHER_PACKAGES}
        assert (promised == fields(record)) == (name not in STALE)
    for bar in record.get("bars", []):
        assert name.startswith("kernels") or f"{'pass' if bar['pass'] else 'FAIL'}  {bar['what']}: " in printed


def test_every_option_of_a_benchmark_is_run():
    for module, path in SOURCES.items():
        written = [word for runs in (RUNS, NEED_CARD) for run in runs.get(module, []) for word in run]
        for option in options_of(path.read_text()):
            assert option in written or option in NOT_IN_ALL and module == "benchmarks.bench_learning", (module, option)


def test_nodes_that_need_root_are_refused_in_one_line_without(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"^multinode: needs root and iproute2[^\n]*$"):
        bench_multinode.main()


def test_every_benchmark_that_is_listed_is_one_that_runs():
    assert set(modules().values()) <= SOURCES.keys()
    assert {*RUNS, *NEED_CARD, *MARKS} <= SOURCES.keys()


@pytest.mark.parametrize(
    ("module", "options"), [(module, options) for module, every in NEED_CARD.items() for options in every]
)
def test_what_needs_a_card_is_refused_in_one_line_without_one(module, options, children, tmp_path):
    child = children.start(run_benchmark, module, options, str(tmp_path), **NO_CARD)
    child.join(60)
    assert child.exitcode == 2
    *_, last = child.log.read_text().splitlines()
    assert "no CUDA GPU" in last
    assert "Traceback" not in child.log.read_text()
    assert list(tmp_path.iterdir()) == []


def options_of(source: str) -> Iterator[str]:
    """Every option that a file gives to a parser."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Name) and node.id == "add_device":
            yield "--device"


def numbers(value: Any) -> Iterator[float]:
    """All in a record."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


def fields(record: dict[str, Any]) -> set[str]:
    """Of a record, with the names of its bars, whatever the numbers in these."""
    names = [f"bar: {bar['what']}" for bar in record.get("bars", []) if "what" in bar]
    return {re.sub(r"[\d,]*\d", "#", name) for name in [*record, *names]} - {"bars"}
