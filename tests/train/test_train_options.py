"""An option of a training step is held to what it does inside, since none may change the numbers that come out."""

import pytest
import torch

from ado_model import Transformer
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import World
from ado_stream.train.parallel import ParallelModel
from tests.train import options_on_ranks
from tests.train.options_on_ranks import CONFIG, NUM_MICRO


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_matrices_are_multiplied_in_the_dtype_asked_for(ranks, num_ranks: int):
    for strategy in ("ddp", "fsdp"):
        plain = ranks(num_ranks, options_on_ranks.main, {"strategy": strategy})
        narrow = ranks(num_ranks, options_on_ranks.main, {"strategy": strategy, "dtype": "bfloat16"})
        assert plain["computed torch.float32"] == narrow["computed torch.bfloat16"] == NUM_MICRO
        gathered = "torch.bfloat16" if (strategy, num_ranks) == ("fsdp", 2) else "torch.float32"  # FSDP sends it so
        assert narrow[f"weight {gathered}"] == NUM_MICRO


def test_blocks_are_computed_again_when_asked(ranks):
    for num_ranks, strategy in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        once = ranks(num_ranks, options_on_ranks.main, {"strategy": strategy})
        twice = ranks(num_ranks, options_on_ranks.main, {"strategy": strategy, "activation_checkpointing": True})
        assert (once["blocks"], twice["blocks"]) == (NUM_MICRO, 2 * NUM_MICRO)


def test_ddp_exchanges_gradients_once_a_step(ranks):
    found = ranks(2, options_on_ranks.main, {})
    assert (found["blocks"], found["exchanges"], found["units"]) == (NUM_MICRO, 1, 0)


def test_fsdp_has_a_unit_a_block_and_keeps_no_whole_gradient(ranks):
    """Each unit's gradient is scattered in every micro-batch: what is held between them is this rank's part."""
    found = ranks(2, options_on_ranks.main, {"strategy": "fsdp"})
    assert found["units"] == CONFIG.num_layers + 1
    assert found["reduce scatters"] == NUM_MICRO * found["units"]


def test_validation_leaves_fsdps_state_as_it_was(ranks):
    """FSDP keeps its root gathered after a forward pass without a backward one; a save then would find new moments."""
    assert ranks(2, options_on_ranks.state_after_validation) == [True]


def test_compiled_blocks_are_not_cut_by_ddp(monkeypatch):
    """DDP's buckets would end a graph inside a block."""
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    ParallelModel(Transformer(CONFIG), World(0, 1, torch.device("cpu")), TrainSection(compile=True))
    assert torch._dynamo.config.optimize_ddp is False
