"""A training step: equal on every world and strategy, against plain AdamW, and unmoved by what is not finite."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.policy_registry import make_policy
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import World
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.step import Schedule, TrainStep, make_optimizer
from tests.rounding import UNIT, perturb, rounding
from tests.train import steps_on_ranks

POISONED = {"loss": 5, "gradient": 9}  # the steps at which the last rank's is NaN
ALONE = World(0, 1, torch.device("cpu"))
CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)


UNPERTURBED = (0.0, 0)


@pytest.fixture(scope="module")
def alone(ranks) -> list:
    return ranks(1, steps_on_ranks.main, {}, POISONED, UNPERTURBED)


@pytest.fixture(scope="module")
def allowed(ranks, alone: list) -> dict[str, dict[str, float]]:
    """By dtype: how far rounding may move losses, gradient norms and the weights at the end (tests/rounding.py).

    The most of three runs from perturbed weights: by a sum over the widest operand in float32, or by four roundings to
    bfloat16, those of both factors, product and sum.
    """
    found = {}
    for dtype, size in (("float32", rounding(CONFIG.mlp_width)), ("bfloat16", 4 * UNIT[torch.bfloat16])):
        others = [ranks(1, steps_on_ranks.main, {}, POISONED, (size, seed)) for seed in range(3)]
        found[dtype] = {
            "loss": most_apart("loss", alone, others),
            "grad_norm": most_apart("grad_norm", alone, others),
            "weights": most_apart("weights", alone[-1:], [other[-1:] for other in others]),
        }
    assert found["float32"]["loss"] < 1e-4, "an error would not show"
    return found


def most_apart(key: str, one: list[dict], others: list[list[dict]]) -> float:
    pairs = [(mine, theirs) for other in others for mine, theirs in zip(one, other, strict=True) if mine["finite"]]
    return max(abs(mine[key] - theirs[key]) for mine, theirs in pairs)


@pytest.mark.parametrize(("num_ranks", "strategy"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_every_world_has_the_same_losses_and_skips_the_same_steps(
    ranks, alone: list, allowed: dict, num_ranks: int, strategy: str
):
    """The same sums in another order."""
    found = ranks(num_ranks, steps_on_ranks.main, {"strategy": strategy}, POISONED, UNPERTURBED)
    for one, many in zip(alone, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=allowed["float32"]["loss"])
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], abs=allowed["float32"]["grad_norm"], nan_ok=True)
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1  # something was learned, so the updates were compared too
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
        pytest.param(
            {"compile": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_fsdp_goes_with_the_other_options(ranks, alone: list, allowed: dict, change: dict):
    found = ranks(2, steps_on_ranks.main, {"strategy": "fsdp", **change}, POISONED, UNPERTURBED)
    within = allowed[change.get("dtype", "float32")]
    for one, many in zip(alone, found, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], abs=within["loss"])
        assert many["finite"] == one["finite"]
    assert found[-1]["weights"] == pytest.approx(alone[-1]["weights"], abs=within["weights"])
    assert found[-1]["weights"] != alone[-1]["weights"]


def test_steps_equal_plain_adamw_on_the_whole_batch():
    """Oracle: torch's unfused AdamW, cross-entropy of the logits, clip_grad_norm_; one batch without accumulation.

    Rounding may move what comes out as far as the oracle's when its weights are perturbed (tests/rounding.py), in the
    mean of a tensor: AdamW's first steps follow the sign of each gradient, also of one that is nothing but rounding.
    """
    options = TrainSection(micro_batch_size=1, grad_clip=0.5, weight_decay=0.2)
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    batches = torch.randint(97, (5, 4, 17))
    expected, *perturbed = (
        adamw_steps(copy.deepcopy(model), batches, rounding(CONFIG.mlp_width) * (seed > 0), seed) for seed in range(5)
    )
    parallel = ParallelModel(model, ALONE, options)
    step = TrainStep(parallel, make_optimizer(model, options), options, 2)
    found: dict[str, list] = {"loss": [], "norm": []}
    for tokens in batches:
        outcome = step.update(*step.forward_backward(tokens, torch.tensor([0, 1, 1, 0])), 1e-3)
        found["loss"].append(outcome.sums_K.sum() / outcome.counts_K.sum())
        found["norm"].append(outcome.grad_norm)
    found = {name: torch.stack(values) for name, values in found.items()} | dict(model.named_parameters())
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
    """Recomputed: the same bits. bfloat16: no further off than with weights perturbed by four roundings to it."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])

    def step_of(size=0.0, seed=0, **change):
        options = TrainSection(**change)
        torch.manual_seed(0)
        model = Transformer(CONFIG)
        perturb(model, size, seed)
        parallel = ParallelModel(model, ALONE, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 2)
        sums, counts = step.forward_backward(tokens, domains)
        outcome = step.update(sums, counts, 1e-3)
        return np.array([outcome.sums_K.sum().item(), outcome.grad_norm.item()])

    plain = step_of()
    assert plain.tolist() == step_of(activation_checkpointing=True).tolist()
    perturbed = [step_of(4 * UNIT[torch.bfloat16], seed) for seed in range(4)]
    assert (np.abs(step_of(dtype="bfloat16") - plain) < np.abs(np.array(perturbed) - plain).max(axis=0)).all()


def test_without_a_limit_the_gradient_is_taken_as_it_is():
    """AdamW's first moment after one step is (1 - b1) times the gradient; a limit of 1e-3 would shrink it."""
    tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
    for grad_clip, whole in ((None, True), (1e-3, False)):
        options = TrainSection(grad_clip=grad_clip)
        torch.manual_seed(0)
        parallel = ParallelModel(Transformer(CONFIG), ALONE, options)
        optimizer = make_optimizer(parallel.model, options)
        step = TrainStep(parallel, optimizer, options, 2)
        outcome = step.update(*step.forward_backward(tokens, domains), 1e-3)
        moments = [each["exp_avg"] for each in optimizer.state.values()]
        taken = torch.nn.utils.get_total_norm(moments).item() / (1 - options.betas[0])
        assert (taken > 0.999 * outcome.grad_norm.item()) == whole


def test_a_micro_batch_that_does_not_divide_the_rows_changes_nothing():
    """8 rows as 3, 3 and 2: the same sums in another order, so float32 roundings of gradients relative to the largest.

    Taking each micro-batch for a third of the rows would be wrong by 12 %.
    """
    tokens, domains = torch.randint(97, (8, 17)), torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])
    found = []
    for rows in (None, 3):
        options = TrainSection(micro_batch_size=rows)
        torch.manual_seed(0)
        parallel = ParallelModel(Transformer(CONFIG), ALONE, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 2)
        sums, counts = step.forward_backward(tokens, domains)
        found.append((sums, counts, torch.cat([each.grad.flatten() for each in parallel.model.parameters()])))
    (sums, counts, gradient), (micro_sums, micro_counts, micro_gradient) = found
    torch.testing.assert_close(micro_sums, sums, rtol=2 * rounding(CONFIG.mlp_width), atol=0)
    assert micro_counts.tolist() == counts.tolist() == [5 * 16, 3 * 16]
    allowed = 2 * rounding(8 * 16) * gradient.abs().max().item()  # a sum over all tokens
    torch.testing.assert_close(micro_gradient, gradient, rtol=0, atol=allowed)


def test_ranks_that_are_given_the_same_rows_count_once(ranks):
    """Two ranks, both with all rows: what they sum to is what one rank sees."""
    (alone,) = ranks(1, steps_on_ranks.same_rows, 1)
    (both,) = ranks(2, steps_on_ranks.same_rows, 2)
    assert both == alone


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: numbers that leave it, and shapes that depend on numbers."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "bincount", "equal", "repeat_interleave")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert name not in self.WAITS, name
        assert not by_mask, f"{name} by a mask"
        assert not name.startswith("unique"), name
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(tiny_corpus):
    """Neither the model and the optimizer nor telling the policy; ADO's own refits are NumPy's."""
    corpus = open_corpus(tiny_corpus)
    options = TrainSection(micro_batch_size=2, activation_checkpointing=True)
    sizes = dataclasses.replace(CONFIG, vocab_size=corpus.tokenizer.vocab_size, context_length=corpus.seq_len)
    parallel = ParallelModel(Transformer(sizes), ALONE, options)
    dataset = AdaptiveStreamingDataset(corpus.domains, global_batch_size=4, mixture_lag=2)
    step = TrainStep(parallel, make_optimizer(parallel.model, options), options, len(dataset.names))
    policy = make_policy("ado", dict.fromkeys(dataset.names, 1.0), start_step=1, ignore_steps=0, interval=1)
    with AdaptiveLoader(dataset, policy, prefetch=0) as loader:
        for batch in itertools.islice(loader, 4):
            with NoWaiting():
                outcome = step.update(*step.forward_backward(batch["tokens"], batch["domain"]), 1e-3)
                loader.observe(*outcome.for_policy(), reduced=True)
        assert policy.step == 4
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
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
        model = Transformer(CONFIG)
        tokens, domains = torch.randint(97, (4, 17)), torch.tensor([0, 1, 1, 0])
        perturb(model, rounding(CONFIG.mlp_width) * (seed > 0), seed)
        parallel = ParallelModel(model, ALONE, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 2)
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


def test_schedule_warms_up_and_falls_to_its_floor():
    schedule = Schedule(peak=2.0, warmup_steps=4, steps=101, min_frac=0.1)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(100) == pytest.approx(0.2)
    assert schedule(52) == pytest.approx(1.1)  # half-way: the mean of peak and floor
    assert Schedule(1.0, 0, 1, 0.1)(0) == 1.0
