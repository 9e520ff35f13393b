"""A training step: equal on every world and strategy, against plain AdamW, and unmoved by what is not finite."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from ado_model import ModelConfig, Transformer
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import World
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.schedule import Schedule
from ado_stream.train.step import TrainStep, make_optimizer
from tests.train import steps_on_ranks

POISONED = 5  # at this step the last rank's loss is NaN
ALONE = World(0, 1, torch.device("cpu"))
CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)


@pytest.fixture(scope="module")
def alone(ranks) -> list:
    return ranks(1, steps_on_ranks.main, "ddp", POISONED)


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_every_world_has_the_same_losses_and_skips_the_same_step(ranks, alone: list, num_ranks: int, strategy: str):
    """The same sums in another order: float32 roundings of 1e-7, grown over 20 steps to well under 1e-5."""
    found = ranks(num_ranks, steps_on_ranks.main, strategy, POISONED)
    for one, many in zip(alone, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1  # something was learned, so the updates were compared too
    assert [number for number, each in enumerate(found) if not each["finite"]] == [POISONED]
    assert found[POISONED]["policy_tokens"] == 0
    assert found[POISONED]["weights"] == found[POISONED - 1]["weights"]
    assert found[POISONED + 1]["weights"] != found[POISONED]["weights"]


def test_steps_equal_plain_adamw_on_the_whole_batch():
    """Oracle: torch's unfused AdamW, cross-entropy of the logits, clip_grad_norm_; one batch without accumulation."""
    options = TrainSection(micro_batch_size=1, grad_clip=0.5, weight_decay=0.2)
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    oracle = Transformer(CONFIG)
    oracle.load_state_dict(model.state_dict())
    groups = [
        {"params": [each for each in oracle.parameters() if each.ndim == 2], "weight_decay": 0.2},
        {"params": [each for each in oracle.parameters() if each.ndim == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    parallel = ParallelModel(model, ALONE, options)
    step = TrainStep(parallel, make_optimizer(model, options), options, 2)
    for _ in range(5):
        tokens = torch.randint(97, (4, 17))
        sums, counts = step.forward_backward(tokens, torch.tensor([0, 1, 1, 0]))
        outcome = step.update(sums, counts, 1e-3)
        expected = F.cross_entropy(oracle(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        plain.step()
        plain.zero_grad()
        assert (outcome.total_sums_K.sum() / outcome.total_counts_K.sum()).item() == pytest.approx(
            expected.item(), abs=1e-5
        )
        assert outcome.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, oracle.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_recomputation_and_bfloat16_change_little():
    """Recomputed: the same bits. bfloat16 within its 8 bits of float32."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
    losses = []
    for change in ({}, {"activation_checkpointing": True}, {"dtype": "bfloat16"}):
        options = TrainSection(**change)
        torch.manual_seed(0)
        parallel = ParallelModel(Transformer(CONFIG), ALONE, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 2)
        sums, counts = step.forward_backward(tokens, domains)
        outcome = step.update(sums, counts, 1e-3)
        losses.append((outcome.total_sums_K.sum().item(), outcome.grad_norm.item()))
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)  # torch's
def test_compiled_steps_equal_plain_ones_without_a_graph_break():
    """Inductor sums in another order: float32 roundings, grown over ten steps to well under 1e-5."""
    losses = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        options = TrainSection(compile=compiled)
        torch.manual_seed(0)
        parallel = ParallelModel(Transformer(CONFIG), ALONE, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 2)
        tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
        losses[compiled] = []
        for _ in range(10):
            outcome = step.update(*step.forward_backward(tokens, domains), 1e-2)
            losses[compiled].append(outcome.total_sums_K.sum().item() / 64)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        assert not torch._dynamo.utils.counters["graph_break"]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
    assert losses[True][-1] < losses[True][0] - 1


def test_schedule_warms_up_and_falls_to_its_floor():
    schedule = Schedule(peak=2.0, warmup_steps=4, steps=101, min_frac=0.1)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(100) == pytest.approx(0.2)
    assert schedule(52) == pytest.approx(1.1)  # half-way: the mean of peak and floor
    assert Schedule(1.0, 0, 1, 0.1)(0) == 1.0
