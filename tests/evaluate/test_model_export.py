"""An exported model is the same model to transformers: same logits, same greedy tokens, same tokenizer."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ado_stream as ado
from ado_model import ModelConfig, Transformer
from ado_stream.corpus.tokenizer import load_tokenizer, train_tokenizer
from ado_stream.errors import ConfigError
from tests.rounding import perturb, rounding

CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=320, context_length=64)
TEXTS = [f"the {word} is {word * 2}; and so on, {number}" for number, word in enumerate(("cat", "dog", "ox") * 40)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(1)
    model = Transformer(CONFIG)
    with torch.no_grad():  # decided logits, so that greedy choices do not hang on the last bit
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def greedy(model: Transformer, tokens: torch.Tensor, num: int) -> torch.Tensor:
    for _ in range(num):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens


@torch.no_grad()
def test_transformers_loads_it_and_generates_the_same_tokens(model: Transformer, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = train_tokenizer(TEXTS, "bpe:300")
    folder = ado.export_hugging_face(model, tmp_path / "exported", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(2))
    perturbed = copy.deepcopy(model)
    perturb(perturbed, rounding(model.config.mlp_width))
    allowed = 2 * (perturbed(tokens) - model(tokens)).abs().max().item()  # float32 on both sides
    torch.testing.assert_close(loaded(tokens).logits, model(tokens), rtol=0, atol=allowed)
    written = loaded.generate(tokens, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(written, greedy(model, tokens, 20))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:5]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.eos_token_id == tokenizer.end_id == loaded.config.eos_token_id


def wrapped(model: Transformer, how: str) -> torch.nn.Module:
    """`model`, or a copy of it, in a wrapper that changes parameter names."""
    if how == "torch.compile":
        return torch.compile(model)
    if how == "DDP":
        return DistributedDataParallel(model)
    if how == "a module of the user's":
        return torch.nn.ModuleDict({"network": model})
    model = copy.deepcopy(model)
    for number, layer in enumerate(model.layers):
        model.layers[number] = torch.compile(layer) if how == "compiled layers" else checkpoint_wrapper(layer)
    return model


@pytest.mark.parametrize(
    "how", ["torch.compile", "compiled layers", "checkpoint_wrapper", "DDP", "a module of the user's"]
)
def test_a_wrapped_model_is_exported_as_the_plain_one(model: Transformer, tmp_path: Path, process_group, how: str):
    plain = ado.export_hugging_face(model, tmp_path / "plain")
    found = ado.export_hugging_face(wrapped(model, how), tmp_path / "wrapped")
    for name in ("model.safetensors", "config.json"):
        assert (found / name).read_bytes() == (plain / name).read_bytes()


def test_parameters_that_are_not_the_architectures_are_refused(model: Transformer, tmp_path: Path, process_group):
    """transformers would fill what it does not find with random numbers."""
    normed, extended, sharded = (copy.deepcopy(model) for _ in range(3))
    torch.nn.utils.parametrizations.weight_norm(normed.layers[0].mlp.up_proj)
    extended.lm_head = torch.nn.Linear(32, 320, bias=False)
    fully_shard(sharded)
    for refused, message in (
        (
            normed,
            r"1 missing or of another shape \(layers.0.mlp.up_proj.weight\), 2 unknown \(layers.0.mlp.up_proj.par",
        ),
        (extended, r"0 missing or of another shape \(\), 1 unknown \(lm_head.weight\)"),
        (sharded, "parameters are sharded"),
        (torch.nn.Linear(2, 2), "Linear has 0 ado_model.Transformer"),
    ):
        with pytest.raises(ConfigError, match=message):
            ado.export_hugging_face(refused, tmp_path / "refused")
    assert not list(tmp_path.iterdir())


class Scaled(torch.nn.Module):
    """A module of the user's whose name for what it wraps is DDP's, and which computes something else."""

    def __init__(self, module: torch.nn.Module, scale: torch.Tensor | None = None):
        super().__init__()
        self.module = module
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x) * 2


def test_a_layer_that_computes_something_else_is_not_taken_for_a_known_wrapper(model: Transformer, tmp_path: Path):
    for scale, message in (
        (torch.ones(2), r"0 missing or of another shape \(\), 1 unknown \(layers.0.mlp.up_proj.scale\)"),
        (None, "layers.0.mlp.up_proj is a Scaled, which is not written; unwrap it"),
    ):
        changed = copy.deepcopy(model)
        changed.layers[0].mlp.up_proj = Scaled(changed.layers[0].mlp.up_proj, scale)
        with pytest.raises(ConfigError, match=message):
            ado.export_hugging_face(changed, tmp_path / "refused")
    assert not list(tmp_path.iterdir())


def without_memory(weight: torch.Tensor) -> torch.Tensor:
    return weight.to("meta")


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """Its scale is lost."""
    return (weight * 100).to(torch.int8)


def narrow(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e4m3fn)


def of_a_subclass(weight: torch.Tensor) -> torch.Tensor:
    """As torchao's, whose numbers follow from several tensors."""
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(weight, weight)


def beyond_the_range(weight: torch.Tensor) -> torch.Tensor:
    return weight.double() + 1e300


def diverged(weight: torch.Tensor) -> torch.Tensor:
    return weight * torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_memory, "is a Parameter of torch.float32 on meta; expected floating-point numbers with memory"),
        (quantised, "is a Parameter of torch.int8"),
        (narrow, "is a Parameter of torch.float8_e4m3fn"),
        (of_a_subclass, "is a TwoTensor of"),
        (beyond_the_range, "has values that are not finite in float32"),
        (diverged, "has values that are not finite in float32"),
    ],
)
def test_values_that_are_no_finite_numbers_by_themselves_are_refused(model, tmp_path: Path, change, message: str):
    changed = copy.deepcopy(model)
    weight = change(changed.layers[0].mlp.up_proj.weight.detach())
    changed.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ConfigError, match=f"not exported: layers.0.mlp.up_proj.weight {message}"):
        ado.export_hugging_face(changed, tmp_path / "refused")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    small = Transformer(ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=256))
    with pytest.raises(ConfigError, match="the tokenizer has 257 ids, the model 256"):
        ado.export_hugging_face(small, tmp_path / "refused", load_tokenizer("bytes"))
    with pytest.raises(ConfigError, match="tokenizer is 'bytes'; expected an object of"):
        ado.export_hugging_face(small, tmp_path / "refused", "bytes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("written", ["float32", "bfloat16"])
def test_parameters_are_written_in_the_dtype_that_is_asked_for(model, tmp_path: Path, held, written: str):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = ado.export_hugging_face(copy.deepcopy(model).to(held), tmp_path / "exported", dtype=written)
    dtype = getattr(torch, written)
    expected = {f"model.{name}": value.detach().to(held).to(dtype) for name, value in model.named_parameters()}
    found = load_file(folder / "model.safetensors")
    assert {value.dtype for value in found.values()} == {dtype}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").dtype == dtype
    with pytest.raises(ConfigError, match="dtype 'float8'; expected one of float32, bfloat16"):
        ado.export_hugging_face(model, tmp_path / "other", dtype="float8")


def test_the_byte_tokenizer_gets_files_that_mean_the_same(model: Transformer, tmp_path: Path):
    from transformers import AutoTokenizer

    ours = load_tokenizer("bytes")
    theirs = AutoTokenizer.from_pretrained(ado.export_hugging_face(model, tmp_path / "exported", ours))
    for text in ("plain text", "  spaces\n\ttabs ", "Grüße, 世界 🎈", "<0x41> is not A", "\x00\x7f", ""):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == ours.end_id
    assert len(theirs) == ours.vocab_size


def test_the_tied_embedding_is_written_once(model: Transformer, tmp_path: Path):
    from safetensors import safe_open

    folder = ado.export_hugging_face(model, tmp_path / "exported")
    with safe_open(folder / "model.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
    assert numbers == CONFIG.num_parameters
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_a_folder_in_use_is_left_alone(model: Transformer, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; name a new folder"):
        ado.export_hugging_face(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("what", "where", "says"),
    [
        ({"a": 1}, "new", "not exported: model is {'a': 1}; expected an object of torch"),
        (None, "new", "not exported: model is None"),
        ("model", "file", "file is a file; name a new folder"),
        ("model", "", "out_dir is ''; expected a path"),
        ("model", "a\0b", "no path holds a NUL"),
    ],
)
def test_what_cannot_be_exported_is_named(model: Transformer, tmp_path: Path, monkeypatch, what, where, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=says):
        ado.export_hugging_face(model if what == "model" else what, where)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
