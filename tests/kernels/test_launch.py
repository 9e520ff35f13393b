"""The launch table: which row is taken, and the rules that rows keep."""

from dataclasses import replace

import pytest

from ado_kernels import rms_norm, rms_norm_rope
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import SAME_BITS, Launch, entry, launch, size_class, using
from ado_kernels.ops.linear_cross_entropy.gpu import chunk_class


def test_a_row_for_an_architecture_comes_first(monkeypatch):
    rows = {("swiglu", 0, ""): {}, ("swiglu", 0, "sm_90"): {"warps": 8}}
    monkeypatch.setattr("ado_kernels.ops.launch._table", {key: Launch(**fields) for key, fields in rows.items()})
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


def test_the_committed_table_keeps_the_rules():
    rows = {key: Launch(**fields) for key, fields in launch_table.TABLE.items()}
    for (op, width, architecture), plan in rows.items():
        assert width == 0 or width == size_class(width)
        assert plan.warps in (1, 2, 4, 8, 16, 32)
        assert (op, width, "") in rows
        if op in SAME_BITS and architecture.startswith("sm_"):  # what groups a sum over rows is that of the row for all
            assert replace(plan, stages=1) == replace(rows[op, width, ""], stages=1)
