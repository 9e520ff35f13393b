"""A training step: equal on any number of ranks, equal to plain AdamW, skipped when it is not finite."""

import itertools
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ado_model import ModelConfig, Transformer
from ado_stream.train.config import TrainSection
from ado_stream.train.train_step import LearningRateSchedule
from tests.train import train_step_on_ranks
from tests.train.hot_loop import adaptive_loop, build_step

POISONED = {"loss": 5, "gradient": 9}  # the steps at which the last rank's is NaN
CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)


@pytest.fixture(scope="module")
def one_rank(ranks) -> list:
    return ranks(1, train_step_on_ranks.main, {}, POISONED)


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_losses_and_skipped_steps_are_those_of_one_rank(ranks, one_rank: list, num_ranks: int, strategy: str):
    """The same sums in another order: float32 roundings of 1e-7, grown over 20 steps to well under 1e-5."""
    found = ranks(num_ranks, train_step_on_ranks.main, {"strategy": strategy}, POISONED)
    for one, many in zip(one_rank, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4, nan_ok=True)
    assert one_rank[-1]["loss"] < one_rank[0]["loss"] - 0.1  # the loss fell, so the updates were compared too
    assert [number for number, each in enumerate(found) if not each["finite"]] == sorted(POISONED.values())
    for step in POISONED.values():
        assert found[step]["policy_tokens"] == 0
        assert found[step]["weights"] == found[step - 1]["weights"]
        assert found[step + 1]["weights"] != found[step]["weights"]


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"activation_checkpointing": True}, 1e-5),  # the same operations twice
        ({"dtype": "bfloat16"}, 5e-3),  # 8 bits a product, in sums of thousands; measured: under 1e-3
        pytest.param(
            {"compile": True},
            1e-5,  # other orders of the same sums
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
        ),
    ],
)
def test_fsdp_works_with_the_other_options(ranks, one_rank: list, change: dict, tolerance: float):
    found = ranks(2, train_step_on_ranks.main, {"strategy": "fsdp", **change}, POISONED)
    for one, many in zip(one_rank, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=tolerance)
        assert many["finite"] == one["finite"]
    assert found[-1]["weights"] == pytest.approx(one_rank[-1]["weights"], rel=tolerance)
    assert found[-1]["weights"] != one_rank[-1]["weights"]


def test_steps_equal_plain_adamw_on_the_whole_batch():
    """Oracle: torch's unfused AdamW, cross-entropy of the logits, clip_grad_norm_; one batch without accumulation."""
    options = TrainSection(micro_batch_size=1, grad_clip=0.5, weight_decay=0.2)
    torch.manual_seed(0)
    step, parallel, _ = build_step(CONFIG, options, 2)
    oracle = Transformer(CONFIG)
    oracle.load_state_dict(parallel.model.state_dict())
    groups = [
        {"params": [each for each in oracle.parameters() if each.ndim == 2], "weight_decay": 0.2},
        {"params": [each for each in oracle.parameters() if each.ndim == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for _ in range(5):
        tokens = torch.randint(97, (4, 17))
        sums, counts = step.forward_backward(tokens, torch.tensor([0, 1, 1, 0]))
        outcome = step.update(sums, counts, 1e-3)
        expected = F.cross_entropy(oracle(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
        plain.step()
        plain.zero_grad()
        assert (outcome.sums_K.sum() / outcome.counts_K.sum()).item() == pytest.approx(expected.item(), abs=1e-5)
        assert outcome.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in parallel.model.named_parameters():
        torch.testing.assert_close(parameter, oracle.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_recomputation_and_bfloat16_change_little():
    """Recomputation: the same bits. bfloat16: within its 8 bits of float32."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
    losses = []
    for change in ({}, {"activation_checkpointing": True}, {"dtype": "bfloat16"}):
        options = TrainSection(**change)
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, options, 2)
        sums, counts = step.forward_backward(tokens, domains)
        outcome = step.update(sums, counts, 1e-3)
        losses.append((outcome.sums_K.sum().item(), outcome.grad_norm.item()))
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=0.02)


def test_without_grad_clip_the_gradient_is_not_scaled():
    """AdamW's first moment after one step is (1 - b1) times the gradient; a limit of 1e-3 would shrink it."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
    for grad_clip, unscaled in ((None, True), (1e-3, False)):
        options = TrainSection(grad_clip=grad_clip)
        torch.manual_seed(0)
        step, _, optimizer = build_step(CONFIG, options, 2)
        outcome = step.update(*step.forward_backward(tokens, domains), 1e-3)
        moments = [each["exp_avg"] for each in optimizer.state.values()]
        taken = torch.nn.utils.get_total_norm(moments).item() / (1 - options.betas[0])
        assert (taken > 0.999 * outcome.grad_norm.item()) == unscaled


def test_a_micro_batch_that_does_not_divide_the_rows_changes_nothing():
    """8 rows as 3, 3 and 2: the same sums in another order, so float32 roundings of gradients relative to the largest.

    Weighting each micro-batch by a third would be wrong by 12 %.
    """
    tokens, domains = torch.randint(97, (8, 17)), torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])
    found = []
    for rows in (None, 3):
        options = TrainSection(micro_batch_size=rows)
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, options, 2)
        sums, counts = step.forward_backward(tokens, domains)
        found.append((sums, counts, torch.cat([each.grad.flatten() for each in parallel.model.parameters()])))
    (sums, counts, gradient), (micro_sums, micro_counts, micro_gradient) = found
    torch.testing.assert_close(micro_sums, sums, rtol=1e-6, atol=0)
    assert micro_counts.tolist() == counts.tolist() == [5 * 16, 3 * 16]
    torch.testing.assert_close(micro_gradient, gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())


def test_replicated_ranks_count_once(ranks):
    """Two ranks that both get all rows have the sums of one rank."""
    (one,) = ranks(1, train_step_on_ranks.same_rows, 1)
    (both,) = ranks(2, train_step_on_ranks.same_rows, 2)
    assert both == one


class NoSynchronisation(TorchDispatchMode):
    """Fails on operations that make the host wait for a GPU: copies to the host, shapes that depend on values."""

    SYNCHRONISING = (
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
        "equal",
        "repeat_interleave",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert name not in self.SYNCHRONISING, name
        assert not by_mask, f"{name} by a mask"
        assert not name.startswith("unique"), name
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(tiny_corpus):
    """Neither model and optimizer nor passing the losses to the policy; ADO's own refits are in NumPy."""
    options = TrainSection(micro_batch_size=2, activation_checkpointing=True)
    with adaptive_loop(tiny_corpus, CONFIG, options, torch.device("cpu"), prefetch=0) as (loader, train_on):
        for batch in itertools.islice(loader, 4):
            with NoSynchronisation():
                outcome = train_on(batch)
        assert loader.policy.step == 4
    with NoSynchronisation(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        outcome.grad_norm.item()


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
        step, parallel, _ = build_step(CONFIG, options, 2)
        tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
        losses[compiled] = []
        for _ in range(10):
            outcome = step.update(*step.forward_backward(tokens, domains), 1e-2)
            losses[compiled].append(outcome.sums_K.sum().item() / 64)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        assert not torch._dynamo.utils.counters["graph_break"]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
    assert losses[True][-1] < losses[True][0] - 1


def test_schedule_warms_up_and_decays_to_its_minimum():
    schedule = LearningRateSchedule(peak=2.0, warmup_steps=4, steps=101, min_frac=0.1)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(100) == pytest.approx(0.2)
    assert schedule(52) == pytest.approx(1.1)  # half-way: the mean of peak and floor
    assert LearningRateSchedule(1.0, 0, 1, 0.1)(0) == 1.0
