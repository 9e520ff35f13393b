"""Files of tokens that other projects wrote, and the list of them, of any bytes: read, or refused by a typed error."""

import shutil
from contextlib import suppress

import numpy as np
import pytest
import yaml

import ado_stream as ado
from ado_stream.cli.main import main
from ado_stream.errors import AdoStreamError
from ado_stream.stream.sample_reader import SampleReader
from tests.fuzz.mutations import changed_yaml, damaged, fuzz
from tests.stream.flat_data import make_documents, write_megatron, write_raw

T = 15
LIST = {
    "seq_len": T, "tokenizer": "bytes", "end_token": 256, "packing": "join",
    "domains": {
        "web": {"format": "megatron", "path": "data/web", "weight": 3},
        "code": {"format": "npy", "path": "data/code/", "token_dtype": "uint16", "weight": 1, "val": "data/val.npy"},
        "math": {"format": "npy", "path": "data/math.npy", "weight": 1},
    },
}  # fmt: skip


@pytest.fixture
def listed(tmp_path):
    """A folder with corpus.yaml and its data: Megatron's, bare tokens, and an array of NumPy's."""
    made = tmp_path / "made"
    documents = [[np.minimum(tokens, 256) for tokens in make_documents(number, 40)] for number in range(4)]
    write_megatron(made / "data" / "web", documents[0])
    write_raw(made / "data" / "code" / "0.npy", np.concatenate(documents[1]))
    write_raw(made / "data" / "val.npy", np.concatenate(documents[2]))
    np.save(made / "data" / "math.npy", np.concatenate(documents[3]).astype(np.uint16))
    (made / "corpus.yaml").write_text(yaml.safe_dump(LIST))
    return made


@pytest.mark.parametrize("name", ["corpus.yaml", "data/web.idx", "data/web.bin", "data/math.npy"])
def test_fuzz_listed_corpus(listed, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # a changed path may lead elsewhere
    folder, content = tmp_path / "copy", (listed / name).read_bytes()

    def check(data):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(listed, folder)
        (folder / name).write_bytes(changed_yaml(data, LIST) if name == "corpus.yaml" else damaged(data, content))
        for verb in (["info"], ["lint"], ["preview", "--samples", "1", "--domain", "web"]):
            assert main([verb[0], str(folder / "corpus.yaml"), *verb[1:]]) in (0, 1)
        with suppress(AdoStreamError):
            for domain in ado.open_corpus(folder / "corpus.yaml").domains:
                reader = SampleReader(domain, vocab_size=257, seq_len=T)
                reader.read(np.unique(np.linspace(0, reader.num_samples - 1, 5).astype(np.int64)))
        capsys.readouterr()

    fuzz(check)
