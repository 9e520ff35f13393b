"""The plan of a run: its figures, the settings it refuses, and the memory estimate against a count by hand."""

import math
import re
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from ado_model import PRESETS, ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.errors import ConfigError
from ado_stream.train import dry_run as dry_run_module
from ado_stream.train import trainer as trainer_module
from ado_stream.train.components import build_components
from ado_stream.train.distributed import DistributedContext, detect_context
from ado_stream.train.dry_run import check_memory, estimate_memory, plan_run
from ado_stream.train.run_config import TrainSection, load_config
from ado_stream.train.trainer import run_training

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALONE = DistributedContext(0, 1, CPU)


def test_plan_counts_tokens_epochs_and_repeats(settings: dict):
    settings["policy"]["prior"] = {"easy": 2.0, "medium": 1.0, "hard": 1.0}
    text = plan_run(load_config(settings), ALONE)
    assert f"tokens per step   {8 * 32}; {12 * 8 * 32:,} in all" in text
    domains = open_corpus(settings["corpus"]).manifest["domains"]
    for name, prior in (("easy", 0.5), ("medium", 0.25), ("hard", 0.25)):
        size = domains[name]["splits"]["train"]["samples"]
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        epochs, repeats_after = f"{12 * 8 * prior / size:.3f}", str(math.ceil(size / (8 * prior)))
        assert line.split()[1:] == [f"{prior:.3%}", epochs, "step", repeats_after]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy.options.start_step=100"], "start"),
        (["train.device=cuda"], "device 'cuda': torch"),
        (["data.prefetch=4"], "mixture_lag 2 is less than prefetch 4"),
        (["log.tensorboard=true"], "'log.tensorboard' needs the package tensorboard"),
        (["log.wandb=true"], "'log.wandb' needs the package wandb"),
        (["data.replication=2"], "replication 2 does not divide the 1 ranks"),
        (
            ["train.compile=true", "train.micro_batch_size=3"],
            "is 3, a rank has 8 rows: the last 2 would be compiled separately.\n  Set it to 2 or 4",
        ),
    ],
)
@pytest.mark.parametrize("start", [lambda config: plan_run(config, detect_context(config.train.device)), run_training])
def test_a_plan_refuses_what_a_run_refuses(settings: dict, monkeypatch, start, overrides: list[str], message: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for package in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        start(load_config(settings, overrides))
    assert message in str(caught.value)


def test_ranks_must_divide_the_batch(settings: dict):
    with pytest.raises(ConfigError, match="global_batch_size 8 is not a multiple of ranks 3; nearest: 6 or 9"):
        plan_run(load_config(settings), DistributedContext(0, 3, CPU))


def test_memory_of_124m_equals_a_count_by_hand(monkeypatch):
    """8 rows of 1024 tokens, N = 8192; bfloat16 on a GPU. D 768, MLP 2048, L 12, V 50304; 5632 rows of logits."""
    monkeypatch.setattr(dry_run_module, "_GPU_LOGITS_ROWS", 5632)
    model = PRESETS["124M"]
    plain = estimate_memory(model, TrainSection(), GPU, rows=8, num_tokens=1024, num_ranks=1)
    assert plain.state == 16 * 123_588_864
    assert plain.copies == 2 * 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    assert plain.activations == 2 * 8192 * (12 * (10 * 768 + 3 * 2048) + 2 * 768)
    # logits 0.567 GB; the weight in bfloat16 0.077 and its gradient in float32 0.155; the hidden states' 0.025
    assert plain.loss == 2 * 5632 * 50304 + 2 * 50304 * 768 + 4 * 50304 * 768 + 4 * 8192 * 768 == 823_590_912
    again = estimate_memory(model, TrainSection(activation_checkpointing=True), GPU, 8, 1024, 1)
    assert again.activations == 2 * 8192 * (12 * 2 * 768 + (10 * 768 + 3 * 2048))
    sharded = estimate_memory(model, TrainSection(strategy="fsdp"), GPU, 8, 1024, num_ranks=4)
    assert sharded.state == plain.state // 4
    assert sharded.copies == (2 + 4) * (50304 * 768 + 2 * (4 * 768 * 768 + 3 * 768 * 2048))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_saves(dtype: str, recompute: bool):
    """Oracle: what autograd saves. Not in the estimate: one float32 a row in each norm, 2 % at this width."""
    model = Transformer(ModelConfig(num_layers=4, width=128, num_heads=2, vocab_size=300, context_length=64))
    model.recompute_blocks = recompute
    options = TrainSection(dtype=dtype, activation_checkpointing=recompute)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randint(300, (4, 65))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss, *_ = model.loss(tokens[:, :-1], tokens[:, 1:], torch.zeros(4, dtype=torch.int64), 1)
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    loss_bytes = 4 * 300 * 128 + 4 * 256 * 128  # gradients of weight and hidden states
    found = sum(kept.values()) - loss_bytes
    estimate = estimate_memory(model.config, options, CPU, rows=4, num_tokens=64, num_ranks=1)
    itemsize = 4 if dtype == "float32" else 2
    if recompute:  # copies and one block's tensors come and go in the backward pass
        one_block = itemsize * 256 * (10 * 128 + 3 * model.config.mlp_width)
        assert found == pytest.approx(estimate.activations - one_block, rel=0.02)
    else:
        assert found == pytest.approx(estimate.activations + estimate.copies, rel=0.02)
    del loss


def test_a_plan_warns_of_repeats_and_of_memory_and_estimates_time(settings: dict, monkeypatch):
    settings["policy"] = {"name": "fixed", "options": {"weights": {"easy": 1, "medium": 1, "hard": 14}}}
    settings["train"]["steps"] = 400
    text = plan_run(load_config(settings), ALONE)
    (line,) = [line for line in text.splitlines() if line.startswith("hard ")]
    epochs = float(line.split()[2])
    assert epochs > 4
    (warning,) = [line for line in text.splitlines() if line.startswith("warning:")]
    assert warning.startswith(f"warning: hard would be read {epochs:.1f} times")
    assert re.search(r"time +about [0-9.]+ (second|minute)s: [0-9.e-]+ s a step", text)
    monkeypatch.setattr(dry_run_module, "_memory", lambda device: (1000, 10**12))
    monkeypatch.setattr(dry_run_module, "measure_step_s", None)  # must not be called: it would not fit
    text = plan_run(load_config(settings), ALONE)
    assert "warning: about" in text
    assert "but cpu has 0.0 GB free: lower train.micro_batch_size" in text
    assert "not measured: the memory does not suffice" in text


def test_a_model_whose_state_the_machine_cannot_hold_is_refused_before_it_is_made(settings: dict, monkeypatch):
    config = load_config(settings)
    model = build_components(config, ALONE).model
    needed = estimate_memory(model, config.train, CPU, 1, 1, 1).state
    assert needed == 16 * model.num_parameters
    monkeypatch.setattr(dry_run_module, "_memory", lambda device: (needed, needed))
    check_memory(model, config.train, ALONE)
    monkeypatch.setattr(dry_run_module, "_memory", lambda device: (needed, needed - 1))
    monkeypatch.setattr(trainer_module, "Transformer", None)
    with pytest.raises(ConfigError, match=r"moments need 0\.0 GB a rank, cpu has 0\.0 GB.\n  Choose a smaller 'model'"):
        run_training(config)


def test_the_time_of_a_step_is_that_of_its_passes_and_one_update(settings: dict, monkeypatch):
    """A clock that a pass moves by 3 s and an update by 0.5: 8 rows, one a pass on a CPU, take 24.5 s."""
    clock = [0.0]
    monkeypatch.setattr(dry_run_module, "_now_s", lambda device: clock[0])

    class Step:
        def __init__(self, *arguments):
            pass

        def forward_backward(self, tokens_BT, domain_B):
            clock[0] += 3.0 * len(domain_B)
            return None, None

        def update(self, *arguments):
            clock[0] += 0.5

    monkeypatch.setattr(dry_run_module, "TrainStep", Step)
    assert " 24.5 s a step" in plan_run(load_config(settings), ALONE)
