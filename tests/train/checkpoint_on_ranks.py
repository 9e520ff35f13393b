"""Saves and loads checkpoints with different numbers of ranks; rank 0 writes the results as JSON."""

import json
from pathlib import Path

import torch

from ado_model import ModelConfig
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_training_state
from ado_stream.train.distributed import join_process_group
from ado_stream.train.run_config import TrainSection
from tests.train.hot_loop import build_step

# Sizes that four ranks cannot divide evenly.
CONFIG = ModelConfig(num_layers=2, width=24, num_heads=2, vocab_size=97, context_length=16)


def save(strategy: str, folder: str, out: str) -> None:
    """Saves the values of seed 1 as step 1 under `folder`."""
    with join_process_group("cpu", 60) as context:
        checkpointer = Checkpointer(Path(folder), context, keep=1, asynchronous=False)
        checkpointer.save(_filled(context, strategy, seed=1), {"finished_steps": 1})
        if context.is_main:
            Path(out).write_text("[]")


def load(strategy: str, root: str, out: str) -> None:
    """{folder under `root`: names of the tensors that differ from seed 1's after loading its checkpoint}."""
    found = {}
    with join_process_group("cpu", 60) as context:
        expected = _whole(_filled(context, strategy, seed=1))
        for folder in sorted(Path(root).iterdir()):
            state = _filled(context, strategy, seed=2)
            load_training_state(folder / "step_00000001", context, state)
            loaded = _whole(state)
            found[folder.name] = [name for name in expected if not torch.equal(loaded[name], expected[name])]
        if context.is_main:
            Path(out).write_text(json.dumps(found))


def _filled(context, strategy: str, seed: int) -> TrainingState:
    """Parameters and moments with random values that are equal for any number of ranks."""
    options = TrainSection(strategy=strategy)
    _, parallel, optimizer = build_step(CONFIG, options, 1, context)
    state = TrainingState(parallel.model, optimizer)
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
