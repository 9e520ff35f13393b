"""`ado-stream info`: a corpus' sizes as a table, and as corpus.json."""

import json

import pytest

from ado_stream.cli.info import print_corpus
from ado_stream.cli.main import main


@pytest.fixture
def corpus(prepare_texts, tmp_path):
    texts = {f"{name}.txt": "x" * (size - 1) for name, size in (("small", 300), ("large", 700))}  # and the end token
    return prepare_texts(tmp_path, texts, "--seq-len", "99")


def test_the_table_has_every_domain_largest_first(corpus, capsys):
    capsys.readouterr()
    assert main(["info", str(corpus)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[0] in ("large", "small")]
    assert rows == [
        ["large", "1", "0.00", "700", "7", "70.00%", "0"],
        ["small", "1", "0.00", "300", "3", "30.00%", "0"],
    ]
    assert "2 domains, 2 documents" in lines[-1]


def test_names_that_look_like_markup_and_narrow_windows_lose_nothing(corpus, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    manifest = json.loads((corpus / "corpus.json").read_bytes())
    domains = manifest["domains"]
    manifest["domains"] = {"[/large]": domains["large"], "[bold]": domains["small"]}
    manifest["refused"] = {"[/a] reason": 3}
    capsys.readouterr()
    print_corpus(manifest, as_json=False)
    _, large, small, _, refused = capsys.readouterr().out.splitlines()
    assert large.split() == ["[/large]", "1", "0.00", "700", "7", "70.00%", "0"]
    assert small.split() == ["[bold]", "1", "0.00", "300", "3", "30.00%", "0"]
    assert refused == "left out: 3 x [/a] reason"


def test_json_is_corpus_json(corpus, capsys):
    capsys.readouterr()
    assert main(["info", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((corpus / "corpus.json").read_bytes())


def test_no_corpus_is_exit_1(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("NotFound: ")
