"""OLMo-core's adapter in a training loop like its Trainer's, whose modules are stand-ins (stand_ins.py).

Oracle: losses by torch, added by domain in float64; a run that was not interrupted.
"""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ado_stream.errors import ConfigError
from tests.adapters import stand_ins
from tests.rounding import rounding

STEPS, SAVED_AT = 12, 5


@pytest.fixture
def adapter(monkeypatch):
    return stand_ins.import_adapter(monkeypatch, "olmo_core", stand_ins.OLMO_CORE)


class Model(torch.nn.Module):
    def __init__(self, loss_implementation="default"):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(320, 16)
        self.head = stand_ins.LMHead(16, 320, loss_implementation)

    def forward(self, tokens, **options):
        return self.head(self.embed(tokens), **options)


class Run:
    """A trainer with its callback; two micro-batches a step."""

    def __init__(self, adapter, loader, model=None):
        self.model = model or Model()
        self.data_loader = adapter.AdaptiveDataLoader(loader, work_dir="unused")
        self.train_module = SimpleNamespace(model=self.model, device=torch.device("cpu"))
        self.callback = adapter.AdaptiveCallback()
        self.callback.trainer = self
        self.callback.post_attach()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)

    def train(self, steps):
        found = []
        for batch in self.data_loader:
            losses = []
            for tokens, labels in zip(batch["input_ids"].chunk(2), batch["labels"].chunk(2), strict=True):
                options = {"labels": labels, "return_logits": False, "loss_div_factor": 8 * 32}
                output = self.model(tokens, **options)
                assert output.logits is None
                output.loss.backward()
                losses.append(output.loss.item())
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.callback.post_train_batch()
            found.append((batch["input_ids"].tolist(), losses))
            if len(found) == steps:
                return found
        raise AssertionError("the stream ended")


def test_losses_are_the_heads_own_and_are_added_by_domain(adapter, make_loader, record):
    run = Run(adapter, make_loader())
    run.data_loader.reshuffle(epoch=1)
    ((tokens, losses),) = run.train(1)
    batch = next(iter(make_loader()))
    assert batch["tokens"][:, :-1].tolist() == tokens
    logits_BTV = Model().double()(batch["tokens"][:, :-1])
    loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
    expected_K = torch.zeros(3, dtype=torch.float64).index_add(0, batch["domain"], loss_BT.detach().sum(1))
    ((step, sums_K, counts_K),) = record
    assert sum(losses) == pytest.approx(loss_BT.mean().item(), rel=rounding(320))  # of the vocabulary
    assert step == 0
    assert sums_K == pytest.approx(expected_K.tolist(), rel=rounding(320))
    assert counts_K == (32 * torch.bincount(batch["domain"], minlength=3)).tolist()


def test_a_killed_run_resumes_with_the_same_batches(adapter, make_loader, record):
    whole = Run(adapter, make_loader()).train(STEPS)
    observed = record[:]
    assert len({tuple(counts_K) for _, _, counts_K in observed}) > 1, "the mixture changes"

    first = Run(adapter, make_loader())
    first.train(SAVED_AT)
    saved = json.dumps(first.data_loader.state_dict())
    weights = {name: each.clone() for name, each in first.model.state_dict().items()}
    first.train(2)  # lost with the process

    resumed = Run(adapter, make_loader())
    resumed.model.load_state_dict(weights)
    resumed.data_loader.load_state_dict(json.loads(saved))
    record.clear()
    assert resumed.train(STEPS - SAVED_AT) == whole[SAVED_AT:]
    assert record == observed[SAVED_AT:]
    assert resumed.data_loader.batches_processed == STEPS
    assert resumed.data_loader.tokens_processed == STEPS * 8 * 32


def test_the_dry_run_evaluation_and_inference_are_not_observed(adapter, make_loader, record):
    run = Run(adapter, make_loader())
    mock = run.data_loader.get_mock_batch()
    assert mock["input_ids"].shape == mock["labels"].shape == (8, 32)
    run.model(mock["input_ids"], labels=mock["labels"]).loss.backward()
    assert run.model(mock["input_ids"]).shape == (8, 32, 320)
    run.model.eval()
    batch = next(iter(run.data_loader))
    output = run.model(batch["input_ids"], labels=batch["labels"])
    assert output.logits.shape == (8, 32, 320)
    assert run.model(batch["input_ids"], labels=batch["labels"], return_logits=False).logits is None
    run.callback.post_train_batch()
    ((_, sums_K, counts_K),) = record
    assert sums_K == counts_K == [0, 0, 0]


def test_what_cannot_be_honoured_is_refused(adapter, make_loader):
    with pytest.raises(ConfigError, match="set the LM head's loss_implementation to 'default'"):
        Run(adapter, make_loader(), Model(loss_implementation="fused_linear"))
    run = Run(adapter, make_loader())
    with pytest.raises(ConfigError, match="remove BatchSizeScheduler"):
        run.data_loader.global_batch_size = 512
    run.data_loader = [1]
    with pytest.raises(ConfigError, match="needs an AdaptiveDataLoader; the trainer has list"):
        run.callback.post_attach()


def test_batches_with_targets_of_their_own_are_refused(adapter, make_with_targets):
    make, refusal = make_with_targets
    with pytest.raises(ConfigError, match=refusal.format("OLMo-core")):
        Run(adapter, make())
