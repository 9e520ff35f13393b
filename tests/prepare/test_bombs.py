"""Tables of a few kB that stand for gigabytes are refused before the memory is taken."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from ado_stream.errors import DataError
from ado_stream.prepare.documents import cut_pieces, read_documents
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.line_blocks import MAX_LINE_BYTES
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors


def _read(path, errors):
    config = PrepareConfig((str(path),), "out")
    pieces = cut_pieces(find_input_files([path], "train", True).files, errors)
    return [document for piece in pieces for document in read_documents(piece, config, errors)]


def _write(path, kind, texts):
    table = pa.table({"text": texts, "n": pa.nulls(len(texts), pa.int8())})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, compression=kind)
    else:
        new = pa.ipc.new_file if "file" in kind else pa.ipc.new_stream
        with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=kind.split()[0])) as writer:
            writer.write_table(table)
    return path


KINDS = [("a.parquet", "zstd"), ("a.parquet", "gzip"), ("a.parquet", "brotli")]
KINDS += [("a.arrow", "zstd"), ("a.arrow", "lz4"), ("a.arrow", "zstd file")]


@pytest.mark.parametrize("shape", ["one value", "a value that repeats"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_table_that_claims_far_more_than_it_has_is_refused(tmp_path, monkeypatch, name, kind, shape):
    monkeypatch.setattr("ado_stream.storage.decompress._FREE_RAW_BYTES", 1 << 16)
    monkeypatch.setattr("ado_stream.storage.decompress._MAX_RATIO", 50)
    path = _write(tmp_path / name, kind, ["a" * (1 << 22)] if shape == "one value" else ["b" * 2000] * 2000)
    assert path.stat().st_size < 40_000
    stored_once = path.suffix == ".parquet" and shape != "one value"  # else it is refused by what it claims, unread
    with pytest.raises(DataError, match="so far" if stored_once else r"claims [\d,]+ bytes .*a decompression bomb"):
        _read(path, RecordErrors(False))
    errors = RecordErrors(True)
    assert len(_read(path, errors)) < 1000  # those of the first 2 MB at most
    assert errors.counts.total() >= 1


def test_a_table_that_repeats_itself_within_reason_is_read(tmp_path):
    path = _write(tmp_path / "a.parquet", "zstd", ["b" * 2000] * 2000)
    assert path.stat().st_size < 40_000  # for 4 MB
    assert len(_read(path, RecordErrors(False))) == 2000


def test_the_rows_of_an_arrow_file_are_counted_without_decompressing_them(tmp_path, monkeypatch):
    from ado_stream.prepare import columnar

    texts = [f"{n} {'x' * n}" for n in range(500)]
    for kind in ("zstd", "lz4 file"):
        path = tmp_path / "a.arrow"
        table = pa.table({"text": texts, "more": [[n, n] for n in range(500)]})
        new = pa.ipc.new_file if "file" in kind else pa.ipc.new_stream
        with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=kind.split()[0])) as writer:
            writer.write_table(table, max_chunksize=128)
        with pa.memory_map(str(path)) as source:
            opened = pa.ipc.open_file(source) if "file" in kind else pa.ipc.open_stream(source)
            batches = [opened.get_batch(n) for n in range(4)] if "file" in kind else list(opened)
            expected = [(batch.num_rows, sum(_buffer_bytes(batch))) for batch in batches]
        assert list(columnar._arrow_groups(str(path))) == expected


def _buffer_bytes(batch):
    """Sizes of all buffers of a batch, as they were before compression."""
    return [buffer.size for column in batch.columns for buffer in column.buffers() if buffer is not None]


def test_a_document_beyond_the_limit_is_refused_in_a_table_too(tmp_path, monkeypatch):
    monkeypatch.setattr("ado_stream.prepare.documents.MAX_LINE_BYTES", 1000)
    path = _write(tmp_path / "a.parquet", "none", ["a", "ä" * 501, "b"])
    with pytest.raises(DataError, match=r"row 1: document too long \(1,002 bytes; at most 1,000\)"):
        _read(path, RecordErrors(False))
    assert MAX_LINE_BYTES == 1 << 27


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_bomb_of_two_gigabytes_takes_no_memory(tmp_path, name):
    path = _write(tmp_path / name, "zstd", ["a" * (1 << 30), "b" * (1 << 29)])
    assert path.stat().st_size < 200_000
    code = (
        "import resource\nfrom pathlib import Path\nfrom tests.prepare.test_bombs import _read, RecordErrors\n"
        "import pyarrow.parquet\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"errors = RecordErrors(True)\nassert not _read(Path({str(path)!r}), errors)\nprint(dict(errors.counts))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout.split()[-1]) < 100_000  # kB
