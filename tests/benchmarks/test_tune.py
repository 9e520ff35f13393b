"""The tuner survives what cannot run and never offers what decides bits; the launcher reads what it writes."""

import runpy
from pathlib import Path

import pytest
import torch

from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import SAME_BITS, Launch, entry, launch, read_table
from benchmarks.kernels import linear_cross_entropy, tune
from benchmarks.kernels.harness import Bench

META = torch.device("meta")
BY_EXPONENTIALS = {"method": "exponentials"}


@pytest.fixture
def bench(monkeypatch):
    """A bench whose calls return their own milliseconds."""
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: call())
    return Bench(torch.device("cpu"), smoke=True, deadline=float("inf"))


def test_the_committed_table_is_what_the_tuner_would_write():
    assert tune.table_text(launch_table.TABLE) == Path(launch_table.__file__).read_text()


def on(monkeypatch, architecture):
    monkeypatch.setattr(linear_cross_entropy, "device_architecture", lambda device: architecture)
    return list(tune.spaces(META))


def refuses(*warps):
    """A call that needs too much shared memory at these numbers of warps."""

    def call():
        if launch("swiglu").warps in warps:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 / launch("swiglu").warps

    return call


def test_an_entry_that_cannot_run_here_is_replaced_and_the_tuner_goes_on(bench):
    spaces = [
        tune.Space("swiglu", 0, ({"warps": 2}, {"warps": 8}), lambda: refuses(4, 2)),
        tune.Space("swiglu", 64, ({"warps": 8},), lambda: refuses(4, 8)),
        tune.Space("rms_norm", 64, ({"warps": 8},), lambda: lambda: 1.0),
    ]
    assert tune.choose_all(bench, iter(spaces)) == {("swiglu", 0): {"warps": 8}}
    present, nothing, other = bench.records
    assert (present["ms"], present["best_ms"]) == (None, 0.125)
    assert present["candidates"] == [{"warps": 2, "ms": None}, {"warps": 8, "ms": 0.125}]
    assert (nothing["ms"], nothing["best_ms"], nothing["chosen"]) == (None, None, {})
    assert other["ms"] == 1.0


def test_a_call_that_cannot_be_built_is_no_end_either(bench):
    def build():
        raise RuntimeError("out of memory")

    assert tune.choose_all(bench, iter([tune.Space("swiglu", 0, ({"warps": 8},), build)])) == {}


@pytest.mark.parametrize(("architecture", "taken"), [("sm_80", False), ("sm_90", True), ("sm_100", True)])
def test_what_the_launcher_refuses_on_an_architecture_is_not_offered(monkeypatch, architecture, taken):
    spaces = on(monkeypatch, architecture)
    for space in spaces:
        for fields in space.candidates:
            read_table(tune.with_rows(launch_table.TABLE, architecture, {(space.op, space.key): fields}))
    offered = [fields["method"] for space in spaces for fields in space.candidates if "method" in fields]
    assert ("exponentials" in offered) == taken
    assert ("exponentials" in [space.op for space in spaces]) == taken
    assert "softmax_pass" in offered


def test_programs_and_what_groups_sums_over_rows_are_no_candidates(monkeypatch):
    spaces = on(monkeypatch, "sm_90")
    assert SAME_BITS
    for space in spaces:
        names = {name for fields in space.candidates for name in fields}
        assert "programs" not in names
        assert space.op not in SAME_BITS or names == {"stages"}


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
        tune.Space("exponentials", 0, ({"stages": 2}, {"stages": 4}), lambda: exponentials_cost, BY_EXPONENTIALS),
        tune.Space("linear_cross_entropy", 0, ({"rows": 2048}, {"rows": 2048, **BY_EXPONENTIALS}), lambda: chunk_cost),
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
    monkeypatch.setattr("ado_kernels.ops.launch._table", read_table(runpy.run_path(str(path))["TABLE"]))
    assert entry("swiglu", 0, "sm_90").warps == 8
    assert entry("swiglu", 0, "sm_100") == entry("swiglu", 0) == Launch()
    assert entry("linear_cross_entropy", 0, "sm_90") == Launch(rows=2048, method="exponentials")
    assert entry("exponentials", 0, "sm_90") == Launch(warps=8, stages=4)


def test_a_table_that_the_launcher_would_refuse_is_not_written(tmp_path):
    path = tmp_path / "launch_table.py"
    with pytest.raises(ValueError, match="out of range"):
        tune.write_table(path, {("swiglu", 0, ""): {"warps": 5}})
    assert not path.exists()


def test_the_tuner_stops_when_its_time_is_up(bench):
    bench.deadline = 0.0
    assert tune.choose_all(bench, iter([tune.Space("swiglu", 0, (), lambda: None)])) == {}
    assert bench.records[-1]["skipped"] == "out of time"
