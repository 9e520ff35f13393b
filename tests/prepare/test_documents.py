"""Records become documents, or errors that name file, line and what to do; tables are read like lines."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_stream.errors import ConfigError, DataError
from ado_stream.prepare import columnar
from ado_stream.prepare import documents as module
from ado_stream.prepare.documents import cut_pieces, read_documents
from ado_stream.prepare.input_files import find_input_files
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors


def _keys(text="text", domain=None):
    return PrepareConfig(("in",), "out", text_key=text, domain_key=domain)


PILE = _keys("text", "meta.pile_set_name")
RECORDS = [{"text": f"text {n} ä", "meta": {"pile_set_name": f"domain {n % 3}"}, "more": n} for n in range(500)]


def _read(path, fields=PILE, skip=False):
    refusals = RecordErrors(skip)
    pieces = list(cut_pieces(find_input_files([path], "train", True).files, refusals))
    documents = [document for piece in pieces for document in read_documents(piece, fields, refusals)]
    return documents, refusals.counts, pieces


def _expected():
    return [(record["text"], record["meta"]["pile_set_name"]) for record in RECORDS]


def _write(path, lines):
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _record(**fields):
    return json.dumps({"text": "good", "meta": {"pile_set_name": "d"}, **fields}).encode()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow stream", "arrow file"])
def test_every_kind_gives_the_same_documents(tmp_path, monkeypatch, kind):
    path = tmp_path / f"data.{kind.split()[0]}"
    if kind == "jsonl":
        _write(path, [json.dumps(record).encode() for record in RECORDS])
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=60)
    else:
        table = pa.Table.from_pylist(RECORDS)
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=60)
    monkeypatch.setattr(module, "PIECE_BYTES", 4000)
    monkeypatch.setattr(columnar, "_GROUP_BYTES", 4000)
    documents, _, pieces = _read(path)
    assert [(document.text, document.domain) for document in documents] == _expected()
    assert len(pieces) > 1 or kind == "jsonl"
    assert all(document.text_bytes == len(document.text.encode()) for document in documents)
    assert sum(piece.source_bytes for piece in pieces) == pytest.approx(path.stat().st_size, abs=len(pieces))


def test_text_files_are_one_document_each_in_pieces_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 50)
    for number in range(20):
        path = tmp_path / f"domain{number % 2}" / f"{number:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {number}\n" * 2)
    documents, _, pieces = _read(tmp_path, _keys())
    assert 1 < len(pieces) < 20
    assert [(document.domain, document.text) for document in documents] == [
        (f"domain{parity}", f"text of {number}\n" * 2) for parity in (0, 1) for number in range(parity, 20, 2)
    ]


BAD_LINES = {
    "unreadable line": (b'{"text": ', r":3: unreadable line \(.*\)\."),
    "unreadable line ": (b"[" * 100_000, r":3: unreadable line"),
    "invalid UTF-8": (b'{"text": "\xff"}', r":3: invalid UTF-8 at byte 10 of the line"),
    "no text": (b'{"meta": {"pile_set_name": "d"}}', r":3: no text under key 'text'; keys: meta.pile_set_name\."),
    "no text ": (_record(text=None), r":3: no text under key 'text': found null\."),
    "no text  ": (_record(text=7), r":3: no text under key 'text': found a number \(7\)"),
    "no text   ": (b"7", r":3: no text under key 'text'; the record itself is a number \(7\)"),
    "no text        ": (b'"a"', r":3: no text under key 'text'; the record itself is text\."),
    "no text    ": (_record(text=["a"]), r":3: no text under key 'text': found a list"),
    "no text     ": (_record(text={"a": 1}), r":3: no text under key 'text': found an object"),
    "no text      ": (_record(text=False), r":3: no text under key 'text': found a boolean \(False\)"),
    "no domain": (_record(meta={}), r":3: no domain under key 'meta.pile_set_name'; keys: text, meta"),
    "no domain ": (_record(meta="Wiki"), r":3: no domain under key 'meta.pile_set_name'; keys: text, meta"),
    "no domain  ": (_record(meta={"set": 1}), r":3: no domain under key 'meta.pile_set_name'; keys: text, meta.set"),
    "no domain   ": (_record(meta={"pile_set_name": 4}), r":3: no domain under key .*: found a number \(4\)"),
    "no domain    ": (_record(meta={"pile_set_name": ""}), r":3: no domain under key .*: found an empty text"),
    "invalid Unicode": (b'{"text": "a\\ud800", "meta": {"pile_set_name": "d"}}', r":3: invalid Unicode"),
    "invalid Unicode ": (b'{"text": "a", "meta": {"pile_set_name": "\\ud800"}}', r":3: invalid Unicode"),
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_named_or_counted(tmp_path, reason):
    bad, message = BAD_LINES[reason]
    path = _write(tmp_path / "bad.jsonl", [_record(), b"", bad, _record(text="after")])
    with pytest.raises(DataError, match=message) as caught:
        _read(path)
    assert "--on-error skip" in str(caught.value)
    assert str(caught.value).count("\n") <= 2
    documents, counts, _ = _read(path, skip=True)
    assert [document.text for document in documents] == ["good", "after"]
    assert counts == {reason.strip(): 1}


def test_bad_text_files_are_named_or_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    for name, data in {"a": b"good", "b": b"", "c": b"a\xff", "d": b"x" * 101}.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    for name, message in {"c": "invalid UTF-8 at byte 1", "d": "document too long"}.items():
        with pytest.raises(DataError, match=f"{name}.txt: {message}"):
            _read(tmp_path / f"{name}.txt", _keys())
    documents, counts, _ = _read(tmp_path, _keys(), skip=True)
    assert [document.text for document in documents] == ["good"]
    assert counts == {"empty document": 1, "invalid UTF-8": 1, "document too long": 1}


def test_a_damaged_file_stops_or_is_counted(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"not zstd")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    (tmp_path / "c.arrow").write_bytes(b"not arrow")
    for name in ("a.jsonl.zst", "b.parquet", "c.arrow"):
        with pytest.raises(DataError, match=name):
            _read(tmp_path / name)
    documents, counts, _ = _read(tmp_path, skip=True)
    assert documents == []
    assert counts == {"file damaged, its rest left out": 3}


def test_a_table_without_the_column_names_those_it_has(tmp_path):
    parquet.write_table(pa.table({"content": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="no column for key 'text'; columns: content"):
        _read(tmp_path / "t.parquet", _keys())


def test_a_key_with_dots_in_it_is_found_before_a_path(tmp_path):
    path = _write(tmp_path / "dots.jsonl", [b'{"a.b": "flat", "a": {"b": "deep"}}', b'{"a": {"b": "deep"}}'])
    assert [document.text for document in _read(path, _keys("a.b"))[0]] == ["flat", "deep"]


NESTED = [
    ("m.a.b", {"m": {"a.b": "long", "a": {"b": "short"}}}, "long"),
    ("m.a.b", {"m.a": {"b": "long"}, "m": {"a.b": "short"}}, "long"),
    ("m.a.b", {"m.a": {"c": "other"}, "m": {"a.b": "there"}}, "there"),
    ("m.a.b.c", {"m": {"a.b": {"c": "there"}}}, "there"),
    ("m.a.b.c", {"m.a": {"b.c": "there"}}, "there"),
    ("m.", {"m.": "there", "m": "other"}, "there"),
    ("m.", {"m": {"": "there"}}, "there"),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow stream", "arrow file"])
@pytest.mark.parametrize(("key", "record", "text"), NESTED)
def test_names_may_hold_dots_at_every_level(tmp_path, kind, key, record, text):
    path = tmp_path / f"t.{kind.split()[0]}"
    if kind == "jsonl":
        _write(path, [json.dumps(record).encode()])
    else:
        _table_of(kind, path, pa.table({name: [value] for name, value in record.items()}))
    assert [document.text for document in _read(path, _keys(key))[0]] == [text]


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 3\n")
    with pytest.raises(DataError, match=r"t\.txt: a Git LFS pointer, not the text"):
        _read(path, _keys())


def test_a_key_that_a_record_has_twice_is_an_error_where_it_is_looked_up(tmp_path):
    bad = [b'{"text": "a", "text": "b"}', b'{"text": "a", "m": {"d": "x", "d": "y"}}']
    good = [
        b'{"text": "a", "other": 1, "other": 2, "m": {"d": "x"}}',
        b'{"text": "\\"text\\"", "m": {"text": 1, "d": "text"}}',
    ]
    keys = _keys("text", "m.d")
    for line in bad:
        with pytest.raises(DataError, match=r":1: unreadable line \('(text|d)' is given twice\)"):
            _read(_write(tmp_path / "t.jsonl", [line]), keys)
    documents, counts, _ = _read(_write(tmp_path / "t.jsonl", [*bad, *good]), keys, skip=True)
    assert [document.text for document in documents] == ["a", '"text"']
    assert counts == {"unreadable line": 2}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_text_file_of_another_encoding_is_named(tmp_path, encoding):
    """Without a byte-order mark these bytes are valid UTF-8."""
    path = tmp_path / "t.txt"
    path.write_bytes("A text in another encoding.".encode(encoding))
    with pytest.raises(DataError, match=r"t\.txt: invalid UTF-8"):
        _read(path, _keys())
    path.write_text("A text with\0 a NUL in it, which is a character, too.")
    assert len(_read(path, _keys())[0]) == 1


def test_empty_documents_are_counted_and_reading_goes_on(tmp_path):
    parquet.write_table(pa.table({"text": ["a", "", "b"]}), tmp_path / "t.parquet")
    lines = _write(tmp_path / "l.jsonl", [b'{"text": "a"}', b'{"text": ""}', b'{"text": "b"}'])
    for path in (tmp_path / "t.parquet", lines):
        documents, counts, _ = _read(path, _keys())
        assert [document.text for document in documents] == ["a", "b"]
        assert counts == {"empty document": 1}


def test_a_byte_order_mark_is_dropped(tmp_path):
    bom = b"\xef\xbb\xbf"
    lines = _write(tmp_path / "l.jsonl", [bom + b'{"text": "a"}', bom + b'{"text": "\\ufeffb"}'])  # two files joined
    assert [document.text for document in _read(lines, _keys())[0]] == ["a", "\ufeffb"]
    (tmp_path / "t.txt").write_bytes(bom + b"text")
    assert [document.text for document in _read(tmp_path / "t.txt", _keys())[0]] == ["text"]


def _table_of(kind, path, table, compression=None):
    if kind == "parquet":
        parquet.write_table(table, path, compression=compression or "snappy", use_dictionary=compression is None)
        return
    new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=100)


KINDS = pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file"])


def _not_utf8(values, large=False):
    binary, text = (pa.large_binary(), pa.large_string()) if large else (pa.binary(), pa.string())
    return pa.array(values, binary).view(text)


@KINDS
@pytest.mark.parametrize("large", [False, True])
def test_a_row_that_is_not_utf8_is_named_and_skipped_alone(tmp_path, kind, large):
    path = tmp_path / f"t.{kind.split()[0]}"
    _table_of(kind, path, pa.table({"text": _not_utf8([b"a", b"\xff\xfe", None, b"b"], large)}))
    with pytest.raises(DataError, match=r"row 1: invalid UTF-8 under key 'text'"):
        _read(path, _keys())
    documents, counts, _ = _read(path, _keys(), skip=True)
    assert [document.text for document in documents] == ["a", "b"]
    assert counts == {"invalid UTF-8": 1, "no text": 1}


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(
            (kind, form)
            for kind in ("arrow stream", "arrow file")
            for form in ("dictionary", "dictionary of large", "view")
        ),
        ("parquet", "view"),  # pyarrow's reader refuses a whole dictionary itself
    ],
)
def test_a_row_that_is_not_utf8_is_skipped_alone_however_its_column_is_stored(tmp_path, kind, form):
    path = tmp_path / f"t.{kind.split()[0]}"
    if form == "view":
        column = pa.array([b"a", b"\xff\xfe", None, b"b"], pa.binary_view()).view(pa.string_view())
    else:
        texts = _not_utf8([b"a", b"\xff\xfe", b"b"], "large" in form)
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.int8()), texts)
    _table_of(kind, path, pa.table({"text": column}))
    with pytest.raises(DataError, match=r"row 1: invalid UTF-8 under key 'text'"):
        _read(path, _keys())
    documents, counts, _ = _read(path, _keys(), skip=True)
    assert [document.text for document in documents] == ["a", "b"]
    assert counts == {"invalid UTF-8": 1, "no text": 1}


@KINDS
def test_a_column_that_is_not_needed_may_hold_anything(tmp_path, kind):
    path = tmp_path / f"t.{kind.split()[0]}"
    meta = pa.StructArray.from_arrays([pa.array(["d", "e"]), _not_utf8([b"\xff", b"\xff"])], ["set", "other"])
    _table_of(kind, path, pa.table({"text": ["a", "b"], "meta": meta, "more": _not_utf8([b"\xff", b"\xff"])}))
    documents, counts, _ = _read(path, _keys("text", "meta.set"))
    assert [(document.text, document.domain) for document in documents] == [("a", "d"), ("b", "e")]
    assert not counts
    with pytest.raises(ConfigError, match="no column for key 'meta.sett'; columns: text, meta.set, meta.other, more"):
        _read(path, _keys("text", "meta.sett"))


@KINDS
def test_two_columns_of_the_keys_name_are_refused(tmp_path, kind):
    path, both = tmp_path / f"t.{kind.split()[0]}", [pa.array(["a"]), pa.array(["b"])]
    _table_of(kind, path, pa.Table.from_arrays([*both, *both], ["text", "text", "one", "two"]))
    with pytest.raises(ConfigError, match="2 columns for key 'text'; columns: text, text, one, two"):
        _read(path, _keys(), skip=True)
    documents, _, _ = _read(path, _keys("two"))
    assert [document.text for document in documents] == ["b"]


@KINDS
def test_damage_in_a_column_that_is_not_needed_costs_nothing(tmp_path, kind):
    path = tmp_path / f"t.{kind.split()[0]}"
    texts, others = [f"text {n}" for n in range(100)], [f"needless {n}" for n in range(100)]
    _table_of(kind, path, pa.table({"text": texts, "more": others}), compression="zstd")
    data = bytearray(path.read_bytes())
    last = data.rindex(zstandard.FRAME_HEADER)
    data[last : last + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        _read(path, _keys("more"))
    assert [document.text for document in _read(path, _keys())[0]] == texts


@KINDS
def test_what_is_in_the_place_of_a_text_is_said(tmp_path, kind):
    path = tmp_path / f"t.{kind.split()[0]}"
    beyond = pa.array([1 << 61], pa.timestamp("us"))  # any year that Python has
    for values, found in (
        ([b"a"], "binary data"),
        ([1.5], r"a number \(1.5\)"),
        ([None], "null"),
        ([["a"]], "a list"),
        (beyond, r"a number \(2305843009213693952\)"),
    ):
        _table_of(kind, path, pa.table({"text": values}))
        with pytest.raises(DataError, match=rf"row 0: no text under key 'text': found {found}"):
            _read(path, _keys())


@KINDS
def test_rows_before_damage_are_kept_and_the_others_counted(tmp_path, kind):
    path = tmp_path / f"t.{kind.split()[0]}"
    texts = [f"text {n} " * 200 for n in range(1000)]
    table = pa.table({"text": texts})
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=100, compression="NONE", use_dictionary=False)
    else:
        _table_of(kind, path, table)
    data = bytearray(path.read_bytes())
    at = data.index(texts[800].encode())
    if kind == "arrow stream":
        del data[at:]
    elif kind == "arrow file":
        data[at:-2000] = bytes(len(data[at:-2000]))  # later batches: no metadata where the footer says
    else:
        start = data.index(texts[700].encode()) - 4  # with the length of the value
        data[start : start + 3000] = b"\xff" * 3000
    path.write_bytes(data)
    documents, counts, _ = _read(path, _keys(), skip=True)
    read = [document.text for document in documents]
    assert read[:700] == texts[:700]
    if kind == "parquet":
        assert read[700:] == texts[800:]
        assert counts == {"row of a damaged file": 100}
    else:  # whose batches after the damage are not known
        assert counts == {"file damaged, its rest left out": 1}
    with pytest.raises(DataError, match=str(path)):
        _read(path, _keys())


def _arrow_stream(texts):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema({"text": pa.string()})) as writer:
        for start in range(0, len(texts), 100):
            writer.write_batch(pa.record_batch({"text": texts[start : start + 100]}))
    return sink.getvalue().to_pybytes()


def test_an_arrow_stream_ends_with_its_end_mark_alone(tmp_path):
    """pyarrow takes the end of the file for that of the stream, and reads none of what comes after the end mark."""
    texts = [f"text {n}" for n in range(300)]
    whole = _arrow_stream(texts)
    first = len(_arrow_stream(texts[:100])) - 8  # up to its end mark
    path = tmp_path / "t.arrow"
    for content, num_read in ((b"", 0), (whole[:first], 100), (whole[:-8], 300), (whole + whole, 300)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"t.arrow: its end mark is not at its end: .* of [0-9,]+ bytes"):
            _read(path, _keys())
        documents, counts, _ = _read(path, _keys(), skip=True)
        assert [document.text for document in documents] == texts[:num_read]
        assert counts == {"file damaged, its rest left out": 1}
    path.write_bytes(whole)
    assert len(_read(path, _keys())[0]) == 300


@KINDS
@settings(max_examples=60)
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=4), cut=st.floats(0, 1))
def test_any_damage_of_a_table_is_ours_to_report(tmp_path, kind, flips, cut):
    path = tmp_path / f"t.{kind.split()[0]}"
    _table_of(kind, path, pa.Table.from_pylist(RECORDS[:50]))
    data = bytearray(path.read_bytes())
    for at_frac, bit in flips:
        data[int(at_frac * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data if cut < 0.7 else data[: int(cut * len(data))])
    for skip in (False, True):
        try:
            _read(path, PILE, skip)
        except (DataError, ConfigError):
            continue
