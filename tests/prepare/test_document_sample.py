"""The training sample is a function of the set of documents: of no order, no partition, no repetition."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ado_stream.prepare.document_sample import EXCERPT_CHARACTERS, DocumentSample, priority


def _by_hand(texts, seed, budget):
    """Documents by priority until the budget is reached."""
    chosen, size = [], 0
    for rank, text in sorted({(priority(text.encode(), seed), text) for text in texts}):
        if size >= budget:
            break
        chosen.append((rank, text))
        size += len(text)
    return chosen


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=9), max_size=40),
    budget=st.integers(1, 60),
    seed=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
    parts=st.integers(1, 4),
)
def test_any_order_and_partition_give_the_sample_by_hand(texts, budget, seed, shuffle, parts):
    shuffle.shuffle(texts)
    whole = DocumentSample(budget)
    for part in range(parts):
        sample = DocumentSample(budget, whole.threshold)
        for text in texts[part::parts]:
            sample.offer(priority(text.encode(), seed), text)
        whole.merge(sample.items())
    assert whole.items() == _by_hand(texts, seed, budget)


def test_the_seed_chooses_and_long_documents_count_with_their_beginning():
    texts = [f"{n} " * 50 for n in range(200)]
    random.Random(0).shuffle(texts)
    chosen = []
    for seed in (1, 2):
        sample = DocumentSample(2000)
        for text in texts:
            sample.offer(priority(text.encode(), seed), text)
        chosen.append(sample.items())
    assert chosen[0] != chosen[1]
    sample = DocumentSample(10)
    sample.offer(3, "x" * (EXCERPT_CHARACTERS + 1))
    assert len(sample.items()[0][1]) == EXCERPT_CHARACTERS
