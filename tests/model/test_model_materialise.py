"""A model built on the meta device computes what one built with memory does, however it gets its weights."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard

from ado_model import ModelConfig, Transformer
from tests.rounding import rounding

CONFIG = ModelConfig(num_layers=2, width=64, num_heads=4, vocab_size=211, context_length=48)
TOKENS = torch.arange(80).view(2, 40)


def built():
    torch.manual_seed(3)
    return Transformer(CONFIG)


def on_meta():
    with torch.device("meta"):
        return Transformer(CONFIG)


def poisoned_empty(model):
    """`to_empty`, with NaN for what uninitialised memory may hold."""
    return model._apply(lambda tensor: torch.full_like(tensor, torch.nan, device="cpu"))


def to_empty(expected):
    model = poisoned_empty(on_meta())
    model.load_state_dict(expected.state_dict(), strict=True)
    return model


def assigned(expected):
    model = on_meta()
    model.load_state_dict(expected.state_dict(), strict=True, assign=True)
    return model


def initialised(expected):
    model = poisoned_empty(on_meta())
    for each in (model, expected):
        torch.manual_seed(3)
        each.initialise()
    return model


def filled(expected):
    """As a trainer with an initialiser of its own does: parameter by parameter."""
    model = poisoned_empty(on_meta())
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            mine.copy_(theirs)
    return model


def pickled(expected):
    return pickle.loads(pickle.dumps(assigned(expected)))


def by_module(expected):
    """As FSDP1 does: each module alone, the weights after the root, which has the tables."""
    model = on_meta()
    for module in model.modules():
        module._apply(lambda tensor: torch.full_like(tensor, torch.nan, device="cpu"), recurse=False)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            mine.copy_(theirs)
    return model


def by_parameter(expected):
    """As transformers and accelerate do: new parameters in the modules, one by one."""
    model = on_meta()
    for name, value in expected.named_parameters():
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, torch.nn.Parameter(value.detach().clone()))
    return model


def by_parameter_and_moved(expected):
    """As accelerate's load_checkpoint_and_dispatch does afterwards."""
    return by_parameter(expected).to("cpu")


def fake(expected):
    """Built as torch's estimates of memory build it, then loaded."""
    with FakeTensorMode():
        model = Transformer(CONFIG)
    model.load_state_dict(expected.state_dict(), assign=True)
    return model


def loaded(model, **options):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False, **options)


def loaded_without_memory(expected):
    model = loaded(expected, map_location="meta").to_empty(device="cpu")
    model.load_state_dict(expected.state_dict())
    return model


def loaded_from_a_skeleton(expected):
    """A file that leaves out the numbers, which are then filled in parameter by parameter."""
    with torch.serialization.skip_data():
        model = loaded(expected)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            mine.copy_(theirs)
    return model


def called_with_weights(expected):
    """A skeleton without memory, as torch.func takes it; weights offloaded when not in use are met like this, too."""
    model, weights = on_meta(), dict(expected.named_parameters())
    return lambda tokens: torch.func.functional_call(model, weights, (tokens,))


WAYS = [
    to_empty, assigned, initialised, filled, pickled, by_module, by_parameter, by_parameter_and_moved,
    fake, loaded_without_memory, loaded_from_a_skeleton, called_with_weights,
]  # fmt: skip


@pytest.mark.parametrize("materialise", WAYS)
def test_logits_are_those_of_a_model_built_with_memory(materialise):
    expected = built()
    assert torch.equal(materialise(expected)(TOKENS), expected(TOKENS))


def test_tables_that_a_model_got_in_inference_mode_serve_in_training():
    model = by_parameter(built())
    with torch.inference_mode():
        model(TOKENS)
    model.loss(TOKENS, TOKENS, torch.tensor([0, 0]), 1)[0].backward()


def test_a_skeleton_with_tables_in_memory_computes_shapes():
    model = on_meta()
    model._restore_rotary_tables(torch.empty(0))
    assert not model.rotary_cos.is_meta
    assert model(TOKENS.to("meta")).shape == (2, 40, 211)


def test_accelerate_loads_and_dispatches_it(tmp_path):
    """Its empty weights with tables that have memory, and without."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from safetensors.torch import save_file

    expected = built()
    save_file(expected.state_dict(), tmp_path / "model.safetensors")
    for include_buffers in (False, True):
        with init_empty_weights(include_buffers=include_buffers):
            model = Transformer(CONFIG)
        model = load_checkpoint_and_dispatch(model, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
        assert torch.equal(model(TOKENS), expected(TOKENS))


def test_tables_keep_their_dtype_and_their_memory():
    model = built().bfloat16()
    assert model.rotary_cos.dtype == torch.bfloat16
    assert torch.equal(model.rotary_cos, built().rotary_cos.bfloat16())
    shared = built().share_memory()
    assert shared.rotary_cos.is_shared()
    assert torch.equal(copy.deepcopy(shared).rotary_sin, built().rotary_sin)


def by_assignment(weights):
    model = built().bfloat16()
    model.load_state_dict(weights, assign=True)
    return model


def by_call(weights):
    model = built().bfloat16()
    model(TOKENS)
    return lambda tokens: torch.func.functional_call(model, weights, (tokens,))


def by_default(weights):
    default = torch.get_default_dtype()
    torch.set_default_dtype(next(iter(weights.values())).dtype)
    try:
        model = built()
    finally:
        torch.set_default_dtype(default)
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("take", [by_assignment, by_call, by_default])
def test_tables_are_as_wide_as_weights_that_replace_narrower_ones(take, dtype):
    expected = built().to(dtype)
    assert torch.equal(take(expected.state_dict())(TOKENS), expected(TOKENS))


def test_a_model_of_float64_has_tables_of_float64():
    """Oracle: the formula in another library. Tables that were rounded to float32 would leave eight digits."""
    angle = np.arange(48)[:, None] * 10_000.0 ** (-np.arange(0, 16, 2) / 16)
    # an angle below 48 is rounded by 2^-48 at most, and the two libraries' powers by some last places
    assert np.abs(built().double().rotary_cos.numpy() - np.cos(angle)).max() < 48 * rounding(4, torch.float64)


def test_a_model_of_float64_stays_so_under_autocast():
    model = built().double()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(TOKENS).dtype == torch.float64


@pytest.mark.usefixtures("process_group")
def test_fully_shard_on_the_meta_device():
    """torchtitan's order: built on meta, sharded, given memory, then loaded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh

    expected, model = built(), on_meta()
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    set_model_state_dict(model, expected.state_dict(), options=StateDictOptions(full_state_dict=True))
    assert torch.equal(model.rotary_cos, expected.rotary_cos)
    assert torch.equal(model(TOKENS), expected(TOKENS))


def test_one_graph_serves_sequences_of_many_lengths():
    """The first length makes a graph, the second the one for all; marking the dimension makes it at once."""
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module

    torch._dynamo.reset()
    model = built()
    loss = torch.compile(model.loss, backend=backend, fullgraph=True)
    ids = torch.tensor([0, 1])
    for length in (7, 9, 12, 15, 21, 30, 40):
        tokens = TOKENS[:, :length].contiguous()
        expected = model.loss(tokens, tokens, ids, 2)[0]
        torch.testing.assert_close(loss(tokens, tokens, ids, 2)[0], expected)
    assert len(graphs) == 2
    torch._dynamo.reset()
    graphs.clear()
    for length in (7, 9, 12):
        tokens = TOKENS[:, :length].contiguous()
        torch._dynamo.mark_dynamic(tokens, 1)
        loss(tokens, tokens, ids, 2)
    assert len(graphs) == 1
