"""Validation against a plain loop over the same samples."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.stream.sample_reader import SampleReader
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.validation import ValidationResult, Validator
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
    result = Validator(corpus, NAMES, 5, DistributedContext(0, 1, CPU), batch_rows=2)(model.loss)
    domain_by_name = {domain.name: domain for domain in corpus.domains}
    means, num_bytes = [], []
    for name in NAMES[:3]:
        tokens = torch.from_numpy(SampleReader(domain_by_name[name]).read(np.arange(5)))
        losses = F.cross_entropy(model(tokens[:, :-1]).double().flatten(0, 1), tokens[:, 1:].flatten())
        means.append(losses.item())
        num_bytes.append(int((tokens[:, 1:] != corpus.tokenizer.end_id).sum()))  # a byte is a token here
    np.testing.assert_allclose(result.domain_loss_K[:3], means, rtol=WITHIN)
    assert np.isnan(result.domain_loss_K[3])
    assert result.domain_tokens_K.tolist() == [160, 160, 160, 0]
    assert result.domain_bytes_K.tolist() == [*num_bytes, 0]
    assert result.loss == pytest.approx(np.mean(means), rel=WITHIN)
    assert result.domain_average == pytest.approx(np.mean(means), rel=WITHIN)
    expected = means[0] * 160 / math.log(2) / num_bytes[0]
    assert result.bits_per_byte_K[0] == pytest.approx(expected, rel=WITHIN)


def test_ranks_share_the_samples_without_overlap(tiny_corpus, model, monkeypatch):
    """The parts of all ranks add up to the whole, each rank with equally many forward passes of one shape."""
    corpus = open_corpus(tiny_corpus, "val")
    whole = Validator(corpus, NAMES, 7, DistributedContext(0, 1, CPU), batch_rows=2)(model.loss)
    monkeypatch.setattr("ado_stream.train.validation.sum_over_ranks", lambda context, tensor: tensor)
    parts, passes, shapes = [], [], set()
    for rank in range(4):
        calls = []

        def counted(*arguments, calls=calls):
            calls.append(None)
            shapes.update(tuple(each.shape) for each in arguments[:3])
            return model.loss(*arguments)

        with np.errstate(all="ignore"):
            parts.append(Validator(corpus, NAMES, 7, DistributedContext(rank, 4, CPU), batch_rows=2)(counted))
        passes.append(len(calls))
    assert len(set(passes)) == 1
    assert shapes == {(2, 32), (2,)}
    tokens = np.sum([part.domain_tokens_K for part in parts], axis=0)
    assert tokens.tolist() == whole.domain_tokens_K.tolist()
    sums = np.sum([np.nan_to_num(part.domain_loss_K) * part.domain_tokens_K for part in parts], axis=0)
    np.testing.assert_allclose(sums[:3] / tokens[:3], whole.domain_loss_K[:3], rtol=2 * WITHIN)


def test_means_over_tokens_and_over_domains_differ():
    result = ValidationResult(np.array([1.0, 3.0, np.nan]), np.array([30, 10, 0]), np.array([60, 10, 0]), [None] * 3)
    assert result.loss == pytest.approx(1.5)
    assert result.domain_average == pytest.approx(2.0)


@torch.no_grad()
def test_samples_are_cut_into_the_rows_that_the_model_is_trained_on(tiny_corpus, model):
    corpus = open_corpus(tiny_corpus, "val")
    context = DistributedContext(0, 1, CPU)
    result = Validator(corpus, NAMES, 5, context, batch_rows=3, rows_per_sample=4)(model.loss)
    whole = Validator(corpus, NAMES, 5, context, batch_rows=2)(model.loss)
    means = []
    for domain in corpus.domains:
        losses = []
        for sample in torch.from_numpy(SampleReader(domain).read(np.arange(5))):
            for begin in range(0, 32, 8):
                row = sample[begin : begin + 9]
                losses.append(F.cross_entropy(model(row[None, :-1])[0].double(), row[1:]).item())
        means.append((domain.name, np.mean(losses)))
    expected = [dict(means)[name] for name in NAMES[:3]]
    np.testing.assert_allclose(result.domain_loss_K[:3], expected, rtol=WITHIN)
    assert (result.domain_tokens_K == whole.domain_tokens_K).all()
    assert (result.text_K, result.domain_bytes_K.tolist()) == (whole.text_K, whole.domain_bytes_K.tolist())
