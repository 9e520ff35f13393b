"""Real text from end to end: six domains in The Pile's format through prepare and 150 steps of the nano model."""

import json

import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.corpus import open_corpus
from ado_stream.record import read_run
from ado_stream.stream.sample_reader import SampleReader

CONFIG = """
corpus: {corpus}
run_dir: {run}
model: {{preset: nano}}
data: {{global_batch_size: 8}}
train: {{steps: 150}}
evaluate: {{every_steps: 0}}
"""


def unigram_entropy(corpus):
    """Nats per token of the unigram model of the training tokens."""
    counts = np.zeros(corpus.tokenizer.vocab_size, np.int64)
    for domain in corpus.domains:
        reader = SampleReader(domain)
        for start in range(0, reader.num_samples, 4096):
            rows = reader.read(np.arange(start, min(start + 4096, reader.num_samples)))
            counts += np.bincount(rows.ravel(), minlength=counts.size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


@pytest.mark.slow
def test_150_steps_on_real_text_learn_more_than_word_frequencies(real_corpus, tmp_path):
    inputs = [str(path) for path in sorted(real_corpus.glob("train-*.jsonl.zst"))]
    folder = tmp_path / "corpus"
    prepare = [*inputs, "--val", str(real_corpus / "val.jsonl.zst"), "--domain-key", "meta.pile_set_name"]
    assert (
        main(["prepare", *prepare, "--tokenizer", "bpe:1024", "--seq-len", "256", "--out", str(folder), "--json"]) == 0
    )

    published = json.loads((real_corpus / "manifest.json").read_text())["domains"]
    corpus = open_corpus(str(folder))
    ours = corpus.manifest["domains"]
    assert {name: ours[name]["splits"]["train"]["documents"] for name in ours} == {
        name: domain["train_docs"] for name, domain in published.items()
    }

    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(corpus=folder, run=tmp_path / "run"))
    assert main(["train", str(config)]) == 0
    run, lines = read_run(tmp_path / "run")
    validation = lines["eval"][-1]
    entropy = unigram_entropy(corpus)
    print(f"unigram entropy {entropy:.3f}, validation {validation['loss']:.3f}, {validation['domain_loss']}")
    assert validation["step"] == 150
    assert validation["loss"] < entropy
    for name, loss in zip(run["domains"], validation["domain_loss"], strict=True):
        if published[name]["train_share"] > 0.05:
            assert loss < entropy, name
