"""The demo's corpus: the same bytes every time, six domains or more, no file in two, no text twice, sizes as said."""

import json
import re
import sys
from pathlib import Path

import pytest

from ado_stream.demo import environment_files, raw_text
from ado_stream.demo.environment_files import MAX_FILE_BYTES, UNLEARNABLE, EnvironmentFile, find_environment_files
from ado_stream.errors import DataError, StorageError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The quick corpus of the environment that runs the tests."""
    out = tmp_path_factory.mktemp("text")
    return out, raw_text.write_text(out, size_frac=0.05, held_out_frac=0.2)


@pytest.fixture(scope="module")
def found():
    return find_environment_files()


def documents(domain):
    """Those to train on, and those held out."""
    paths = [path for path in (domain.path, raw_text.val_path(domain.path)) if path.exists()]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_at_least_six_domains_of_different_size(written):
    _, domains = written
    sizes = [domain.bytes for domain in domains]
    assert len(domains) >= 6
    assert 2.5e6 < sum(sizes) < 8e6
    assert max(sizes) > 2 * min(sizes)  # what is installed decides by how much
    # documents enough that a fifth of them, held out by hash, is some in every domain
    assert min(domain.documents for domain in domains) >= 20


def test_what_is_said_is_what_was_written(written):
    out, domains = written
    assert {path.name for path in out.glob("*.jsonl")} == {f"{domain.name}.jsonl" for domain in domains}
    for domain in domains:
        found = documents(domain)
        assert len(found) == domain.documents
        assert sum(len(document["text"].encode()) for document in found) == domain.bytes
        assert {document["meta"]["pile_set_name"] for document in found} == {domain.name}
        assert len({re.sub(r"#\d+$", "", document["meta"]["source"]) for document in found}) == domain.files


def test_no_file_serves_two_domains_and_none_names_the_machine(written):
    owners = {}
    for domain in written[1]:
        for document in documents(domain):
            source = document["meta"]["source"]
            assert not source.startswith("/")
            assert owners.setdefault(re.sub(r"#\d+$", "", source), domain.name) == domain.name


def test_no_text_comes_twice(written):
    whole = {}
    for domain in written[1]:
        for document in documents(domain):
            name = re.sub(r"#\d+$", "", document["meta"]["source"])
            whole[name] = whole.get(name, "") + document["text"]
    collapsed = [" ".join(body.split()) for body in whole.values()]
    assert len(set(collapsed)) == len(collapsed)


def test_the_same_environment_gives_the_same_bytes(written, tmp_path):
    _, first = written
    again = raw_text.write_text(tmp_path, size_frac=0.05, held_out_frac=0.2)
    assert [domain.name for domain in again] == [domain.name for domain in first]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(again, first, strict=True))


def test_a_fifth_of_what_can_be_learnt_is_held_out_and_no_hash(written):
    for domain in written[1]:
        held_out = raw_text.val_path(domain.path)
        if domain.name == UNLEARNABLE:
            assert not held_out.exists()
            for document in documents(domain):
                assert all(re.fullmatch(r"[\w-]{43}", line) for line in document["text"].splitlines())
        else:
            assert len(held_out.read_text().splitlines()) == domain.documents // 5


def test_summary_brings_back_what_was_written(written, tmp_path):
    out, domains = written
    assert raw_text.read_summary(out) == domains
    assert raw_text.read_summary(tmp_path) is None


@pytest.mark.parametrize("content", [b"{}", b"[{}]", b'[{"name": 1}]', b"\xff"])
def test_a_damaged_summary_is_named(tmp_path, content):
    (tmp_path / "text.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"text\.json: damaged: text\.json"):
        raw_text.read_summary(tmp_path)


def test_no_package_fills_a_domain_while_others_have_text(tmp_path, monkeypatch):
    for package, num in (("giant", 400), ("small", 60)):
        (tmp_path / package).mkdir()
        for index in range(num):
            (tmp_path / package / f"m{index}.py").write_text(f"{package} {index} " + "x = 1  # filler\n" * 600)
    found = [
        EnvironmentFile("python", path, path.relative_to(tmp_path).as_posix())
        for path in sorted(tmp_path.rglob("*.py"))
    ]
    limit = 800_000
    taken = list(raw_text._texts("python", sorted(found, key=lambda source: source.order_key), limit, set()))
    giant = sum(len(body) for name, body in taken if name.startswith("giant"))
    assert giant <= limit / 2 + 10_000  # one file over its half at most
    assert sum(len(body) for _, body in taken) >= limit


def test_too_few_domains_are_an_error(found, tmp_path, monkeypatch):
    only = [source for source in found if source.domain in ("stdlib", "python")]
    monkeypatch.setattr(raw_text, "find_environment_files", lambda: only)
    with pytest.raises(DataError, match="6 are needed"):
        raw_text.write_text(tmp_path, size_frac=0.05, held_out_frac=0.2)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("torch/nn/modules/linear.pyi", "stubs"),
        ("torch/include/ATen/Tensor.h", "c-headers"),
        ("numpy/__init__.cython-30.pxd", "cython"),
        ("botocore/data/s3/2006-03-01/service-2.json.gz", "json"),
        ("rich-13.9.dist-info/METADATA", "readmes"),
        ("rich-13.9.dist-info/licenses/LICENSE", "licences"),
        ("rich-13.9.dist-info/RECORD", "hashes"),
        ("rich-13.9.dist-info/WHEEL", None),
        ("torch/LICENSE.txt", "licences"),
        ("torch/lib/libtorch.so", None),
    ],
)
def test_a_file_goes_where_it_belongs(name, domain):
    assert environment_files._classify(name) == domain


def test_python_files_are_source_or_docstrings_one_in_four():
    placed = [environment_files._classify(f"package/module{index}.py") for index in range(2000)]
    assert set(placed) == {"python", "docs"}
    assert 0.2 < placed.count("docs") / 2000 < 0.3


def test_docstrings_are_read_without_their_code(tmp_path):
    body = " ".join(["Returns the sum of its arguments, which must be numbers."] * 4)
    path = tmp_path / "m.py"
    path.write_text(f'import os\n\n\ndef f(x):\n    """{body}\n\n    More of it.\n    """\n    return os.secret(x)\n')
    read = EnvironmentFile("docs", path, "package/m.py").read()
    assert read == f"{body}\n\nMore of it."


def test_huge_binary_and_unreadable_files_give_nothing(tmp_path):
    for name, content in (("big.h", b"x\n" * MAX_FILE_BYTES), ("nul.h", b"a\0b" * 100), ("latin.h", b"\xe9" * 200)):
        (tmp_path / name).write_bytes(content)
        assert EnvironmentFile("c-headers", tmp_path / name, name).read() == ""
    assert EnvironmentFile("c-headers", tmp_path / "gone.h", "gone.h").read() == ""
    (tmp_path / "torn.json.gz").write_bytes(b"\x1f\x8b\x08torn")
    assert EnvironmentFile("json", tmp_path / "torn.json.gz", "torn.json.gz").read() == ""


def test_metadata_gives_its_readme_alone(tmp_path):
    path = tmp_path / "METADATA"
    path.write_text("Name: thing\nVersion: 1\n\n# Thing\n" + "It does things. " * 20)
    assert EnvironmentFile("readmes", path, "thing.dist-info/METADATA").read().startswith("# Thing\n")


def test_pieces_are_the_text(tmp_path):
    body = "".join(f"line {index} é\n" * (index % 7) for index in range(5000)) + "no newline at the end"
    pieces = raw_text.split_text(body)
    assert "".join(pieces) == body
    sizes = [len(piece.encode()) for piece in pieces]
    assert max(sizes) < raw_text.DOCUMENT_BYTES + 100
    assert min(sizes[:-1]) >= raw_text.DOCUMENT_BYTES


def test_stdlib_source_is_there_in_this_python(found):
    assert any(source.domain == "stdlib" and source.name == "argparse.py" for source in found)
    assert Path(sys.prefix).exists()
