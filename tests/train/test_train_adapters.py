"""Other people's loops train on an adaptive stream: the loss falls and the policy is told every step."""

import pytest
import torch

from ado_model import ModelConfig, Transformer
from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.policy.registry import make_policy
from ado_stream.stream.dataset import AdaptiveStreamingDataset

NUM_STEPS = 30
SIZES = ModelConfig(num_layers=1, width=32, num_heads=2, vocab_size=320, context_length=32)


@pytest.fixture
def loader(tiny_corpus):
    domains, _, _ = open_corpus(tiny_corpus)
    dataset = AdaptiveStreamingDataset(domains, global_batch_size=8, mixture_lag=2)
    prior = dict(zip(dataset.names, dataset.prior_K, strict=True))
    policy = make_policy("ado", prior, start_step=4, ignore_steps=0, interval=4, total_steps=NUM_STEPS)
    with AdaptiveLoader(dataset, policy, prefetch=2, io_threads=1) as loader:
        yield loader


def test_plain_pytorch(loader):
    """The README's loop."""
    torch.manual_seed(0)
    model, losses = Transformer(SIZES), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in loader:
        tokens = batch["tokens"]
        loss, sums, counts = model.loss(tokens[:, :-1], tokens[:, 1:], batch["domain"], len(loader.dataset.names))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loader.observe(sums, counts)
        losses.append(loss.item())
        if loader.step == NUM_STEPS:
            break
    loader.flush()
    assert losses[-1] < losses[0] - 1
    assert loader.policy.step == NUM_STEPS


def test_hugging_face_trainer(loader, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments

    from ado_stream.adapters.hugging_face import STATE_FILE, AdaptiveTrainer

    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=NUM_STEPS, save_steps=NUM_STEPS, learning_rate=1e-2, logging_steps=1,
        use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = AdaptiveTrainer(Qwen3ForCausalLM(config), arguments, loader=loader)
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    assert losses[-1] < losses[0] - 1
    loader.flush()
    assert loader.policy.step == NUM_STEPS
    assert (tmp_path / f"checkpoint-{NUM_STEPS}" / STATE_FILE).exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Lightning's own
def test_lightning(loader, tmp_path):
    lightning = pytest.importorskip("lightning")
    from ado_stream.adapters.lightning import AdaptiveModule

    torch.manual_seed(0)
    module = AdaptiveModule(Transformer(SIZES), loader, lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    before = next(iter(module.model.parameters())).detach().clone()
    trainer = lightning.Trainer(
        max_steps=NUM_STEPS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module)
    loader.flush()
    assert loader.policy.step == NUM_STEPS
    assert not torch.equal(before, next(iter(module.model.parameters())))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert (tmp_path / "saved.ckpt").exists()
