"""The run record on a full disk: a line is there whole or not at all, and what was written before stays readable."""

import pytest

from ado_stream.errors import StorageError
from ado_stream.record import RunRecord, read_lines

pytestmark = pytest.mark.fault


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(small_disk):
    """Lines of 5,000 bytes on pages of 4,096: the one that meets the end of the disk is first written in part."""
    with RunRecord(small_disk(64 * 1024) / "run") as record:
        step = 0
        with pytest.raises(StorageError, match=r"record\.jsonl: a line cannot be written: No space left on device\."):
            for step in range(20):
                record.write("step", step=step, text="x" * 5000)
        assert step > 5
        assert [line["step"] for line in read_lines(record.path)] == list(range(step))
        assert record.path.read_bytes().endswith(b"\n")
        record.write("event", step=step, name="stop")  # is short enough
        assert read_lines(record.path)[-1]["name"] == "stop"
