"""The launch table: what is read is checked, what the tuner writes is what the launcher reads."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ado_kernels import rms_norm, rms_norm_rope
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import Launch, entry, launch, read_table, using
from ado_kernels.ops.linear_cross_entropy.gpu import chunk_class
from benchmarks.kernels import tune
from benchmarks.kernels.harness import Bench


def test_the_committed_table_is_what_the_tuner_would_write():
    assert tune.table_text(launch_table.TABLE) == Path(launch_table.__file__).read_text()


def test_a_row_for_an_architecture_comes_first(monkeypatch):
    rows = {("swiglu", 0, ""): {}, ("swiglu", 0, "sm_90"): {"warps": 8}}
    monkeypatch.setattr("ado_kernels.ops.launch._table", read_table(rows))
    assert entry("swiglu", 0, "sm_90") == Launch(warps=8)
    assert entry("swiglu", 0, "sm_100") == launch("swiglu") == Launch()


def test_widths_are_rounded_up_and_the_widest_is_named():
    assert launch("rms_norm", 33) == entry("rms_norm", 64)
    assert launch("rms_norm", 4097) == entry("rms_norm", 8192)
    with pytest.raises(ValueError, match="no launch entry for width 32768; the widest is 16384"):
        launch("rms_norm", 16385)


@pytest.mark.parametrize("function", [rms_norm, rms_norm_rope])
def test_the_widest_row_of_a_gpu_is_documented(function):
    widest = max(width for op, width, _ in launch_table.TABLE if op == function.__name__)
    assert f"at most {widest:,} on a GPU" in function.__doc__


@pytest.mark.parametrize("width", [768, 2048])
def test_few_large_chunks_of_logits(width):
    """3 or 4 at 16,384 rows: each after the first reads and writes the float32 gradient of the weight once more."""
    rows = entry("linear_cross_entropy", chunk_class(width)).rows
    assert -(-16384 // rows) in (3, 4)


def test_changes_end_with_the_body():
    before = launch("swiglu")
    with using("swiglu", warps=16):
        assert launch("swiglu").warps == 16
    assert launch("swiglu") == before
    with pytest.raises(TypeError, match="wraps"), using("swiglu", wraps=16):
        pass


COMMON = {("rms_norm_backward", 64, ""): {"rows": 16, "programs": 528}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({("swiglu", 0, ""): {"warp": 4}}, "unexpected keyword argument 'warp'"),
        ({("swiglu", 0, ""): {"warps": 3}}, "out of range"),
        ({("rms_norm", 96, ""): {}}, "size class 96"),
        ({("swiglu", 0, "sm_90"): {}}, "must come first"),
        ({("swiglu", 0, ""): {"method": "exponentials"}}, "other operations none"),
        ({("linear_cross_entropy", 0, ""): {"method": "fast"}}, "method 'fast'"),
        ({("linear_cross_entropy", 0, ""): {"method": "exponentials"}}, "sm_90 or later"),
        (COMMON | {("rms_norm_backward", 64, "sm_90"): {"rows": 8, "programs": 264}}, r"\['rows', 'programs'\] decide"),
    ],
)
def test_a_wrong_row_is_named(rows, message):
    with pytest.raises(ValueError, match=f"launch table, row .*{message}"):
        read_table(rows)


def test_what_may_differ_by_architecture():
    read_table(COMMON | {("rms_norm_backward", 64, "sm_90"): {"rows": 16, "programs": 528, "stages": 2}})
    rows = {("linear_cross_entropy", 0, ""): {"method": "softmax_pass"}}
    read_table(rows | {("linear_cross_entropy", 0, "sm_100"): {"method": "exponentials", "rows": 8192}})


@pytest.fixture
def bench(monkeypatch):
    """A bench whose calls return their own milliseconds."""
    bench = Bench(torch.device("cpu"), smoke=True, deadline=float("inf"))
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: call())
    return bench


def test_the_tuner_writes_the_fastest_rows_and_the_launcher_reads_them(bench, monkeypatch, tmp_path):
    def warps_cost():
        if launch("swiglu").warps == 2:
            raise RuntimeError("out of resource: shared memory")
        return {4: 1.0, 8: 0.5}[launch("swiglu").warps]

    def stages_cost():  # one percent faster: noise
        return 1.0 - 0.01 * (entry("rms_norm_backward", 64).stages == 4)

    def chunk_cost():  # what was chosen for the kernel inside still holds
        plan = entry("linear_cross_entropy", 0)
        return plan.rows / 4096 - 0.1 * (plan.method == "exponentials") - 0.1 * entry("exponentials", 0).stages

    def exponentials_cost():
        assert entry("linear_cross_entropy", 0).method == "exponentials"
        return 1.0 / entry("exponentials", 0).stages

    spaces = [
        tune.Space("swiglu", 0, ({"warps": 2}, {"warps": 8}), lambda: warps_cost),
        tune.Space("rms_norm_backward", 64, ({"stages": 4},), lambda: stages_cost),
        tune.Space("exponentials", 0, ({"stages": 2}, {"stages": 4}), lambda: exponentials_cost, WITHIN),
        tune.Space("linear_cross_entropy", 0, ({"rows": 2048}, {"rows": 2048, **WITHIN}), lambda: chunk_cost),
    ]
    chosen = tune.choose_all(bench, iter(spaces))
    assert chosen == {
        ("swiglu", 0): {"warps": 8},
        ("exponentials", 0): {"stages": 4},
        ("linear_cross_entropy", 0): {"rows": 2048, "method": "exponentials"},
    }
    final = {record["case"]: record for record in bench.records}["linear_cross_entropy 0"]
    assert final["ms"] == pytest.approx(1.0 - 0.4)
    path = tmp_path / "launch_table.py"
    tune.write_table(path, tune.with_rows(launch_table.TABLE, "sm_90", chosen))
    assert [file.name for file in tmp_path.iterdir()] == ["launch_table.py"]
    monkeypatch.setattr("ado_kernels.ops.launch._table", read_table(imported(path).TABLE))
    assert entry("swiglu", 0, "sm_90").warps == 8
    assert entry("swiglu", 0, "sm_100") == entry("swiglu", 0) == Launch()
    assert entry("linear_cross_entropy", 0, "sm_90") == Launch(rows=2048, method="exponentials")
    assert entry("exponentials", 0, "sm_90") == Launch(warps=8, stages=4)


WITHIN = {"method": "exponentials"}


def imported(path):
    spec = importlib.util.spec_from_file_location("written_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_that_the_launcher_would_refuse_is_not_written(tmp_path):
    path = tmp_path / "launch_table.py"
    with pytest.raises(ValueError, match="out of range"):
        tune.write_table(path, {("swiglu", 0, ""): {"warps": 5}})
    assert not path.exists()


def test_the_tuner_stops_when_its_time_is_up(bench):
    bench.deadline = 0.0
    assert tune.choose_all(bench, iter([tune.Space("swiglu", 0, (), lambda: None)])) == {}
    assert bench.records[-1]["skipped"] == "out of time"


def test_every_space_fits_the_table():
    """On the meta device: nothing is drawn or run, every candidate makes a row that the launcher accepts."""
    for space in tune.spaces(torch.device("meta")):
        for fields in space.candidates:
            read_table(tune.with_rows(launch_table.TABLE, "sm_90", {(space.op, space.key): fields}))
