"""The README's loop with the model wrapped by DDP, FSDP2 and torch.compile: it trains as the plain model does.

Oracle: the same loop of one process without a wrapper. Results may differ as far as from perturbed weights
(tests/rounding.py), in the mean of a tensor, since AdamW's first steps follow the sign of each gradient.
"""

from pathlib import Path

import pytest
import torch

from tests.train import own_loop_on_ranks
from tests.train.child_processes import ChildProcesses


@pytest.fixture(scope="module")
def run(children: ChildProcesses, tiny_corpus: Path, tmp_path_factory):
    def run(function, *arguments, num_ranks: int = 1) -> dict[str, torch.Tensor]:
        out = tmp_path_factory.mktemp("own") / "found.pt"
        children.run(function, *arguments, str(tiny_corpus), str(out), num_ranks=num_ranks)
        return torch.load(out)

    return run


@pytest.fixture(scope="module")
def plain(run) -> dict[str, torch.Tensor]:
    return run(own_loop_on_ranks.main, "plain", "model")


@pytest.fixture(scope="module")
def perturbed(run) -> list[dict[str, torch.Tensor]]:
    return [run(own_loop_on_ranks.perturbed, seed) for seed in range(3)]


@pytest.mark.parametrize(
    ("wrapper", "call", "num_ranks"),
    [
        ("ddp", "model", 2),
        ("fsdp", "model", 2),
        # a method that calls the module, so that FSDP's hooks run
        pytest.param("fsdp", "model.loss", 2, marks=pytest.mark.slow),
        pytest.param("compile without inductor", "model", 1, marks=pytest.mark.slow),
        pytest.param("compile", "model", 1, marks=pytest.mark.slow),
    ],
)
def test_a_wrapped_model_trains_as_the_plain_one(run, plain, perturbed, wrapper: str, call: str, num_ranks: int):
    found = run(own_loop_on_ranks.main, wrapper, call, num_ranks=num_ranks)
    assert plain["losses of domains"].shape == (20, 3)
    assert plain["losses of domains"][-1].nanmean() < plain["losses of domains"][0].nanmean() - 1
    for name, value in plain.items():
        allowed = max(distance(other[name], value) for other in perturbed)
        assert distance(found[name], value) <= allowed, name
        assert allowed < 0.01 * value.abs().nanmean().item(), "an error would not show"


def test_calling_past_the_wrapper_would_be_noticed(run, plain, perturbed):
    """`.module` of DDP: no gradient is exchanged, and the ranks' weights drift apart."""
    found = run(own_loop_on_ranks.main, "ddp", "model.module", num_ranks=2)
    name = "embed_tokens.weight"
    assert distance(found[name], plain[name]) > 10 * max(distance(other[name], plain[name]) for other in perturbed)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean absolute difference. A domain without tokens in a step has no loss, in both then."""
    assert torch.equal(one.isnan(), other.isnan())
    return (one - other).abs().nanmean().item()
