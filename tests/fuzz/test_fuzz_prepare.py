"""Input of any bytes: `prepare` reads it, or refuses with a typed error, or skips what is damaged."""

import gzip
import json
import shutil
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import strategies as st

from ado_stream.errors import AdoStreamError
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.documents import cut_pieces
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.packing import Packer
from ado_stream.prepare.parts import PartPacker
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.prepare_worker import Worker
from ado_stream.prepare.record_errors import RecordErrors
from tests.fuzz.mutations import changed, changed_file, changed_yaml, damaged, fuzz
from tests.prepare.conftest import Threads

RECORDS = [{"text": f"text {n} ä東" * (n + 1), "meta": {"set": "ab"[n % 2]}, "n": n} for n in range(20)]


def _lines(records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _table(write, compression):
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(RECORDS), sink, compression)
    return sink.getvalue().to_pybytes()


def _write_parquet(table, sink, compression):
    parquet.write_table(table, sink, row_group_size=7, compression=compression)


def _write_stream(table, sink, compression):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=7)


def _write_file(table, sink, compression):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=7)


CONTENTS = {
    ".jsonl": [_lines(RECORDS)],
    ".jsonl.zst": [zstandard.compress(_lines(RECORDS)), zstandard.compress(b"") + zstandard.compress(b'{"text":"a"}')],
    ".jsonl.gz": [gzip.compress(_lines(RECORDS)), gzip.compress(b'{"text":"a"}') * 2],
    ".txt": ["ä text 東京\n".encode() * 20],
    ".parquet": [_table(_write_parquet, kind) for kind in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")],
    ".arrow": [_table(write, kind) for write in (_write_stream, _write_file) for kind in (None, "lz4", "zstd")],
}
PACK = {".jsonl": bytes, ".jsonl.zst": zstandard.compress, ".jsonl.gz": gzip.compress}


@pytest.mark.parametrize("ending", CONTENTS)
def test_fuzz_inputs(tmp_path, ending):
    path = tmp_path / f"in{ending}"

    def check(data):
        content = data.draw(st.sampled_from(CONTENTS[ending]))
        if ending in PACK and data.draw(st.booleans()):  # whole, with damage inside
            lines = [data.draw(st.sampled_from(RECORDS))] * 3
            lines[1] = changed(data, lines[1])
            path.write_bytes(PACK[ending](damaged(data, _lines(lines)) if data.draw(st.booleans()) else _lines(lines)))
        else:
            path.write_bytes(damaged(data, content))
        domain_key = data.draw(st.sampled_from([None, "meta.set", "n", "meta"]))
        text_key = data.draw(st.sampled_from(["text", "text", "text", "meta", "n", "meta.set"]))
        config = PrepareConfig(
            (str(path),), str(tmp_path / "out"), domain_key=domain_key, text_key=text_key,
            skip_errors=data.draw(st.booleans()),
        )  # fmt: skip
        errors = RecordErrors(config.skip_errors)
        worker = Worker(config, tmp_path)
        with suppress(AdoStreamError):
            files = find_input_files(config.inputs, "train", True).files
            for piece in cut_pieces(files, errors):
                result = worker.tokenise(piece)
                assert all(block.documents for block in result.blocks)

    fuzz(check)


def _fuzz_unfinished(tmp_path, monkeypatch, name, stopped, **settings):
    """Files named `name` of what a run left in its working folder when `stopped`, (class, method), was called."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    (tmp_path / "in.jsonl").write_bytes(_lines(RECORDS * 20))
    config = PrepareConfig(
        (str(tmp_path / "in.jsonl"),), str(out), seq_len=16, domain_key="meta.set", shard_bytes=1 << 12, **settings
    )

    def stop(packer, *_):
        if isinstance(packer, Packer):
            packer.commit()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*stopped, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    shutil.copytree(out, kept)
    path = next((out / ".prepare").rglob(name))
    lines = path.read_bytes().splitlines()

    def check(data):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        number = data.draw(st.integers(0, len(lines) - 1))
        path.write_bytes(b"\n".join([*lines[:number], changed_file(data, lines[number]), *lines[number + 1 :], b""]))
        with suppress(AdoStreamError):
            prepare(config)

    fuzz(check)


@pytest.mark.parametrize("name", ["journal.json", "published.jsonl", "plan"])
def test_fuzz_unfinished_work(tmp_path, monkeypatch, name):
    _fuzz_unfinished(tmp_path, monkeypatch, name, (Packer, "finish"), workers=1)


@pytest.mark.parametrize("name", ["parts/*.json", "parts/published.jsonl"])
def test_fuzz_unfinished_parts(tmp_path, monkeypatch, name):
    """The tables of a cluster's parts, and the list of shards that were written already."""
    monkeypatch.setattr("ado_stream.prepare.ray_executor.RayExecutor", Threads)
    _fuzz_unfinished(tmp_path, monkeypatch, name, (PartPacker, "_write_index"), executor="ray")


CARD = {
    "configs": [
        {"config_name": "a", "data_files": [{"split": "train", "path": "data/train-*.jsonl"}]},
        {"config_name": "b", "data_files": {"split": "test", "path": ["data/test.jsonl", "**/*.jsonl"]}},
    ]
}
SAVED = {"_data_files": [{"filename": "train-0.jsonl"}], "_split": "train", "_fingerprint": "1"}


@pytest.mark.parametrize("name", ["README.md", "state.json", "dataset_dict.json"])
def test_fuzz_folders_of_hugging_face(tmp_path, name):
    """What such a folder says of its files."""
    folder = tmp_path / "set"
    data_folder = folder / ("data" if name == "README.md" else "train" if name == "dataset_dict.json" else ".")
    data_folder.mkdir(parents=True)
    for file in ("train-0.jsonl", "test.jsonl"):
        (data_folder / file).write_bytes(_lines(RECORDS))
    path = folder / "README.md" if name == "README.md" else data_folder / "state.json"
    if name != "README.md":
        (data_folder / "dataset_info.json").write_text("{}")
    if name == "dataset_dict.json":
        (folder / name).write_text('{"splits": ["train"]}')

    def check(data):
        if name == "README.md":
            path.write_bytes(b"---\n" + changed_yaml(data, CARD) + b"\n---\n# A set\n")
        else:
            path.write_bytes(changed_file(data, json.dumps(SAVED).encode()))
        with suppress(AdoStreamError):
            find_input_files([str(folder)], "train", True)

    fuzz(check)
