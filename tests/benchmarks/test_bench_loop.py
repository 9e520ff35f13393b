"""The plain loop is of the same model, and the benchmark of `train` against it runs."""

import torch

from ado_model import PRESETS, Transformer
from benchmarks import bench_loop
from tests.rounding import perturb, rounding
from tests.train.tiny_model import TINY_MODEL


def test_the_plain_loops_model_is_the_same():
    torch.manual_seed(0)
    model = Transformer(TINY_MODEL)
    tokens_BT = torch.randint(TINY_MODEL.vocab_size, (2, 16))
    expected = model(tokens_BT)
    found = bench_loop.plain_logits(model, tokens_BT)
    perturb(model, rounding(model.config.mlp_width))
    allowed = 2 * (model(tokens_BT) - expected).abs().max().item()  # float32 on both sides
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)


def test_windows_are_paired(monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", TINY_MODEL)
    monkeypatch.setattr(bench_loop, "NUM_TOKENS", 32)
    monkeypatch.setattr(bench_loop, "NUM_DOMAINS", 2)
    found = bench_loop.measure(pairs=2, steps=2, preset="micro")
    low, high = found["ratio_interval_95"]
    assert low <= found["ratio"] <= high
    assert found["train_parts_s"].keys() == {
        "data", "forward_backward", "optimizer", "policy", "checkpoint", "total"
    }  # fmt: skip
