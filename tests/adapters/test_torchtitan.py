"""torchtitan's adapter in a training loop like torchtitan's, whose modules are stand-ins (stand_ins.py).

Oracle: losses by torch, added by domain in float64; a run that was not interrupted.
"""

import json

import pytest
import torch
import torch.nn.functional as F

from ado_stream.errors import ConfigError
from tests.adapters import stand_ins
from tests.rounding import rounding

STEPS, SAVED_AT = 12, 5


@pytest.fixture
def adapter(monkeypatch):
    return stand_ins.import_adapter(monkeypatch, "torchtitan", stand_ins.TORCHTITAN)


@pytest.fixture
def build(adapter, make_loader):
    """A function: (data loader, loss) of a configuration, built as torchtitan builds them."""

    def build(chunked=False, local_batch_size=4, seq_len=32):
        loss = stand_ins.CrossEntropyLoss.Config()
        if chunked:
            loss = stand_ins.ChunkedLossWrapper.Config(loss_fn=loss)
        config = stand_ins.TitanTrainer.Config(loss=loss, dataloader=stand_ins.BaseDataLoader.Config())
        config = adapter.adaptive_config(config, make_loader)
        options = {"dp_world_size": 1, "dp_rank": 0, "seq_len": seq_len, "local_batch_size": local_batch_size}
        data = config.dataloader.build(**options, tokenizer=None)
        return data, config.loss.build(compile_config=None)

    return build


def train(data, loss_fn, model, steps, num_parts=2, global_tokens=8 * 32):
    """The tokens and the loss of each step."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    iterator = iter(data)
    for _ in range(steps):
        parts = [next(iterator) for _ in range(num_parts)]
        total = 0.0
        for inputs, labels in parts:
            assert inputs["positions"].tolist() == [list(range(32))] * len(labels)
            loss, metrics = loss_fn(model(inputs["input"]), labels, torch.tensor(global_tokens))
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        found.append((torch.cat([inputs["input"] for inputs, _ in parts]).tolist(), total))
    return found


@pytest.mark.parametrize("chunked", [False, True])
def test_losses_are_torchtitans_own_and_are_added_by_domain(build, make_loader, model, record, chunked):
    data, loss_fn = build(chunked)
    ((tokens, loss),) = train(data, loss_fn, model, 1)
    assert record == []  # until the next batch or a save
    data.state_dict()
    ((step, sums_K, counts_K),) = record

    batch = next(iter(make_loader()))
    assert batch["tokens"][:, :-1].tolist() == tokens
    logits_BTV = type(model)()(batch["tokens"][:, :-1]).double()
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
    expected_K = torch.zeros(3, dtype=torch.float64).index_add(0, batch["domain"], loss_BT.detach().sum(1))
    assert loss == pytest.approx(loss_BT.mean().item(), rel=rounding(320))  # of the vocabulary
    assert step == 0
    assert sums_K == pytest.approx(expected_K.tolist(), rel=rounding(320))
    assert counts_K == (32 * torch.bincount(batch["domain"], minlength=3)).tolist()


def test_a_killed_run_resumes_with_the_same_batches(build, model, record):
    whole = train(*build(), model, STEPS)
    observed = record[:]
    assert len({tuple(counts_K) for _, _, counts_K in observed}) > 1, "the mixture changes"

    record.clear()
    model.__init__()
    first, loss_fn = build()
    train(first, loss_fn, model, SAVED_AT)
    saved, weights = json.dumps(first.state_dict()), {name: each.clone() for name, each in model.state_dict().items()}
    train(first, loss_fn, model, 2)  # lost with the process

    resumed, loss_fn = build()
    model.load_state_dict(weights)
    record.clear()
    resumed.load_state_dict(json.loads(saved))
    assert train(resumed, loss_fn, model, STEPS - SAVED_AT) == whole[SAVED_AT:]
    assert record == observed[SAVED_AT:]


def test_validation_is_not_observed(build, model, record):
    """Before the first step, and with another number of tokens than a batch has."""
    data, loss_fn = build()
    with torch.no_grad():
        tokens = torch.randint(320, (2, 32))
        loss, _ = loss_fn(model(tokens), tokens, torch.tensor(64))
        expected = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=rounding(320))
    train(data, loss_fn, model, 1)
    data.state_dict()
    ((_, _, counts_K),) = record
    assert sum(counts_K) == 8 * 32


def test_settings_with_which_a_step_would_not_be_one_batch_are_refused(build, model):
    with pytest.raises(ConfigError, match="training.seq_len is 64, that of the data set 32"):
        build(seq_len=64)
    with pytest.raises(ConfigError, match="training.local_batch_size is 3; it must divide the 8 rows"):
        build(local_batch_size=3)
    with pytest.raises(ConfigError, match="global batch size is 4, that of the data set 8"):
        train(*build(), model, 1, num_parts=1, global_tokens=4 * 32)
    data, _ = build()
    next(iter(data))
    with pytest.raises(ConfigError, match="a save in the middle of a batch"):
        data.state_dict()


def test_the_configuration_can_be_logged(adapter):
    assert adapter.Shared().to_dict() == {}


def test_batches_with_targets_of_their_own_are_refused(adapter, make_with_targets):
    make, refusal = make_with_targets
    config = adapter.AdaptiveDataLoader.Config(make_loader=make, shared=adapter.Shared())
    options = {"dp_world_size": 1, "dp_rank": 0, "seq_len": 64, "local_batch_size": 4}
    with pytest.raises(ConfigError, match=refusal.format("torchtitan")):
        config.build(**options)
