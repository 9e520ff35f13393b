"""Validation against a plain loop over the same samples."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.train.distributed import World
from ado_stream.train.validation import Validator
from tests.rounding import rounding

CPU = torch.device("cpu")
NAMES = ["hard", "easy", "medium", "absent"]
WITHIN = rounding(320)  # losses are logarithms of sums over the vocabulary, in float32


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=320, context_length=32))


@torch.no_grad()
def test_losses_are_those_of_a_plain_loop(tiny_corpus, model):
    corpus = open_corpus(tiny_corpus, "val")
    found = Validator(corpus, NAMES, 5, World(0, 1, CPU), batch_rows=2)(model.loss)
    where = {domain.name: domain for domain in corpus.domains}
    means, num_bytes = [], []
    for name in NAMES[:3]:
        tokens = torch.from_numpy(SampleReader(where[name]).read(np.arange(5)))
        losses = F.cross_entropy(model(tokens[:, :-1]).double().flatten(0, 1), tokens[:, 1:].flatten())
        means.append(losses.item())
        num_bytes.append(int((tokens[:, 1:] != corpus.tokenizer.end_id).sum()))  # a byte is a token here
    np.testing.assert_allclose(found.domain_loss_K[:3], means, rtol=WITHIN)
    assert np.isnan(found.domain_loss_K[3])
    assert found.domain_tokens_K.tolist() == [160, 160, 160, 0]
    assert found.domain_bytes_K.tolist() == [*num_bytes, 0]
    assert found.loss == pytest.approx(np.mean(means), rel=WITHIN)
    assert found.domain_average == pytest.approx(np.mean(means), rel=WITHIN)
    expected = means[0] * 160 / math.log(2) / num_bytes[0]
    assert found.bits_per_byte_K[0] == pytest.approx(expected, rel=WITHIN)


def test_ranks_share_the_samples_without_overlap(tiny_corpus, model, monkeypatch):
    """Parts of all ranks add up to the whole, each rank in as many forward passes as the others, all of one shape."""
    corpus = open_corpus(tiny_corpus, "val")
    whole = Validator(corpus, NAMES, 7, World(0, 1, CPU), batch_rows=2)(model.loss)
    monkeypatch.setattr("ado_stream.train.validation.sum_over_ranks", lambda world, tensor: tensor)
    parts, passes, shapes = [], [], set()
    for rank in range(4):
        calls = []

        def counted(*arguments, calls=calls):
            calls.append(None)
            shapes.update(tuple(each.shape) for each in arguments[:3])
            return model.loss(*arguments)

        with np.errstate(all="ignore"):
            parts.append(Validator(corpus, NAMES, 7, World(rank, 4, CPU), batch_rows=2)(counted))
        passes.append(len(calls))
    assert len(set(passes)) == 1
    assert shapes == {(2, 32), (2,)}
    tokens = np.sum([part.domain_tokens_K for part in parts], axis=0)
    assert tokens.tolist() == whole.domain_tokens_K.tolist()
    sums = np.sum([np.nan_to_num(part.domain_loss_K) * part.domain_tokens_K for part in parts], axis=0)
    np.testing.assert_allclose(sums[:3] / tokens[:3], whole.domain_loss_K[:3], rtol=2 * WITHIN)


def test_means_over_tokens_and_over_domains_differ():
    from ado_stream.train.validation import Validation

    found = Validation(np.array([1.0, 3.0, np.nan]), np.array([30, 10, 0]), np.array([60, 10, 0]))
    assert found.loss == pytest.approx(1.5)
    assert found.domain_average == pytest.approx(2.0)
    assert dataclasses.is_dataclass(found)
