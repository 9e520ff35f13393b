"""A training step: equal on any number of ranks, equal to plain AdamW, skipped when it is not finite."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ado_model import ModelConfig, Transformer
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import LearningRateSchedule
from tests.rounding import UNIT, perturb, rounding
from tests.train import train_step_on_ranks
from tests.train.hot_loop import adaptive_loop, build_step

POISONED = {"loss": 5, "gradient": 9}  # the steps at which the last rank's is NaN
CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)
UNPERTURBED = (0.0, 0)


@pytest.fixture(scope="module")
def one_rank(ranks) -> list:
    return ranks(1, train_step_on_ranks.main, {}, POISONED, UNPERTURBED)


@pytest.fixture(scope="module")
def allowed(ranks, one_rank: list) -> dict[str, dict[str, float]]:
    """By dtype: how far rounding may move losses, gradient norms and the weights at the end (tests/rounding.py).

    The most of three runs from perturbed weights: by a sum over the widest operand in float32, or by four roundings to
    bfloat16, those of both factors, product and sum.
    """
    found = {}
    for dtype, size in (("float32", rounding(CONFIG.mlp_width)), ("bfloat16", 4 * UNIT[torch.bfloat16])):
        others = [ranks(1, train_step_on_ranks.main, {}, POISONED, (size, seed)) for seed in range(3)]
        found[dtype] = {
            "loss": largest_difference("loss", one_rank, others),
            "grad_norm": largest_difference("grad_norm", one_rank, others),
            "weights": largest_difference("weights", one_rank[-1:], [other[-1:] for other in others]),
        }
    assert found["float32"]["loss"] < 1e-4, "an error would not show"
    return found


def largest_difference(key: str, one: list[dict], others: list[list[dict]]) -> float:
    pairs = [(mine, theirs) for other in others for mine, theirs in zip(one, other, strict=True) if mine["finite"]]
    return max(abs(mine[key] - theirs[key]) for mine, theirs in pairs)


@pytest.mark.parametrize(
    ("num_ranks", "strategy"),
    [(2, "ddp"), (2, "fsdp"), *(pytest.param(4, strategy, marks=pytest.mark.slow) for strategy in ("ddp", "fsdp"))],
)
def test_losses_and_skipped_steps_are_those_of_one_rank(
    ranks, one_rank: list, allowed: dict, num_ranks: int, strategy: str
):
    """The same sums in another order."""
    found = ranks(num_ranks, train_step_on_ranks.main, {"strategy": strategy}, POISONED, UNPERTURBED)
    for one, many in zip(one_rank, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=allowed["float32"]["loss"])
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], abs=allowed["float32"]["grad_norm"], nan_ok=True)
    assert one_rank[-1]["loss"] < one_rank[0]["loss"] - 0.1  # the loss fell, so the updates were compared too
    assert [number for number, each in enumerate(found) if not each["finite"]] == sorted(POISONED.values())
    for step in POISONED.values():
        assert found[step]["policy_tokens"] == 0
        assert found[step]["weights"] == found[step - 1]["weights"]
        assert found[step + 1]["weights"] != found[step]["weights"]


@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": True},
        {"dtype": "bfloat16"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
)
def test_fsdp_works_with_the_other_options(ranks, one_rank: list, allowed: dict, change: dict):
    found = ranks(2, train_step_on_ranks.main, {"strategy": "fsdp", **change}, POISONED, UNPERTURBED)
    within = allowed[change.get("dtype", "float32")]
    for one, many in zip(one_rank, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=within["loss"])
        assert many["finite"] == one["finite"]
    assert found[-1]["weights"] == pytest.approx(one_rank[-1]["weights"], abs=within["weights"])
    assert found[-1]["weights"] != one_rank[-1]["weights"]


def test_steps_equal_plain_adamw_on_the_whole_batch():
    """Oracle: torch's unfused AdamW, cross-entropy of the logits, clip_grad_norm_; one batch without accumulation.

    Rounding may move what comes out as far as the oracle's when its weights are perturbed (tests/rounding.py), in the
    mean of a tensor: AdamW's first steps follow the sign of each gradient, also of one that is nothing but rounding.
    """
    options = TrainSection(micro_batch_size=1, grad_clip=0.5, weight_decay=0.2)
    torch.manual_seed(0)
    step, parallel, _ = build_step(CONFIG, options, 2)
    batches = torch.randint(97, (5, 4, 17))
    expected, *perturbed = (
        adamw_steps(copy.deepcopy(parallel.model), batches, rounding(CONFIG.mlp_width) * (seed > 0), seed)
        for seed in range(5)
    )
    found: dict[str, list] = {"loss": [], "norm": []}
    for tokens in batches:
        outcome = step.update(*step.forward_backward(tokens, torch.tensor([0, 1, 1, 0])), 1e-3)
        found["loss"].append(outcome.sums_K.sum() / outcome.counts_K.sum())
        found["norm"].append(outcome.grad_norm)
    found = {name: torch.stack(values) for name, values in found.items()} | dict(parallel.model.named_parameters())
    for name, value in expected.items():
        allowed = max((other[name] - value).abs().mean().item() for other in perturbed)
        assert (found[name].detach() - value).abs().mean().item() <= allowed, name
        assert allowed < 1e-3 * value.abs().mean().item(), "an error would not show"


def adamw_steps(model: Transformer, batches: torch.Tensor, size: float, seed: int) -> dict[str, torch.Tensor]:
    """Losses, gradient norms and final parameters of plain steps from perturbed parameters."""
    perturb(model, size, seed)
    groups = [
        {"params": [each for each in model.parameters() if each.ndim == 2], "weight_decay": 0.2},
        {"params": [each for each in model.parameters() if each.ndim == 1], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    losses, norms = [], []
    for tokens in batches:
        losses.append(F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()))
        losses[-1].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        plain.step()
        plain.zero_grad()
    numbers = {"loss": torch.stack(losses), "norm": torch.stack(norms)}
    return {name: value.detach() for name, value in (numbers | dict(model.named_parameters())).items()}


def test_recomputation_and_bfloat16_change_little():
    """Recomputation: the same bits. bfloat16: no further off than with weights perturbed by four roundings to it."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])

    def step_of(size=0.0, seed=0, **change):
        options = TrainSection(**change)
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, options, 2, perturbed=(size, seed))
        sums, counts = step.forward_backward(tokens, domains)
        outcome = step.update(sums, counts, 1e-3)
        return np.array([outcome.sums_K.sum().item(), outcome.grad_norm.item()])

    plain = step_of()
    assert plain.tolist() == step_of(activation_checkpointing=True).tolist()
    perturbed = [step_of(4 * UNIT[torch.bfloat16], seed) for seed in range(4)]
    assert (np.abs(step_of(dtype="bfloat16") - plain) < np.abs(np.array(perturbed) - plain).max(axis=0)).all()


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
    torch.testing.assert_close(micro_sums, sums, rtol=2 * rounding(CONFIG.mlp_width), atol=0)
    assert micro_counts.tolist() == counts.tolist() == [5 * 16, 3 * 16]
    allowed = 2 * rounding(8 * 16) * gradient.abs().max().item()  # a sum over all tokens
    torch.testing.assert_close(micro_gradient, gradient, rtol=0, atol=allowed)


def test_sample_losses_are_cross_entropies_and_change_no_gradient():
    """Oracle: cross-entropy of the logits, row by row; micro-batches of unequal size, targets that do not count."""
    found = {}
    tokens, domains = torch.randint(97, (5, 17)), torch.tensor([0, 1, 1, 0, 1])
    targets = tokens[:, 1:].clone()
    targets[1, 3:9] = targets[4, :1] = -100
    for wanted in (False, True):
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, TrainSection(micro_batch_size=2), 2)
        losses = torch.zeros(5, dtype=torch.float64) if wanted else None
        sums, counts = step.forward_backward(tokens, domains, targets, losses)
        found[wanted] = sums, counts, [each.grad for each in parallel.model.parameters()]
    for mine, theirs in zip(found[True][2], found[False][2], strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(found[True][1], found[False][1])
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-14, atol=0)  # float64, added in another order
    with torch.no_grad():
        logits = parallel.model(tokens[:, :-1]).double()
    expected = [F.cross_entropy(row, target).item() for row, target in zip(logits, targets, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=8 * rounding(CONFIG.width))


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


@pytest.mark.parametrize("sample_losses", [False, True])
def test_no_step_waits_for_the_device(tiny_corpus, sample_losses):
    """Neither model and optimizer nor passing the losses to the policy; ADO's own refits are in NumPy."""
    options, cpu = TrainSection(micro_batch_size=2, activation_checkpointing=True), torch.device("cpu")
    with adaptive_loop(tiny_corpus, CONFIG, options, cpu, 0, sample_losses) as (loader, train_on):
        for batch in itertools.islice(loader, 4):
            with NoSynchronisation():
                outcome = train_on(batch)
        assert loader.policy.step == 4
    with NoSynchronisation(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        outcome.grad_norm.item()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)  # torch's
def test_compiled_steps_equal_plain_ones_without_a_graph_break():
    """Inductor sums in another order: the losses move less than those of perturbed weights (tests/rounding.py)."""
    losses = {}
    for compiled, seed in ((False, 0), (True, 0), (False, 1), (False, 2), (False, 3)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        options = TrainSection(compile=compiled)
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, options, 2, perturbed=(rounding(CONFIG.mlp_width) * (seed > 0), seed))
        tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
        losses[compiled, seed] = []
        for _ in range(10):
            outcome = step.update(*step.forward_backward(tokens, domains), 1e-2)
            losses[compiled, seed].append(outcome.sums_K.sum().item() / 64)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        assert not torch._dynamo.utils.counters["graph_break"]
    plain = np.array(losses[False, 0])
    allowed = max(np.abs(np.array(losses[False, seed]) - plain).max() for seed in (1, 2, 3))
    assert np.abs(np.array(losses[True, 0]) - plain).max() < allowed < 1e-3
    assert losses[True, 0][-1] < losses[True, 0][0] - 1


def test_schedule_warms_up_and_decays_to_its_minimum():
    schedule = LearningRateSchedule(peak=2.0, warmup_steps=4, steps=101, min_frac=0.1)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(100) == pytest.approx(0.2)
    assert schedule(52) == pytest.approx(1.1)  # half-way: the mean of peak and floor
    assert LearningRateSchedule(1.0, 0, 1, 0.1)(0) == 1.0
