"""Megatron's adapter on one rank and on four, with stand-ins for megatron-core (stand_ins.py).

Oracle: the loader alone, which is given the same losses by hand; a run that was not interrupted.
"""

import json

import pytest
import torch

from ado_stream.errors import ConfigError, ResumeError
from tests.adapters import megatron_on_ranks, stand_ins

STEPS, SAVED_AT = 12, 5


def by_hand(loader, steps):
    """The tokens and domains of each step, and its mixture, when a token's loss is its number / 7."""
    tokens, mixtures = [], []
    for batch in loader:
        rows, domain_B = batch["tokens"], batch["domain"]
        tokens.append([*rows[:, :-1].tolist(), domain_B.tolist()])
        mixtures.append(loader.mixture.tolist())
        sums_K = torch.zeros(3, dtype=torch.float64).index_add(0, domain_B, (rows[:, 1:] / 7.0).double().sum(1))
        loader.observe(sums_K, 32 * torch.bincount(domain_B, minlength=3))
        if len(tokens) == steps:
            return tokens, mixtures
    raise AssertionError("the stream ended")


def joined(parts):
    """The micro-batches of a step as one batch."""
    return [row for part in parts for row in part[:-1]] + [[domain for part in parts for domain in part[-1]]]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_stages_and_tensor_ranks_have_one_batch_and_resume_with_it(ranks, tiny_corpus, make_loader):
    tokens, mixtures = by_hand(make_loader(), STEPS)
    assert len({tuple(mixture) for mixture in mixtures}) > 4, "the mixture changes"
    whole = ranks(4, megatron_on_ranks.main, str(tiny_corpus), STEPS, SAVED_AT, None)
    for each in whole:
        assert [joined(parts) for parts in each["tokens"]] == tokens
        assert each["mixtures"] in ([], mixtures)
    assert [len(each["mixtures"]) for each in whole] == [STEPS, 0, STEPS, 0]
    labels = whole[2]["losses"]
    assert sum(num_tokens for _, num_tokens in labels) == STEPS * 8 * 32

    state = json.loads(json.dumps(whole[0]["state"]))  # of rank 0 alone, as Megatron-LM saves it
    resumed = ranks(4, megatron_on_ranks.main, str(tiny_corpus), STEPS, SAVED_AT, state)
    for each, before in zip(resumed, whole, strict=True):
        assert each["tokens"] == before["tokens"][SAVED_AT:]
        assert each["mixtures"] == before["mixtures"][SAVED_AT:]


@pytest.fixture
def make_data(monkeypatch, make_loader, process_group):
    """A function: MegatronData on one rank, of micro-batches of 2 rows."""

    def make(num_parts=4, micro_batch_size=2, seq_length=32, **state):
        modules = stand_ins.megatron_core(num_parts, **state)
        adapter = stand_ins.import_adapter(monkeypatch, "megatron", modules)
        return adapter.MegatronData(make_loader, micro_batch_size, seq_length)

    return make


def step(data):
    """One step; the tokens of its batch."""
    batches = [data.get_batch(data) for _ in range(4)]
    for batch in batches:
        data.loss(batch, (batch["labels"] / 7.0).requires_grad_())
    return batches


def test_an_iteration_that_is_run_again_counts_once(make_data, make_loader, record):
    """As Megatron's rerun state machine does after a loss that is not finite."""
    data = make_data()
    for _ in range(2):
        for batch in step(data):
            data.loss(batch, (batch["labels"] / 7.0).requires_grad_())
    data.save_state()
    again = record[:]
    record.clear()
    by_hand(make_loader(), 2)
    assert again == record


def test_validation_is_not_observed(make_data, record):
    data = make_data()
    tokens = torch.randint(320, (2, 33))
    batch = data.get_batch(iter([{"tokens": tokens}]))
    assert torch.equal(batch["tokens"], tokens[:, :-1])
    assert torch.equal(batch["labels"], tokens[:, 1:])
    loss, num_tokens, logged = data.loss(batch, batch["labels"].float())
    assert loss == tokens[:, 1:].sum()
    assert num_tokens == 64
    assert logged["lm loss"].tolist() == [loss, 64]
    step(data)
    data.save_state()
    assert [sum(counts_K) for _, _, counts_K in record] == [8 * 32]


def test_context_parallel_ranks_take_the_chunks_that_megatron_gives_them(make_data):
    """Of 32 tokens on 2 ranks: chunks 0 and 3 of 4 for rank 0, 1 and 2 for rank 1."""
    columns = {}
    for rank in (0, 1):
        size = {"get_context_parallel_rank": lambda rank=rank: rank, "get_context_parallel_world_size": lambda: 2}
        columns[rank] = make_data(**size).get_batch(iter([{"tokens": torch.arange(33).expand(2, 33)}]))
    first, second = ([*columns[rank]["position_ids"][0].tolist()] for rank in (0, 1))
    assert first == [*range(8), *range(24, 32)]
    assert second == [*range(8, 24)]
    assert columns[1]["labels"][0].tolist() == [*range(9, 25)]


def test_what_megatron_saved_is_loaded_from_its_folder(make_data, tmp_path):
    data = make_data()
    step(data)
    folder = tmp_path / "iter_0000001" / "mp_rank_00_000"
    folder.mkdir(parents=True)
    torch.save({"dataloader_state_dict": data.save_state()}, folder / "train_dataloader_dprank000.pt")
    following = data.get_batch(data)["tokens"]
    resumed = make_data()
    resumed.load(str(tmp_path), 1)
    assert torch.equal(resumed.get_batch(resumed)["tokens"], following)
    with pytest.raises(ResumeError, match="iter_0000002.* is missing; was the checkpoint saved with --dataloader-save"):
        resumed.load(str(tmp_path), 2)


def test_sizes_that_differ_from_megatrons_are_refused(make_data):
    with pytest.raises(ConfigError, match="--seq-length is 64, that of the data set 32"):
        make_data(seq_length=64)
    with pytest.raises(ConfigError, match="--micro-batch-size is 3; it must divide the 8 rows"):
        make_data(micro_batch_size=3)
    with pytest.raises(ConfigError, match="cannot serve virtual pipeline stages"):
        make_data(get_virtual_pipeline_model_parallel_world_size=lambda: 2)
    data = make_data(num_parts=2)
    with pytest.raises(ConfigError, match="a step has 2 micro-batches, a batch of the data set 4"):
        data.get_batch(data)
    data = make_data()
    data.get_batch(data)
    with pytest.raises(ConfigError, match="a save in the middle of a batch"):
        data.save_state()


@pytest.mark.usefixtures("process_group")
def test_batches_with_targets_of_their_own_are_refused(make_with_targets, monkeypatch):
    make, refusal = make_with_targets
    adapter = stand_ins.import_adapter(monkeypatch, "megatron", stand_ins.megatron_core(4))
    with pytest.raises(ConfigError, match=refusal.format("Megatron-LM")):
        adapter.MegatronData(make, 2, 32)
