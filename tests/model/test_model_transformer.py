"""The transformer against Hugging Face's Qwen3, which has the same parts, and against its own definition."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from ado_model import ModelConfig, Transformer
from tests.rounding import UNIT, perturb, rounding

CONFIG = ModelConfig(num_layers=3, width=64, num_heads=4, vocab_size=211, context_length=48)


def draw(num_rows: int = 3, num_tokens: int = 40) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (num_rows, num_tokens + 1), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(3)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # weights of a size at which an error in any part shows
            parameter.add_(0.3 * torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    return model


def qwen3(model: Transformer):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.width,
        intermediate_size=CONFIG.mlp_width,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_heads,
        head_dim=CONFIG.head_width,
        rope_theta=CONFIG.rope_theta,
        rms_norm_eps=CONFIG.norm_eps,
        max_position_embeddings=CONFIG.context_length,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    oracle = Qwen3ForCausalLM(config)
    renamed = {f"model.{name}": value for name, value in model.state_dict().items()}
    oracle.load_state_dict({**renamed, "lm_head.weight": renamed["model.embed_tokens.weight"]})
    return oracle.train()


def qwen3_outputs(model: Transformer, perturbed: float = 0.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logits, loss and gradients by our names, computed by transformers in float64."""
    oracle, tokens = qwen3(model).double(), draw()
    perturb(oracle, perturbed, seed)
    logits = oracle(tokens[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    gradients = {name.removeprefix("model."): parameter.grad for name, parameter in oracle.named_parameters()}
    return {"logits": logits.detach(), "loss": loss.detach(), **gradients}


def test_forward_and_backward_equal_qwen3(model: Transformer):
    """Of every tensor the largest error is under what rounding does to the oracle's, whose weights are perturbed so."""
    expected = qwen3_outputs(model)
    perturbed = [qwen3_outputs(model, rounding(CONFIG.mlp_width), seed) for seed in range(4)]
    tokens = draw()
    loss, _, _ = model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 1, 0]), 2)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, ours in {"logits": model(tokens[:, :-1]), "loss": loss, **gradients}.items():
        largest = expected[name].abs().max().item()
        allowed = max((each[name] - expected[name]).abs().max().item() for each in perturbed) + rounding(1) * largest
        assert (ours.double() - expected[name]).abs().max().item() < allowed, name
        assert allowed < 1e-3 * largest, "an error in a part would not show"


def logit_size(model: Transformer, tokens: torch.Tensor) -> float:
    """The most that the products in one logit sum to in size: what its roundings are relative to."""
    with torch.no_grad():
        return (model.hidden(tokens).abs() @ model.embed_tokens.weight.abs().t()).max().item()


def test_loss_is_split_by_domain(model: Transformer):
    tokens = draw()
    domain_ids = torch.tensor([2, 0, 2])
    loss, sums, counts = model.loss(tokens[:, :-1], tokens[:, 1:], domain_ids, 4)
    losses = F.cross_entropy(model(tokens[:, :-1]).double().transpose(1, 2), tokens[:, 1:], reduction="none")
    allowed = 2 * rounding(CONFIG.width) * logit_size(model, tokens[:, :-1]) + rounding(CONFIG.vocab_size)  # a token
    per_row = losses.sum(1)
    expected = torch.stack(
        [
            per_row[1],
            torch.zeros((), dtype=torch.float64),
            per_row[0] + per_row[2],
            torch.zeros((), dtype=torch.float64),
        ]
    )
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=80 * allowed)
    assert counts.tolist() == [40, 0, 80, 0]
    torch.testing.assert_close(loss.double(), losses.mean(), rtol=0, atol=allowed)


def test_a_token_sees_only_the_past(model: Transformer):
    tokens = draw()[:, :-1]
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % CONFIG.vocab_size
    before, after = model(tokens), model(changed)
    allowed = 2 * rounding(CONFIG.width) * logit_size(model, tokens)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=allowed)
    assert (before[:, 20:] - after[:, 20:]).abs().amax(dim=(0, 2)).min() > 4 * allowed


def test_recomputed_blocks_give_the_same_gradients(model: Transformer):
    """The same operations run twice in the same order: equal to the bit."""
    tokens = draw()
    found = []
    for model.recompute_blocks in (False, True):
        model.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 1, 0]), 2)[0].backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_initialisation_is_the_documented_one():
    """Standard deviations of n draws are known to 1 / sqrt(2 n); the smallest matrix has 4096: 5 % is over 4 sigma."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        expected = 0.02 / math.sqrt(6) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name


def test_autocast_runs_the_blocks_in_bfloat16(model: Transformer):
    """No further off than with weights perturbed by four roundings to bfloat16: of both factors, product and sum."""
    tokens = draw()
    exact = model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 1, 0]), 2)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(tokens[:, :-1]).dtype == torch.bfloat16
        rough = model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 1, 0]), 2)[0]
    weights, moved = copy.deepcopy(model.state_dict()), []
    for seed in range(4):
        model.load_state_dict(weights)
        perturb(model, 4 * UNIT[torch.bfloat16], seed)
        moved.append(model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([0, 1, 0]), 2)[0].item() - exact.item())
    assert abs(rough.item() - exact.item()) < max(map(abs, moved))


def test_a_sequence_longer_than_the_context_is_refused(model: Transformer):
    with pytest.raises(ValueError, match="sequences of 49 tokens exceed the model's context of 48"):
        model(torch.zeros((1, 49), dtype=torch.int64))


@pytest.mark.parametrize(
    ("targets", "domains"), [((4, 8), (4,)), ((8, 4), (8,)), ((4, 8), (8, 4)), ((4, 8), (2,)), ((4, 8), (8,))]
)
def test_targets_and_domains_of_other_rows_are_refused(model: Transformer, targets: tuple, domains: tuple):
    """Numbers of them that fit by chance: of a transposed batch, of a whole one with a part of its tokens."""
    tokens, targets, domains = (torch.zeros(each, dtype=torch.int64) for each in ((4, 8), targets, domains))
    fits = targets.shape == (4, 8) and domains.shape == (4,)
    with nullcontext() if fits else pytest.raises(ValueError, match=r"tokens \(4, 8\) need targets of their shape"):
        model.loss(tokens, targets, domains, 1)


def test_tokens_without_rows_are_refused(model: Transformer):
    with pytest.raises(ValueError, match=r"tokens must be \(B, T\), got \(8,\)"):
        model(torch.zeros(8, dtype=torch.int64))


def test_tokens_of_any_width_have_the_same_logits(model: Transformer):
    tokens = draw()[:, :-1]
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model(tokens.to(dtype)), model(tokens))
    for wrong in (tokens.double(), tokens.bool()):
        with pytest.raises(ValueError, match=f"Transformer: tokens must be integers .* got {wrong.dtype}"):
            model(wrong)
    with pytest.raises(ValueError, match="Transformer: tokens must be a tensor, got list"):
        model(tokens.tolist())


def test_a_derivative_that_the_model_lacks_names_the_operation(model: Transformer):
    tokens, weights = draw()[:, :-1], {name: each.detach() for name, each in model.named_parameters()}

    def total(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (tokens,)).sum()

    with pytest.raises(RuntimeError, match="^rms_norm has no derivative by torch.func; use .* rms_norm_reference"):
        torch.func.grad(total)(weights)
    with pytest.raises(RuntimeError, match="^rms_norm has no forward-mode derivative; use rms_norm_reference"):
        torch.func.jvp(total, (weights,), (weights,))


@pytest.mark.parametrize("breaks", [False, True])
def test_the_loss_is_one_graph_to_dynamo(model: Transformer, breaks: bool):
    """Every operation of ours in it; also where the break comes first, which torch._dynamo.explain may not count."""
    tokens, domains = draw(), torch.tensor([0, 1, 0])

    def loss() -> torch.Tensor:
        if breaks:
            torch._dynamo.graph_break()
        return model.loss(tokens[:, :-1], tokens[:, 1:], domains, 2)[0]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported) if breaks else nullcontext():
        assert compiled().item() == pytest.approx(loss().item(), rel=1e-6)


def test_tokens_of_another_device_than_the_weights_are_refused():
    """torch's own embedding would return whatever memory it was given."""
    model, tokens = (
        Transformer(ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=32)),
        torch.zeros(1, 4).long(),
    )
    with pytest.raises(ValueError, match="Transformer: .* embed_tokens is on cpu and tokens on meta"):
        model(tokens.to("meta"))
    with pytest.raises(ValueError, match="Transformer: .* embed_tokens is on meta and tokens on cpu"):
        model.to("meta")(tokens)
