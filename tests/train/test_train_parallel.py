"""What options of a training step do inside it, counted there because none may change the results."""

import functools

import pytest
import torch

from ado_model import Transformer
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection
from tests.train import parallel_on_ranks
from tests.train.parallel_on_ranks import CONFIG, NUM_MICRO


@pytest.fixture(scope="module")
def counted(ranks):
    """What parallel_on_ranks counts under options of TrainSection; the tests share a run of the same ones."""

    @functools.cache
    def run(num_ranks: int, strategy: str, **options):
        return ranks(num_ranks, parallel_on_ranks.main, {"strategy": strategy, **options})

    return run


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_matrices_are_multiplied_in_the_configured_dtype(counted, num_ranks: int):
    for strategy in ("ddp", "fsdp"):
        plain, narrow = counted(num_ranks, strategy), counted(num_ranks, strategy, dtype="bfloat16")
        assert plain["computed torch.float32"] == narrow["computed torch.bfloat16"] == NUM_MICRO
        gathered = "torch.bfloat16" if (strategy, num_ranks) == ("fsdp", 2) else "torch.float32"  # FSDP sends it so
        assert narrow[f"weight {gathered}"] == NUM_MICRO


def test_activation_checkpointing_computes_blocks_twice(counted):
    for num_ranks, strategy in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        once, twice = counted(num_ranks, strategy), counted(num_ranks, strategy, activation_checkpointing=True)
        assert (once["blocks"], twice["blocks"]) == (NUM_MICRO, 2 * NUM_MICRO)


def test_ddp_reduces_gradients_once_a_step(counted):
    found = counted(2, "ddp")
    assert (found["blocks"], found["exchanges"], found["units"]) == (NUM_MICRO, 1, 0)


def test_fsdp_has_one_unit_per_block_and_reduces_in_every_micro_batch(counted):
    """Each unit's gradient is reduce-scattered in every micro-batch: between them a rank holds its shard only."""
    found = counted(2, "fsdp")
    assert found["units"] == CONFIG.num_layers + 1
    assert found["reduce scatters"] == NUM_MICRO * found["units"]


def test_validation_leaves_the_fsdp_state_unchanged(ranks):
    """After a forward pass alone FSDP keeps its root gathered; a save would then create new moments."""
    assert ranks(2, parallel_on_ranks.state_after_validation) == [True]


def test_a_sharded_model_is_initialised_as_an_unsharded_one(ranks):
    """Drawn shard by shard, both ranks would have the same rows."""
    assert ranks(2, parallel_on_ranks.initialised_on_meta) == []


def test_ddp_does_not_split_the_graphs_of_compiled_blocks():
    """DDP's optimizer would end a graph at each bucket."""
    with torch._dynamo.config.patch(optimize_ddp=True):
        ParallelModel(Transformer(CONFIG), DistributedContext(0, 1, torch.device("cpu")), TrainSection(compile=True))
        assert torch._dynamo.config.optimize_ddp is False
