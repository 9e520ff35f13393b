"""Arrays of JSON, however they are spelled, cut and compressed, are their elements; the oracle is json.loads."""

import gzip
import io
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ado_stream.errors import DataError
from ado_stream.prepare import line_blocks as line_blocks_module
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.documents import cut_pieces, read_documents
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.json_arrays import DamagedFile, array_lines
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(['"', "\\", '\\"', "[{,", "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def _lines(data, size):
    return b"".join(array_lines("a.json", io.BytesIO(), iter([data[n : n + size] for n in range(0, len(data), size)])))


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
def test_the_lines_are_the_elements(values, indent, ascii_only, size):
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    lines = _lines(data + b" \n", size)
    assert len(lines) == len(data) + 2
    found = [line for line in lines.split(b"\n") if line.strip()]
    assert [json.loads(line) for line in found] == values


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(1, 40), st.data())
def test_a_cut_array_is_damaged_and_so_is_what_follows_one(values, size, data):
    whole = json.dumps(values).encode()
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(DamagedFile, match="ends inside its array"):
        _lines(whole[:cut], size)
    with pytest.raises(DamagedFile, match="data after the end of its array"):
        _lines(whole + b"\n" * data.draw(st.integers(0, 50)) + b"[1]", size)


def test_lines_that_are_named_json_pass_unchanged():
    for data in (b'{"text": "[a,\\nb]"}\n{"a": 1}\n', b"", b"  \n\n", b'\xef\xbb\xbf {"a":\n[1,2]}'):
        assert _lines(data, 3 if not data.startswith(b"\xef") else 99) == data


def _records():
    return [{"text": f'{n} "\\ [{{,\n ä' * (n % 9 + 1), "meta": {"set": "a" if n % 3 else "b"}} for n in range(300)]


def _read(path, **settings):
    errors = RecordErrors(settings.pop("skip_errors", False))
    config = PrepareConfig((str(path),), "/nowhere/out", domain_key="meta.set", skip_errors=errors.skip)
    files = find_input_files(config.inputs, "train", False).files
    documents = [
        (document.text, document.domain)
        for piece in cut_pieces(files, errors)
        for document in read_documents(piece, config, errors)
    ]
    return documents, errors


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_of_an_array_is_read_as_its_records(tmp_path, monkeypatch, name, indent):
    monkeypatch.setattr("ado_stream.prepare.documents.PIECE_BYTES", 3000)
    monkeypatch.setattr(line_blocks_module, "_READ_BYTES", 700)
    data = json.dumps(_records(), indent=indent, ensure_ascii=False).encode()
    compress = {"json": bytes, "gz": gzip.compress, "zst": zstandard.compress}[name.rpartition(".")[2]]
    (tmp_path / name).write_bytes(compress(data))
    documents, errors = _read(tmp_path / name)
    assert documents == [(record["text"], record["meta"]["set"]) for record in _records()]
    assert not errors.counts


def test_a_bad_element_is_named_by_its_number_and_skipping_counts_it(tmp_path):
    parts = [json.dumps(record) for record in _records()[:5]]
    for bad, message in ((b'{"text": "a\nb"}', "unreadable line"), (b'{"meta": {"set": "a"}}', "keys: meta.set")):
        path = tmp_path / "a.json"
        path.write_bytes(b"[\n" + b",\n".join([*(part.encode() for part in parts[:3]), bad, parts[3].encode()]) + b"]")
        with pytest.raises(DataError, match=rf"a\.json:4: .*{message}"):
            _read(path)
        documents, errors = _read(path, skip_errors=True)
        assert [text for text, _ in documents] == [record["text"] for record in _records()[:4]]
        assert errors.counts.total() == 1


def test_a_cut_file_is_named_and_skipping_keeps_what_is_whole(tmp_path):
    data = json.dumps(_records()).encode()
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(data[: len(data) // 2]))
    with pytest.raises(DataError, match=r"a.json.gz: the file ends inside its array"):
        _read(path)
    documents, errors = _read(path, skip_errors=True)
    assert 100 < len(documents) < 200
    assert documents == [(record["text"], record["meta"]["set"]) for record in _records()][: len(documents)]
    assert errors.counts == {"file damaged, its rest left out": 1}


@pytest.mark.parametrize("read_bytes", [64, 1 << 20])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("rest", [b"]}", b"[1]", b" " * 200 + b"[1]"])
def test_what_follows_an_array_costs_none_of_its_records(tmp_path, monkeypatch, name, read_bytes, rest):
    monkeypatch.setattr(line_blocks_module, "_READ_BYTES", read_bytes)
    data = json.dumps(_records()).encode() + rest
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(DataError, match="data after the end of its array"):
        _read(tmp_path / name)
    documents, errors = _read(tmp_path / name, skip_errors=True)
    assert documents == [(record["text"], record["meta"]["set"]) for record in _records()]
    assert errors.counts == {"file damaged, its rest left out": 1}
    if name == "a.json":
        assert errors.num_bytes == {"file damaged, its rest left out": len(rest)}


def test_an_element_that_is_too_long_is_left_out_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(line_blocks_module, "MAX_LINE_BYTES", 2000)
    monkeypatch.setattr(line_blocks_module, "_READ_BYTES", 300)
    records = _records()[:20]
    records[7]["text"] = '"' * 5000
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    documents, errors = _read(tmp_path / "a.json", skip_errors=True)
    assert [text for text, _ in documents] == [record["text"] for record in records if len(record["text"]) < 5000]
    assert errors.counts.total() == 1


def test_the_corpus_of_an_array_is_that_of_its_lines(tmp_path, tree_hashes, write_jsonl):
    for name in ("lines", "array"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "lines/a.jsonl", _records())
    (tmp_path / "array/a.json.zst").write_bytes(zstandard.compress(json.dumps(_records()).encode()))
    for name in ("lines", "array"):
        prepare(PrepareConfig((str(tmp_path / name),), str(tmp_path / f"{name}-out"), seq_len=32, workers=1))
    lines, array = tree_hashes(tmp_path / "lines-out"), tree_hashes(tmp_path / "array-out")
    assert lines.pop("corpus.json") != array.pop("corpus.json")  # whose `source` names the files
    assert lines == array
