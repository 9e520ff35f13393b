"""The code and the corpus.yaml of docs/formats.md work as they stand."""

import re

import numpy as np
import pytest

import ado_stream as ado
from tests.stream.flat_data import make_documents, write_megatron, write_raw


@pytest.fixture
def blocks(repository, tmp_path, monkeypatch):
    """{language: code block}, in a folder with the files that they name."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("web_text_document", "web_val_text_document")):
        write_megatron(tmp_path / "data" / name, make_documents(number, 200, 256))
    write_raw(tmp_path / "data" / "code" / "part-0.npy", np.concatenate(make_documents(2, 200, 256)))
    return dict(re.findall(r"```(\w+)\n(.*?)```", (repository / "docs" / "formats.md").read_text(), re.DOTALL))


def test_the_python_runs(blocks):
    names: dict = {}
    exec(compile(blocks["python"], "formats.md", "exec"), names)
    assert names["batch"]["tokens"].shape == (8, 129)
    assert names["batch"]["positions"].shape == (8, 128)


def test_the_yaml_opens(blocks, tmp_path):
    (tmp_path / "corpus.yaml").write_text(blocks["yaml"])
    corpus = ado.open_corpus("corpus.yaml")
    assert [domain.prior for domain in corpus.domains] == [3, 1]
    assert (corpus.tokenizer.end_id, ado.open_corpus("corpus.yaml", "val").domains[0].name) == (0, "web")
