"""Another batch size or sequence length from some step on: every domain's tokens go on where they were, to the pair.

The tokens are numbers of their places, so that every pair of an input and its target says which token it is. What is
expected is read sample by sample, one domain at a time, by a data set whose batch never changes.
"""

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.stream.batch_draw import DrawSettings
from ado_stream.stream.batch_rows import make_rows, with_rows_of
from tests.stream.helpers import changing_mixture

SEQ_LEN, LAG = 8, 2
NUM_SAMPLES = {"a": 301, "b": 37, "c": 5}
DOMAIN_TOKENS = 1 << 20  # domain k has tokens from k of these on


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """Three flat files, in which every token is its own number."""
    folder = tmp_path_factory.mktemp("flat")
    for number, (name, num_samples) in enumerate(NUM_SAMPLES.items()):
        tokens = np.arange(num_samples * SEQ_LEN + 1, dtype=np.uint32) + number * DOMAIN_TOKENS
        np.save(folder / f"{name}.npy", tokens)
    return [ado.Domain(name, local=str(folder / f"{name}.npy"), format="npy") for name in NUM_SAMPLES]


def make(domains, batch, rank=0, world_size=1, lanes=2, **changes):
    rows, batch_seq_len = batch
    return ado.AdaptiveStreamingDataset(
        domains,
        rows,
        canonical_nodes=lanes,
        mixture_lag=LAG,
        seq_len=SEQ_LEN,
        batch_seq_len=batch_seq_len,
        rank=rank,
        world_size=world_size,
        **changes,
    )


def pairs_of(batch):
    """(b, T, 2): inputs and targets."""
    tokens_BT = batch["tokens"]
    return torch.stack([tokens_BT[:, :-1], batch.get("targets", tokens_BT[:, 1:])], dim=2).numpy()


def read(domains, stages, num_ranks, lanes, cuts=()):
    """[(K,) samples], {(domain, lane): pairs in order}: `stages` of (rows, T, steps), a new data set for each of them,
    and after each step in `cuts`, from the saved state."""
    state, step, counts, found = None, 0, [], {}
    for rows, batch_seq_len, num_steps in stages:
        ranks = None
        for _ in range(num_steps):
            if ranks is None or step in cuts:
                ranks = [make(domains, (rows, batch_seq_len), rank, num_ranks, lanes) for rank in range(num_ranks)]
                for dataset in ranks if state else ():
                    dataset.load_state_dict(json.loads(state))
                for dataset in ranks:
                    dataset.start(prefetch=0, io_threads=0)
            batches = [dataset.next_batch() for dataset in ranks]
            for dataset in ranks:
                dataset.publish(step + 1 + LAG, changing_mixture(step, len(domains)))
            counts.append(ranks[0].sample_counts(step))
            domain_B = np.concatenate([batch["domain"].numpy() for batch in batches])
            pairs = np.concatenate([pairs_of(batch) for batch in batches])
            assert pairs.shape == (rows, batch_seq_len, 2)
            for slot, domain in enumerate(domain_B.tolist()):
                found.setdefault((domain, slot * lanes // rows), []).append(pairs[slot])
            step += 1
            (state,) = {json.dumps(dataset.state_dict()) for dataset in ranks}
    return counts, {key: np.concatenate(each) for key, each in found.items()}


def expected_pairs(domains, lanes, number, num_samples):
    """{lane: pairs of the domain's first `num_samples` samples}, read alone and sample by sample."""
    dataset = make([domains[number]], (lanes, None), lanes=lanes)
    dataset.start(prefetch=0, io_threads=0)
    dataset.publish(LAG + 1, [1.0])
    batches = []
    for step in range(num_samples):
        batches.append(pairs_of(dataset.next_batch()))
        dataset.publish(step + LAG + 1, [1.0])
    return {lane: np.concatenate([batch[lane] for batch in batches]) for lane in range(lanes)}


STAGES = [
    [(8, 8, 5), (16, 8, 4), (8, 8, 4)],
    [(8, 8, 5), (8, 16, 4), (4, 32, 3)],
    [(16, 4, 5), (8, 8, 3), (32, 2, 3), (4, 16, 5), (16, 4, 2)],
]


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize(("num_ranks", "lanes"), [(1, 1), (2, 2), (4, 2)])
def test_a_domain_goes_on_where_it_was_whatever_the_batch(domains, stages, num_ranks, lanes):
    counts, found = read(domains, stages, num_ranks, lanes)
    for number in range(len(domains)):
        most = max(len(pairs) for (domain, _), pairs in found.items() if domain == number) // SEQ_LEN
        expected = expected_pairs(domains, lanes, number, most)
        for lane in range(lanes):
            pairs = found.get((number, lane), np.empty((0, 2)))
            np.testing.assert_array_equal(pairs, expected[lane][: len(pairs)])
            assert (pairs[:, 1] == pairs[:, 0] + 1).all()
        read_samples = sum(len(pairs) for (domain, _), pairs in found.items() if domain == number) // SEQ_LEN
        assert read_samples == sum(int(count_K[number]) for count_K in counts)
    sizes = [rows * batch_seq_len // SEQ_LEN for rows, batch_seq_len, steps in stages for _ in range(steps)]
    assert [int(count_K.sum()) for count_K in counts] == sizes
    _assert_proportional(stages, counts)


def _assert_proportional(stages, counts):
    """Each count within one draw of the mixture's: a draw is a row, or all rows of a sample."""
    draws = [max(1, batch_seq_len // SEQ_LEN) for _, batch_seq_len, steps in stages for _ in range(steps)]
    for step in range(LAG + 1, len(counts)):
        mixture_K = changing_mixture(step - 1 - LAG, len(NUM_SAMPLES))
        assert (np.abs(counts[step] - counts[step].sum() * mixture_K) < draws[step] + 1e-9).all()


@given(cuts=st.sets(st.integers(1, 17), max_size=4))
@settings(max_examples=8)
def test_a_stop_after_any_step_changes_nothing(domains, cuts):
    expected_counts, expected = read(domains, STAGES[2], 2, 2)
    counts, found = read(domains, STAGES[2], 2, 2, cuts)
    np.testing.assert_array_equal(counts, expected_counts)
    assert found.keys() == expected.keys()
    for key, pairs in found.items():
        np.testing.assert_array_equal(pairs, expected[key])


def test_the_ids_of_a_step_are_its_rows_samples(domains):
    first_K = np.cumsum([0, *NUM_SAMPLES.values()])
    for batch in [(8, 8), (4, 16), (16, 4)]:
        dataset = make(domains, batch)
        rows = next(iter(dataset))
        ids = dataset.sample_ids(0)
        domain_B = np.searchsorted(first_K, ids, side="right") - 1
        begins_B = domain_B * DOMAIN_TOKENS + (ids - first_K[domain_B]) * SEQ_LEN
        inputs = pairs_of(rows)[..., 0].reshape(-1, SEQ_LEN)
        np.testing.assert_array_equal(inputs, begins_B[:, None] + np.arange(SEQ_LEN))
        assert (dataset.seq_len, dataset.batch_seq_len) == (SEQ_LEN, batch[1])
        dataset.close()


def test_another_batch_is_logged_and_other_settings_are_refused(domains, caplog):
    state = make(domains, (8, None)).state_dict()
    with caplog.at_level(logging.WARNING):
        make(domains, (16, 4)).load_state_dict(state)
    assert "resuming at step 0 with another batch: global_batch_size 8 -> 16; batch_seq_len None -> 4" in caplog.text
    older = {**state, "identity": {key: each for key, each in state["identity"].items() if key != "batch_seq_len"}}
    caplog.clear()
    make(domains, (8, None)).load_state_dict(older)  # of versions in which it could not change
    assert not caplog.text
    with pytest.raises(ado.ResumeError, match="canonical_nodes 2 -> 1"):
        make(domains, (8, 16), lanes=1).load_state_dict(state)
    cut_anew = ado.AdaptiveStreamingDataset(domains, 8, canonical_nodes=2, mixture_lag=LAG, seq_len=2 * SEQ_LEN)
    with pytest.raises(ado.ResumeError, match="domain 'a': its shards are not those"):
        cut_anew.load_state_dict(state)


def test_lengths_and_batches_that_do_not_divide_are_refused(domains):
    with pytest.raises(ado.ConfigError, match="sequences of 12 tokens from samples of 8: .* nearest: 16"):
        make(domains, (8, 12))
    with pytest.raises(ado.ConfigError, match="sequences of 3 tokens from samples of 8: .* nearest: 2"):
        make(domains, (8, 3))
    with pytest.raises(ado.ConfigError, match="batch_seq_len is 0"):
        make(domains, (8, 0))
    with pytest.raises(
        ado.ConfigError, match="not a multiple of canonical_nodes 2 x 4, the rows of a sample; nearest: 8"
    ):
        make(domains, (12, 2))
    with pytest.raises(ado.ConfigError, match="not a multiple of ranks 4 x 4, the rows of a sample; nearest: 16 or 32"):
        make(domains, (24, 2), 1, 4)


@given(num_samples=st.integers(1, 3), factor=st.sampled_from([1, 2, 3, 6]), joins=st.booleans(), data=st.data())
def test_columns_are_those_of_the_samples(num_samples, factor, joins, data):
    """Against a loop over samples and tokens; token 0 ends a document, and a second one is padding."""
    samples_per_row, rows_per_sample = (factor, 1) if joins else (1, factor)
    num = num_samples * samples_per_row
    tokens = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 2), min_size=13, max_size=13), min_size=num, max_size=num))
    )
    expected = []
    for sample in tokens:
        pairs, place = [], 0
        for at in range(12):
            place = 0 if at % (12 // rows_per_sample) == 0 else place
            target = -100 if sample[at] == sample[at + 1] == 0 else sample[at + 1]
            pairs.append([sample[at], target, place])
            place = 0 if sample[at] == 0 else place + 1
        expected.append(pairs)
    batch = {"tokens": torch.from_numpy(tokens), "domain": torch.arange(num) // samples_per_row, "step": 0}
    settings = with_rows_of(12 * samples_per_row // rows_per_sample, 12, DrawSettings(12, 1, 0, "systematic"))
    assert (settings.samples_per_row, settings.rows_per_sample) == (samples_per_row, rows_per_sample)
    make_rows(batch, settings, end_token=0, padding_token=0)
    columns = [batch["tokens"][:, :-1], batch["targets"], batch["positions"]]
    row_len = 12 * samples_per_row // rows_per_sample
    np.testing.assert_array_equal(torch.stack(columns, dim=2), np.reshape(expected, (-1, row_len, 3)))
    assert batch["domain"].tolist() == [each // rows_per_sample for each in range(num_samples * rows_per_sample)]
    last = tokens[samples_per_row - 1 :: samples_per_row, -1]
    assert batch["tokens"][rows_per_sample - 1 :: rows_per_sample, -1].tolist() == last.tolist()
