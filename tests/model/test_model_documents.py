"""Attention within documents: against each read by itself, transformers with a block mask, and flex_attention."""

import dataclasses

import pytest
import torch

from ado_model import ModelConfig, Transformer, attention
from tests.model.test_model_transformer import qwen3
from tests.rounding import rounding

END = 7
CONFIG = ModelConfig(num_layers=3, width=64, num_heads=4, vocab_size=211, context_length=48)


def packed(*lengths: int) -> torch.Tensor:
    """(2, sum) tokens: documents of these lengths, each with the end token last, and the same the other way round."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for order in (lengths, lengths[::-1]):
        row = torch.randint(END + 1, CONFIG.vocab_size, (sum(order),), generator=generator)
        row[torch.tensor(order).cumsum(0) - 1] = END
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(3)
    model = Transformer(dataclasses.replace(CONFIG, end_token=END)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("lengths", [(40,), (1, 1, 38), (13, 20, 7), (39, 1)])
def test_a_packed_document_has_the_logits_that_it_has_alone(model: Transformer, lengths: tuple[int, ...]):
    """But for its place: angles below 48 are rounded by up to 48 units otherwise."""
    tokens = packed(*lengths)
    logits = model(tokens)
    allowed = 48 * rounding(CONFIG.mlp_width, torch.float64) * logits.abs().max().item()
    for row, order in enumerate((lengths, lengths[::-1])):
        for part, ours in zip(tokens[row].split(order), logits[row].split(order), strict=True):
            torch.testing.assert_close(ours, model(part[None])[0], rtol=0, atol=allowed)


def test_gradients_do_not_cross_documents(model: Transformer):
    tokens = packed(13, 20, 7)
    model.recompute_blocks = True
    embedded = []
    model.embed_tokens.register_forward_hook(lambda _module, _args, out: embedded.append(out))
    logits = model(tokens)
    (gradient,) = torch.autograd.grad(logits[0, 13:33].sum(), embedded[0])
    outside = torch.ones(40, dtype=torch.bool)
    outside[13:33] = False
    assert gradient[0, 13:33].abs().max() > 0
    assert (gradient[0, outside] == 0).all()
    assert (gradient[1] == 0).all()


def test_the_logits_are_those_of_qwen3_with_a_block_mask(model: Transformer):
    tokens = packed(13, 20, 7)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor([13, 20, 7]))
    documents = torch.stack([document, torch.repeat_interleave(torch.arange(3), torch.tensor([7, 20, 13]))])
    sees = (documents[:, :, None] == documents[:, None, :]) & torch.ones(40, 40, dtype=torch.bool).tril()
    mask = torch.zeros(2, 1, 40, 40, dtype=torch.float64).masked_fill(~sees[:, None], -torch.inf)
    places = torch.stack([torch.cat([torch.arange(n) for n in order]) for order in ((13, 20, 7), (7, 20, 13))])
    expected = qwen3(model).double()(tokens, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-5)  # its rotary tables are float32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_blocks_of_a_mask_and_the_mask_give_the_same(monkeypatch: pytest.MonkeyPatch):
    """What a GPU runs, uncompiled; torch has its gradients on a GPU alone."""
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    tokens = packed(70, 120, 66)
    begins = torch.nn.functional.pad(tokens[:, :-1] == END, (1, 0), value=True)
    operands = torch.randn(3, 2, 2, 256, 16, dtype=torch.float64).unbind()
    by_mask = attention.attention(*operands, attention.document_mask(tokens, END))
    by_blocks = attention.attention(*operands, attention._block_mask(begins.cumsum(1)))
    torch.testing.assert_close(by_blocks, by_mask, rtol=1e-10, atol=1e-10)


def test_one_graph_serves_every_packing(model: Transformer):
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, fullgraph=True)
    for lengths in ((40,), (13, 20, 7), (1, 39)):
        tokens = packed(*lengths)
        torch.testing.assert_close(compiled(tokens), model(tokens), rtol=0, atol=1e-10)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # while compiling
def test_a_gpu_gives_what_the_cpu_gives(model: Transformer):
    tokens, single = packed(13, 20, 7), model.float()
    expected = single(tokens)
    torch.testing.assert_close(single.cuda()(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strict", [False, True])
def test_one_exported_program_serves_every_length(model: Transformer, strict: bool):
    """From one token on, which slices of the tokens would make a case of its own."""
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=CONFIG.context_length)}
    program = torch.export.export(model, (packed(13, 20, 7),), dynamic_shapes=(sizes,), strict=strict).module()
    for tokens in (packed(2), packed(1, 1), packed(13, 20, 15)[:1]):
        assert torch.equal(program(tokens), model(tokens))
