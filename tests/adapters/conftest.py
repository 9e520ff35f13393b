"""Fixtures of the adapters' tests: loaders on a small corpus, and what they observe."""

import pytest
import torch

from ado_stream.loader import AdaptiveLoader
from ado_stream.stream.dataset import AdaptiveStreamingDataset


@pytest.fixture
def make_loader(tiny_corpus):
    """A function: a loader of batches of 8 whose mixture changes from step 4 on; options: of the data set."""
    from ado_stream.corpus import open_corpus

    made = []

    def make(*, group=None, **options) -> AdaptiveLoader:
        options = {"global_batch_size": 8, "mixture_lag": 2, **options}
        dataset = AdaptiveStreamingDataset(open_corpus(tiny_corpus), **options)
        learning = {"start_step": 4, "ignore_steps": 0, "interval": 2, "total_steps": 20}
        policy = {"name": "ado", "options": learning}
        made.append(AdaptiveLoader(dataset, policy, prefetch=2, io_threads=1, group=group))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture(
    params=["padding, which the adapter of {} would train on; .* --packing join", "rows of several samples"]
)
def make_with_targets(request, make_loader):
    """A function: a loader whose batches have targets of their own; and the refusal, with a place for the trainer."""

    def make(**options) -> AdaptiveLoader:
        if request.param.startswith("rows"):
            return make_loader(batch_seq_len=64, **options)
        loader = make_loader(**options)
        loader.dataset.padding_token = 256
        return loader

    return make, request.param


@pytest.fixture
def record(monkeypatch):
    """[(step, sums_K, counts_K)] of every observation of any loader."""
    found, observe = [], AdaptiveLoader.observe

    def record(loader, sums_K, counts_K, **options):
        found.append((loader.step - 1, sums_K.tolist(), counts_K.tolist()))
        observe(loader, sums_K, counts_K, **options)

    monkeypatch.setattr(AdaptiveLoader, "observe", record)
    return found


class TokenTable(torch.nn.Module):
    """Logits of the next token that depend on the last one alone; the same weights each time."""

    def __init__(self, vocab_size: int = 320):
        super().__init__()
        weights = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0))
        self.table = torch.nn.Embedding.from_pretrained(weights, freeze=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.table(tokens_BT)


@pytest.fixture
def model() -> TokenTable:
    return TokenTable()
