"""Checkpoints of one world, loaded in another: what the tests run on each rank. Rank 0 writes its findings as JSON."""

import json
from pathlib import Path

import torch

from ado_model import ModelConfig, Transformer
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_training
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import join_world
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.step import make_optimizer

# Sizes that four ranks cannot divide evenly.
CONFIG = ModelConfig(num_layers=2, width=24, num_heads=2, vocab_size=97, context_length=16)


def save(strategy: str, folder: str, out: str) -> None:
    """Saves the numbers of seed 1 as step 1 under `folder`."""
    with join_world("cpu", 60) as world:
        Checkpointer(Path(folder), world, keep=1, asynchronous=False).save(1, _filled(world, strategy, seed=1))
        if world.is_main:
            Path(out).write_text("[]")


def load(strategy: str, root: str, out: str) -> None:
    """{folder under `root`: the tensors that are not those of seed 1 after loading its checkpoint}."""
    found = {}
    with join_world("cpu", 60) as world:
        expected = _whole(_filled(world, strategy, seed=1))
        for folder in sorted(Path(root).iterdir()):
            state = _filled(world, strategy, seed=2)
            load_training(folder / "step_00000001", world, state)
            loaded = _whole(state)
            found[folder.name] = [name for name in expected if not torch.equal(loaded[name], expected[name])]
        if world.is_main:
            Path(out).write_text(json.dumps(found))


def _filled(world, strategy: str, seed: int) -> TrainingState:
    """Parameters and moments with numbers that every world draws alike."""
    options = TrainSection(strategy=strategy)
    parallel = ParallelModel(Transformer(CONFIG), world, options)
    optimizer = make_optimizer(parallel.model, options)
    state = TrainingState(parallel.model, optimizer, {})
    torch.manual_seed(seed)
    for tensor in state.tensors().values():
        if tensor.dtype == torch.float32:
            drawn = torch.randn(tensor.shape)
            if hasattr(tensor, "full_tensor"):
                drawn = torch.distributed.tensor.distribute_tensor(drawn, tensor.device_mesh, tensor.placements)
            tensor.copy_(drawn)
    return state


def _whole(state: TrainingState) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()
        for name, tensor in state.tensors().items()
    }
